"""Diffusion mathematics: keyed randomness, schedules, the process, the network, EMA; torch alone."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
