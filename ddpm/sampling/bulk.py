"""Images in bulk on disk: one folder for one recipe, its images in units of consecutive numbers.

    {stem}_{8 digits of the recipe's SHA-256}/
        recipe.json     all that the images depend on but their number, and nothing else
        request.yaml    the same as a configuration that names the checkpoint, for the jobs
        asked.json      how many images have been asked for so far
        unit.json       images of a unit: unit k begins at image k unit
        batch.json      images of a network call; written once, by whoever draws first
        shards/0000000000-0000000512.tar     {index:010d}.png (.npy of floats and for neither 1 nor
                                             3 channels),
                                             and .cls with the label where images have one
        shards/0000000000-0000000512.json    written last: the shard's size and SHA-256, the
                                             labels, and all that the images depend on
        jobs.json  jobs/  submitit/  launch.lock  stop

A unit is a `range` of image numbers, there when its manifest is; there is no other record of what
is done. The last unit ends with the number asked for; when more are asked for it is drawn again,
longer. Equal images give equal bytes of both files, each put in place by one rename, so two
processes that draw one unit do no harm, and one that is killed loses the unit it was at. Nothing
here is code, and nothing is unpickled. No torch.
"""

import hashlib
import io
import json
import os
import re
import secrets
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.errors import InputError, as_typed
from ddpm.runs import ImageBar, digest, grid, png, storage
from ddpm.sampling.request import BULK_RECIPE, MAX_PICTURED, is_bulk_folder

PICTURE = "grid.png"
_ASKED, _UNIT, _BATCH, _LAUNCH_LOCK = "asked.json", "unit.json", "batch.json", "launch.lock"
_LAUNCH_S = 600.0  # another launch may take so long to check what is there, and to submit
_ABANDONED_S = 3600.0  # a file that nobody has written to for so long has lost its writer
_FORMAT = 1
# Arrays of an NPZ file: DDPM v3's names, and those that the evaluator of guided-diffusion reads.
_ARRAYS = {"npz": ("images", "labels"), "adm": ("arr_0", "arr_1")}
_NAME = re.compile(r"(\d{10})-(\d{10})")
_SHOWN = 12


class DamagedUnit(ValueError):
    """A unit that is not what was written; the text says what is wrong."""


def name_of(unit: range) -> str:
    """`0000000000-0000000512`, which sorts as its numbers do."""
    return f"{unit.start:010d}-{unit.stop:010d}"


def parse_name(text: str) -> range | None:
    """The unit of that name; None where it is no name of one."""
    found = _NAME.fullmatch(text)
    unit = range(int(found[1]), int(found[2])) if found else range(0)
    return unit or None


def shard_of(folder: Path, unit: range) -> Path:
    return folder / f"{name_of(unit)}.tar"


def manifest_of(folder: Path, unit: range) -> Path:
    return folder / f"{name_of(unit)}.json"


