"""A series of images: all that one recipe can draw, as far as it has been drawn, in one folder.

    {stem}_{8 digits of the recipe's SHA-256}/
        recipe.json     all that the images depend on but their number, and nothing else
        request.yaml    the same as a configuration that names the checkpoint, for the jobs
        asked.json      how many images have been asked for so far
        unit.json       images of a unit, a line of the grid that no unit crosses
        batch.json      images of a network call; written once, by whoever draws first
        shards/         units: what is there (ddpm/units.py)
        jobs.json  jobs/  submitit/  locks/  launch.lock

The recipe leaves the number of images out, so more of them go on where fewer ended. What is missing
is what no manifest names: there is no other record of what is done.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm import durable, spans, units
from ddpm.errors import InputError, StorageError
from ddpm.imagebar import ImageBar
from ddpm.lock import is_held
from ddpm.spans import Span
from ddpm.weights import Ema, ema_of

RECIPE, REQUEST, ASKED, UNIT, BATCH = (
    "recipe.json",
    "request.yaml",
    "asked.json",
    "unit.json",
    "batch.json",
)
STOP = "stop"  # appears when all who draw the series shall stop
LAUNCH_LOCK = "launch.lock"
LAUNCH_S = 600.0  # another launch may take so long to check what is there, and to submit
# the same images, however many of them, in whatever batches, with a film or without
NOT_OF_A_SERIES = ("num_images", "batch_size", "film")


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series that has been begun.  unit: images of a whole unit."""

    folder: Path
    recipe: Mapping[str, Any]
    unit: int

    @classmethod
    def open(cls, folder: Path) -> "Series":
        """The series in a folder. InputError where there is none."""
        if not is_series(folder):
            raise InputError(
                f"{folder} holds no images drawn in bulk; draw some: "
                "python launch/sample.py RUN --num 1000"
            )
        recipe = durable.read_json(folder / RECIPE)
        return cls(folder=folder, recipe=recipe, unit=durable.read_json(folder / UNIT)["unit"])

    @classmethod
    def begin(cls, folder: Path, recipe: Mapping[str, Any], unit: int) -> "Series":
        """The series of a recipe, made or found; the one that is there keeps its unit."""
        durable.make_folder(folder / "shards")
        durable.make_folder(folder / "locks")
        if not durable.create_json(folder / RECIPE, dict(recipe)):
            known = durable.read_json(folder / RECIPE)
            if digest(known) != digest(recipe):
                raise InputError(f"{folder} holds images of another recipe; choose another folder")
        durable.create_json(folder / UNIT, {"unit": unit})
        return cls.open(folder)

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe, which every manifest names."""
        return digest(self.recipe)

    @property
    def ema(self) -> Ema:
        """Which weights, as load_network takes it."""
        return ema_of(str(self.recipe["weights"]))

    @property
    def asked(self) -> int:
        """How many images were asked for so far; 0 before any were."""
        return int(durable.read_json(self.folder / ASKED).get("num_images", 0))

    def ask(self, num_images: int) -> None:
        """Remembers that so many are wanted; under the launch lock."""
        if num_images > self.asked:
            durable.write_json(self.folder / ASKED, {"num_images": num_images})

    @property
    def batch_size(self) -> int | None:
        """Images of a network call; None until somebody has drawn or chosen."""
        return durable.read_json(self.folder / BATCH).get("batch_size")

    def settle_batch_size(self, batch_size: int) -> int:
        """Writes it down once for all who will ever draw here; the one that holds."""
        durable.create_json(self.folder / BATCH, {"batch_size": batch_size})
        return self.batch_size or batch_size

    def present(self) -> list[Span]:
        """The units that are there."""
        return units.present(self.shards)

    def missing(self, num_images: int) -> list[Span]:
        """What of the first `num_images` is in no unit."""
        return spans.difference([Span(0, num_images)], self.present())

    def lock_of(self, span: Span) -> Path:
        """The lock file of the cell of the grid that a unit lies in."""
        return self.folder / "locks" / f"{span.start // self.unit:08d}.lock"

    @contextmanager
    def launching(self) -> Iterator[None]:
        """One launch at a time looks at what is missing, and submits it."""
        what = f"the launch of {self.folder}"
        with durable.lock(self.folder / LAUNCH_LOCK, what, wait_s=LAUNCH_S):
            yield

    def set_damaged_aside(self, *, progress: bool) -> list[Span]:
        """Reads every unit; those that are not what their manifests say no longer count."""
        damaged, there = [], self.present()
        twice = set(spans.overlapping(there))
        with ImageBar("checking", spans.total(there), is_shown=progress) as bar:
            for span in there:
                try:
                    units.check(self.shards, span, self.digest)
                except units.DamagedUnit:
                    damaged.append(span)
                else:
                    damaged += [span] if span in twice else []
                bar.advance(len(span))
        for span in damaged:
            units.set_aside(self.shards, span)
        return damaged

    def tidy(self) -> None:
        """Removes what killed processes left; only while no job lives, under the launch lock."""
        if any(is_held(path) is not False for path in (self.folder / "locks").glob("*.lock")):
            return  # somebody draws in a process of their own
        durable.clean_temporaries(self.shards)
        for path in units.strays(self.shards):
            durable.remove(path)


def is_series(folder: Path) -> bool:
    """Whether a series has been begun in the folder."""
    return (folder / RECIPE).is_file() and (folder / UNIT).is_file()


def recipe_of(recipe: Mapping[str, object]) -> dict[str, object]:
    """A request's recipe without what does not make it another series."""
    plain = {key: value for key, value in recipe.items() if key not in NOT_OF_A_SERIES}
    as_read: dict[str, object] = json.loads(json.dumps(plain))
    return as_read


def digest(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def image_bytes(shape: tuple[int, int, int]) -> int:
    """Most bytes of an image in a shard: its pixels, which may not compress, and tar's blocks."""
    channels, height, width = shape
    return channels * height * width + height + 2560


def require_space(folder: Path, num_images: int, each: int) -> None:
    """StorageError where so many images have no room."""
    free = durable.free_bytes(folder)
    needed = num_images * each
    if free is not None and free < needed:
        raise StorageError(
            f"{folder}: {num_images} images need up to {needed} bytes, {free} bytes free; free "
            "some space, ask for fewer, or choose another IMAGE_GENERATION.GEN_SAVE_DIR"
        )
