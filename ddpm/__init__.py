"""Noise schedules, prediction types and timesteps of diffusion models, trained and compared.

The public names load on first use (PEP 562), so `import ddpm.config` stays free of torch.
"""

from importlib import import_module

_HOME = {
    "NoiseSchedule": "schedule",
    "UNet": "unet",
    "DiffusionModel": "model",
    "q_sample": "diffusion",
    "ddim_step": "sampling",
    "reverse_timesteps": "spacing",
    "sample": "sampling",
    "sample_steps": "sampling",
    "sample_images": "generate",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(
            f"module 'ddpm' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(f"ddpm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
