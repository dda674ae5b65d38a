"""What images are asked for, of which trained network: all checked, nothing loaded, no torch.

    request = read_request(Path("training_outputs/..."), ["IMAGE_GENERATION.NUM_GEN_IMAGES=64"])

The options are IMAGE_GENERATION of the run's own configuration (or of a YAML named instead of a
run, whose MODEL_PATH then names it), with overrides; they are checked against the trained network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm import base_images
from ddpm import config as configuration
from ddpm.config import Config, ImageGeneration
from ddpm.errors import InputError
from ddpm.request_rules import INPAINTING, SECTION, guide_problems, task_problems
from ddpm.run_config import load_run
from ddpm.weights import Ema, ema_problem, locate, weights_name
from ddpm.x0_variance import X0Variance, read_x0_variance

# Small, since the last batch is filled up: one image costs a whole batch.
BATCH_SIZE = 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A valid request.

    checkpoint: None is the run's newest.  config: the run's, with the IMAGE_GENERATION asked for.
    image_shape: (C, H, W) of what is drawn.  base: (N, H, W, C) in [0, 1], what inpainting keeps
    a part of and sdedit begins with.  mask: (M, H, W), true where inpaint knows the image.
    x0_variance: of the run, for the analytic sampler.
    """

    run: Path
    checkpoint: Path | None
    config: Config
    ema: Ema | None
    batch_size: int
    image_shape: tuple[int, int, int]
    base: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None
    x0_variance: X0Variance | None = None

    @property
    def options(self) -> ImageGeneration:
        return self.config.IMAGE_GENERATION

    @property
    def seed(self) -> int:
        return self.options.RANDOM_SEED or 0

    @property
    def base_sha256(self) -> str | None:
        """Identity of the file of base images and masks; None where the task takes none."""
        path = self.options.EXTERNAL_NPZ_INPUT
        return None if self.base is None or path is None else base_images.sha256(Path(path))

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
    ema: Ema | None = None,
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
        asked = configuration.load_generation(source, own)
        named, own = _model_path(source, asked), []
    run, checkpoint = locate(named)
    trained = load_run(run)
    if why := ema_problem(trained, ema):
        problems.append(f"--ema {ema}: {run} {why}")
    if batch_size < 1:
        problems.append(f"--batch-size {batch_size}: give at least 1")
    config = _merged(run, trained, own, asked, problems)
    base = mask = variance = None
    if config is not None:
        problems += task_problems(config) + _folder_problems(config) + guide_problems(config, ema)
        base, mask = _base(config, problems), _mask(config, problems)
        variance = _x0_variance(run, config, problems)
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
        mask=mask,
        x0_variance=variance,
    )


def foreign_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of other sections than IMAGE_GENERATION."""
    return [text for text in overrides if not text.upper().startswith(f"{SECTION}.")]


def drawn_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of the images to draw: NEW_IMAGE_SIZE where given."""
    channels, height, width = configuration.image_shape(config)
    new = config.IMAGE_GENERATION.NEW_IMAGE_SIZE
    return (channels, height, width) if new is None else (channels, new, new)


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
            return load_run(run, overrides)
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
    return _read(base_images.read, config, (*INPAINTING, "sdedit"), problems)


def _mask(config: Config, problems: list[str]) -> NDArray[np.bool_] | None:
    return _read(base_images.read_mask, config, ("inpaint",), problems)


def _read(
    read: Callable[[Path, tuple[int, int, int], int, str], T],
    config: Config,
    tasks: Sequence[str],
    problems: list[str],
) -> T | None:
    """What EXTERNAL_NPZ_INPUT holds for these tasks; None for others, and with problems."""
    options = config.IMAGE_GENERATION
    if options.GEN_TASK not in tasks or options.EXTERNAL_NPZ_INPUT is None:
        return None
    path, key = Path(options.EXTERNAL_NPZ_INPUT), f"{SECTION}.EXTERNAL_NPZ_INPUT"
    try:
        return read(path, drawn_shape(config), options.NUM_GEN_IMAGES, key)
    except InputError as error:
        problems += [text for text in error.problems if text not in problems]
        return None
