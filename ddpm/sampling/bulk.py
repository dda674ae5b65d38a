"""Runs of consecutive image numbers, and the arithmetic that decides what is left to draw."""

import hashlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm import config as configuration
from ddpm.data import Scan, images, scan_tar
from ddpm.distributed import device_of
from ddpm.errors import DdpmError, InputError, Interrupted, LockedError, StorageError
from ddpm.runs import ImageBar, RunDirectory, grid, is_held, png, storage
from ddpm.runs import storage as durable
from ddpm.sampling import request as base_images
from ddpm.sampling import tasks
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.request import BATCH_SIZE, SECTION, Ema, SampleRequest, ema_of, read_request

_NAME = re.compile(r"(\d{10})-(\d{10})")
_SHOWN = 12


@dataclass(frozen=True, order=True)
class Span:
    """Images start .. stop - 1. Its text, `0000000000-0000000512`, sorts as its numbers do."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start:010d}-{self.stop:010d}"

    @classmethod
    def parse(cls, text: str) -> "Span | None":
        """The span of that text; None where it is no such text."""
        found = _NAME.fullmatch(text)
        if found is None or int(found[1]) >= int(found[2]):
            return None
        return cls(int(found[1]), int(found[2]))


def total(spans: Iterable[Span]) -> int:
    """How many images the spans hold, each as often as it is held."""
    return sum(len(span) for span in spans)


def union(spans: Iterable[Span]) -> list[Span]:
    """The same images in as few spans as possible, ascending."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return merged