def several(count: int, noun: str) -> str:
    """A number of things: `1 unit`, `2 units`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def total(units: Iterable[range]) -> int:
    """Number of images in the units."""
    return sum(map(len, units))


def describe(units: Iterable[range]) -> str:
    """For people: `0-49, 64-99`, the last number included; the first dozen of many."""
    merged: list[range] = []
    for unit in sorted(units, key=lambda unit: unit.start):
        if merged and unit.start <= merged[-1].stop:
            unit = range(merged[-1].start, max(merged.pop().stop, unit.stop))
        merged.append(unit)
    shown = [f"{unit.start}-{unit.stop - 1}" for unit in merged[:_SHOWN]]
    more = [f"and {len(merged) - _SHOWN} more"] if len(merged) > _SHOWN else []
    return ", ".join(shown + more)


@dataclass(frozen=True, kw_only=True)
class BulkFolder:
    """Images in bulk that have been begun.  unit: images of a whole unit."""

    folder: Path
    recipe: Mapping[str, Any]
    unit: int

    @classmethod
    def open(cls, folder: Path) -> "BulkFolder":
        """The images in a folder. InputError where there are none."""
        if not is_bulk_folder(folder):
            raise InputError(
                f"{folder} holds no images drawn in bulk; draw some: "
                f"{as_typed('sample')} RUN --num 1000"
            )
        recipe = storage.read_json(folder / BULK_RECIPE)
        return cls(folder=folder, recipe=recipe, unit=storage.read_json(folder / _UNIT)["unit"])

    @classmethod
    def begin(cls, folder: Path, recipe: Mapping[str, Any], unit: int) -> "BulkFolder":
        """The folder of a recipe, made or found; one that is there keeps its unit."""
        storage.make_folder(folder / "shards")
        if not storage.create_json(folder / BULK_RECIPE, dict(recipe)):
            if digest(storage.read_json(folder / BULK_RECIPE)) != digest(recipe):
                raise InputError(f"{folder} holds images of another recipe; choose another folder")
        storage.create_json(folder / _UNIT, {"unit": unit})
        return cls.open(folder)

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe, which every manifest names."""
        return digest(self.recipe)

    @property
    def asked(self) -> int:
        """Number of images wanted so far; 0 before any were."""
        return int(storage.read_json(self.folder / _ASKED).get("num_images", 0))

    def ask(self, num: int) -> None:
        """Remembers that so many are wanted; under the launch lock."""
        if num > self.asked:
            storage.write_json(self.folder / _ASKED, {"num_images": num})

    @property
    def batch_size(self) -> int | None:
        """Images of a network call; None until somebody has drawn or chosen."""
        return storage.read_json(self.folder / _BATCH).get("batch_size")

    def settle_batch_size(self, batch_size: int) -> int:
        """Writes it down once for all who will ever draw here; the one that holds."""
        storage.create_json(self.folder / _BATCH, {"batch_size": batch_size})
        return self.batch_size or batch_size

    @contextmanager
    def launching(self) -> Iterator[None]:
        """One launch at a time looks at what is missing, and submits it."""
        what = f"the launch of {self.folder}"
        with storage.lock(self.folder / _LAUNCH_LOCK, what, wait_s=_LAUNCH_S):
            yield

    def present(self) -> list[range]:
        """Units that are there by the names of their manifests, ascending; nothing is opened."""
        return list(self._longest().values())

    def missing(self, num: int) -> list[range]:
        """Units that the first `num` images lack."""
        there = self._longest()
        return [
            unit for unit in units(num, self.unit) if len(there.get(unit.start, ())) < len(unit)
        ]

    def superfluous(self) -> list[range]:
        """Units whose images a longer one holds too, or that lie across the others."""
        there = set(self.present())
        return [unit for unit in self._named() if unit not in there]

    def _longest(self) -> dict[int, range]:
        """Units by their first image."""
        return {
            unit.start: unit
            for unit in self._named()
            if unit.start % self.unit == 0 and len(unit) <= self.unit
        }

    def _named(self) -> list[range]:
        names = os.listdir(self.shards) if self.shards.is_dir() else []
        found = (parse_name(name[:-5]) for name in names if name.endswith(".json"))
        return sorted((unit for unit in found if unit), key=lambda unit: (unit.start, unit.stop))

    def write(
        self,
        unit: range,
        pixels: NDArray[Any],
        labels: Sequence[int] | None,
        facts: Mapping[str, object],
    ) -> None:
        """Puts a unit into the folder: its shard, then its manifest, each in one step.

        pixels: (N, H, W, C), the images of the unit in order.  facts: what else the manifest says.
        """
        os.environ.setdefault(
            "WDS_SECURE", "1"
        )  # before webdataset is imported: no pickle, no pipes
        from webdataset.writer import TarWriter

        def fill(sink: storage.Sink) -> None:
            # Fixed owner and time: the same images give the same bytes.
            with TarWriter(sink, encoder=False, mtime=0, user="ddpm", group="ddpm") as writer:
                for row, index in enumerate(unit):
                    extension, data = images.encode(pixels[row])
                    sample: dict[str, str | bytes] = {"__key__": f"{index:010d}", extension: data}
                    if labels is not None:
                        sample["cls"] = str(labels[row]).encode()
                    writer.write(sample)

        shard = shard_of(self.shards, unit)
        written = storage.write_file(shard, fill)
        manifest = {
            "format": _FORMAT,
            "start": unit.start,
            "stop": unit.stop,
            "shard": shard.name,
            "bytes": written.size,
            "sha256": written.sha256,
            "labels": None if labels is None else list(labels),
            **facts,
        }
        text = json.dumps(manifest, allow_nan=False) + "\n"
        storage.write_text(manifest_of(self.shards, unit), text)

    def read_manifest(self, unit: range) -> dict[str, Any]:
        """The manifest of a unit. DamagedUnit unless it is one, of this unit and this recipe."""
        path = manifest_of(self.shards, unit)
        try:
            found = json.loads(path.read_bytes())
            is_whole = {"format", "start", "stop", "bytes", "sha256", "labels", "recipe"} <= set(
                found
            )
        except (OSError, ValueError, TypeError) as error:
            raise DamagedUnit(f"{path.name} cannot be read: {error}") from error
        if not is_whole or found["format"] != _FORMAT:
            raise DamagedUnit(f"{path.name} is no manifest of format {_FORMAT}")
        if (found["start"], found["stop"]) != (unit.start, unit.stop):
            raise DamagedUnit(f"{path.name} speaks of images {found['start']} to {found['stop']}")
        if found["recipe"] != self.digest:
            raise DamagedUnit(f"{path.name} is of recipe {str(found['recipe'])[:8]}, another one")
        result: dict[str, Any] = found
        return result

    def check(self, unit: range) -> dict[str, Any]:
        """The manifest of a unit that is whole: its shard has the manifest's size and SHA-256, and
        holds every image of the unit once, in order, with its label. DamagedUnit else.
        """
        manifest, path = self.read_manifest(unit), shard_of(self.shards, unit)
        try:
            size = path.stat().st_size
            if size != manifest["bytes"]:
                raise DamagedUnit(f"{path.name} has {size} bytes instead of {manifest['bytes']}")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
                    raise DamagedUnit(f"{path.name} does not match its SHA-256")
            found = [(index, label) for index, _, label in self.images(unit)]
        except OSError as error:
            raise DamagedUnit(f"{path.name}: {error.strerror}") from error
        except (tarfile.TarError, ValueError) as error:
            raise DamagedUnit(str(error)) from error
        labels = manifest["labels"] or [None] * len(unit)
        if found != list(zip(unit, labels, strict=False)):
            raise DamagedUnit(f"{path.name}: other images or labels than it should have")
        return manifest

    def images(self, unit: range) -> Iterator[tuple[int, bytes, int | None]]:
        """Images of a unit as they lie in its shard: (index, bytes of the file, label)."""
        with tarfile.open(shard_of(self.shards, unit), "r:") as archive:
            for key, members in groupby(archive, lambda member: member.name.partition(".")[0]):
                files = {
                    member.name.partition(".")[2]: archive.extractfile(member).read()  # type: ignore[union-attr]
                    for member in members
                }
                label = files.pop("cls", None)
                (data,) = files.values()
                yield int(key), data, None if label is None else int(label)

    def first(self, num: int) -> Iterator[tuple[int, bytes, int | None]]:
        """The first `num` images in their order, as images() gives them."""
        for unit in self.present():
            if unit.start < num:
                yield from islice(self.images(unit), num - unit.start)

    def repair(self, *, progress: bool) -> list[range]:
        """Reads every unit; the damaged ones, which no longer count, their files set aside.

        Removes what is superfluous and what killed processes left half-written; under the launch
        lock.
        """
        damaged, there = [], self.present()
        with ImageBar("checking", total(there), is_shown=progress) as bar:
            for unit in there:
                try:
                    self.check(unit)
                except DamagedUnit:
                    damaged.append(unit)
                bar.advance(len(unit))
        for unit in damaged:
            for path in (manifest_of(self.shards, unit), shard_of(self.shards, unit)):
                if path.exists():
                    storage.rename(path, path.with_name(f"{path.name}.damaged"))
        self.drop_superfluous()
        for path in self.shards.glob(".*.tmp"):
            with suppress(FileNotFoundError):  # its writer has just given it its name
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
        return damaged

    def drop_superfluous(self) -> None:
        for unit in self.superfluous():
            manifest_of(self.shards, unit).unlink(missing_ok=True)
            shard_of(self.shards, unit).unlink(missing_ok=True)


