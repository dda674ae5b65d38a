"""What ties keys together: a rule reads several keys and says in one line what is wrong.

A rule runs only where all its keys are valid by themselves, so one mistake gives one line. Rules
marked `is_impossible` describe combinations that a sweep's grid may contain and skips.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ddpm.config.schema import AUGMENT_TYPES, Value

RuleText = str | None
Pair = tuple[int, int]


@dataclass(frozen=True)
class Rule:
    """The keys a rule reads and its text for their values, None where it holds."""

    keys: tuple[str, ...]
    text: Callable[..., RuleText]
    is_impossible: bool


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold; `key` is the one to look at first."""

    key: str
    text: str
    is_impossible: bool


def rule(*keys: str, is_impossible: bool = False) -> Callable[[Callable[..., RuleText]], Rule]:
    """Makes a function of the values of `keys`, in this order, a Rule."""
    return lambda text: Rule(keys, text, is_impossible)


def violations(rules: Iterable[Rule], values: Mapping[str, Value]) -> list[Violation]:
    """The rules that do not hold; those over a key that `values` lacks are left out."""
    found = []
    for each in rules:
        if all(key in values for key in each.keys):
            text = each.text(*(values[key] for key in each.keys))
            if text is not None:
                found.append(Violation(each.keys[0], text, each.is_impossible))
    return found


def height_width(size: int | Pair) -> Pair:
    """INPUT_IMAGE_SIZE as (height, width)."""
    return (size, size) if isinstance(size, int) else size


# --------
# Rules over the network, the noise schedule and the image size.

_NETWORK = "TRAINING.NETWORK."
_SIZE = "TRAINING.INPUT_IMAGE_SIZE"


@rule(_NETWORK + "HAS_ATTENTION", _NETWORK + "CHANNEL_MULTIPLIER")
def attention_per_level(has_attention: tuple[bool, ...], multiplier: tuple[int, ...]) -> RuleText:
    if len(has_attention) == len(multiplier):
        return None
    return (
        f"{_NETWORK}HAS_ATTENTION has {len(has_attention)} entries but CHANNEL_MULTIPLIER has "
        f"{len(multiplier)}; give one true/false per level"
    )


@rule(_NETWORK + "NORM_GROUPS", _NETWORK + "FIRST_CHANNEL")
def groups_divide_widths(groups: int, first: int) -> RuleText:
    # Every width is a multiple of FIRST_CHANNEL, which is the width of the first normalisation.
    if first % groups == 0:
        return None
    return (
        f"{_NETWORK}NORM_GROUPS is {groups} but FIRST_CHANNEL is {first}; "
        "give a number of groups that divides it, and so every width"
    )


@rule(
    _NETWORK + "NUM_HEADS",
    _NETWORK + "FIRST_CHANNEL",
    _NETWORK + "CHANNEL_MULTIPLIER",
    _NETWORK + "HAS_ATTENTION",
)
def heads_divide_widths(
    heads: int, first: int, multiplier: tuple[int, ...], has_attention: tuple[bool, ...]
) -> RuleText:
    widths = [first * m for m, attends in zip(multiplier, has_attention, strict=False) if attends]
    uneven = [width for width in widths if width % heads]
    if not uneven:
        return None
    return (
        f"{_NETWORK}NUM_HEADS is {heads} but the attention is {uneven[0]} channels wide; "
        "give a number of heads that divides every width that attends"
    )


@rule(_NETWORK + "USE_CROSS_ATTENTION", _NETWORK + "HAS_ATTENTION")
def cross_attention_has_a_place(is_used: bool, has_attention: tuple[bool, ...]) -> RuleText:
    if not is_used or any(has_attention):
        return None
    return (
        f"{_NETWORK}USE_CROSS_ATTENTION is true but HAS_ATTENTION is false at every level; "
        "give at least one level attention"
    )


