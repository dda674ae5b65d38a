"""Rules that tie keys together: each a condition, and a line that says what is wrong.

A line begins with the key to look at first. A rule that reads a key whose own value is refused is
left out, so that one mistake gives one line: a rule reads all it needs in its own expression.
"""

from collections.abc import Iterator
from itertools import chain
from typing import get_args

from ddpm.config.schema import MEASURES, Augmentation, Config, height_width, is_keras_file

Rule = object  # the line; where the rule holds, something that is false

_NET, _HYPER = "TRAINING.NETWORK", "TRAINING.HYPER_PARAMETERS"
_GEN, _CROP = "IMAGE_GENERATION", "DATASET.PREPROCESSING"
WHOLE = ("trailing", "linspace")  # spacings that walk whole timesteps alone
# As sampling.SAMPLERS has them, which needs torch: with the ancestral sampler's noise, and without.
ANCESTRAL = ("ddpm", "dpmpp_2m_sde")
NOISE_FREE = ("heun", "dpmpp_2m")
# Five images a dimension at least, as ddpm/metrics/distances.py has it.
FID_SAMPLES = {"classifier": 160, "pixels": 160, "inception": 10_240}

PATHS = (
    *("DATASET.PATH", "TRAINING.OUTPUT_DIR", "TRAINING.TRAINED_H5", "EVALUATION.WEIGHTS"),
    *(f"{_GEN}.{name}" for name in ("MODEL_PATH", "EXTERNAL_NPZ_INPUT", "GEN_SAVE_DIR", "GUIDE")),
)


def violations(config: Config, unknown: set[str]) -> Iterator[tuple[str, bool]]:
    """(line, whether the combination is impossible) of every rule that does not hold.

    unknown: receives the keys that `config` cannot tell, as they are read.
    """
    mistakes = chain(network(config), training(config), generation(config), evaluation(config))
    for rules, is_impossible in ((mistakes, False), (impossible(config), True)):
        for line in rules:
            if line and not unknown:
                yield str(line), is_impossible
            unknown.clear()


def network(c: Config) -> Iterator[Rule]:
    """Rules over the U-Net and the image size."""
    n, new = c.TRAINING.NETWORK, c.IMAGE_GENERATION
    yield (
        len(n.HAS_ATTENTION) != len(n.CHANNEL_MULTIPLIER)
        and f"{_NET}.HAS_ATTENTION has {len(n.HAS_ATTENTION)} entries but CHANNEL_MULTIPLIER has "
        f"{len(n.CHANNEL_MULTIPLIER)}; give one true/false per level"
    )
    # every width is a multiple of FIRST_CHANNEL, which is the width of the first normalisation
    yield (
        n.FIRST_CHANNEL % n.NORM_GROUPS
        and f"{_NET}.NORM_GROUPS is {n.NORM_GROUPS} but FIRST_CHANNEL is {n.FIRST_CHANNEL}; "
        "give a number of groups that divides it, and so every width"
    )
    yield next(
        (
            f"{_NET}.NUM_HEADS is {n.NUM_HEADS} but the attention is {n.FIRST_CHANNEL * m} "
            "channels wide; give a number of heads that divides every width that attends"
            for m, attends in zip(n.CHANNEL_MULTIPLIER, n.HAS_ATTENTION, strict=False)
            if attends and n.FIRST_CHANNEL * m % n.NUM_HEADS
        ),
        None,
    )
    yield (
        n.USE_CROSS_ATTENTION
        and not any(n.HAS_ATTENTION)
        and f"{_NET}.USE_CROSS_ATTENTION is true but HAS_ATTENTION is false at every level; "
        "give at least one level attention"
    )

    def size() -> tuple[int, int]:
        return height_width(c.TRAINING.INPUT_IMAGE_SIZE)

    def is_uneven() -> bool:
        return any(side % n.BLOCK_SIZE for side in size())

    def too_small(key: str, height: int, width: int) -> str | None:
        least = 2 ** (len(n.CHANNEL_MULTIPLIER) - 1) * n.BLOCK_SIZE
        if min(height, width) >= least:
            return None
        return (
            f"{key} is {height}x{width} but {len(n.CHANNEL_MULTIPLIER)} levels with BLOCK_SIZE "
            f"{n.BLOCK_SIZE} need at least {least} pixels a side; give fewer levels or larger "
            "images"
        )

    yield (
        is_uneven()
        and f"{_NET}.BLOCK_SIZE is {n.BLOCK_SIZE} but images are {size()[0]}x{size()[1]}; "
        "give a divisor of both"
    )
    yield not is_uneven() and too_small("TRAINING.INPUT_IMAGE_SIZE", *size())
    yield (
        new.NEW_IMAGE_SIZE
        and new.NEW_IMAGE_SIZE % n.BLOCK_SIZE
        and f"{_GEN}.NEW_IMAGE_SIZE is {new.NEW_IMAGE_SIZE} but {_NET}.BLOCK_SIZE is "
        f"{n.BLOCK_SIZE}; give a multiple of it"
    )
    yield (
        new.NEW_IMAGE_SIZE
        and new.NEW_IMAGE_SIZE % n.BLOCK_SIZE == 0
        and too_small(f"{_GEN}.NEW_IMAGE_SIZE", new.NEW_IMAGE_SIZE, new.NEW_IMAGE_SIZE)
    )
    yield (
        n.TIME_EMB_DIM % 2
        and f"{_NET}.TIME_EMB_DIM is {n.TIME_EMB_DIM}; give an even number: half are sines, half "
        "cosines"
    )
    yield (
        n.KERNEL_SIZE % 2 == 0
        and f"{_NET}.KERNEL_SIZE is {n.KERNEL_SIZE}; give an odd number: an even kernel shifts the "
        "image"
    )
    yield (
        n.NUM_CLASSES
        and c.DATASET.LABEL_KEY is None
        and f"{_NET}.NUM_CLASSES is {n.NUM_CLASSES} but DATASET.LABEL_KEY is null; name the "
        "labels, or give NUM_CLASSES null"
    )


