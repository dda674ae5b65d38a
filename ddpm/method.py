"""The choices of a walk: how levels are spaced and steps taken, and where it begins."""

from dataclasses import dataclass

from torch import Tensor

from ddpm.diffusion import check_choice
from ddpm.samplers import SAMPLERS, X0Variance
from ddpm.spacing import MAX_VISITS


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the reverse process is walked.

    sampler: one of SAMPLERS.  spacing: one of SPACINGS; all but trailing with num_steps.
    between: the logsnr that spacing goes from and to, as in spacing.levels().
    dynamic_threshold: the percentile, in (0, 1], by which clip_denoise bounds x0_hat; None is 1.
    resamples: times every step but the last is taken again, from x_s renoised to t, so that what a
        constraint fixed and what is drawn come to agree (Lugmayr et al. 2022, jumps of one step).
    x0_variance: Var(x0 | x_t) at a logsnr, for the analytic sampler.
    Raises ValueError for what cannot be.
    """

    sampler: str = "ddim"
    spacing: str = "trailing"
    between: tuple[float, float] | None = None
    dynamic_threshold: float | None = None
    resamples: int = 0
    x0_variance: X0Variance | None = None

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, tuple(SAMPLERS))
        if self.dynamic_threshold is not None and not 0.0 < self.dynamic_threshold <= 1.0:
            raise ValueError(
                f"dynamic_threshold is {self.dynamic_threshold}; give one above 0, at most 1"
            )
        if not 0 <= self.resamples < MAX_VISITS:
            raise ValueError(f"resamples is {self.resamples}; give one from 0 to {MAX_VISITS - 1}")
        if self.sampler == "analytic" and self.x0_variance is None:
            raise ValueError("sampler is analytic but x0_variance is missing; give both")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a walk begins, if not in noise at time 1: alpha x0 + sigma noise.

    time: in (0, 1]; the walk is the part of the path at or below it.
    x0: (N, C, H, W), the images to begin from (SDEdit, Meng et al. 2022); None: none, at time 1.
    """

    time: float = 1.0
    x0: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x0 is None and self.time != 1.0:
            raise ValueError(f"the start is at time {self.time} without x0; give images, or time 1")