@rule(_NETWORK + "BLOCK_SIZE", _SIZE)
def block_divides_image(block: int, size: int | Pair) -> RuleText:
    height, width = height_width(size)
    if height % block == 0 and width % block == 0:
        return None
    return (
        f"{_NETWORK}BLOCK_SIZE is {block} but images are {height}x{width}; give a divisor of both"
    )


@rule(_SIZE, _NETWORK + "CHANNEL_MULTIPLIER", _NETWORK + "BLOCK_SIZE")
def image_is_large_enough(size: int | Pair, multiplier: tuple[int, ...], block: int) -> RuleText:
    height, width = height_width(size)
    if height % block or width % block:
        return None
    return _too_small(_SIZE, (height, width), multiplier, block)


@rule("IMAGE_GENERATION.NEW_IMAGE_SIZE", _NETWORK + "CHANNEL_MULTIPLIER", _NETWORK + "BLOCK_SIZE")
def new_image_is_large_enough(
    size: int | None, multiplier: tuple[int, ...], block: int
) -> RuleText:
    if size is None:
        return None
    if size % block:
        return (
            f"IMAGE_GENERATION.NEW_IMAGE_SIZE is {size} but {_NETWORK}BLOCK_SIZE is {block}; "
            "give a multiple of it"
        )
    return _too_small("IMAGE_GENERATION.NEW_IMAGE_SIZE", (size, size), multiplier, block)


def _too_small(key: str, size: Pair, multiplier: tuple[int, ...], block: int) -> RuleText:
    least = 2 ** (len(multiplier) - 1) * block
    if min(size) >= least:
        return None
    return (
        f"{key} is {size[0]}x{size[1]} but {len(multiplier)} levels with BLOCK_SIZE {block} need "
        f"at least {least} pixels a side; give fewer levels or larger images"
    )


@rule(_NETWORK + "TIME_EMB_DIM")
def time_embedding_is_even(dim: int) -> RuleText:
    if dim % 2 == 0:
        return None
    return f"{_NETWORK}TIME_EMB_DIM is {dim}; give an even number: half are sines, half cosines"


@rule(_NETWORK + "KERNEL_SIZE")
def kernel_is_odd(size: int) -> RuleText:
    if size % 2:
        return None
    return f"{_NETWORK}KERNEL_SIZE is {size}; give an odd number: an even kernel shifts the image"


@rule(_NETWORK + "TIMESTEPS", _NETWORK + "SCHEDULER", is_impossible=True)
def iddpm_linear_needs_timesteps(timesteps: int, scheduler: str) -> RuleText:
    if scheduler != "iddpm_linear" or timesteps > 20:
        return None
    return (
        f"{_NETWORK}TIMESTEPS is {timesteps} but SCHEDULER iddpm_linear reaches beta >= 1 at 20 or "
        "fewer; give more than 20 timesteps or SCHEDULER linear"
    )


@rule(
    _NETWORK + "ZERO_TERMINAL_SNR",
    "TRAINING.PRED_TYPE",
    "TRAINING.LOSS_SPACE",
    is_impossible=True,
)
def noise_needs_signal(is_zero: bool, pred_type: str, loss_space: str | None) -> RuleText:
    if not is_zero or "noise" not in (pred_type, loss_space or pred_type):
        return None
    key = "PRED_TYPE" if pred_type == "noise" else "LOSS_SPACE"
    return (
        f"TRAINING.{key} is noise but {_NETWORK}ZERO_TERMINAL_SNR is true, where the noise says "
        "nothing about the image at t = T; give velocity or image"
    )


@rule(_NETWORK + "ZERO_TERMINAL_SNR", _NETWORK + "TIMESTEPS", is_impossible=True)
def zero_terminal_snr_needs_two(is_zero: bool, timesteps: int) -> RuleText:
    if not is_zero or timesteps > 1:
        return None
    return (
        f"{_NETWORK}ZERO_TERMINAL_SNR is true but TIMESTEPS is 1: the only timestep would carry no "
        "image; give at least 2"
    )


