"""Cluster: Ray, submitit, SLURM; the only room that imports ray and submitit."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
