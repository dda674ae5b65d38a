"""What images are asked for, of which trained network: all checked, nothing loaded, no torch.

    request = read_request(Path("training_outputs/..."), ["IMAGE_GENERATION.NUM_GEN_IMAGES=64"])

The options are IMAGE_GENERATION of the run's own configuration (or of a YAML named instead of a
run, whose MODEL_PATH then names it), with overrides; they are checked against the trained network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm import base_images
from ddpm import config as configuration
from ddpm.config import Config, ImageGeneration
from ddpm.errors import InputError
from ddpm.x0_variance import X0Variance, read_x0_variance

CONFIG_FILE = "training_config.yaml"
RAW = "model"
# Small, since the last batch is filled up: one image costs a whole batch.
BATCH_SIZE = 16
SECTION = "IMAGE_GENERATION"
_KERAS = (".h5", ".hdf5", ".keras")
# What two networks must share for one to guide the other, and what of it is training's alone.
_OF_THE_NETWORK = ("TRAINING.NETWORK.", "TRAINING.INPUT_IMAGE_", "TRAINING.PRED_TYPE")
_OF_TRAINING_IT = ("TRAINING.NETWORK.DROPOUT_RATE", "TRAINING.NETWORK.CHECKPOINT_ACTIVATIONS")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A valid request.

    checkpoint: None is the run's newest.  config: the run's, with the IMAGE_GENERATION asked for.
    image_shape: (C, H, W) of what is drawn.  base: (N, H, W, C) in [0, 1], for inpainting.
    x0_variance: of the run, for the analytic sampler.
    """

    run: Path
    checkpoint: Path | None
    config: Config
    ema: float | None
    batch_size: int
    image_shape: tuple[int, int, int]
    base: NDArray[np.float32] | None
    x0_variance: X0Variance | None = None

    @property
    def options(self) -> ImageGeneration:
        return self.config.IMAGE_GENERATION

    @property
    def seed(self) -> int:
        return self.options.RANDOM_SEED or 0

    @property
    def folder(self) -> Path:
        """Where the images go."""
        chosen = self.options.GEN_SAVE_DIR
        return self.run / "generated" if chosen is None else Path(chosen)

    @property
    def stem(self) -> str:
        """Their file's name, as v3 has it: ddim_eta{eta}_rev{stride}_gen_{shape}, or {sampler}_."""
        steps = configuration.sampling_steps(self.options, self.config.TRAINING.NETWORK.TIMESTEPS)
        (kind, number), *_ = steps.items()
        spacing = f"rev{number}" if kind == "reverse_stride" else f"steps{number}"
        channels, height, width = self.image_shape
        shape = f"{self.options.NUM_GEN_IMAGES}x{height}x{width}x{channels}"
        sampler = self.options.SAMPLER
        if sampler in ("ddim", "ddpm"):
            sampler = f"ddim_eta{self.options.DDIM_ETA}"
        return f"{sampler}_{spacing}_gen_{shape}"

    def describe(self) -> str:
        """One line: what is drawn, of what, to where."""
        options = self.options
        source = self.checkpoint or self.run
        return (
            f"{options.NUM_GEN_IMAGES} images ({options.GEN_TASK}, seed {self.seed}) of {source} "
            f"with {weights_name(self.config, self.ema)} to {self.folder / self.stem}.npz"
        )


