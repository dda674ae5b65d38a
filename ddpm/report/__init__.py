"""Report: from a finished sweep to an answer and its page."""

from ddpm import attach

__getattr__, __dir__ = attach(__name__, __file__)