NETWORK_RULES = (
    attention_per_level,
    groups_divide_widths,
    heads_divide_widths,
    cross_attention_has_a_place,
    block_divides_image,
    image_is_large_enough,
    new_image_is_large_enough,
    time_embedding_is_even,
    kernel_is_odd,
    iddpm_linear_needs_timesteps,
    noise_needs_signal,
    zero_terminal_snr_needs_two,
)


# --------
# Rules over the keys of IMAGE_GENERATION that say how a network becomes images.

_TIMESTEPS = "TRAINING.NETWORK.TIMESTEPS"
_GENERATE = "IMAGE_GENERATION."
# Spacings that walk whole timesteps alone.
WHOLE = ("trailing", "linspace")
# Samplers with the noise of eta 1.
_NOISY = ("ddpm", "dpmpp_2m_sde")


@rule(_GENERATE + "NUM_STEPS", _TIMESTEPS, _GENERATE + "SPACING", is_impossible=True)
def steps_fit_spacing(num_steps: int | None, timesteps: int, spacing: str) -> RuleText:
    if num_steps is None or num_steps <= timesteps or spacing not in WHOLE:
        return None
    return (
        f"{_GENERATE}NUM_STEPS is {num_steps} but {_TIMESTEPS} is {timesteps}; "
        f"give a number of steps of at most {timesteps}, or SPACING logsnr or karras"
    )


@rule(_GENERATE + "SPACING", _TIMESTEPS, is_impossible=True)
def spacing_has_room(spacing: str, timesteps: int) -> RuleText:
    # With zero terminal SNR the grid goes from T - 1 to 1.
    if spacing in WHOLE or timesteps >= 3:
        return None
    return (
        f"{_GENERATE}SPACING is {spacing} but {_TIMESTEPS} is {timesteps}, with no room between "
        "the first and the last; give trailing, or at least 3 timesteps"
    )


@rule(_GENERATE + "REVERSE_STRIDE", _GENERATE + "SPACING")
def stride_is_trailing(stride: int | None, spacing: str) -> RuleText:
    if stride is None or spacing == "trailing":
        return None
    return (
        f"{_GENERATE}REVERSE_STRIDE is {stride} but SPACING is {spacing}, which spaces NUM_STEPS; "
        "give REVERSE_STRIDE null or SPACING trailing"
    )


@rule(_GENERATE + "NUM_STEPS", _GENERATE + "REVERSE_STRIDE")
def steps_or_stride(num_steps: int | None, stride: int | None) -> RuleText:
    if num_steps is None or stride is None:
        return None
    return (
        f"{_GENERATE}NUM_STEPS is {num_steps} and REVERSE_STRIDE is {stride}; give one of them, "
        "the other null"
    )


@rule(_GENERATE + "SAMPLER", _GENERATE + "DDIM_ETA")
def ddpm_has_eta_one(sampler: str, eta: float) -> RuleText:
    if sampler not in _NOISY or eta == 1.0:
        return None
    return (
        f"{_GENERATE}SAMPLER is {sampler} but DDIM_ETA is {eta}; give DDIM_ETA 1.0 or SAMPLER ddim"
    )


@rule(_GENERATE + "SAMPLER", _GENERATE + "DDIM_ETA")
def eta_belongs_to_ddim(sampler: str, eta: float) -> RuleText:
    # 1.0 is the default and 0.0 is what they do; anything between was meant for ddim.
    if sampler in ("ddim", *_NOISY) or eta in (0.0, 1.0):
        return None
    return (
        f"{_GENERATE}SAMPLER is {sampler}, which draws no noise, but DDIM_ETA is {eta}; "
        "give DDIM_ETA 0.0 or SAMPLER ddim"
    )


def _needs_guidance(key: str, off: object) -> Rule:
    @rule(_GENERATE + key, _GENERATE + "GUIDANCE")
    def guidance_is_on(value: object, guidance: float) -> RuleText:
        if value == off or guidance != 1.0:
            return None
        shown = list(value) if isinstance(value, tuple) else value
        return (
            f"{_GENERATE}{key} is {shown} but GUIDANCE is 1.0, which is off; "
            f"give GUIDANCE such as 2.0, or {key} {'null' if off is None else off}"
        )

    return guidance_is_on