def difference(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The images of `spans` that are in none of the others."""
    left, taken = [], union(others)
    for span in union(spans):
        start = span.start
        for other in taken:
            if other.stop <= start or other.start >= span.stop:
                continue
            if other.start > start:
                left.append(Span(start, other.start))
            start = max(start, other.stop)
        if start < span.stop:
            left.append(Span(start, span.stop))
    return left


def overlapping(spans: Iterable[Span]) -> list[Span]:
    """Those that hold an image which one before them, in their order, holds too."""
    found, end = [], 0
    for span in sorted(spans, key=lambda span: (span.start, -span.stop)):
        if span.start < end:
            found.append(span)
        else:
            end = span.stop
    return found


def cut(spans: Iterable[Span], size: int) -> list[Span]:
    """The same images in spans that cross no multiple of `size`."""
    pieces = []
    for span in spans:
        start = span.start
        while start < span.stop:
            stop = min(span.stop, (start // size + 1) * size)
            pieces.append(Span(start, stop))
            start = stop
    return pieces


def describe(spans: Iterable[Span]) -> str:
    """For people: `0-49, 64-99`, the last number included; the first dozen of many."""
    ranges = union(spans)
    shown = [f"{span.start}-{span.stop - 1}" for span in ranges[:_SHOWN]]
    more = len(ranges) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])


# --------
# Units of work on disk: consecutive images as one WebDataset shard with a manifest beside it.
#
#     0000000000-0000000512.tar     {index:010d}.png (.npy for neither 1 nor 3 channels), and .cls
#                                   with the label where images have one
#     0000000000-0000000512.json    written last: the shard's size and SHA-256, the labels, and all
#                                   that the images depend on
#
# A unit is there when its manifest is. Equal images give equal bytes of both files, so two processes
# that draw one unit at once do no harm. Nothing in it is code, and nothing is unpickled.

FORMAT = 1
ASIDE = ".damaged"
_PIECE = 1 << 20


class DamagedUnit(ValueError):
    """Not what was written; the text says what is wrong."""


def write(
    folder: Path,
    span: Span,
    pixels: NDArray[np.uint8],
    labels: Sequence[int] | None,
    facts: Mapping[str, object],
) -> None:
    """Puts a unit into the folder: its shard, then its manifest, each in one step.

    pixels: (N, H, W, C), the images of the span in order.  facts: what else the manifest says.
    """
    os.environ.setdefault("WDS_SECURE", "1")  # before webdataset is imported: no pickle, no pipes
    from webdataset.writer import TarWriter

    def fill(sink: storage.Sink) -> None:
        # Fixed owner and time: the same images give the same bytes.
        with TarWriter(sink, encoder=False, mtime=0, user="ddpm", group="ddpm") as writer:
            for row, index in enumerate(range(span.start, span.stop)):
                extension, data = images.encode(pixels[row])
                sample: dict[str, str | bytes] = {"__key__": f"{index:010d}", extension: data}
                if labels is not None:
                    sample["cls"] = str(labels[row]).encode()
                writer.write(sample)

    written = storage.write_file(shard_of(folder, span), fill)
    manifest = {
        "format": FORMAT,
        "start": span.start,
        "stop": span.stop,
        "shard": shard_of(folder, span).name,
        "bytes": written.size,
        "sha256": written.sha256,
        "labels": None if labels is None else list(labels),
        **facts,
    }
    storage.write_text(manifest_of(folder, span), json.dumps(manifest, allow_nan=False) + "\n")


def present(folder: Path) -> list[Span]:
    """The units of a folder by the names of their manifests, ascending; nothing is opened."""
    if not folder.is_dir():
        return []
    stems = (name[:-5] for name in os.listdir(folder) if name.endswith(".json"))
    return sorted(span for stem in stems if (span := Span.parse(stem)))


def shard_of(folder: Path, span: Span) -> Path:
    return folder / f"{span}.tar"


def manifest_of(folder: Path, span: Span) -> Path:
    return folder / f"{span}.json"


def read_manifest(folder: Path, span: Span, recipe: str) -> dict[str, Any]:
    """The manifest of a unit. DamagedUnit unless it is one, of this unit and this recipe."""
    path = manifest_of(folder, span)
    try:
        found = json.loads(path.read_bytes())
        is_whole = {"format", "start", "stop", "bytes", "sha256", "labels", "recipe"} <= set(found)
    except (OSError, ValueError, TypeError) as error:
        raise DamagedUnit(f"{path.name} cannot be read: {error}") from error
    if not is_whole or found["format"] != FORMAT:
        raise DamagedUnit(f"{path.name} is no manifest of format {FORMAT}")
    if (found["start"], found["stop"]) != (span.start, span.stop):
        raise DamagedUnit(f"{path.name} speaks of images {found['start']} to {found['stop']}")
    if found["recipe"] != recipe:
        raise DamagedUnit(f"{path.name} is of recipe {str(found['recipe'])[:8]}, another one")
    result: dict[str, Any] = found
    return result


def check(folder: Path, span: Span, recipe: str) -> dict[str, Any]:
    """The manifest of a unit whose shard has the manifest's size and SHA-256. DamagedUnit else."""
    manifest, path = read_manifest(folder, span, recipe), shard_of(folder, span)
    try:
        size = path.stat().st_size
        if size != manifest["bytes"]:
            raise DamagedUnit(f"{path.name} has {size} bytes instead of {manifest['bytes']}")
        digest = _sha256(path)
    except OSError as error:
        raise DamagedUnit(f"{path.name}: {error.strerror}") from error
    if digest != manifest["sha256"]:
        raise DamagedUnit(f"{path.name} does not match its SHA-256")
    return manifest


def check_samples(folder: Path, span: Span, recipe: str) -> dict[str, Any]:
    """As check(), and every image of the span is in the shard once, in order, with its label."""
    manifest = check(folder, span, recipe)
    scan = scan_of(folder, span)
    labels = manifest["labels"]
    expected = [
        (f"{index:010d}", None if labels is None else labels[row])
        for row, index in enumerate(range(span.start, span.stop))
        if labels is None or row < len(labels)
    ]
    if scan.problems or [(sample.key, sample.label) for sample in scan.samples] != expected:
        reason = scan.problems[0] if scan.problems else "other images or labels than it should have"
        raise DamagedUnit(f"{span}.tar: {reason}")
    return manifest


def scan_of(folder: Path, span: Span) -> Scan:
    """What lies in a unit's shard, and where."""
    path = shard_of(folder, span)
    with path.open("rb") as stream:
        return scan_tar(stream, path.name)


def encoded(folder: Path, span: Span) -> Iterator[tuple[int, bytes, int | None]]:
    """The images of a unit as they lie in its shard: (index, bytes of the file, label)."""
    scan = scan_of(folder, span)
    with shard_of(folder, span).open("rb") as stream:
        for sample in scan.samples:
            stream.seek(sample.offset)
            yield int(sample.key), stream.read(sample.size), sample.label


def set_aside(folder: Path, span: Span) -> None:
    """Takes a unit out of the count; its files stay, under names that nobody reads."""
    for path in (manifest_of(folder, span), shard_of(folder, span)):
        if path.exists():
            storage.rename(path, path.with_name(path.name + ASIDE))


def strays(folder: Path) -> list[Path]:
    """Shards without a manifest: of processes that were killed between the two."""
    there = {str(span) for span in present(folder)}
    return [
        path
        for path in sorted(folder.glob("*.tar"))
        if Span.parse(path.stem) and path.stem not in there
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


# --------
# A series of images: all that one recipe can draw, as far as it has been drawn, in one folder.
#
#     {stem}_{8 digits of the recipe's SHA-256}/
#         recipe.json     all that the images depend on but their number, and nothing else
#         request.yaml    the same as a configuration that names the checkpoint, for the jobs
#         asked.json      how many images have been asked for so far
#         unit.json       images of a unit, a line of the grid that no unit crosses
#         batch.json      images of a network call; written once, by whoever draws first
#         shards/         units: what is there (ddpm/sampling/bulk.py)
#         jobs.json  jobs/  submitit/  locks/  launch.lock
#
# The recipe leaves the number of images out, so more of them go on where fewer ended. What is missing
# is what no manifest names: there is no other record of what is done.

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
class BulkFolder:
    """A series that has been begun.  unit: images of a whole unit."""

    folder: Path
    recipe: Mapping[str, Any]
    unit: int

    @classmethod
    def open(cls, folder: Path) -> "BulkFolder":
        """The series in a folder. InputError where there is none."""
        if not is_series(folder):
            raise InputError(
                f"{folder} holds no images drawn in bulk; draw some: "
                "python launch/sample.py RUN --num 1000"
            )
        recipe = storage.read_json(folder / RECIPE)
        return cls(folder=folder, recipe=recipe, unit=storage.read_json(folder / UNIT)["unit"])

    @classmethod
    def begin(cls, folder: Path, recipe: Mapping[str, Any], unit: int) -> "BulkFolder":
        """The series of a recipe, made or found; the one that is there keeps its unit."""
        storage.make_folder(folder / "shards")
        storage.make_folder(folder / "locks")
        if not storage.create_json(folder / RECIPE, dict(recipe)):
            known = storage.read_json(folder / RECIPE)
            if digest(known) != digest(recipe):
                raise InputError(f"{folder} holds images of another recipe; choose another folder")
        storage.create_json(folder / UNIT, {"unit": unit})
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
        return int(storage.read_json(self.folder / ASKED).get("num_images", 0))

    def ask(self, num_images: int) -> None:
        """Remembers that so many are wanted; under the launch lock."""
        if num_images > self.asked:
            storage.write_json(self.folder / ASKED, {"num_images": num_images})

    @property
    def batch_size(self) -> int | None:
        """Images of a network call; None until somebody has drawn or chosen."""
        return storage.read_json(self.folder / BATCH).get("batch_size")

    def settle_batch_size(self, batch_size: int) -> int:
        """Writes it down once for all who will ever draw here; the one that holds."""
        storage.create_json(self.folder / BATCH, {"batch_size": batch_size})
        return self.batch_size or batch_size

    def present(self) -> list[Span]:
        """The units that are there."""
        return present(self.shards)

    def missing(self, num_images: int) -> list[Span]:
        """What of the first `num_images` is in no unit."""
        return difference([Span(0, num_images)], self.present())

    def lock_of(self, span: Span) -> Path:
        """The lock file of the cell of the grid that a unit lies in."""
        return self.folder / "locks" / f"{span.start // self.unit:08d}.lock"

    @contextmanager
    def launching(self) -> Iterator[None]:
        """One launch at a time looks at what is missing, and submits it."""
        what = f"the launch of {self.folder}"
        with storage.lock(self.folder / LAUNCH_LOCK, what, wait_s=LAUNCH_S):
            yield

    def set_damaged_aside(self, *, progress: bool) -> list[Span]:
        """Reads every unit; those that are not what their manifests say no longer count."""
        damaged, there = [], self.present()
        twice = set(overlapping(there))
        with ImageBar("checking", total(there), is_shown=progress) as bar:
            for span in there:
                try:
                    check(self.shards, span, self.digest)
                except DamagedUnit:
                    damaged.append(span)
                else:
                    damaged += [span] if span in twice else []
                bar.advance(len(span))
        for span in damaged:
            set_aside(self.shards, span)
        return damaged

    def tidy(self) -> None:
        """Removes what killed processes left; only while no job lives, under the launch lock."""
        if any(is_held(path) is not False for path in (self.folder / "locks").glob("*.lock")):
            return  # somebody draws in a process of their own
        storage.clean_temporaries(self.shards)
        for path in strays(self.shards):
            storage.remove(path)


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
    free = storage.free_bytes(folder)
    needed = num_images * each
    if free is not None and free < needed:
        raise StorageError(
            f"{folder}: {num_images} images need up to {needed} bytes, {free} bytes free; free "
            "some space, ask for fewer, or choose another IMAGE_GENERATION.GEN_SAVE_DIR"
        )


# --------
# Whether a series is whole: each image exactly once, every byte as it was written.


@dataclass(frozen=True, kw_only=True)
class BulkCheck:
    """What a look at every file has found.

    missing: images that no good unit holds.  damaged: a line each.  twice: units with images that
    others hold too.  devices: what drew them.
    """

    num: int
    there: int
    units: int
    missing: Sequence[Span]
    damaged: Sequence[str]
    twice: Sequence[Span]
    devices: Sequence[str]

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.damaged or self.twice)

    def lines(self) -> list[str]:
        """The summary, a line each."""
        found = [f"damaged: {line}" for line in self.damaged]
        found += [f"twice: images {span.start}-{span.stop - 1} ({span})" for span in self.twice]
        if self.missing:
            images = total(self.missing)
            found.append(f"missing: {images:,} images: {describe(self.missing)}")
        if len(self.devices) > 1:
            drawn = ", ".join(self.devices)
            found.append(f"note: drawn on {drawn}: images of the two differ in their last bits")
        state = "whole" if self.is_whole else "not whole"
        once = "at least once" if self.twice else "exactly once"
        found.append(
            f"{state}: {self.there:,} of {self.num:,} images in {self.units:,} units, each of them "
            f"{once}, every file checked by SHA-256"
        )
        return found


def check_bulk(series: BulkFolder, num: int, *, progress: bool) -> BulkCheck:
    """Reads every manifest and every shard of a series against what they promise."""
    there, good, damaged, devices = series.present(), [], [], set[str]()
    with ImageBar("verifying", total(there), is_shown=progress) as bar:
        for span in there:
            try:
                manifest = check_samples(series.shards, span, series.digest)
            except DamagedUnit as error:
                damaged.append(f"images {span.start}-{span.stop - 1}: {error}")
            else:
                good.append(span)
                devices.add(str(manifest.get("device")))
            bar.advance(len(span))
    missing = difference([Span(0, num)], good)
    return BulkCheck(
        num=num,
        there=num - total(missing),
        units=len(good),
        missing=missing,
        damaged=damaged,
        twice=overlapping(good),
        devices=sorted(devices),
    )


# --------
# What is made of a whole series: a picture of its first images, and NPZ or PNG files of them all.
#
# Images go from the shards into the files one unit at a time, so memory does not grow with their
# number.

PICTURE = "grid.png"
MAX_PICTURED = 400


def exported(series: BulkFolder, num: int, stem: str, form: str, *, is_fresh: bool) -> list[Path]:
    """The picture, and what --format asks for.

    is_fresh: images were drawn just now; else files that are there stay.
    """
    made = [picture(series, num)]
    if form == "npz":
        path = series.folder / f"{stem}.npz"
        made.append(path if path.exists() and not is_fresh else npz(series, num, stem))
    if form == "png":
        path = series.folder / stem
        made.append(path if path.exists() and not is_fresh else pngs(series, num, stem))
    return made


def picture(series: BulkFolder, num: int) -> Path:
    """A grid of the first images, at most 400."""
    first = [images.decode(data) for _, data, _ in islice(_all(series, num), MAX_PICTURED)]
    path = series.folder / PICTURE
    durable.write_bytes(path, png(grid(np.stack(first).astype(np.uint8))))
    return path


def npz(series: BulkFolder, num: int, stem: str) -> Path:
    """{stem}.npz as DDPM v3 has it: images uint8 (N, H, W, C), and labels where there are any."""
    channels, height, width = series.recipe["image_shape"]
    path = series.folder / f"{stem}.npz"

    def fill(sink: durable.Sink) -> None:
        labels: list[int] = []
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
            with (
                archive.open(_member("images.npy"), "w", force_zip64=True) as member,
                ImageBar("writing the NPZ", num, is_shown=True) as bar,
            ):
                _write_header(member, (num, height, width, channels), "|u1")
                for _, data, label in _all(series, num):
                    member.write(images.decode(data).tobytes())
                    labels += [] if label is None else [label]
                    bar.advance()
            if labels:
                with archive.open(_member("labels.npy"), "w") as member:
                    _write_header(member, (num,), "<i8")
                    member.write(np.array(labels, np.int64).tobytes())

    durable.write_file(path, fill)
    return path


def pngs(series: BulkFolder, num: int, stem: str) -> Path:
    """{stem}/: a PNG file an image (NPY where PNG cannot hold it), in a folder for each class."""
    folder = series.folder / stem
    durable.remove(folder)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    made: set[Path] = set()
    with ImageBar("writing files", num, is_shown=True) as bar:
        for index, data, label in _all(series, num):
            place = temporary if label is None else temporary / f"{label:04d}"
            if place not in made:
                durable.make_folder(place)
                made.add(place)
            extension = "npy" if data.startswith(images.NPY_MAGIC) else "png"
            _write(place / f"{index:010d}.{extension}", data)
            bar.advance()
    os.sync()  # all at once: a sync for each of many small files takes minutes
    durable.rename(temporary, folder)
    return folder


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise storage.failure(path, error, needed=len(data)) from error


def _all(series: BulkFolder, num: int) -> Iterator[tuple[int, bytes, int | None]]:
    """The first images in their order: (index, bytes of the file, label)."""
    for span in series.present():
        if span.start >= num:
            return
        for index, data, label in encoded(series.shards, span):
            if index < num:
                yield index, data, label


def _member(name: str) -> zipfile.ZipInfo:
    """With a fixed time: equal images give equal bytes."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _write_header(member: object, shape: tuple[int, ...], dtype: str) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]


# --------
# What a command line says of images in bulk, checked as far as that goes without torch.

_ANY = 10**9


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
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

    def request(self) -> SampleRequest:
        """What is to be drawn. InputError with all that is wrong."""
        problems, overrides = _number_problems(self), list(self.overrides)
        if self.num is not None and not problems:
            overrides.append(f"{SECTION}.NUM_GEN_IMAGES={self.num}")
        source, ema = self.source, self.ema
        if is_series(source):
            own = BulkFolder.open(source)
            source, ema = own.folder / REQUEST, own.ema if ema is None else ema
        size = BATCH_SIZE if self.batch_size is None or problems else self.batch_size
        try:
            found = whole_base(read_request(source, overrides, ema=ema, batch_size=size))
        except InputError as error:
            problems += error.problems
        if problems:
            raise InputError(problems)
        return found


def whole_base(asked: SampleRequest) -> SampleRequest:
    """The request with all images and masks of its EXTERNAL_NPZ_INPUT: more images may be asked
    for later, and image i takes the i-th.
    """
    path, key = asked.options.EXTERNAL_NPZ_INPUT, f"{SECTION}.EXTERNAL_NPZ_INPUT"
    if asked.base is None or path is None:
        return asked
    whole = (Path(path), asked.image_shape, _ANY, key)
    mask = None if asked.mask is None else base_images.read_mask(*whole)
    return replace(asked, base=base_images.read(*whole), mask=mask)


def _number_problems(wish: BulkOptions) -> list[str]:
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


# --------
# From a command line to a series of images: all checked, the network read, nothing written yet.

_UNITS = (64, 4096)
_UNIT_BYTES = 1 << 27
_UNITS_OF_A_TASK = 4
_TASKS = 16


@dataclass(frozen=True, kw_only=True)
class BulkPlan:
    """A wish that can be fulfilled.  series: None while nobody has begun it.  unit: its unit, or
    the one it will get.
    """

    wish: BulkOptions
    request: SampleRequest
    generator: ImageGenerator
    folder: Path
    recipe: dict[str, Any]
    unit: int
    series: BulkFolder | None

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

    def begin(self) -> BulkFolder:
        """The series in its folder, with what jobs need to draw it."""
        begun = BulkFolder.begin(self.folder, self.recipe, self.unit)
        storage.write_text(begun.folder / REQUEST, configuration.to_yaml(self._pinned()))
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


def make(wish: BulkOptions, *, jobs: int | None = None) -> BulkPlan:
    """The plan for a wish. InputError with all that is wrong.

    jobs: tasks that run at once, for the default size of a unit.
    """
    request = wish.request()
    generator = ImageGenerator(request)
    recipe = recipe_of(generator.recipe())
    options = request.options
    stem = request.stem.replace(f"_gen_{options.NUM_GEN_IMAGES}x", "_gen_")
    folder = request.folder / f"{stem}_{digest(recipe)[:8]}"
    if is_series(wish.source) and BulkFolder.open(wish.source).digest == digest(recipe):
        folder = wish.source  # wherever it has been moved
    begun = BulkFolder.open(folder) if is_series(folder) else None
    if begun is not None and (found := _clashes(wish, begun)):
        raise InputError(found)
    return BulkPlan(
        wish=wish,
        request=request,
        generator=generator,
        folder=folder.resolve(),
        recipe=recipe,
        unit=begun.unit if begun else default_unit(wish, request, jobs or _TASKS),
        series=begun,
    )


def _clashes(wish: BulkOptions, begun: BulkFolder) -> list[str]:
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


def default_unit(wish: BulkOptions, request: SampleRequest, jobs: int) -> int:
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


def require_room(plan: BulkPlan) -> None:
    """StorageError unless what is missing, and what will be made of all of it, has room."""
    there = [] if plan.series is None else present(plan.series.shards)
    each = image_bytes(plan.request.image_shape)
    exported = 0 if plan.wish.format == "shards" else plan.num
    missing = plan.num - sum(max(0, min(s.stop, plan.num) - s.start) for s in there)
    require_space(plan.folder, max(0, missing) + exported, each)


# --------
# Draws units of a series, one after the other: the network is loaded once, each batch is called at
# the one size of the series, and image i sits in slot i % B of batch i // B whoever draws it.

LARGEST = {"cpu": 64, "cuda": 512}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class _Enough(Exception):
    """One step of the reverse process has gone through."""


class Artist:
    """Draws images of a series in this process, with the threads its run was trained with.

    artist = Artist(series)
    artist.draw([Span(0, 512)], should_stop=lambda: False)

    """

    def __init__(
        self,
        series: BulkFolder,
        generator: ImageGenerator | None = None,
        *,
        on_batch: Callable[[int], object] = lambda images: None,
    ) -> None:
        self.series, self._on_batch = series, on_batch
        self.generator = generator or ImageGenerator(request_of(series))
        torch.set_num_threads(RunDirectory(self.generator.request.run).threads)
        found = recipe_of(self.generator.recipe())
        if digest(found) != series.digest:
            changed = sorted(k for k in found if found[k] != series.recipe.get(k))
            raise InputError(
                f"{series.folder}: what it is drawn from has changed since it was begun "
                f"({', '.join(changed)}); give the same again, or start another series"
            )
        self.device = device_of(self.generator.model.network).type

    def draw(
        self,
        wanted: Sequence[Span],
        *,
        should_stop: Callable[[], bool],
        on_begin: Callable[[Span], object] = lambda span: None,
        on_end: Callable[[Span], object] = lambda span: None,
    ) -> None:
        """Draw what of these images is missing, telling of each unit. Interrupted when it was asked
        to stop; every batch that was finished is kept.
        """
        left = cut(difference(wanted, self.series.present()), self.series.unit)
        with _Writer() as writer:

            def attempt(span: Span, wait_s: float) -> bool:
                return self._try(span, writer, should_stop, on_begin, on_end, wait_s=wait_s)

            busy = [span for span in left if not attempt(span, 0.0)]
            for span in busy:  # somebody else drew them meanwhile, or was killed over it
                attempt(span, float("inf"))

    def _try(
        self,
        span: Span,
        writer: "_Writer",
        should_stop: Callable[[], bool],
        on_begin: Callable[[Span], object],
        on_end: Callable[[Span], object],
        *,
        wait_s: float,
    ) -> bool:
        """Draw a unit and have it written, unless another process is at it; False if one is."""
        drawn: list[_Drawn] = []
        is_stopped = False
        with ExitStack() as held:
            try:
                held.enter_context(
                    _locked(self.series.lock_of(span), f"images {span}", wait_s, should_stop)
                )
            except LockedError:
                return False
            for left in difference([span], self.series.present()):
                on_begin(left)
                one = self._unit(left, should_stop)
                drawn += [one] if one.span.stop > one.span.start else []
                if is_stopped := one.span != left:
                    break
            writer.finish()  # at most one unit waits: memory stays what it is
            writer.start(partial(self._write, drawn, on_end, held.pop_all()))
        if is_stopped:
            raise Interrupted("stopped; the same command draws what is left")
        return True

    def _unit(self, span: Span, should_stop: Callable[[], bool]) -> "_Drawn":
        """A unit drawn, or as many of its batches as there was time for."""
        size, pieces = self.batch_size(), []
        end = span.start
        while end < span.stop and not should_stop():
            first = end // size * size
            pixels = self._batch(first, size)
            stop = min(span.stop, first + size)
            pieces.append(pixels[end - first : stop - first])
            self._on_batch(stop - end)
            end = stop
        labels = tasks.labels_of(self.generator.request, torch.arange(span.start, end))
        return _Drawn(
            span=Span(span.start, end),
            pixels=np.concatenate(pieces) if pieces else None,
            labels=None if labels is None else labels.tolist(),
            facts=self._facts(size),
        )

    def _batch(self, first: int, size: int) -> NDArray[np.uint8]:
        try:
            return self.generator.batch(first, size)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise DdpmError(
                f"{self.series.folder}: its images are drawn {size} at a time, for which this "
                "device has too little memory; take one with more, or begin anew in another "
                f"IMAGE_GENERATION.GEN_SAVE_DIR with --batch-size {max(1, size // 2)}"
            ) from error

    def _facts(self, batch_size: int) -> dict[str, object]:
        """What a manifest says beside the images themselves."""
        recipe = self.series.recipe
        return {
            "recipe": self.series.digest,
            "weights_sha256": recipe["weights_sha256"],
            "sampler": recipe["sampler"],
            "seed": self.generator.request.seed,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "device": self.device,
        }

    def _write(
        self, drawn: Sequence["_Drawn"], on_end: Callable[[Span], object], held: ExitStack
    ) -> None:
        """Write what was drawn of one unit, then let go of it."""
        with held:
            for one in drawn:
                assert one.pixels is not None
                write(self.series.shards, one.span, one.pixels, one.labels, one.facts)
                on_end(one.span)

    def batch_size(self) -> int:
        """The one size of the series, found now where nobody has drawn before."""
        settled = self.series.batch_size
        if settled is None:
            largest = LARGEST.get(self.device, LARGEST["cpu"])
            found = largest_that_fits(self._probe, sizes(self.series.unit, largest))
            settled = self.series.settle_batch_size(found)
        return settled

    def _probe(self, size: int) -> None:
        """One step of the reverse process with so many images."""

        def enough(ids: torch.Tensor, state: object) -> None:
            raise _Enough

        try:
            self.generator.batch(0, size, on_state=enough)
        except _Enough:
            return


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A unit that is to be written.  pixels: (N, H, W, C); None where it has no images."""

    span: Span
    pixels: NDArray[np.uint8] | None
    labels: list[int] | None
    facts: dict[str, object]


class _Writer:
    """Writes one unit while the next is drawn: encoding takes its time where a GPU draws. What
    fails shows in the next call, or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        self._last = self._pool.submit(write)

    def finish(self) -> None:
        """Wait for what was started last."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.finish()
        finally:
            self._pool.shutdown()


def sizes(unit: int, largest: int) -> list[int]:
    """The batch sizes to try: divisors of the unit, each at most half of the one before it."""
    found, limit = [], largest
    while limit >= 1:
        limit = next(size for size in range(min(limit, unit), 0, -1) if unit % size == 0)
        found.append(limit)
        limit //= 2
    return found


def largest_that_fits(probe: Callable[[int], None], candidates: Sequence[int]) -> int:
    """The first of these sizes that memory is enough for. DdpmError where none is."""
    for size in candidates:
        try:
            probe(size)
            return size
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise DdpmError(
        "the memory is not enough to draw a single image; take a device with more, or smaller "
        "images (IMAGE_GENERATION.NEW_IMAGE_SIZE)"
    )


def _is_memory(error: Exception) -> bool:
    is_named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_named or any(words in str(error) for words in _NO_MEMORY)


def request_of(series: BulkFolder) -> SampleRequest:
    """What the series draws, as its folder says it."""
    return whole_base(read_request(series.folder / REQUEST, ema=series.ema))


@contextmanager
def _locked(
    path: Path, what: str, wait_s: float, should_stop: Callable[[], bool]
) -> Iterator[None]:
    """Holds a unit, so that nobody draws it twice; without, where the file system has no locks:
    two who draw the same write the same.
    """
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(storage.lock(path, what, wait_s=min(wait_s, 1.0)))
            except StorageError:
                pass
            except LockedError:
                if should_stop():
                    raise Interrupted("stopped; the same command draws what is left") from None
                if wait_s <= 1.0:
                    raise
                continue
            break
        yield
