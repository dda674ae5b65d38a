"""One configuration value: its limits, and reading it as its field's type.

YAML gives text: `Plain` marks what stood there unquoted, so that `NAME: on` and `NAME: 007` stay
text while `COMPILE: on` and `TIMESTEPS: 7` do not.
"""

import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import TypeVar

from ddpm.errors import InputError

Value = bool | int | float | str | None | tuple["Value", ...]

SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LOCAL_FOLDER = r"(?i:off)|[/$](?s:.+)"
_NULL = ("", "~", "null")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
# No octal (010), no sexagesimal (1:30), no 1_000: what two YAML readers disagree on is refused.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST = 2**31 - 1


class Plain(str):
    """A YAML scalar that stood unquoted: the field's type decides what it means."""


class Refused(ValueError):
    """A value that its field does not allow; the text says what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What one key means and allows. Limits hold for every item of a list."""

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    pattern: str | None = None
    min_items: int = 0
    is_unique: bool = False
    is_machine: bool = False


def read_value(value: object, hint: object, limits: Option) -> Value:
    """`value` (YAML text or a Python value) as the type `hint`, inside its limits; else Refused."""
    kinds = _kinds(hint)
    if is_null(value):
        if type(None) in kinds:
            return None
        raise Refused(describe(hint, limits))
    for kind in (kind for kind in kinds if kind is not type(None)):
        read = _read_list(value, kind, limits) if _is_list(kind) else _read_one(value, kind, limits)
        if read is not None:
            return read
    raise Refused(describe(hint, limits))


def is_null(value: object) -> bool:
    """Whether a value means null: None, or one of YAML's words for it, unquoted."""
    return value is None or (isinstance(value, Plain) and value.lower() in _NULL)


def _read_list(value: object, kind: object, limits: Option) -> tuple[Value, ...] | None:
    if not isinstance(value, (list, tuple)) or len(value) < limits.min_items:
        return None
    item_kind, *rest = typing.get_args(kind)
    if rest[0] is not Ellipsis and len(value) != 1 + len(rest):
        return None
    items = tuple(_read_one(item, item_kind, limits) for item in value)
    is_repeated = limits.is_unique and len(set(items)) < len(items)
    return None if None in items or is_repeated else items


def _read_one(value: object, kind: object, limits: Option) -> Value:
    """One scalar as `kind`, or None when it is not one or lies outside the limits."""
    if is_null(value):
        return None
    if kind is bool:
        return _read_bool(value)
    if kind is str:
        return _read_text(value, limits)
    number = _read_number(value, is_integer=kind is int)
    return number if number is not None and _is_inside(number, limits) else None


def _read_bool(value: object) -> bool | None:
    if isinstance(value, str):
        return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(value.lower())
    return value if isinstance(value, bool) else None


def _read_number(value: object, *, is_integer: bool) -> int | float | None:
    if isinstance(value, str):
        if not (_INTEGER if is_integer else _NUMBER).fullmatch(value) or len(value) > 40:
            return None
        return int(value) if is_integer else float(value)
    if isinstance(value, bool) or not isinstance(value, int if is_integer else (int, float)):
        return None
    if is_integer:
        return int(value)
    return float(value) if abs(value) <= 1e300 else None


def _is_inside(number: int | float, limits: Option) -> bool:
    return (
        math.isfinite(number)
        and (limits.low is None or number >= limits.low)
        and number <= (_LARGEST if limits.high is None else limits.high)
        and (limits.above is None or number > limits.above)
        and (limits.below is None or number < limits.below)
    )


def _read_text(value: object, limits: Option) -> str | None:
    # a newline may be part of a path, however odd; other control characters are accidents
    if not isinstance(value, str) or not value.replace("\n", "").isprintable() or value == "???":
        return None
    if limits.choices:
        return {choice.lower(): choice for choice in limits.choices}.get(value.lower())
    if limits.pattern is not None and not re.fullmatch(limits.pattern, value):
        return None
    return str(value)


def describe(hint: object, limits: Option) -> str:
    """What is allowed, in words."""
    kinds = _kinds(hint)
    words = [_describe_kind(kind, limits) for kind in kinds if kind is not type(None)]
    return ", or ".join(words + (["null"] if type(None) in kinds else []))


