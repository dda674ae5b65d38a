"""Sampling: spacings, samplers, guidance, tasks, images in bulk."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