@rule(_GENERATE + "GUIDANCE_INTERVAL")
def interval_rises(interval: tuple[float, float] | None) -> RuleText:
    if interval is None or interval[0] <= interval[1]:
        return None
    return (
        f"{_GENERATE}GUIDANCE_INTERVAL is {list(interval)}, which holds no log SNR; "
        "give the lower one first"
    )


@rule(_GENERATE + "RECOMPUTE_NOISE", _GENERATE + "CLIP_DENOISE")
def recomputing_needs_clipping(recomputes: bool, clips: bool) -> RuleText:
    if recomputes or clips:
        return None
    return (
        f"{_GENERATE}RECOMPUTE_NOISE is false but CLIP_DENOISE is false too, so there is nothing "
        "to recompute; give RECOMPUTE_NOISE true or CLIP_DENOISE true"
    )


SAMPLER_RULES = (
    steps_fit_spacing,
    spacing_has_room,
    stride_is_trailing,
    steps_or_stride,
    ddpm_has_eta_one,
    eta_belongs_to_ddim,
    _needs_guidance("GUIDE", None),
    _needs_guidance("GUIDANCE_INTERVAL", None),
    _needs_guidance("GUIDANCE_RESCALE", 0.0),
    interval_rises,
    recomputing_needs_clipping,
)


# --------
# Rules over training, data and generation.

_HYPER = "TRAINING.HYPER_PARAMETERS."
_CROP = "DATASET.PREPROCESSING."
# Five images a dimension at least, as ddpm/metrics/distances.py has it.
FID_SAMPLES = {"classifier": 160, "pixels": 160, "inception": 10_240}


@rule(_HYPER + "WARMUP_STEPS", _HYPER + "LR_TYPE", _HYPER + "EPOCHS", _HYPER + "STEPS_PER_EPOCH")
def warmup_fits(warmup: int | None, lr_type: str, epochs: int, steps: int | None) -> RuleText:
    if warmup is None or steps is None or lr_type != "warmup_cosine" or warmup <= epochs * steps:
        return None
    return (
        f"{_HYPER}WARMUP_STEPS is {warmup} but EPOCHS x STEPS_PER_EPOCH is {epochs * steps} steps; "
        "give fewer warm-up steps, or more epochs"
    )


@rule("TRAINING.MICRO_BATCH", _HYPER + "BATCH_SIZE")
def micro_batch_fits(micro_batch: int | None, batch_size: int) -> RuleText:
    if micro_batch is None or micro_batch <= batch_size:
        return None
    return (
        f"TRAINING.MICRO_BATCH is {micro_batch} but {_HYPER}BATCH_SIZE is {batch_size}; "
        f"give at most {batch_size}, or null"
    )


@rule("CLUSTER.NUM_WORKERS", _HYPER + "BATCH_SIZE")
def workers_have_work(workers: int | None, batch_size: int) -> RuleText:
    if workers is None or workers <= batch_size:
        return None
    return (
        f"CLUSTER.NUM_WORKERS is {workers} but {_HYPER}BATCH_SIZE is {batch_size}: a worker needs "
        f"at least one image; give at most {batch_size}"
    )


@rule("TRAINING.IS_NEW_TRAIN", "TRAINING.TRAINED_H5")
def start_exists(is_new: bool, trained: str | None) -> RuleText:
    if is_new:
        return None
    if trained is None:
        return (
            "TRAINING.IS_NEW_TRAIN is false but TRAINED_H5 is null; name the run or checkpoint to "
            "start from, or give true"
        )
    if trained.lower().endswith((".h5", ".hdf5", ".keras")):
        return (
            f"TRAINING.TRAINED_H5 is {trained}, a Keras file, which cannot be read; name a run or "
            "a checkpoint of this project"
        )
    return None


