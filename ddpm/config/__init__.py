"""Configuration: YAML and overrides in, a checked Config out, and what identifies a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
