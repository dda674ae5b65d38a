"""Metrics: x0-error, bits/dim, features, FID and its relatives, each with its interval."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
