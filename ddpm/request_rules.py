"""What keeps a request for images from being drawn: its task, its guide. No torch."""

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.errors import InputError
from ddpm.run_config import load_run
from ddpm.weights import (
    Ema,
    PowerEma,
    ema_problem,
    guide_weights,
    locate,
    weights_name,
)

SECTION = "IMAGE_GENERATION"
INPAINTING = ("channel_inpaint", "inpaint")
# What two networks must share for one to guide the other, and what of it is training's alone.
_OF_THE_NETWORK = ("TRAINING.NETWORK.", "TRAINING.INPUT_IMAGE_", "TRAINING.PRED_TYPE")
_OF_TRAINING_IT = ("TRAINING.NETWORK.DROPOUT_RATE", "TRAINING.NETWORK.CHECKPOINT_ACTIVATIONS")


def task_problems(config: Config) -> list[str]:
    """What the task lacks, one line each."""
    options, problems = config.IMAGE_GENERATION, configuration.generation_problems(config)
    if options.GEN_TASK == "channel_inpaint" and config.TRAINING.INPUT_IMAGE_CHANNEL < 2:
        problems.append(
            f"{SECTION}.GEN_TASK is channel_inpaint but images have one channel, so nothing is "
            "left to draw; give another task"
        )
    if options.RESAMPLES > 0 and options.GEN_TASK not in INPAINTING:
        problems.append(
            f"{SECTION}.RESAMPLES is {options.RESAMPLES} but GEN_TASK {options.GEN_TASK} keeps no "
            f"part of an image; give RESAMPLES 0, or {' or '.join(INPAINTING)}"
        )
    has_class = options.GEN_TASK == "class_cond" or (
        options.GEN_TASK != "random_uncond" and options.CLASS_LABEL is not None
    )
    if options.GUIDANCE != 1 and options.GUIDE is None and not has_class:
        problems.append(
            f"{SECTION}.GUIDANCE is {options.GUIDANCE} but GEN_TASK {options.GEN_TASK} draws "
            "without classes: nothing to guide; give GUIDANCE 1.0, or class_cond"
        )
    conditional = config.TRAINING.NETWORK.NUM_CLASSES is not None
    if conditional and not has_class and config.TRAINING.LABEL_DROP == 0:
        problems.append(
            f"{SECTION}.GEN_TASK {options.GEN_TASK} draws without classes but the network was "
            "trained with LABEL_DROP 0.0, never without one; give class_cond, or a CLASS_LABEL"
        )
    return problems


def guide_problems(config: Config, ema: Ema | None) -> list[str]:
    """Why GUIDE cannot guide, one line each: other weights of the same network are needed."""
    guide = config.IMAGE_GENERATION.GUIDE
    if guide is None:
        return []
    try:
        source, guide_ema = guide_weights(guide, ema)
    except InputError as error:
        return [f"{SECTION}.GUIDE: {problem}" for problem in error.problems]
    opening, trained = f"{SECTION}.GUIDE is {guide}", config
    if source is not None:
        try:
            trained = load_run(locate(source)[0])
        except InputError as error:
            return [f"{opening}: {problem}" for problem in error.problems]
    elif weights_name(config, guide_ema) == weights_name(config, ema):
        return [f"{opening}, the weights drawn from themselves; give others, or null"]
    if isinstance(guide_ema, PowerEma):
        if why := ema_problem(trained, guide_ema):
            return [f"{opening}, but the run {why}; give a decay, or `model`"]
    elif guide_ema not in (None, 0.0, *trained.TRAINING.EMA_DECAYS):
        there = ", ".join(f"{decay:g}" for decay in trained.TRAINING.EMA_DECAYS)
        return [f"{opening} with the EMA decay {guide_ema:g}; give one of {there}, or `model`"]
    return [
        f"{opening}, which has another {line}; give a run of the same network and noise schedule"
        for line in configuration.difference(config, trained)
        if line.startswith(_OF_THE_NETWORK) and not line.startswith(_OF_TRAINING_IT)
    ]
