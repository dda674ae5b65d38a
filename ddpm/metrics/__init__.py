"""Metrics: x0-error, bits/dim, features, FID and its relatives, each with its interval."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
