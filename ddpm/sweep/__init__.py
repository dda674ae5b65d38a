"""Sweep: grid, trial, ledger, search space: what is to be trained."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