@rule(_CROP + "AUGMENT", _CROP + "AUGMENT_TYPE")
def augmentation_is_named(augment: bool, kind: str | None) -> RuleText:
    if not augment or kind is not None:
        return None
    return (
        f"{_CROP}AUGMENT is true but AUGMENT_TYPE is null; give one of {', '.join(AUGMENT_TYPES)}"
    )


@rule(_CROP + "AUGMENT_TYPE", _CROP + "AUGMENT", "TRAINING.INPUT_IMAGE_SIZE")
def rotation_needs_squares(kind: str | None, augment: bool, size: int | Pair) -> RuleText:
    height, width = height_width(size)
    if kind != "rot90" or not augment or height == width:
        return None
    return (
        f"{_CROP}AUGMENT_TYPE is rot90 but images are {height}x{width}; give square images or one "
        "of the flips"
    )


@rule(_NETWORK + "NUM_CLASSES", "DATASET.LABEL_KEY")
def classes_have_labels(classes: int | None, label_key: str | None) -> RuleText:
    if classes is None or label_key is not None:
        return None
    return (
        f"{_NETWORK}NUM_CLASSES is {classes} but DATASET.LABEL_KEY is null; name the labels, or "
        "give NUM_CLASSES null"
    )


def _at_most_timesteps(key: str) -> Rule:
    @rule(key, _NETWORK + "TIMESTEPS", is_impossible=True)
    def at_most_timesteps(value: int | None, timesteps: int) -> RuleText:
        if value is None or value <= timesteps:
            return None
        return (
            f"{key} is {value} but {_NETWORK}TIMESTEPS is {timesteps}; "
            f"give a stride of at most {timesteps}"
        )

    return at_most_timesteps


@rule(
    _GENERATE + "GUIDANCE",
    _NETWORK + "NUM_CLASSES",
    "TRAINING.LABEL_DROP",
    _GENERATE + "GUIDE",
)
def guidance_needs_classes(
    guidance: float, classes: int | None, drop: float, guide: str | None
) -> RuleText:
    if guidance == 1.0 or guide is not None:
        return None
    if classes is None:
        return (
            f"{_GENERATE}GUIDANCE is {guidance} but {_NETWORK}NUM_CLASSES is null: nothing to "
            "guide; give GUIDANCE 1.0 or a number of classes"
        )
    if drop == 0.0:
        return (
            f"{_GENERATE}GUIDANCE is {guidance} but TRAINING.LABEL_DROP is 0.0: the null class is "
            "never trained; give LABEL_DROP such as 0.1 or GUIDANCE 1.0"
        )
    return None


@rule(_GENERATE + "GEN_TASK", _NETWORK + "NUM_CLASSES")
def classes_to_draw(task: str, classes: int | None) -> RuleText:
    if task != "class_cond" or classes is not None:
        return None
    return (
        f"{_GENERATE}GEN_TASK is class_cond but {_NETWORK}NUM_CLASSES is null; "
        "give the number of classes or GEN_TASK random_uncond"
    )


@rule(_GENERATE + "CLASS_LABEL", _NETWORK + "NUM_CLASSES")
def label_is_a_class(label: int | tuple[int, ...] | None, classes: int | None) -> RuleText:
    if label is None or classes is None:
        return None
    beyond = [each for each in (label if isinstance(label, tuple) else (label,)) if each >= classes]
    if not beyond:
        return None
    return (
        f"{_GENERATE}CLASS_LABEL {beyond[0]} is no class: {_NETWORK}NUM_CLASSES is {classes}; "
        f"give labels from 0 to {classes - 1}"
    )


@rule(_GENERATE + "FREEZE_CHANNEL", "TRAINING.INPUT_IMAGE_CHANNEL")
def frozen_channel_exists(frozen: int | None, channels: int) -> RuleText:
    if frozen is None or frozen < channels:
        return None
    return (
        f"{_GENERATE}FREEZE_CHANNEL is {frozen} but TRAINING.INPUT_IMAGE_CHANNEL is {channels}; "
        f"give a channel from 0 to {channels - 1}"
    )


