"""The keys of IMAGE_GENERATION that say how a trained network becomes images, whatever the task."""

from dataclasses import dataclass

from ddpm.options import Section, option

SAMPLERS = ("ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde", "analytic")
SPACINGS = ("trailing", "linspace", "logsnr", "karras")


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(Section):
    """From noise to images."""

    REVERSE_STRIDE: int | None = option(
        None, "Timesteps per reverse step; not with NUM_STEPS", low=1
    )
    NUM_STEPS: int | None = option(
        None, "Reverse steps, spaced by SPACING; both null = min(50, TIMESTEPS)", low=1, high=10**6
    )
    SPACING: str = option(
        "trailing",
        "Where the steps lie: evenly from T down, evenly from T to 1, even in log SNR, or Karras' "
        "rho 7; the last two may be more than TIMESTEPS",
        choices=SPACINGS,
    )
    SAMPLER: str = option(
        "ddim",
        "ddim with DDIM_ETA; ddpm = ancestral, eta 1; heun = 2nd order, two network calls a step; "
        "dpmpp_2m = DPM-Solver++, one call, and _sde with noise; analytic = ancestral with optimal "
        "variance, from the run's evaluation",
        choices=SAMPLERS,
    )
    DDIM_ETA: float = option(
        1.0, "Noise of a reverse step of ddim: 0 none, 1 that of DDPM", low=0, high=1
    )
    GUIDANCE: float = option(1.0, "Guidance away from a worse prediction; 1 = off", low=0, high=100)
    GUIDE: str | None = option(
        None,
        "The worse prediction: null = of the null class; else of other weights: `model`, an EMA "
        "decay such as 0.9, or another run or checkpoint",
        pattern=r"(?s).*\S.*",
    )
    GUIDANCE_INTERVAL: tuple[float, float] | None = option(
        None, "[lowest, highest] log SNR that is guided; null = all", low=-100, high=100
    )
    GUIDANCE_RESCALE: float = option(
        0.0, "Share of the plain prediction's standard deviation given back", low=0, high=1
    )
    CLIP_DENOISE: bool = option(
        False, "Clip the estimate of the clean image to [-1, 1] at every step"
    )
    DYNAMIC_THRESHOLD: float | None = option(
        None,
        "CLIP_DENOISE by this percentile of an image's absolute values; null = at 1",
        above=0,
        high=1,
    )
    RECOMPUTE_NOISE: bool = option(True, "After CLIP_DENOISE, make the noise fit the clipped image")
