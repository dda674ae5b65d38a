"""The keys of EVALUATION that say how the samples of a finished network are measured."""

from dataclasses import dataclass

from ddpm.options import Section, option


@dataclass(frozen=True, kw_only=True)
class QualityOptions(Section):
    """Quality of samples over numbers of steps and eta; ddpm/sample_quality.py."""

    SAMPLING_STEPS: tuple[int, ...] = option(
        (),
        "At the end, draw SAMPLING_NUM images in each of these numbers of steps, such as "
        "[10, 50], and measure FID, KID and class accuracy; [] = never",
        low=1,
        high=10**6,
        is_unique=True,
    )
    SAMPLING_ETAS: tuple[float, ...] = option(
        (0.0,),
        "Each of SAMPLING_STEPS is walked with each eta of ddim: 0 no noise, 1 that of DDPM",
        low=0,
        high=1,
        min_items=1,
        is_unique=True,
    )
    SAMPLING_NUM: int = option(
        512, "Images drawn for each of these, the same for every run", low=64
    )
    SAMPLING_LOGSNR: tuple[float, float] | None = option(
        None,
        "[lowest, highest] log SNR of these walks, evenly spaced between, the same for every noise "
        "schedule; null = evenly spaced timesteps of the run's own",
        low=-100,
        high=100,
        is_unique=True,
    )