def units(num: int, unit: int) -> list[range]:
    """The first `num` images in units."""
    return [range(first, min(first + unit, num)) for first in range(0, num, unit)]


@dataclass(frozen=True, kw_only=True)
class BulkCheck:
    """Findings of a look at every file.

    missing: units that lack images.  damaged: a line each.  twice: units whose images others hold
    too.  devices: what drew them.
    """

    num: int
    units: int
    missing: Sequence[range]
    damaged: Sequence[str]
    twice: Sequence[range]
    devices: Sequence[str]

    @property
    def there(self) -> int:
        return self.num - total(self.missing)

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.damaged or self.twice)

    def lines(self) -> list[str]:
        """The summary, a line each."""
        found = [f"damaged: {line}" for line in self.damaged]
        found += [f"twice: images {u.start}-{u.stop - 1} ({name_of(u)})" for u in self.twice]
        if self.missing:
            found.append(f"missing: {total(self.missing):,} images: {describe(self.missing)}")
        if len(self.devices) > 1:
            drawn = ", ".join(self.devices)
            found.append(f"note: drawn on {drawn}: images of the two differ in their last bits")
        state = "whole" if self.is_whole else "not whole"
        once = "at least once" if self.twice else "exactly once"
        found.append(
            f"{state}: {self.there:,} of {self.num:,} images in {several(self.units, 'unit')}, "
            f"each of them {once}, every file checked by SHA-256"
        )
        return found


