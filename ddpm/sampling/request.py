"""Request for images of a trained network: all checked, nothing loaded, no torch.

    request = read_request(Path("training_outputs/..."), ["IMAGE_GENERATION.NUM_GEN_IMAGES=64"])

The options are IMAGE_GENERATION of the run's own configuration (or of a YAML named instead of a
run, whose MODEL_PATH then names it), with overrides; they are checked against the trained network.
Weights are named by the decay of their average (0: unaveraged), or power:LENGTH for an average that
is made afterwards from snapshots. Base images and masks come from an NPZ file, in sight here too.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm import config as configuration
from ddpm.config import Config, ImageGeneration
from ddpm.data import images, open_npz
from ddpm.diffusion import power_ema_gamma, power_ema_name
from ddpm.errors import InputError, as_typed
from ddpm.runs import CONFIG_FILE, PROVENANCE_FILE, load_run, read_json

RAW_WEIGHTS = "model"
# Small, since the last batch is filled up: one image costs a whole batch.
BATCH_SIZE = 16
# A picture of more images is too large to look at; the files have them all.
MAX_PICTURED = 400
INPAINTING = ("channel_inpaint", "inpaint")
# Without any, two fifths of what the known part says about the rest are lost (docs/sampling.md).
INPAINTING_RESAMPLES = 8
# Files of a folder of images in bulk, which may be drawn from again.
BULK_RECIPE, BULK_REQUEST = "recipe.json", "request.yaml"

_POWER = "power:"
_ANY_NUMBER = 10**9
T = TypeVar("T")
# What two networks must share for one to guide the other, and what of it is training's alone.
_OF_THE_NETWORK = ("TRAINING.NETWORK.", "TRAINING.INPUT_IMAGE_", "TRAINING.PRED_TYPE")
_OF_TRAINING_IT = ("TRAINING.NETWORK.DROPOUT_RATE", "TRAINING.NETWORK.CHECKPOINT_ACTIVATIONS")
KEY, MASK = "images", "mask"
_KINDS = {KEY: ("f", "floats in [0, 1] or bytes"), MASK: ("b", "true and false, or bytes")}


@dataclass(frozen=True)
class PowerEma:
    """Average of this length, made from a run's snapshots (ddpm/diffusion/power_ema.py)."""

    sigma_rel: float

    def __str__(self) -> str:
        return f"{_POWER}{self.sigma_rel:g}"


Ema = float | PowerEma


def parse_ema(text: str) -> Ema:
    """A decay, or "power:0.07".  InputError for anything else, and for impossible lengths."""
    is_power = text.lower().startswith(_POWER)
    number = text[len(_POWER) :] if is_power else text
    try:
        # as many digits as its name has
        value = float(f"{float(number):g}") if is_power else float(number)
        if is_power:
            power_ema_gamma(value)
    except ValueError as error:
        why = f": {error}" if is_power and "sigma_rel" in str(error) else ""
        raise InputError(
            f"EMA {text}{why}; give a decay such as 0.999, 0 for none, or a length such as "
            f"{_POWER}0.07"
        ) from None
    return PowerEma(value) if is_power else value


def ema_of(name: str) -> Ema:
    """Weights that a part of a checkpoint called `name` holds: the inverse of weights_name()."""
    if name == RAW_WEIGHTS:
        return 0.0
    kind, _, number = name.partition("-")
    return PowerEma(float(number)) if kind == "power" else float(number)


def ema_problem(config: Config, ema: Ema | None) -> str | None:
    """Reason why a run of this configuration has no such weights; None where it has."""
    training = config.TRAINING
    if isinstance(ema, PowerEma):
        return None if training.EMA_POWER else "was trained without TRAINING.EMA_POWER"
    if ema in (None, 0, *training.EMA_DECAYS):
        return None
    there = ", ".join(f"{decay:g}" for decay in training.EMA_DECAYS)
    return f"has the EMA decays {there}, or 0 for none"


