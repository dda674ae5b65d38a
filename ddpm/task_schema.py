"""Keys of IMAGE_GENERATION that say what is drawn, and what each task needs; ddpm/tasks.py."""

from dataclasses import dataclass

from ddpm.options import option
from ddpm.sampler_schema import SamplerOptions

GEN_TASKS = (
    *("random_uncond", "class_cond", "channel_inpaint"),  # v3's
    *("inpaint", "sdedit", "interpolate"),
)
_SOME_TEXT = r"(?s).*\S.*"


@dataclass(frozen=True, kw_only=True)
class TaskOptions(SamplerOptions):
    """What is drawn."""

    GEN_TASK: str = option("random_uncond", "What is drawn", choices=GEN_TASKS)
    EXTERNAL_NPZ_INPUT: str | None = option(
        None,
        "NPZ with `images` (N, H, W, C) in [0, 1], the base of channel_inpaint, inpaint, sdedit; "
        "inpaint needs `mask` (H, W) or (N, H, W) too, true where the image is known",
        pattern=_SOME_TEXT,
    )
    CLASS_LABEL: int | tuple[int, ...] | None = option(
        None,
        "Class or classes, in turn; null = every class for class_cond, else none",
        low=0,
        high=10**6,
        min_items=1,
    )
    FREEZE_CHANNEL: int | None = option(None, "The known channel of channel_inpaint, from 0", low=0)
    KNOWN_NOISE: str = option(
        "fixed",
        "Noise of a step on what inpainting keeps: fixed = that the image starts from, fresh = "
        "another at every step, none = kept clean, as v3 does",
        choices=("fixed", "fresh", "none"),
    )
    RESAMPLES: int = option(
        0, "How often inpainting takes each step again (RePaint); 0 = never", low=0, high=15
    )
    STRENGTH: float = option(
        0.5, "Noise level that sdedit begins at: its time, 1 = pure noise", above=0, high=1
    )
    BETWEEN: tuple[int, int] | None = option(
        None, "The two image numbers that interpolate leads from and to", low=0, is_unique=True
    )
