"""Diffusion mathematics: keyed randomness, schedules, process, network, EMA; torch alone."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