def check_bulk(folder: BulkFolder, num: int, *, progress: bool) -> BulkCheck:
    """Every manifest and every shard read against what they promise."""
    there, damaged, devices = folder.present(), dict[range, str](), set[str]()
    with ImageBar("verifying", total(there), is_shown=progress) as bar:
        for unit in there:
            try:
                devices.add(str(folder.check(unit).get("device")))
            except DamagedUnit as error:
                damaged[unit] = f"images {unit.start}-{unit.stop - 1}: {error}"
            bar.advance(len(unit))
    starts = {unit.start for unit in damaged}
    missing = {unit.start: unit for unit in folder.missing(num)}
    missing |= {unit.start: unit for unit in units(num, folder.unit) if unit.start in starts}
    return BulkCheck(
        num=num,
        units=len(there) - len(damaged),
        missing=[missing[start] for start in sorted(missing)],
        damaged=list(damaged.values()),
        twice=folder.superfluous(),
        devices=sorted(devices),
    )


def export(folder: BulkFolder, num: int, stem: str, form: str, *, is_fresh: bool) -> list[Path]:
    """A picture of the first images, at most 400, and {stem}.npz, {stem}_adm.npz or the folder
    {stem} of PNG files.

    form: "shards", "npz", "adm" or "png".  is_fresh: images were drawn just now; else files that
    are there stay. Images go from the shards into the files one at a time, so memory does not grow.
    """
    picture = folder.folder / PICTURE
    pixels = [_decoded(data) for _, data, _ in folder.first(min(num, MAX_PICTURED))]
    shown = images.to_bytes(np.stack(pixels), folder.recipe.get("ranges"))
    storage.write_bytes(picture, png(grid(shown)))
    if form == "shards":
        return [picture]
    path = folder.folder / {"npz": f"{stem}.npz", "adm": f"{stem}_adm.npz", "png": stem}[form]
    if not is_fresh and path.exists():
        return [picture, path]
    if form == "png":
        _write_pngs(folder, num, path)
    else:
        _write_npz(folder, num, path, *_ARRAYS[form])
    return [picture, path]


def _decoded(data: bytes) -> NDArray[Any]:
    """An image of a shard of ours; floats may have any values."""
    is_array = data.startswith(images.NPY_MAGIC)
    return np.load(io.BytesIO(data), allow_pickle=False) if is_array else images.decode(data)


def _write_npz(folder: BulkFolder, num: int, path: Path, pixels: str, classes: str) -> None:
    """Images (N, H, W, C), and labels int64 where there are any, as arrays of those names."""
    channels, height, width = folder.recipe["image_shape"]
    dtype = "<f4" if "ranges" in folder.recipe else "|u1"

    def fill(sink: storage.Sink) -> None:
        labels: list[int] = []
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
            with (
                _array(archive, pixels, (num, height, width, channels), dtype) as member,
                ImageBar("writing the NPZ", num, is_shown=True) as bar,
            ):
                for _, data, label in folder.first(num):
                    member.write(_decoded(data).tobytes())
                    labels += [] if label is None else [label]
                    bar.advance()
            if labels:
                with _array(archive, classes, (num,), "<i8") as member:
                    member.write(np.array(labels, np.int64).tobytes())

    storage.write_file(path, fill)


@contextmanager
def _array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str
) -> Iterator[BinaryIO]:
    """An array of an NPZ file, its header written; with a fixed time, so bytes are equal."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=len(shape) > 1) as member:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
        yield member  # type: ignore[misc]


def _write_pngs(folder: BulkFolder, num: int, path: Path) -> None:
    """A PNG file an image (NPY where PNG cannot hold it), in a folder for each class."""
    storage.remove(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    made: set[Path] = set()
    with ImageBar("writing files", num, is_shown=True) as bar:
        for index, data, label in folder.first(num):
            place = temporary if label is None else temporary / f"{label:04d}"
            if place not in made:
                storage.make_folder(place)
                made.add(place)
            extension = "npy" if data.startswith(images.NPY_MAGIC) else "png"
            file = place / f"{index:010d}.{extension}"
            try:
                file.write_bytes(data)
            except OSError as error:
                raise storage.failure(file, error, needed=len(data)) from error
            bar.advance()
    os.sync()  # all at once: a sync for each of many small files takes minutes
    storage.rename(temporary, path)