def training(c: Config) -> Iterator[Rule]:
    """Rules over training, its workers and its images."""
    t, h, crop = c.TRAINING, c.TRAINING.HYPER_PARAMETERS, c.DATASET.PREPROCESSING
    yield (
        h.LR_TYPE == "warmup_cosine"
        and h.WARMUP_STEPS
        and h.STEPS_PER_EPOCH
        and h.WARMUP_STEPS > h.EPOCHS * h.STEPS_PER_EPOCH
        and f"{_HYPER}.WARMUP_STEPS is {h.WARMUP_STEPS} but EPOCHS x STEPS_PER_EPOCH is "
        f"{h.EPOCHS * h.STEPS_PER_EPOCH} steps; give fewer warm-up steps, or more epochs"
    )
    yield (
        t.MICRO_BATCH
        and t.MICRO_BATCH > h.BATCH_SIZE
        and f"TRAINING.MICRO_BATCH is {t.MICRO_BATCH} but {_HYPER}.BATCH_SIZE is {h.BATCH_SIZE}; "
        f"give at most {h.BATCH_SIZE}, or null"
    )
    yield (
        c.CLUSTER.NUM_WORKERS
        and c.CLUSTER.NUM_WORKERS > h.BATCH_SIZE
        and f"CLUSTER.NUM_WORKERS is {c.CLUSTER.NUM_WORKERS} but {_HYPER}.BATCH_SIZE is "
        f"{h.BATCH_SIZE}: a worker needs at least one image; give at most {h.BATCH_SIZE}"
    )
    yield (
        not t.IS_NEW_TRAIN
        and t.TRAINED_H5 is None
        and "TRAINING.IS_NEW_TRAIN is false but TRAINED_H5 is null; name the run or checkpoint to "
        "start from, or give true"
    )
    yield (
        t.LOSS_FLOOR
        and t.LOSS_SPACE is None
        and f"TRAINING.LOSS_FLOOR is {t.LOSS_FLOOR} but LOSS_SPACE is null, so no prediction is "
        "converted; give LOSS_SPACE such as velocity, or LOSS_FLOOR null"
    )
    parameters, name = t.DENSITY_PARAMETERS, t.LOGSNR_DENSITY
    yield (
        parameters
        and t.draws_timesteps
        and f"TRAINING.DENSITY_PARAMETERS is {list(parameters)} but LOGSNR_DENSITY is {name}, "
        "which has none; give null, or a density such as edm"
    )
    yield (
        parameters
        and name == "uniform"
        and parameters[0] >= parameters[1]
        and f"TRAINING.DENSITY_PARAMETERS is {list(parameters)} but LOGSNR_DENSITY is uniform; "
        "give the lower log SNR first"
    )
    yield (
        parameters
        and not (t.draws_timesteps or name == "uniform")
        and parameters[1] <= 0
        and f"TRAINING.DENSITY_PARAMETERS is {list(parameters)} but LOGSNR_DENSITY is {name}, "
        "whose second one is a width; give a positive number"
    )
    yield (
        not t.IS_NEW_TRAIN
        and is_keras_file(t.TRAINED_H5 or "")
        and t.NETWORK.KERAS_LAYERS is False
        and f"TRAINING.TRAINED_H5 is {t.TRAINED_H5}, a Keras file, but {_NET}.KERAS_LAYERS is "
        "false, under which its weights mean something else; give null or true"
    )
    yield (
        crop.RESIZE
        and crop.CROP_SIZE
        and f"{_CROP}.RESIZE is true but CROP_SIZE is {crop.CROP_SIZE}; give one of them: RESIZE "
        "crops the largest part that an image has"
    )
    yield (
        crop.AUGMENT
        and crop.AUGMENT_TYPE is None
        and f"{_CROP}.AUGMENT is true but AUGMENT_TYPE is null; give one of "
        f"{', '.join(get_args(Augmentation))}"
    )

    def rotation() -> str | None:
        height, width = height_width(t.INPUT_IMAGE_SIZE)
        if crop.AUGMENT_TYPE != "rot90" or not crop.AUGMENT or height == width:
            return None
        return (
            f"{_CROP}.AUGMENT_TYPE is rot90 but images are {height}x{width}; give square images or "
            "one of the flips"
        )

    yield rotation()


