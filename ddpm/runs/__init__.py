"""The run directory: durable writes, lock, checkpoints, logs."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
