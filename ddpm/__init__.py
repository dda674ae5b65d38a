"""Noise schedules, prediction types and timesteps of diffusion models, trained and compared.

The public names load on first use (PEP 562), so `import ddpm.config` stays free of torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