def generation(c: Config) -> Iterator[Rule]:
    """Rules over how images are drawn, and which."""
    g, n = c.IMAGE_GENERATION, c.TRAINING.NETWORK
    yield (
        g.REVERSE_STRIDE
        and g.SPACING != "trailing"
        and f"{_GEN}.REVERSE_STRIDE is {g.REVERSE_STRIDE} but SPACING is {g.SPACING}, which "
        "spaces NUM_STEPS; give REVERSE_STRIDE null or SPACING trailing"
    )
    yield (
        g.NUM_STEPS
        and g.REVERSE_STRIDE
        and f"{_GEN}.NUM_STEPS is {g.NUM_STEPS} and REVERSE_STRIDE is {g.REVERSE_STRIDE}; give "
        "one of them, the other null"
    )
    yield (
        g.SAMPLER in ANCESTRAL
        and g.DDIM_ETA != 1.0
        and f"{_GEN}.SAMPLER is {g.SAMPLER} but DDIM_ETA is {g.DDIM_ETA}; give DDIM_ETA 1.0 or "
        "SAMPLER ddim"
    )
    # 1.0 is the default and 0.0 is what they do; anything between was meant for ddim
    yield (
        g.SAMPLER in NOISE_FREE
        and g.DDIM_ETA not in (0.0, 1.0)
        and f"{_GEN}.SAMPLER is {g.SAMPLER}, which draws no noise, but DDIM_ETA is {g.DDIM_ETA}; "
        "give DDIM_ETA 0.0 or SAMPLER ddim"
    )

    def unguided(key: str, off: object) -> str | None:
        value = getattr(g, key)
        if value == off or g.GUIDANCE != 1.0:
            return None
        shown = list(value) if isinstance(value, tuple) else value
        return (
            f"{_GEN}.{key} is {shown} but GUIDANCE is 1.0, which is off; "
            f"give GUIDANCE such as 2.0, or {key} {'null' if off is None else off}"
        )

    yield unguided("GUIDE", None)
    yield unguided("GUIDANCE_INTERVAL", None)
    yield unguided("GUIDANCE_RESCALE", 0.0)
    yield (
        g.GUIDANCE_INTERVAL
        and g.GUIDANCE_INTERVAL[0] > g.GUIDANCE_INTERVAL[1]
        and f"{_GEN}.GUIDANCE_INTERVAL is {list(g.GUIDANCE_INTERVAL)}, which holds no log SNR; "
        "give the lower one first"
    )
    yield (
        not g.RECOMPUTE_NOISE
        and not g.CLIP_DENOISE
        and f"{_GEN}.RECOMPUTE_NOISE is false but CLIP_DENOISE is false too, so there is nothing "
        "to recompute; give RECOMPUTE_NOISE true or CLIP_DENOISE true"
    )
    yield (
        g.GUIDANCE != 1.0
        and g.GUIDE is None
        and n.NUM_CLASSES is None
        and f"{_GEN}.GUIDANCE is {g.GUIDANCE} but {_NET}.NUM_CLASSES is null: nothing to "
        "guide; give GUIDANCE 1.0 or a number of classes"
    )
    yield (
        g.GUIDANCE != 1.0
        and g.GUIDE is None
        and n.NUM_CLASSES
        and c.TRAINING.LABEL_DROP == 0.0
        and f"{_GEN}.GUIDANCE is {g.GUIDANCE} but TRAINING.LABEL_DROP is 0.0: the null class "
        "is never trained; give LABEL_DROP such as 0.1 or GUIDANCE 1.0"
    )
    yield (
        g.GEN_TASK == "class_cond"
        and n.NUM_CLASSES is None
        and f"{_GEN}.GEN_TASK is class_cond but {_NET}.NUM_CLASSES is null; "
        "give the number of classes or GEN_TASK random_uncond"
    )

    def label() -> str | None:
        label, count = g.CLASS_LABEL, n.NUM_CLASSES
        if label is None or count is None:
            return None
        beyond = [one for one in (label if isinstance(label, tuple) else (label,)) if one >= count]
        return (
            f"{_GEN}.CLASS_LABEL {beyond[0]} is no class: {_NET}.NUM_CLASSES is {count}; "
            f"give labels from 0 to {count - 1}"
            if beyond
            else None
        )

    yield label()
    yield (
        g.FREEZE_CHANNEL is not None
        and g.FREEZE_CHANNEL >= c.TRAINING.INPUT_IMAGE_CHANNEL
        and f"{_GEN}.FREEZE_CHANNEL is {g.FREEZE_CHANNEL} but TRAINING.INPUT_IMAGE_CHANNEL is "
        f"{c.TRAINING.INPUT_IMAGE_CHANNEL}; give a channel from 0 to "
        f"{c.TRAINING.INPUT_IMAGE_CHANNEL - 1}"
    )