def _describe_kind(kind: object, limits: Option) -> str:
    if _is_list(kind):
        item_kind, *rest = typing.get_args(kind)
        count = "" if rest[0] is Ellipsis else f"{1 + len(rest)} "
        some = "non-empty list" if limits.min_items else "list"
        each = _describe_kind(item_kind, limits)
        different = ", all different" if limits.is_unique else ""
        return f"a {some} of {count}values, each {each}{different}"
    if limits.choices:
        return "one of " + ", ".join(limits.choices)
    if kind is bool:
        return "true or false"
    if kind is str:
        named = "a name of at most 64 letters, digits, '.', '_', '-'"
        words = {None: "text", SAFE_NAME: named, LOCAL_FOLDER: "off or an absolute path"}
        return words.get(limits.pattern, "non-empty text")
    return f"{'an integer' if kind is int else 'a finite number'}{_describe_range(limits)}"


def _describe_range(limits: Option) -> str:
    low, high = limits.low, limits.high
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = [
        f"{word} {bound}"
        for word, bound in (
            ("of at least", low),
            ("above", limits.above),
            ("below", limits.below),
            ("of at most", high),
        )
        if bound is not None
    ]
    return " " + " and ".join(words) if words else ""


def _kinds(hint: object) -> tuple[object, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _is_list(kind: object) -> bool:
    return typing.get_origin(kind) is tuple


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, if any is close."""
    by_lower = {name.lower(): name for name in known}
    match = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def show(value: object) -> str:
    """A value as one would write it in YAML, on one line, shortened."""
    if isinstance(value, Plain):
        text = value if value.isprintable() else repr(str(value))
    elif isinstance(value, dict):
        text = "a section"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    elif isinstance(value, float):
        text = repr(value)
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: object) -> object:
    """Tuples as lists, for YAML and JSON."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def advice(value: object, limits: Option, default: object, others: Sequence[str] = ()) -> str:
    """What to do about a refused value: the nearest choice, or the default."""
    match = nearest(value, limits.choices or others) if isinstance(value, str) else None
    if match is not None:
        return f"did you mean {match}?"
    return f"the default is {show(default)}"


# --------
# Declaring configuration keys: a frozen dataclass a section, `option(...)` a key.
#
# A Section refuses values outside its limits however it is built; `items_under` walks all its keys.

T = TypeVar("T")


def option(
    default: T,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
    min_items: int = 0,
    is_unique: bool = False,
    is_machine: bool = False,
) -> T:
    """A dataclass field with its meaning and limits: low, high inclusive; above, below exclusive.

    is_machine: says where or how a run is executed, not what is computed; no part of its identity.
    """
    limits = Option(
        help=help,
        choices=choices,
        low=low,
        high=high,
        above=above,
        below=below,
        pattern=pattern,
        min_items=min_items,
        is_unique=is_unique,
        is_machine=is_machine,
    )
    return field(default=default, metadata={"option": limits})


def required(help: str, *, pattern: str | None = None, is_machine: bool = False) -> str:
    """A text field without a default."""
    limits = Option(help=help, pattern=pattern, is_machine=is_machine)
    return field(metadata={"option": limits})


class Section:
    """A section of the configuration: each value is read as its field's type, or refused."""

    def __post_init__(self) -> None:
        problems = []
        for item in items_of(typing.cast(type, type(self))):
            value = getattr(self, item.name)
            try:
                object.__setattr__(self, item.name, read_value(value, item.hint, item.limits))
            except Refused as allowed:
                problems.append(f"{item.name} is {show(value)}; allowed: {allowed}")
        if problems:
            raise InputError([f"{type(self).__name__}: {problem}" for problem in problems])


@dataclass(frozen=True)
class Item:
    """One key: its field's name, type, limits and default (MISSING when it must be given)."""

    name: str
    hint: object
    limits: Option
    default: object


@cache
def items_of(section: type) -> tuple[Item, ...]:
    """The keys of one section, its sub-sections left out."""
    hints = typing.get_type_hints(section)
    return tuple(
        Item(entry.name, hints[entry.name], entry.metadata["option"], entry.default)
        for entry in fields(section)
        if "option" in entry.metadata
    )


@cache
def sections_under(root: type) -> Mapping[str, type]:
    """Dotted name -> dataclass of a section and all below it; the root is ""."""
    found: dict[str, type] = {"": root}
    for name, hint in typing.get_type_hints(root).items():
        if isinstance(hint, type) and is_dataclass(hint):
            for below, section in sections_under(hint).items():
                found[f"{name}.{below}".rstrip(".")] = section
    return found


@cache
def items_under(root: type) -> Mapping[str, Item]:
    """Dotted key -> Item of a section and all below it."""
    return {
        f"{section}.{item.name}".lstrip("."): item
        for section, cls in sections_under(root).items()
        for item in items_of(cls)
    }


# --------
# The keys of IMAGE_GENERATION that say how a trained network becomes images, whatever the task.

SAMPLERS = ("ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde")
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
        "dpmpp_2m = DPM-Solver++, one call, and _sde with noise",
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
    RECOMPUTE_NOISE: bool = option(True, "After CLIP_DENOISE, make the noise fit the clipped image")


# --------
# Keys of IMAGE_GENERATION that say what is drawn, and what each task needs; ddpm/sampling/tasks.py.

GEN_TASKS = (
    *("random_uncond", "class_cond", "channel_inpaint"),  # v3's
    *("inpaint", "sdedit"),
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


# --------
# The keys of EVALUATION that say how the samples of a finished network are measured.


@dataclass(frozen=True, kw_only=True)
class QualityOptions(Section):
    """Quality of samples over numbers of steps and eta; ddpm/metrics/evaluation.py."""

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


# --------
# The keys of EVALUATION: what networks are compared by, while they train and at the end.

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


# --------
# Every key of the configuration, with type, default, limits and meaning: one dataclass a section.
#
# Keys and defaults are DDPM v3's; keys that v3 lacks default to v3's behaviour. `config.explain()`
# prints this file as a table; network_rules.py and run_rules.py hold what ties keys together.

SCHEDULERS = tuple(
    "linear cosine cos6 cos6_85 iddpm_linear iddpm_cosine sigmoid laplace shifted_cosine".split()
)
PRED_TYPES = ("noise", "image", "velocity")
LOSS_FNS = ("MSE", "MAE", "HUBER")
LOSS_WEIGHTINGS = ("uniform", "snr", "truncated_snr", "min_snr", "p2")
CROP_POSITIONS = ("center", "top_left", "top_right", "bottom_left", "bottom_right")
AUGMENT_TYPES = ("horizontal_flip", "vertical_flip", "flip", "rot90")
LR_TYPES = ("constant", "warmup_cosine", "cosine_decay")


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Section):
    """What is done to each image as it is read."""

    CROP_SIZE: int | None = option(
        None, "Side of the square cropped before resizing, pixels; null = INPUT_IMAGE_SIZE", low=1
    )
    CROP_TYPE: str = option("center", "Where the crop lies", choices=("center", "random"))
    CROP_POSITION: str = option(
        "center",
        "Corner or centre the crop is taken from when CROP_TYPE is center",
        choices=CROP_POSITIONS,
    )
    AUGMENT: bool = option(False, "Apply AUGMENT_TYPE at random to every training image")
    AUGMENT_TYPE: str | None = option(None, "The augmentation", choices=AUGMENT_TYPES)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Section):
    """The images."""

    NAME: str = required("Name of the data, part of the run directory's name", pattern=SAFE_NAME)
    PATH: str = required(
        "NPZ file, image folder, IDX files, folder of shards, or `digits`",
        pattern=_SOME_TEXT,
        is_machine=True,
    )
    LABEL_KEY: str | None = option(
        "labels",
        "Key of the labels in the NPZ; folders: sub-folders are classes unless null",
        pattern=_SOME_TEXT,
    )
    VALIDATION_FRACTION: float = option(0.1, "Share of images kept out of training", low=0, below=1)
    CACHE: str = option(
        "off", "Keep decoded images in memory", choices=("off", "memory"), is_machine=True
    )
    STAGE: str = option(
        "off",
        "Folder on the node's own disk that shards are copied to first",
        pattern=LOCAL_FOLDER,
        is_machine=True,
    )
    PREPROCESSING: Preprocessing = Preprocessing()


