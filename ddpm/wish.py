"""What a command line says of images in bulk, checked as far as that goes without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm import base_images, series
from ddpm.errors import InputError
from ddpm.request import BATCH_SIZE, SECTION, Request, read_request
from ddpm.series import REQUEST, Series
from ddpm.weights import Ema

_ANY = 10**9


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line says of the images; None takes the default.

    num: images.  unit: of a work unit.  batch_size: of a network call.
    """

    source: Path
    overrides: Sequence[str] = ()
    ema: Ema | None = None
    num: int | None = None
    unit: int | None = None
    batch_size: int | None = None
    format: str = "shards"

    def request(self) -> Request:
        """What is to be drawn. InputError with all that is wrong."""
        problems, overrides = _number_problems(self), list(self.overrides)
        if self.num is not None and not problems:
            overrides.append(f"{SECTION}.NUM_GEN_IMAGES={self.num}")
        source, ema = self.source, self.ema
        if series.is_series(source):
            own = Series.open(source)
            source, ema = own.folder / REQUEST, own.ema if ema is None else ema
        size = BATCH_SIZE if self.batch_size is None or problems else self.batch_size
        try:
            found = whole_base(read_request(source, overrides, ema=ema, batch_size=size))
        except InputError as error:
            problems += error.problems
        if problems:
            raise InputError(problems)
        return found


def whole_base(asked: Request) -> Request:
    """The request with all images and masks of its EXTERNAL_NPZ_INPUT: more images may be asked
    for later, and image i takes the i-th.
    """
    path, key = asked.options.EXTERNAL_NPZ_INPUT, f"{SECTION}.EXTERNAL_NPZ_INPUT"
    if asked.base is None or path is None:
        return asked
    whole = (Path(path), asked.image_shape, _ANY, key)
    mask = None if asked.mask is None else base_images.read_mask(*whole)
    return replace(asked, base=base_images.read(*whole), mask=mask)


def _number_problems(wish: Wish) -> list[str]:
    problems = [
        f"--{name.replace('_', '-')} is {value}; give at least 1"
        for name in ("num", "unit", "batch_size")
        if (value := getattr(wish, name)) is not None and value < 1
    ]
    if problems or wish.unit is None or wish.batch_size is None or wish.unit % wish.batch_size == 0:
        return problems
    nearest = max(1, round(wish.unit / wish.batch_size)) * wish.batch_size
    return [
        f"--unit is {wish.unit}, which is no multiple of --batch-size {wish.batch_size}; "
        f"give --unit {nearest}"
    ]