def read_request(
    source: Path,
    overrides: Sequence[str] = (),
    *,
    ema: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> Request:
    """The request for images of `source`: a run directory, a checkpoint, or a YAML that names one.

    ema: which weights, as in load_network.  Raises InputError with everything that is wrong.
    """
    problems = foreign_overrides(overrides)
    own = [text for text in overrides if text not in problems]
    problems = [
        f"{text.partition('=')[0]}: the run is trained, and only {SECTION} keys choose its images"
        for text in problems
    ]
    named = source
    asked: ImageGeneration | None = None
    if source.is_file() and source.suffix in (".yaml", ".yml"):
        asked = configuration.load(source, own).IMAGE_GENERATION
        named, own = _model_path(source, asked), []
    run, checkpoint = locate(named)
    trained = configuration.load(run / CONFIG_FILE)
    if ema is not None and ema != 0 and ema not in trained.TRAINING.EMA_DECAYS:
        there = ", ".join(f"{decay:g}" for decay in trained.TRAINING.EMA_DECAYS)
        problems.append(f"--ema {ema:g}: {run} has the EMA decays {there}, or 0 for none")
    if batch_size < 1:
        problems.append(f"--batch-size {batch_size}: give at least 1")
    config = _merged(run, trained, own, asked, problems)
    base = variance = None
    if config is not None:
        problems += task_problems(config) + _folder_problems(config) + guide_problems(config, ema)
        base, variance = _base(config, problems), _x0_variance(run, config, problems)
    if problems or config is None:
        raise InputError(problems)
    return Request(
        run=run,
        checkpoint=checkpoint,
        config=config,
        ema=ema,
        batch_size=batch_size,
        image_shape=drawn_shape(config),
        base=base,
        x0_variance=variance,
    )


def locate(source: Path) -> tuple[Path, Path | None]:
    """The run directory of `source`, and the checkpoint when `source` is one and no run."""
    if source.suffix in _KERAS:
        raise InputError(
            f"{source} is a Keras file, which cannot be read; "
            "name a run directory or a checkpoint of this project"
        )
    if not source.is_dir():
        raise InputError(f"{source} is no folder; name a run directory or a checkpoint")
    if (source / CONFIG_FILE).is_file():
        return source, None
    run = source.resolve().parent.parent
    if source.resolve().parent.name == "checkpoints" and (run / CONFIG_FILE).is_file():
        return run, source
    raise InputError(
        f"{source} is no run directory, which has a {CONFIG_FILE}, and no checkpoint of one"
    )


def weights_name(config: Config, ema: float | None) -> str:
    """The part of a checkpoint that holds the weights: "ema-0.999", or "model" for ema 0."""
    if ema == 0:
        return RAW
    return f"ema-{config.TRAINING.EMA_DECAYS[0] if ema is None else ema:g}"


def foreign_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of other sections than IMAGE_GENERATION."""
    return [text for text in overrides if not text.upper().startswith(f"{SECTION}.")]


def drawn_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of the images to draw: NEW_IMAGE_SIZE where given."""
    channels, height, width = configuration.image_shape(config)
    new = config.IMAGE_GENERATION.NEW_IMAGE_SIZE
    return (channels, height, width) if new is None else (channels, new, new)


def task_problems(config: Config) -> list[str]:
    """What the task lacks, one line each."""
    options, problems = config.IMAGE_GENERATION, configuration.generation_problems(config)
    if options.GEN_TASK == "channel_inpaint" and config.TRAINING.INPUT_IMAGE_CHANNEL < 2:
        problems.append(
            f"{SECTION}.GEN_TASK is channel_inpaint but images have one channel, so nothing is "
            "left to draw; give another task"
        )
    has_class = options.GEN_TASK == "class_cond" or (
        options.GEN_TASK == "channel_inpaint" and options.CLASS_LABEL is not None
    )
    if options.GUIDANCE != 1 and options.GUIDE is None and not has_class:
        problems.append(
            f"{SECTION}.GUIDANCE is {options.GUIDANCE} but GEN_TASK {options.GEN_TASK} draws "
            "without classes: nothing to guide; give GUIDANCE 1.0, or class_cond"
        )
    conditional = config.TRAINING.NETWORK.NUM_CLASSES is not None
    if options.GEN_TASK == "random_uncond" and conditional and config.TRAINING.LABEL_DROP == 0:
        problems.append(
            f"{SECTION}.GEN_TASK is random_uncond but the network was trained with LABEL_DROP 0.0, "
            "never without a class; give class_cond"
        )
    return problems


def guide_weights(guide: str, ema: float | None) -> tuple[Path | None, float | None]:
    """GUIDE as arguments of load_network: where, None for the checkpoint drawn from, and which."""
    if guide.lower() == RAW:
        return None, 0.0
    try:
        return None, float(guide)
    except ValueError:
        return Path(guide), ema


def guide_problems(config: Config, ema: float | None) -> list[str]:
    """Why GUIDE cannot guide, one line each: other weights of the same network are needed."""
    guide = config.IMAGE_GENERATION.GUIDE
    if guide is None:
        return []
    source, guide_ema = guide_weights(guide, ema)
    opening, trained = f"{SECTION}.GUIDE is {guide}", config
    if source is not None:
        try:
            trained = configuration.load(locate(source)[0] / CONFIG_FILE)
        except InputError as error:
            return [f"{opening}: {problem}" for problem in error.problems]
    elif weights_name(config, guide_ema) == weights_name(config, ema):
        return [f"{opening}, the weights drawn from themselves; give others, or null"]
    if guide_ema not in (None, 0.0, *trained.TRAINING.EMA_DECAYS):
        there = ", ".join(f"{decay:g}" for decay in trained.TRAINING.EMA_DECAYS)
        return [f"{opening} with the EMA decay {guide_ema:g}; give one of {there}, or `model`"]
    return [
        f"{opening}, which has another {line}; give a run of the same network and noise schedule"
        for line in configuration.difference(config, trained)
        if line.startswith(_OF_THE_NETWORK) and not line.startswith(_OF_TRAINING_IT)
    ]


def _x0_variance(run: Path, config: Config, problems: list[str]) -> X0Variance | None:
    if config.IMAGE_GENERATION.SAMPLER != "analytic":
        return None
    try:
        return read_x0_variance(run)
    except InputError as error:
        problems += error.problems
        return None


def _model_path(source: Path, asked: ImageGeneration) -> Path:
    if not asked.MODEL_PATH:
        raise InputError(f"{source}: {SECTION}.MODEL_PATH is empty; name a run or a checkpoint")
    return Path(asked.MODEL_PATH)


def _merged(
    run: Path,
    trained: Config,
    overrides: Sequence[str],
    asked: ImageGeneration | None,
    problems: list[str],
) -> Config | None:
    """The run's configuration with the options asked for; None, with problems, when they clash."""
    try:
        if asked is None:
            return configuration.load(run / CONFIG_FILE, overrides)
        both = configuration.to_dict(replace(trained, IMAGE_GENERATION=asked))
        return configuration.from_dict(both, source=str(run))
    except InputError as error:
        problems += error.problems
        return None


def _folder_problems(config: Config) -> list[str]:
    chosen = config.IMAGE_GENERATION.GEN_SAVE_DIR
    if chosen is None or not Path(chosen).exists() or Path(chosen).is_dir():
        return []
    return [f"{SECTION}.GEN_SAVE_DIR is {chosen}, which is no folder; give a folder or a new name"]


def _base(config: Config, problems: list[str]) -> NDArray[np.float32] | None:
    options = config.IMAGE_GENERATION
    if options.GEN_TASK != "channel_inpaint" or options.EXTERNAL_NPZ_INPUT is None:
        return None
    try:
        return base_images.read(
            Path(options.EXTERNAL_NPZ_INPUT),
            drawn_shape(config),
            options.NUM_GEN_IMAGES,
            f"{SECTION}.EXTERNAL_NPZ_INPUT",
        )
    except InputError as error:
        problems += error.problems
        return None