@dataclass(frozen=True, kw_only=True)
class InlineGen(Section):
    """Sample grids drawn while training."""

    ENABLE: bool = option(True, "Draw sample grids during training")
    NUMS: int = option(20, "Images in a grid", low=1, high=10_000)
    PERIOD: int = option(10, "Epochs between grids", low=1)
    REVERSE_STRIDE: int | None = option(
        None, "Timesteps per reverse step; null = min(50, TIMESTEPS) evenly spaced steps", low=1
    )


@dataclass(frozen=True, kw_only=True)
class HyperParameters(Section):
    """Length of training and learning rate."""

    EPOCHS: int = option(100, "Epochs to train", low=1)
    SAVE_PERIOD: int | None = option(
        10, "Epochs between checkpoints; null = only at the end", low=1
    )
    BATCH_SIZE: int = option(
        64, "Images of one optimizer step, over all workers", low=1, high=10**6
    )
    STEPS_PER_EPOCH: int | None = option(
        None, "Optimizer steps called an epoch; null = ceil(training images / BATCH_SIZE)", low=1
    )
    LR_TYPE: str = option("warmup_cosine", "Learning-rate curve", choices=LR_TYPES)
    LEARNING_RATE: float = option(2e-4, "Peak learning rate", above=0, high=1e4)
    WARMUP_STEPS: int | None = option(
        1000, "Steps of linear warm-up in warmup_cosine; null = none", low=0
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """The noise schedule and the U-Net."""

    SCHEDULER: str = option("cosine", "Noise schedule", choices=SCHEDULERS)
    TIMESTEPS: int = option(1000, "Timesteps T of the diffusion", low=1, high=10**6)
    ZERO_TERMINAL_SNR: bool = option(False, "Rescale the schedule to pure noise at t = T")
    LOGSNR_SHIFT: float = option(
        0.0, "Added to the log signal-to-noise ratio of the schedule", low=-20, high=20
    )
    NUM_RES_BLOCKS: int = option(2, "Residual blocks per level", low=1, high=64)
    BLOCK_SIZE: int = option(
        1, "Space-to-depth factor; must divide the image size", low=1, high=1024
    )
    NORM_GROUPS: int = option(
        8, "Groups of the group normalisation; must divide every width", low=1
    )
    FIRST_CHANNEL: int = option(
        128, "Width that CHANNEL_MULTIPLIER multiplies, channels", low=1, high=65_536
    )
    CHANNEL_MULTIPLIER: tuple[int, ...] = option(
        (1, 2, 4, 8), "Width of each level over FIRST_CHANNEL", low=1, high=1024, min_items=1
    )
    HAS_ATTENTION: tuple[bool, ...] = option(
        (False, False, True, True), "Self-attention at each level", min_items=1
    )
    NUM_HEADS: int = option(1, "Attention heads; must divide the widths that attend", low=1)
    TIME_EMB_DIM: int = option(128, "Width of the time embedding, even", low=4, high=65_536)
    DROPOUT_RATE: float = option(0.1, "Dropout inside residual blocks", low=0, below=1)
    KERNEL_SIZE: int = option(3, "Side of the convolutions, odd, pixels", low=1, high=31)
    USE_CROSS_ATTENTION: bool = option(False, "Attend to the embeddings of time and class too")
    NUM_CLASSES: int | None = option(None, "Classes; null = unconditional", low=1, high=10**6)
    CLASS_EMB_DIM: int | None = option(
        None, "Width of the class embedding; null = TIME_EMB_DIM", low=1, high=65_536
    )
    CHECKPOINT_ACTIVATIONS: bool = option(
        False, "Recompute activations: less memory, about a third slower"
    )


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """What is trained, on what, how."""

    INPUT_IMAGE_SIZE: int | tuple[int, int] = option(
        256, "Image side, or [height, width], pixels", low=1, high=8192
    )
    INPUT_IMAGE_CHANNEL: int = option(3, "Channels of an image", low=1, high=4096)
    OUTPUT_DIR: str = option(
        "./training_outputs", "Where runs are kept", pattern=_SOME_TEXT, is_machine=True
    )
    IS_NEW_TRAIN: bool = option(True, "false = start from the weights of TRAINED_H5")
    TRAINED_H5: str | None = option(None, "A run or checkpoint to start from", pattern=_SOME_TEXT)
    PRED_TYPE: str = option("velocity", "What the network predicts", choices=PRED_TYPES)
    LOSS_FN: str = option("MSE", "Loss per element", choices=LOSS_FNS)
    LOSS_SPACE: str | None = option(
        None, "What the loss compares; null = PRED_TYPE", choices=PRED_TYPES
    )
    LOSS_WEIGHTING: str = option(
        "uniform", "Weight of the loss by noise level", choices=LOSS_WEIGHTINGS
    )
    MIN_SNR_GAMMA: float = option(5.0, "Gamma of LOSS_WEIGHTING min_snr", above=0, high=1e6)
    STRATIFIED_TIME: bool = option(False, "Spread a batch's timesteps evenly over 1..T")
    LABEL_DROP: float = option(
        0.1, "Share of labels replaced by the null class in training", low=0, high=1
    )
    SEED: int = option(
        0, "Seed of initialisation, order, noise, timesteps and dropout", low=0, high=_LARGEST_SEED
    )
    MICRO_BATCH: int | None = option(
        None, "Images of one forward pass; null = a worker's share of the batch", low=1
    )
    PRECISION: str = option("fp32", "Arithmetic of the network", choices=("fp32", "bf16", "fp16"))
    NUMERICS: str = option("fast", "exact = deterministic kernels only", choices=("fast", "exact"))
    COMPILE: bool = option(False, "Compile the network with torch.compile")
    CLIP_NORM: float | None = option(
        1.0, "Largest global norm of the gradient; null = no clipping", above=0, high=1e9
    )
    WEIGHT_DECAY: float = option(0.0, "Weight decay of AdamW", low=0, high=10)
    EMA_DECAYS: tuple[float, ...] = option(
        (0.999,),
        "Decays of the averaged weights; the first is sampled from",
        low=0,
        below=1,
        min_items=1,
        is_unique=True,
    )
    EMA_POWER: tuple[float, ...] = option(
        (),
        "Lengths of averages with a power-function profile, as shares of the training, such as "
        "[0.05, 0.1]; they are kept at every SAVE_PERIOD, and any length can be made of them later",
        above=0,
        below=0.28,
        is_unique=True,
    )
    CHECKPOINTS_KEEP: int = option(3, "Newest checkpoints kept", low=1, is_machine=True)
    PROFILE: int = option(0, "Optimizer steps to profile", low=0, high=10_000, is_machine=True)
    INLINE_GEN: InlineGen = InlineGen()
    HYPER_PARAMETERS: HyperParameters = HyperParameters()
    NETWORK: NetworkConfig = NetworkConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        # [28, 28] and 28 are one run.
        if isinstance(self.INPUT_IMAGE_SIZE, tuple) and len(set(self.INPUT_IMAGE_SIZE)) == 1:
            object.__setattr__(self, "INPUT_IMAGE_SIZE", self.INPUT_IMAGE_SIZE[0])


@dataclass(frozen=True, kw_only=True)
class ImageGeneration(TaskOptions):
    """Images drawn from a trained network."""

    MODEL_PATH: str = option("", "The run or checkpoint to draw from")
    NUM_GEN_IMAGES: int = option(20, "Images to draw", low=1, high=10**9)
    EXPORT_INTERM: bool = option(False, "Export the states between noise and image too")
    EXPORT_EVERY: int | None = option(
        None, "Steps between exported states; null = ten states, evenly spaced", low=1
    )
    EXPORT_FORMAT: str = option(
        "strip", "Exported states as one picture or as a film", choices=("strip", "gif")
    )
    GEN_SAVE_DIR: str | None = option(
        None, "Where images go; null = inside the run", pattern=_SOME_TEXT
    )
    RANDOM_SEED: int | None = option(None, "Seed of the draws; null = 0", low=0, high=_LARGEST_SEED)
    NEW_IMAGE_SIZE: int | None = option(
        None, "Side of the images drawn, pixels; null = INPUT_IMAGE_SIZE", low=1, high=8192
    )


@dataclass(frozen=True, kw_only=True)
class Cluster(Section):
    """What a run may use; null = what is there."""

    NUM_WORKERS: int | None = option(
        None, "Training processes; null = one a GPU, else one", low=1, high=65_536, is_machine=True
    )
    CPUS_PER_WORKER: int | None = option(
        None, "Cores of a worker", low=1, high=4096, is_machine=True
    )
    GPUS_PER_WORKER: float | None = option(
        None, "GPUs of a worker, fractions allowed", low=0, high=64, is_machine=True
    )


@dataclass(frozen=True, kw_only=True)
class Wandb(Section):
    """Weights & Biases."""

    MODE: str = option(
        "offline",
        "Where metrics are mirrored",
        choices=("offline", "online", "disabled"),
        is_machine=True,
    )
    PROJECT: str = option("ddpm", "Project", pattern=SAFE_NAME, is_machine=True)
    ENTITY: str | None = option(None, "User or team", pattern=SAFE_NAME, is_machine=True)
    TAGS: tuple[str, ...] = option(
        (), "Tags of the run", pattern=SAFE_NAME, is_unique=True, is_machine=True
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration."""

    DATASET: DatasetConfig
    TRAINING: Training = Training()
    IMAGE_GENERATION: ImageGeneration = ImageGeneration()
    EVALUATION: Evaluation = Evaluation()
    CLUSTER: Cluster = Cluster()
    WANDB: Wandb = Wandb()