def evaluation(c: Config) -> Iterator[Rule]:
    """Rules over what is measured, and over what is kept by it."""
    e = c.EVALUATION
    yield (
        e.BEST
        and e.EVERY is None
        and f"EVALUATION.BEST is {e.BEST} but EVERY is null, so nothing is evaluated while "
        "training; give EVERY such as 10, or BEST null"
    )
    yield (
        e.FEATURES
        and e.EVERY is None
        and f"EVALUATION.FEATURES is {e.FEATURES} but EVERY is null, so nothing is evaluated while "
        "training; give EVERY such as 10, or FEATURES null"
    )
    yield (
        e.FEATURES == "classifier"
        and e.EVERY
        and c.DATASET.LABEL_KEY is None
        and "EVALUATION.FEATURES is classifier but DATASET.LABEL_KEY is null, and it is trained on "
        "labels; give FEATURES pixels"
    )
    yield (
        e.FEATURES == "inception"
        and e.WEIGHTS is None
        and "EVALUATION.FEATURES is inception but WEIGHTS is null; name the file of its weights "
        "that docs/metrics.md says how to make, or give FEATURES classifier or pixels"
    )
    yield (
        e.FEATURES == "inception"
        and e.WEIGHTS
        and c.TRAINING.INPUT_IMAGE_CHANNEL not in (1, 3)
        and f"EVALUATION.FEATURES is inception but images have {c.TRAINING.INPUT_IMAGE_CHANNEL} "
        "channels and it takes 1 or 3; give FEATURES classifier or pixels"
    )
    yield (
        e.BEST
        and MEASURES[e.BEST].of == "samples"
        and e.FEATURES is None
        and f"EVALUATION.BEST is {e.BEST} but FEATURES is null, so nothing is drawn; "
        "give FEATURES classifier, pixels or inception"
    )

    def least() -> int:
        return FID_SAMPLES[e.FEATURES] if e.FEATURES else 0

    yield (
        e.BEST == "fid_infinity"
        and e.SAMPLES < least()
        and f"EVALUATION.BEST is fid_infinity but SAMPLES is {e.SAMPLES}, and an FID of "
        f"{e.FEATURES} features means nothing with fewer than {least()}; give SAMPLES "
        f"{least()}, or BEST kid"
    )
    yield (
        e.PATIENCE
        and e.BEST is None
        and f"EVALUATION.PATIENCE is {e.PATIENCE} but BEST is null, so nothing can get better; "
        "give BEST mean_log10_mse, or PATIENCE null"
    )
    yield (
        e.SAMPLING_METHOD != "ddim"
        and any(e.SAMPLING_ETAS)
        and f"EVALUATION.SAMPLING_METHOD is {e.SAMPLING_METHOD}, which draws no noise, but "
        f"SAMPLING_ETAS is {list(e.SAMPLING_ETAS)}; give SAMPLING_ETAS [0.0], or SAMPLING_METHOD "
        "ddim"
    )
    yield (
        e.EMA_LENGTHS
        and not c.TRAINING.EMA_POWER
        and f"EVALUATION.EMA_LENGTHS is {list(e.EMA_LENGTHS)} but TRAINING.EMA_POWER is [], so no "
        "snapshots are kept; give EMA_POWER such as [0.05, 0.1], or EMA_LENGTHS []"
    )
    guided = [one for one in e.SAMPLING_GUIDANCES if one != 1.0]
    named = f"EVALUATION.SAMPLING_GUIDANCES is {list(e.SAMPLING_GUIDANCES)}"
    yield (
        guided
        and c.TRAINING.NETWORK.NUM_CLASSES is None
        and f"{named} but {_NET}.NUM_CLASSES is null: nothing to guide; give [1.0] or a number of "
        "classes"
    )
    yield (
        guided
        and c.TRAINING.NETWORK.NUM_CLASSES
        and c.TRAINING.LABEL_DROP == 0.0
        and f"{named} but TRAINING.LABEL_DROP is 0.0: the null class is never trained; give "
        "LABEL_DROP such as 0.1 or [1.0]"
    )
    yield (
        isinstance(e.SAMPLING_LOGSNR, tuple)
        and e.SAMPLING_LOGSNR[0] >= e.SAMPLING_LOGSNR[1]
        and f"EVALUATION.SAMPLING_LOGSNR is {list(e.SAMPLING_LOGSNR)}; a walk goes from noise to "
        "images: give the lower log SNR first"
    )


