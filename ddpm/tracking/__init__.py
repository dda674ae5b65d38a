"""Tracking: Weights & Biases; the only room that imports wandb."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
