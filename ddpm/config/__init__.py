"""Configuration: YAML and overrides in, a checked Config out, and what identifies a run."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
