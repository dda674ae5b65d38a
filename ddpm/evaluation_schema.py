"""The keys of EVALUATION: what networks are compared by, while they train and at the end."""

from dataclasses import dataclass

from ddpm.options import option
from ddpm.quality_schema import QualityOptions

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Evaluation(QualityOptions):
    """What trained networks are compared by."""

    EVERY: int | None = option(None, "Epochs between evaluations; null = only at the end", low=1)
    NUM: int = option(256, "Validation images evaluated", low=1)
    FEATURES: str | None = option(
        None,
        "Draw SAMPLES images at every evaluation while training, and compare them by these; "
        "null = only networks are compared",
        choices=("classifier", "pixels", "inception"),
    )
    WEIGHTS: str | None = option(
        None,
        "File with the weights of FEATURES inception, safetensors (docs/metrics.md)",
        pattern=r"(?s).*\S.*",
        is_machine=True,
    )
    SAMPLES: int = option(1024, "Images drawn at every evaluation where FEATURES are given", low=64)
    BEST: str | None = option(
        None,
        "Measure whose best, lowest evaluation has its checkpoint kept; null = none",
        choices=("mean_log10_mse", "snr_weighted_mse", "fid_infinity", "kid"),
    )
    PATIENCE: int | None = option(
        None, "Evaluations without a better BEST after which training ends; null = never", low=1
    )
    SEED: int = option(
        0, "Seed of the split, evaluation noise and sample grids", low=0, high=_LARGEST_SEED
    )