@rule("EVALUATION.BEST", "EVALUATION.EVERY")
def best_is_measured(best: str | None, every: int | None) -> RuleText:
    if best is None or every is not None:
        return None
    return (
        f"EVALUATION.BEST is {best} but EVERY is null, so nothing is evaluated while training; "
        "give EVERY such as 10, or BEST null"
    )


@rule("EVALUATION.FEATURES", "EVALUATION.EVERY", "DATASET.LABEL_KEY")
def features_can_be_had(features: str | None, every: int | None, label_key: str | None) -> RuleText:
    if features is not None and every is None:
        return (
            f"EVALUATION.FEATURES is {features} but EVERY is null, so nothing is evaluated while "
            "training; give EVERY such as 10, or FEATURES null"
        )
    if features == "classifier" and label_key is None:
        return (
            "EVALUATION.FEATURES is classifier but DATASET.LABEL_KEY is null, and it is trained on "
            "labels; give FEATURES pixels"
        )
    return None


@rule("EVALUATION.FEATURES", "EVALUATION.WEIGHTS", "TRAINING.INPUT_IMAGE_CHANNEL")
def inception_can_be_had(features: str | None, weights: str | None, channels: int) -> RuleText:
    if features != "inception":
        return None
    if weights is None:
        return (
            "EVALUATION.FEATURES is inception but WEIGHTS is null; name the file of its weights "
            "that docs/metrics.md says how to make, or give FEATURES classifier or pixels"
        )
    if channels not in (1, 3):
        return (
            f"EVALUATION.FEATURES is inception but images have {channels} channels and it takes 1 "
            "or 3; give FEATURES classifier or pixels"
        )
    return None


@rule("EVALUATION.BEST", "EVALUATION.FEATURES")
def best_fid_has_features(best: str | None, features: str | None) -> RuleText:
    if best not in ("fid_infinity", "kid") or features is not None:
        return None
    return (
        f"EVALUATION.BEST is {best} but FEATURES is null, so nothing is drawn; "
        "give FEATURES classifier, pixels or inception"
    )


@rule("EVALUATION.BEST", "EVALUATION.FEATURES", "EVALUATION.SAMPLES")
def best_fid_has_samples(best: str | None, features: str | None, samples: int) -> RuleText:
    least = FID_SAMPLES.get(features or "", 0)
    if best != "fid_infinity" or samples >= least:
        return None
    return (
        f"EVALUATION.BEST is fid_infinity but SAMPLES is {samples}, and an FID of {features} "
        f"features means nothing with fewer than {least}; give SAMPLES {least}, or BEST kid"
    )


@rule("EVALUATION.PATIENCE", "EVALUATION.BEST")
def patience_waits_for_something(patience: int | None, best: str | None) -> RuleText:
    if patience is None or best is not None:
        return None
    return (
        f"EVALUATION.PATIENCE is {patience} but BEST is null, so nothing can get better; "
        "give BEST mean_log10_mse, or PATIENCE null"
    )


@rule("EVALUATION.SAMPLING_LOGSNR")
def sampling_rises(between: tuple[float, float] | None) -> RuleText:
    if between is None or between[0] < between[1]:
        return None
    return (
        f"EVALUATION.SAMPLING_LOGSNR is {list(between)}; a walk goes from noise to images: give "
        "the lower log SNR first"
    )


RUN_RULES = (
    warmup_fits,
    micro_batch_fits,
    workers_have_work,
    start_exists,
    augmentation_is_named,
    rotation_needs_squares,
    classes_have_labels,
    _at_most_timesteps("TRAINING.INLINE_GEN.REVERSE_STRIDE"),
    _at_most_timesteps(_GENERATE + "REVERSE_STRIDE"),
    *SAMPLER_RULES,
    guidance_needs_classes,
    classes_to_draw,
    label_is_a_class,
    frozen_channel_exists,
    best_is_measured,
    features_can_be_had,
    inception_can_be_had,
    best_fid_has_features,
    best_fid_has_samples,
    patience_waits_for_something,
    sampling_rises,
)
