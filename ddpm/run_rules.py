"""Rules over training, data and generation."""

from ddpm.rules import Pair, Rule, RuleText, height_width, rule
from ddpm.sampler_rules import SAMPLER_RULES
from ddpm.schema import AUGMENT_TYPES

_NETWORK = "TRAINING.NETWORK."
_HYPER = "TRAINING.HYPER_PARAMETERS."
_CROP = "DATASET.PREPROCESSING."
_GENERATE = "IMAGE_GENERATION."
# Five images a dimension at least, as ddpm/fid.py has it.
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
