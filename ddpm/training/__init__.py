"""Training: the step, the loop, the worker."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