def without_effect(c: Config) -> Iterator[tuple[str, Rule]]:
    """(key, why its value changes nothing) of keys that only a value of another key brings to life.

    Files may have them, as v3's do: one word then switches between tasks.
    """
    g = c.IMAGE_GENERATION
    needs = {
        "CLASS_LABEL": (
            g.CLASS_LABEL,
            None,
            ("class_cond", "channel_inpaint", "inpaint", "sdedit"),
        ),
        "FREEZE_CHANNEL": (g.FREEZE_CHANNEL, None, ("channel_inpaint",)),
        "EXTERNAL_NPZ_INPUT": (
            *(g.EXTERNAL_NPZ_INPUT, None),
            ("channel_inpaint", "inpaint", "sdedit"),
        ),
        "STRENGTH": (g.STRENGTH, 0.5, ("sdedit",)),
        "KNOWN_NOISE": (g.KNOWN_NOISE, "fixed", ("channel_inpaint", "inpaint")),
        "RESAMPLES": (g.RESAMPLES, None, ("channel_inpaint", "inpaint")),
    }
    for name, (value, default, tasks) in needs.items():
        yield (
            f"{_GEN}.{name}",
            value != default
            and g.GEN_TASK not in tasks
            and f"GEN_TASK is {g.GEN_TASK}; give GEN_TASK {' or '.join(tasks)}",
        )
    for name, default in (("EXPORT_EVERY", None), ("EXPORT_FORMAT", "strip")):
        yield (
            f"{_GEN}.{name}",
            getattr(g, name) != default
            and not g.EXPORT_INTERM
            and "EXPORT_INTERM is false; give it true",
        )