def locate_run(source: Path) -> tuple[Path, Path | None]:
    """The run directory of `source`, and the checkpoint when `source` is one and no run."""
    if configuration.is_keras_file(source.name):
        raise InputError(
            f"{source} is a Keras file, weights without their configuration; make a run of both "
            f"and name that: {as_typed('import-v3', 'CONFIG', source)}"
        )
    if not source.is_dir():
        raise InputError(
            f"{source} is no folder; name a run directory or a checkpoint, three or more digits of "
            "a run's id, or latest"
        )
    if (source / CONFIG_FILE).is_file():
        return source, None
    run = source.resolve().parent.parent
    if source.resolve().parent.name == "checkpoints" and (run / CONFIG_FILE).is_file():
        return run, source
    raise InputError(
        f"{source} is no run directory, which has a {CONFIG_FILE}, and no checkpoint of one"
    )


def weights_name(config: Config, ema: Ema | None) -> str:
    """The part of a checkpoint that holds the weights: "ema-0.999", or "model" for ema 0.

    "power-0.07" for an average that is made afterwards, whether it was tracked or not.
    """
    if ema == 0:
        return RAW_WEIGHTS
    if isinstance(ema, PowerEma):
        return power_ema_name(ema.sigma_rel)
    return f"ema-{config.TRAINING.EMA_DECAYS[0] if ema is None else ema:g}"


def guide_weights(guide: str, ema: Ema | None) -> tuple[Path | None, Ema | None]:
    """GUIDE as arguments of load_network: where, None for the checkpoint drawn from, and which."""
    if guide.lower() == RAW_WEIGHTS:
        return None, 0.0
    if guide.lower().startswith(_POWER):
        return None, parse_ema(guide)
    try:
        return None, float(guide)
    except ValueError:
        return Path(guide), ema


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """Images in bulk: num of them (None: NUM_GEN_IMAGES), drawn in units of `unit`.

    format: "shards", and "npz", "adm" (an NPZ for guided-diffusion) or "png" files made of them.
    """

    num: int | None = None
    unit: int | None = None
    format: str = "shards"


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Images to draw, checked, from the command line down to the sampler.

    checkpoint: None is the run's newest.  config: the run's, with the IMAGE_GENERATION asked for.
    batch_size: images of a network call; None is BATCH_SIZE, in bulk what fits.
    image_shape: (C, H, W) of what is drawn.  base: (N, H, W, C) in [0, 1], what inpainting keeps
    a part of and sdedit begins with.  mask: (M, H, W), true where inpaint knows the image.
    ranges: of each channel, where images are floats in the units of the data; None for bytes.
    source: what the command named.  bulk: None draws few images, as one file.
    """

    source: Path
    run: Path
    checkpoint: Path | None
    config: Config
    ema: Ema | None
    batch_size: int | None
    image_shape: tuple[int, int, int]
    base: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None
    bulk: BulkOptions | None = None
    ranges: images.Ranges | None = None

    @property
    def options(self) -> ImageGeneration:
        return self.config.IMAGE_GENERATION

    @property
    def num(self) -> int:
        """Number of images."""
        return self.options.NUM_GEN_IMAGES

    @property
    def seed(self) -> int:
        return self.options.RANDOM_SEED or 0

    @property
    def resamples(self) -> int:
        """Times that each step is taken again, where a part of the image is known."""
        if self.options.GEN_TASK not in INPAINTING:
            return 0
        given = self.options.RESAMPLES
        return INPAINTING_RESAMPLES if given is None else given

    @property
    def base_sha256(self) -> str | None:
        """SHA-256 of the file of base images and masks; None where the task takes none."""
        path = self.options.EXTERNAL_NPZ_INPUT
        if self.base is None or path is None:
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def folder(self) -> Path:
        """Folder of the images."""
        chosen = self.options.GEN_SAVE_DIR
        return self.run / "generated" if chosen is None else Path(chosen)

    @property
    def stem(self) -> str:
        """Their file's name, as v3 has it: ddim_eta{eta}_rev{stride}_gen_{shape}, or {sampler}_."""
        steps = configuration.sampling_steps(self.options, self.config.TRAINING.NETWORK.TIMESTEPS)
        (kind, number), *_ = steps.items()
        spacing = f"rev{number}" if kind == "reverse_stride" else f"steps{number}"
        channels, height, width = self.image_shape
        sampler: str = self.options.SAMPLER
        if sampler in ("ddim", "ddpm"):
            sampler = f"ddim_eta{self.options.DDIM_ETA}"
        return f"{sampler}_{spacing}_gen_{self.num}x{height}x{width}x{channels}"

    def describe(self) -> str:
        """One line: what is drawn, of what, to where."""
        source = self.checkpoint or self.run
        return (
            f"{self.num} images ({self.options.GEN_TASK}, seed {self.seed}) of {source} "
            f"with {weights_name(self.config, self.ema)} to {self.folder / self.stem}.npz"
            f"{in_units(self.ranges)}"
        )


