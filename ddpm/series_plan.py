"""From a command line to a series of images: all checked, the network read, nothing written yet."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpm import config as configuration
from ddpm import durable, series, units
from ddpm.errors import InputError
from ddpm.image_generator import ImageGenerator
from ddpm.request import Request
from ddpm.series import REQUEST, Series
from ddpm.wish import Wish

_UNITS = (64, 4096)
_UNIT_BYTES = 1 << 27
_UNITS_OF_A_TASK = 4
_TASKS = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A wish that can be fulfilled.  series: None while nobody has begun it.  unit: its unit, or
    the one it will get.
    """

    wish: Wish
    request: Request
    generator: ImageGenerator
    folder: Path
    recipe: dict[str, Any]
    unit: int
    series: Series | None

    @property
    def num(self) -> int:
        return self.request.options.NUM_GEN_IMAGES

    def describe(self) -> str:
        """One line: what is drawn, of what, to where."""
        options = self.request.options
        return (
            f"{self.num:,} images ({options.GEN_TASK}, seed {self.request.seed}) of "
            f"{self.generator.model.folder} with {self.generator.model.name}"
        )

    def begin(self) -> Series:
        """The series in its folder, with what jobs need to draw it."""
        begun = Series.begin(self.folder, self.recipe, self.unit)
        durable.write_text(begun.folder / REQUEST, configuration.to_yaml(self._pinned()))
        if self.wish.batch_size is not None:
            begun.settle_batch_size(self.wish.batch_size)
        return begun

    def _pinned(self) -> configuration.Config:
        """The configuration with the one checkpoint, and no path that depends on where one is."""
        options = self.request.options
        base = options.EXTERNAL_NPZ_INPUT
        place = options.GEN_SAVE_DIR
        pinned = replace(
            options,
            MODEL_PATH=str(self.generator.model.folder.resolve()),
            GEN_SAVE_DIR=None if place is None else str(Path(place).resolve()),
            EXTERNAL_NPZ_INPUT=None if base is None else str(Path(base).resolve()),
        )
        return replace(self.request.config, IMAGE_GENERATION=pinned)


def make(wish: Wish, *, jobs: int | None = None) -> Plan:
    """The plan for a wish. InputError with all that is wrong.

    jobs: tasks that run at once, for the default size of a unit.
    """
    request = wish.request()
    generator = ImageGenerator(request)
    recipe = series.recipe_of(generator.recipe())
    options = request.options
    stem = request.stem.replace(f"_gen_{options.NUM_GEN_IMAGES}x", "_gen_")
    folder = request.folder / f"{stem}_{series.digest(recipe)[:8]}"
    if series.is_series(wish.source) and Series.open(wish.source).digest == series.digest(recipe):
        folder = wish.source  # wherever it has been moved
    begun = Series.open(folder) if series.is_series(folder) else None
    if begun is not None and (found := _clashes(wish, begun)):
        raise InputError(found)
    return Plan(
        wish=wish,
        request=request,
        generator=generator,
        folder=folder.resolve(),
        recipe=recipe,
        unit=begun.unit if begun else default_unit(wish, request, jobs or _TASKS),
        series=begun,
    )


def _clashes(wish: Wish, begun: Series) -> list[str]:
    """What was settled otherwise when the series was begun: its bits depend on it."""
    problems, settled = [], begun.batch_size
    if wish.unit is not None and wish.unit != begun.unit:
        problems.append(
            f"--unit is {wish.unit}, but {begun.folder} was begun with units of {begun.unit}; "
            "leave --unit out"
        )
    if wish.batch_size is None:
        return problems
    if settled is not None and wish.batch_size != settled:
        problems.append(
            f"--batch-size is {wish.batch_size}, but the images in {begun.folder} are drawn "
            f"{settled} at a time, which decides their last bits; leave --batch-size out"
        )
    elif begun.unit % wish.batch_size:
        problems.append(
            f"--batch-size is {wish.batch_size}, but {begun.folder} was begun with units of "
            f"{begun.unit}; give a divisor of that"
        )
    return problems


def default_unit(wish: Wish, request: Request, jobs: int) -> int:
    """Images of a unit: a few units a task, of no more than 128 MiB of pixels; a power of two, or
    whole batches.
    """
    if wish.unit is not None:
        return wish.unit
    least, most = _UNITS
    channels, height, width = request.image_shape
    most = min(most, max(1, _UNIT_BYTES // (channels * height * width)))
    target = request.options.NUM_GEN_IMAGES // (jobs * _UNITS_OF_A_TASK)
    target = max(min(least, most), min(target, most))
    if wish.batch_size is not None:
        return max(1, target // wish.batch_size) * wish.batch_size
    return 1 << (target.bit_length() - 1)


def require_room(plan: Plan) -> None:
    """StorageError unless what is missing, and what will be made of all of it, has room."""
    there = [] if plan.series is None else units.present(plan.series.shards)
    each = series.image_bytes(plan.request.image_shape)
    exported = 0 if plan.wish.format == "shards" else plan.num
    missing = plan.num - sum(max(0, min(s.stop, plan.num) - s.start) for s in there)
    series.require_space(plan.folder, max(0, missing) + exported, each)