def impossible(c: Config) -> Iterator[Rule]:
    """Rules over cells that a grid may contain and skips: they make no sense, whatever is meant."""
    t, n, g = c.TRAINING, c.TRAINING.NETWORK, c.IMAGE_GENERATION
    yield (
        n.SCHEDULER == "iddpm_linear"
        and n.TIMESTEPS <= 20
        and f"{_NET}.TIMESTEPS is {n.TIMESTEPS} but SCHEDULER iddpm_linear reaches beta >= 1 at 20 "
        "or fewer; give more than 20 timesteps or SCHEDULER linear"
    )
    yield (
        n.ZERO_TERMINAL_SNR
        and "noise" in (t.PRED_TYPE, t.LOSS_SPACE)
        and f"TRAINING.{'PRED_TYPE' if t.PRED_TYPE == 'noise' else 'LOSS_SPACE'} is noise but "
        f"{_NET}.ZERO_TERMINAL_SNR is true, where the noise says "
        "nothing about the image at t = T; give velocity or image"
    )
    yield (
        n.ZERO_TERMINAL_SNR
        and n.TIMESTEPS == 1
        and f"{_NET}.ZERO_TERMINAL_SNR is true but TIMESTEPS is 1: the only timestep would carry "
        "no image; give at least 2"
    )
    yield (
        n.ZERO_TERMINAL_SNR
        and not t.draws_timesteps
        and f"TRAINING.LOGSNR_DENSITY is {t.LOGSNR_DENSITY} but {_NET}.ZERO_TERMINAL_SNR is true: "
        "no density reaches the pure noise that images begin from; give schedule, or false"
    )
    yield (
        n.TIME_INPUT in ("time", "timestep")
        and not t.draws_timesteps
        and f"{_NET}.TIME_INPUT is {n.TIME_INPUT} but TRAINING.LOGSNR_DENSITY is "
        f"{t.LOGSNR_DENSITY}, whose "
        "noise levels have no timesteps; give TIME_INPUT logsnr or null"
    )
    is_drawn_so = t.LOGSNR_DENSITY == t.WEIGHTED_AS and t.DENSITY_PARAMETERS is None
    yield (
        t.WEIGHTED_AS
        and (is_drawn_so or t.LOGSNR_DENSITY == "adaptive")
        and f"TRAINING.WEIGHTED_AS is {t.WEIGHTED_AS} but LOGSNR_DENSITY is {t.LOGSNR_DENSITY}, "
        f"which {'draws so already' if is_drawn_so else 'weighs losses itself'}; give null, or "
        "LOGSNR_DENSITY schedule"
    )
    for key, s in (("TRAINING.INLINE_GEN", t.INLINE_GEN), (_GEN, g)):
        yield (
            s.REVERSE_STRIDE
            and s.REVERSE_STRIDE > n.TIMESTEPS
            and f"{key}.REVERSE_STRIDE is {s.REVERSE_STRIDE} but {_NET}.TIMESTEPS is "
            f"{n.TIMESTEPS}; give a stride of at most {n.TIMESTEPS}"
        )
    yield (
        g.NUM_STEPS
        and g.NUM_STEPS > n.TIMESTEPS
        and g.SPACING in WHOLE
        and f"{_GEN}.NUM_STEPS is {g.NUM_STEPS} but {_NET}.TIMESTEPS is {n.TIMESTEPS}; "
        f"give a number of steps of at most {n.TIMESTEPS}, or SPACING logsnr, karras or flow"
    )
    # with zero terminal SNR the steps go from T - 1 to 1
    yield (
        g.SPACING not in WHOLE
        and n.TIMESTEPS < 3
        and f"{_GEN}.SPACING is {g.SPACING} but {_NET}.TIMESTEPS is {n.TIMESTEPS}, with no "
        "room between the first and the last; give trailing, or at least 3 timesteps"
    )