def in_units(ranges: Sequence[Sequence[float]] | None) -> str:
    """The kind of images, where it is not the usual one, for lines about them."""
    if not ranges:
        return ""
    is_unit = all(tuple(one) == (0.0, 1.0) for one in ranges)
    return ", floats in [0, 1]" if is_unit else ", floats in the units of the data"


def _ranges(run: Path) -> images.Ranges | None:
    """The range of each channel that a run's data were scaled from."""
    found = read_json(run / PROVENANCE_FILE).get("ranges")
    return found and tuple((low, high) for low, high in found)


def read_request(
    source: Path,
    overrides: Sequence[str] = (),
    *,
    ema: Ema | None = None,
    batch_size: int | None = None,
    bulk: BulkOptions | None = None,
) -> SampleRequest:
    """The request for images of `source`: a run directory, a checkpoint, or a YAML that names one.

    ema: which weights, as in load_network.  bulk: images in bulk; `source` may then also be a
    folder of them.  Raises InputError with everything that is wrong.
    """
    foreign = foreign_overrides(overrides)
    own = [text for text in overrides if text not in foreign]
    problems = [
        f"{text.partition('=')[0]}: the run is trained, and only IMAGE_GENERATION keys choose its "
        "images"
        for text in foreign
    ]
    problems += _number_problems(batch_size, bulk)
    named = source
    if bulk is not None:
        if bulk.num is not None and bulk.num >= 1:
            own.append(f"IMAGE_GENERATION.NUM_GEN_IMAGES={bulk.num}")
        if is_bulk_folder(source):
            named = source / BULK_REQUEST
            if ema is None:
                ema = ema_of(str(read_json(source / BULK_RECIPE)["weights"]))
    asked: ImageGeneration | None = None
    if named.is_file() and named.suffix in (".yaml", ".yml"):
        asked = configuration.load_generation(named, own)
        if not asked.MODEL_PATH:
            raise InputError(
                f"{named}: IMAGE_GENERATION.MODEL_PATH is empty; name a run or a checkpoint"
            )
        named, own = Path(asked.MODEL_PATH), []
    run, checkpoint = locate_run(named)
    trained = load_run(run)
    if why := ema_problem(trained, ema):
        problems.append(f"--ema {ema}: {run} {why}")
    config = _merged(run, trained, own, asked, problems)
    base = mask = ranges = None
    if config is not None:
        problems += task_problems(config) + _folder_problems(config) + guide_problems(config, ema)
        # Of images in bulk more may be asked for later, and image i takes base image i.
        limit = config.IMAGE_GENERATION.NUM_GEN_IMAGES if bulk is None else _ANY_NUMBER
        channels = config.TRAINING.INPUT_IMAGE_CHANNEL
        own_ranges, kind = _ranges(run), config.IMAGE_GENERATION.PIXELS
        if kind == "float" or (kind is None and own_ranges):
            ranges = own_ranges or ((0.0, 1.0),) * channels
        if bulk is not None and bulk.format in ("adm", "png") and ranges:
            problems.append(
                f"--format is {bulk.format}, which holds bytes; these images are floats: give "
                "IMAGE_GENERATION.PIXELS=uint8, or npz or shards"
            )
        if bulk is not None and bulk.format == "adm" and channels != 3:
            problems.append(
                f"--format is adm, whose readers take 3 channels; these images have {channels}, so "
                "give npz, shards or png"
            )
        base_of = partial(read_base, ranges=own_ranges)
        base = _external(base_of, config, (*INPAINTING, "sdedit"), limit, problems)
        mask = _external(read_mask, config, ("inpaint",), limit, problems)
    if problems or config is None:
        raise InputError(problems)
    return SampleRequest(
        source=source,
        run=run,
        checkpoint=checkpoint,
        config=config,
        ema=ema,
        batch_size=batch_size,
        image_shape=_drawn_shape(config),
        base=base,
        mask=mask,
        bulk=bulk,
        ranges=ranges,
    )


def foreign_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of other sections than IMAGE_GENERATION."""
    return [text for text in overrides if not text.upper().startswith("IMAGE_GENERATION.")]


def is_bulk_folder(folder: Path) -> bool:
    """True where images in bulk have been begun."""
    return (folder / BULK_RECIPE).is_file() and (folder / "unit.json").is_file()


def _number_problems(batch_size: int | None, bulk: BulkOptions | None) -> list[str]:
    num, unit = (bulk.num, bulk.unit) if bulk is not None else (None, None)
    problems = [
        f"--{name} is {value}; give at least 1"
        for name, value in {"num": num, "unit": unit, "batch-size": batch_size}.items()
        if value is not None and value < 1
    ]
    if problems or unit is None or batch_size is None or unit % batch_size == 0:
        return problems
    nearest = max(1, round(unit / batch_size)) * batch_size
    return [
        f"--unit is {unit}, which is no multiple of --batch-size {batch_size}; "
        f"give --unit {nearest}"
    ]


def _drawn_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of the images to draw: NEW_IMAGE_SIZE where given."""
    channels, height, width = configuration.image_shape(config)
    new = config.IMAGE_GENERATION.NEW_IMAGE_SIZE
    return (channels, height, width) if new is None else (channels, new, new)


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
    return [
        f"IMAGE_GENERATION.GEN_SAVE_DIR is {chosen}, which is no folder; give a folder or a new "
        "name"
    ]


def _external(
    read: Callable[[Path, tuple[int, int, int], int, str], T],
    config: Config,
    tasks: Sequence[str],
    limit: int,
    problems: list[str],
) -> T | None:
    """Content of EXTERNAL_NPZ_INPUT for these tasks; None for others, and with problems."""
    options = config.IMAGE_GENERATION
    if options.GEN_TASK not in tasks or options.EXTERNAL_NPZ_INPUT is None:
        return None
    path, key = Path(options.EXTERNAL_NPZ_INPUT), "IMAGE_GENERATION.EXTERNAL_NPZ_INPUT"
    try:
        return read(path, _drawn_shape(config), limit, key)
    except InputError as error:
        problems += [text for text in error.problems if text not in problems]
        return None


def task_problems(config: Config) -> list[str]:
    """Lacks of the task, one line each."""
    options, problems = config.IMAGE_GENERATION, configuration.generation_problems(config)
    if options.GEN_TASK == "channel_inpaint" and config.TRAINING.INPUT_IMAGE_CHANNEL < 2:
        problems.append(
            "IMAGE_GENERATION.GEN_TASK is channel_inpaint but images have one channel, so nothing "
            "is left to draw; give another task"
        )
    has_class = options.GEN_TASK == "class_cond" or (
        options.GEN_TASK != "random_uncond" and options.CLASS_LABEL is not None
    )
    if options.GUIDANCE != 1 and options.GUIDE is None and not has_class:
        problems.append(
            f"IMAGE_GENERATION.GUIDANCE is {options.GUIDANCE} but GEN_TASK {options.GEN_TASK} "
            "draws without classes: nothing to guide; give GUIDANCE 1.0, or class_cond"
        )
    conditional = config.TRAINING.NETWORK.NUM_CLASSES is not None
    if conditional and not has_class and config.TRAINING.LABEL_DROP == 0:
        problems.append(
            f"IMAGE_GENERATION.GEN_TASK {options.GEN_TASK} draws without classes but the network "
            "was trained with LABEL_DROP 0.0, never without one; give class_cond, or a CLASS_LABEL"
        )
    return problems


def guide_problems(config: Config, ema: Ema | None) -> list[str]:
    """Reasons why GUIDE cannot guide, a line each: it takes other weights of the same network."""
    guide = config.IMAGE_GENERATION.GUIDE
    if guide is None:
        return []
    try:
        source, guide_ema = guide_weights(guide, ema)
    except InputError as error:
        return [f"IMAGE_GENERATION.GUIDE: {problem}" for problem in error.problems]
    opening, trained = f"IMAGE_GENERATION.GUIDE is {guide}", config
    if source is not None:
        try:
            trained = load_run(locate_run(source)[0])
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
    seen, here = (configuration.schedule_arguments(c)["time_input"] for c in (trained, config))
    apart = (*_OF_TRAINING_IT, *["TRAINING.NETWORK.TIME_INPUT"] * (seen == here))
    return [
        f"{opening}, which has another {line}; give a run of the same network and noise schedule"
        for line in configuration.difference(config, trained)
        if line.startswith(_OF_THE_NETWORK) and not line.startswith(apart)
    ]


def read_base(
    path: Path,
    image_shape: tuple[int, int, int],
    limit: int,
    what: str,
    ranges: images.Ranges | None = None,
) -> NDArray[np.float32]:
    """First images, at most `limit`, of an NPZ file: (N, H, W, C) in [0, 1], bytes / 255.

    image_shape: (C, H, W) they must have.  what: the configuration key that named the file.
    ranges: of the channels of floats in the data's own units.  Raises InputError.
    """
    channels, height, width = image_shape
    found = _read_array(path, KEY, (height, width, channels), limit, what)
    if ranges and found.dtype != np.uint8:
        unit = images.to_unit(found, ranges)
        if not ((unit >= 0) & (unit <= 1)).all():
            data = ", ".join(f"{low:g} to {high:g}" for low, high in ranges)
            raise InputError(
                f"{what} is {path}: `{KEY}` reaches from {found.min():g} to {found.max():g}; the "
                f"run's data reach from {data} by channel"
            )
        return unit
    return _in_unit_range(found, f"{what} is {path}")


def read_mask(
    path: Path, image_shape: tuple[int, int, int], limit: int, what: str
) -> NDArray[np.bool_]:
    """`mask` of the same file, (M, H, W): true where the image is known; one for all may be (H, W).

    Raises InputError, also for a mask that leaves nothing to draw or nothing known.
    """
    found = _read_array(path, MASK, image_shape[1:], limit, what) != 0
    if found.all() or not found.any():
        known = "all" if found.all() else "nothing"
        raise InputError(f"{what} is {path}: `{MASK}` says that {known} is known; give both kinds")
    return np.asarray(found)


def _read_array(
    path: Path, key: str, wanted: tuple[int, ...], limit: int, what: str
) -> NDArray[np.generic]:
    """Array (N, *wanted) of an NPZ file, at most `limit` of its N; masks may lack the N."""
    what = f"{what} is {path}"
    if not path.is_file():
        raise InputError(f"{what}, which is no file; give an NPZ file with `{key}`")
    try:
        members = open_npz(path)
        if key not in members:
            there = ", ".join(members) or "nothing"
            raise InputError(f"{what}, which holds {there}; it needs `{key}`")
        shape, dtype = members[key].header.shape, members[key].header.dtype
        counted = (1, *shape) if key == MASK and shape == wanted else shape
        if len(counted) != len(wanted) + 1 or counted[1:] != wanted or counted[0] < 1:
            numbers = ", ".join(map(str, wanted))
            raise InputError(f"{what}: `{key}` has shape {shape}; give (N, {numbers})")
        kinds, words = _KINDS[key]
        if dtype != np.uint8 and dtype.kind not in kinds:
            raise InputError(f"{what}: `{key}` is {dtype}; give {words}")
        return members[key].read().reshape(counted)[:limit]
    except (OSError, ValueError) as error:
        raise InputError(f"{what}, which cannot be read: {error}") from error


def _in_unit_range(found: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    if found.dtype == np.uint8:
        return found.astype(np.float32) / np.float32(255)
    low, high = float(found.min()), float(found.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{what}: `{KEY}` reaches from {low:g} to {high:g}; give values in [0, 1]")
    return np.asarray(found, dtype=np.float32)
