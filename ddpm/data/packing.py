"""Packing: shards made from a source of images.

Shards are WebDataset's: PNG for uint8 of 1 or 3 channels, NPY else, and a class. Samples lie in a
keyed random order, so that reading the shards front to back is reading at random. The same source
gives the same bytes. Each shard appears whole or not at all and the index last; after a kill, the
same call keeps the finished shards and goes on. A plan needs no torch, webdataset or scikit-learn.
"""

import hashlib
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.data.index import INDEX_FILE, PACK_LOCK_FILE, Index, open_index, write_index
from ddpm.data.scan import Scan, scan_tar
from ddpm.data.source import STAGED_PICTURES, Loaded, Reading, Source, note
from ddpm.errors import InputError, LockedError, as_typed
from ddpm.runs import ImageBar, captioned, storage

_PACKING = 1  # raised when the same source would give other bytes
_JOURNAL = "packing.jsonl"
STAGE = ".staged"  # in the folder that is packed into: copies of remote shards
_NAME, _SEED = "shard", 0  # parts of every recipe
_SHARD_BYTES = 1 << 25
_MEMBER_OVERHEAD = 2048
_SHARD_SAMPLES = (64, 4096)
_UNKNOWN_SHARD_SAMPLES = 1024
_RUN = 32
_PACK_ID = 1 << 41  # of the draw that orders the samples; those of training lie below
_THREADS = 4
PREVIEWED = 64
_log = logging.getLogger(__name__)


def pack(
    source: Source,
    out_dir: str | os.PathLike[str],
    *,
    samples_per_shard: int | None = None,
) -> Index:
    """The index of the shards in out_dir, packed now unless they are there already.

    samples_per_shard: None gives shards of at most 32 MiB of pixels.

    Raises InputError with all problems of the source, before anything is written, and when out_dir
    holds something else.  StorageError when writing fails.
    """
    plan, folder = plan_packing(source, samples_per_shard), Path(out_dir)
    if index := _finished(folder, plan):
        return index
    require_place(folder, source.name)
    note(source.notes)
    with _folder(folder):
        if index := _finished(folder, plan):  # another process packed it while this one waited
            return index
        return _pack_into(folder, plan)


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """A source and the options of its shards. recipe: digest of all that their bytes depend on."""

    source: Source
    samples_per_shard: int
    recipe: str

    @cached_property
    def shards(self) -> list["ShardPlan"]:
        """Every shard; one holds samples of one part alone where the data come split."""
        planned: list[ShardPlan] = []
        first, size = 0, self.samples_per_shard
        for part, count in self.source.split or ((None, self.source.num_samples),):
            stem = _NAME if part is None else f"{_NAME}-{part.lower()}"
            for number, start in enumerate(range(first, first + count, size)):
                samples = range(start, min(start + size, first + count))
                planned.append(ShardPlan(f"{stem}-{number:06d}.tar", part, samples))
            first += count
        return planned


class ShardPlan(NamedTuple):
    """A shard's name, the part that it is of, and the numbers of its samples."""

    name: str
    split: str | None
    samples: range


def plan_packing(source: Source, samples_per_shard: int | None = None) -> PackPlan:
    """The plan for a source. Raises InputError for a bad number."""
    count = _samples_per_shard(source) if samples_per_shard is None else samples_per_shard
    if count < 1:
        raise InputError(f"samples per shard is {count}; give at least 1")
    content = [_PACKING, source.identity(), source.has_labels, _NAME, count, _SEED]
    content += _different(source.reading) + ([source.split] if source.split else [])
    recipe = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return PackPlan(source=source, samples_per_shard=count, recipe=recipe)


def _different(reading: Reading) -> list[object]:
    """The options of a reading that are not as usual; none for shards of earlier versions."""
    usual, own = asdict(Reading()), asdict(reading)
    del own["label_key"], own["stage"]  # the source's identity and its labels say the first
    changed = {name: value for name, value in own.items() if value != usual[name]}
    return [changed] if changed else []


def _samples_per_shard(source: Source) -> int:
    """Samples of about 32 MiB: whole runs of the reading order."""
    if source.image_shape is None:
        return _UNKNOWN_SHARD_SAMPLES
    least, most = _SHARD_SAMPLES
    fitting = _SHARD_BYTES // (int(np.prod(source.image_shape)) + _MEMBER_OVERHEAD)
    return min(most, max(least, fitting // _RUN * _RUN))


def _finished(folder: Path, plan: PackPlan) -> Index | None:
    """The index of a finished packing by the same plan."""
    if not (folder / INDEX_FILE).exists():
        return None
    index = open_index(folder)
    if index.recipe != plan.recipe:
        raise InputError(
            f"{folder} holds shards of something else, or packed otherwise; choose another folder"
        )
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    return index


def require_place(folder: Path, source: str) -> None:
    """Raises InputError where the shards of a source may not be put into a folder."""
    origin = Path(source)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for the shards")
    if origin.is_dir() and folder.resolve().is_relative_to(origin.resolve()):
        raise InputError(f"{folder} lies inside the source {origin}; choose a folder outside")
    if folder.is_dir() and not (folder / _JOURNAL).exists():
        visible = (entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if others := sorted(name for name in visible if name != PACK_LOCK_FILE):
            raise InputError(
                f"{folder} is not empty (it holds {others[0]}); choose an empty or new folder"
            )


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """The place of copies of shards; of a source with problems only whole ones stay, with a note,
    so that no second try fetches them, and no empty folder.
    """
    place = folder / STAGE
    made = _missing((place, folder, *folder.parents)) or [place, folder]
    try:
        yield place
    except InputError:
        storage.remove(place / STAGED_PICTURES)
        if place.is_dir() and (whole := len(list(place.glob("*.tar")))):
            note([f"{place} keeps {whole:,} whole shard(s) for the next try"])
        _remove_empty(made)
        raise


def _missing(places: Iterable[Path]) -> list[Path]:
    return [place for place in places if not place.exists()]


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Makes and locks the folder; a source with problems leaves no trace of it."""
    made = _missing((folder, *folder.parents))
    storage.make_folder(folder)
    lock, what = folder / PACK_LOCK_FILE, f"the shards in {folder}"
    held = ExitStack()
    try:
        held.enter_context(storage.lock(lock, what))
    except LockedError as error:
        _log.info("%s; waiting for it", error)
        held.enter_context(storage.lock(lock, what, wait_s=float("inf")))
    with held:
        try:
            yield
        except InputError:
            if not (folder / _JOURNAL).exists() and not (folder / INDEX_FILE).exists():
                lock.unlink(missing_ok=True)
                _remove_empty(made)
            raise


def _pack_into(folder: Path, plan: PackPlan) -> Index:
    loaded = plan.source.load()
    note(loaded.notes)
    storage.clean_temporaries(folder)
    kept = _resume(folder, plan)
    order = _order(plan)
    scans = []
    with (
        ImageBar("packing", plan.source.num_samples, is_shown=True) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for name, _, samples in plan.shards:
            rows = order[samples.start : samples.stop]
            scan = _kept_scan(folder / name, kept.get(name))
            if scan is None:
                scan = _write_shard(folder, name, _members(loaded, rows, samples.start, pool), bar)
            else:
                bar.advance(len(rows))
            scans.append(scan)
    index = write_index(
        folder,
        [shard.name for shard in plan.shards],
        scans,
        splits=[shard.split for shard in plan.shards],
        class_names=plan.source.class_names,
        is_shuffled=True,
        recipe=plan.recipe,
        ranges=loaded.ranges,
    )
    storage.remove(folder / _JOURNAL)
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    return index


def _resume(folder: Path, plan: PackPlan) -> dict[str, str]:
    """SHA-256 of each shard that an interrupted packing finished; the journal says so."""
    journal = folder / _JOURNAL
    lines = journal.read_text().splitlines() if journal.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:  # the last line of a killed process may be cut off
            break
    if entries and entries[0].get("recipe") != plan.recipe:
        raise InputError(
            f"{folder} holds a half-finished packing of something else; "
            "remove it or choose another folder"
        )
    rewritten = [{"recipe": plan.recipe}, *entries[1:]]
    storage.write_text(journal, "".join(f"{json.dumps(entry)}\n" for entry in rewritten))
    return {entry["shard"]: entry["sha256"] for entry in entries[1:]}


def _kept_scan(path: Path, sha256: str | None) -> Scan | None:
    """The scan of a finished shard; None when it has to be written (again)."""
    if sha256 is None or not path.is_file():
        return None
    with path.open("rb") as stream:
        scan = scan_tar(stream, str(path))
    return scan if scan.sha256 == sha256 and not scan.problems else None


def _order(plan: PackPlan) -> NDArray[np.int64]:
    """The image of the source that is sample 0, 1, ...; each part in an order of its own."""
    from ddpm.diffusion import philox

    orders, first = [], 0
    for part, (_, count) in enumerate(plan.source.split or ((None, plan.source.num_samples),)):
        place = {"id": _PACK_ID + part}
        one = philox.permutation(_SEED, philox.Stream.ORDER, count, **place).numpy()
        orders.append(first + one)
        first += count
    return np.concatenate(orders)


def _members(
    loaded: Loaded, rows: NDArray[np.int64], first: int, pool: ThreadPoolExecutor
) -> Iterator[dict[str, str | bytes]]:
    """The samples of a shard as webdataset writes them; the key is the sample's number."""
    for start in range(0, len(rows), _RUN):
        piece: Sequence[int] = rows[start : start + _RUN].tolist()
        encoded = pool.map(lambda row: images.encode(loaded.images[row]), piece)
        for number, (row, (extension, data)) in enumerate(zip(piece, encoded, strict=True)):
            sample: dict[str, str | bytes] = {"__key__": f"{first + start + number:09d}"}
            sample[extension] = data
            if loaded.labels is not None:
                sample["cls"] = str(loaded.labels[row]).encode()
            yield sample


def _write_shard(
    folder: Path, name: str, members: Iterator[dict[str, str | bytes]], bar: ImageBar
) -> Scan:
    """Writes one shard and reads it back."""
    os.environ.setdefault("WDS_SECURE", "1")  # before webdataset is imported: no pickle, no pipes
    from webdataset.writer import TarWriter

    def write(sink: storage.Sink) -> None:
        # Fixed owner and time: the same samples give the same bytes.
        with TarWriter(sink, encoder=False, mtime=0, user="ddpm", group="ddpm") as writer:
            for sample in members:
                writer.write(sample)
                bar.advance()

    written = storage.write_file(folder / name, write)
    with (folder / name).open("rb") as stream:
        scan = scan_tar(stream, str(folder / name))
    if scan.problems or scan.sha256 != written.sha256:
        raise InputError(scan.problems or f"{folder / name} reads back otherwise than written")
    entry = {"shard": name, "sha256": scan.sha256}
    storage.append_line(folder / _JOURNAL, json.dumps(entry))
    return scan


def load_for_edm(source: Source, path: Path) -> Loaded:
    """The images of a source, which may be put into a ZIP at a path. Raises InputError for those
    that EDM does not read, and where the ZIP is there already.
    """
    if path.exists():
        raise InputError(f"{path} is there already; choose another name")
    if source.split:
        part = Path(source.name) / source.split[0][0]
        typed = f"name one: `{as_typed('pack', part, path)}`"
        others = f"give a folder or file of one, such as {source.split[0][0]}, alone"
        raise InputError(
            f"{source.name}: EDM's ZIP has no parts; {typed if part.is_dir() else others}"
        )
    loaded = source.load()
    shapes = {tuple(loaded.images[row].shape) for row in range(source.num_samples)}
    height, width, channels = next(iter(shapes))
    kinds = {loaded.images[0].dtype}
    if len(shapes) > 1 or height != width or channels not in (1, 3) or kinds != {np.dtype("uint8")}:
        some = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes)[:3])
        raise InputError(
            f"{source.name}: EDM reads square 8-bit images of one size, grey or RGB; these are "
            f"{some}{' and others' if len(shapes) > 3 else ''}; give --resize, --grey rgb"
        )
    return loaded


def write_edm_zip(source: Source, loaded: Loaded, path: Path) -> None:
    """The ZIP of EDM's dataset tool: PNG files of one size, their classes in dataset.json."""
    note((*source.notes, *loaded.notes))
    labels = None if loaded.labels is None else loaded.labels.tolist()
    names = [f"{row // 1000:05d}/img{row:08d}.png" for row in range(len(loaded.images))]

    def write(sink: storage.Sink) -> None:
        # ZipFile takes what it cannot seek in. One date: the same images give the same bytes.
        with (
            zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive,  # type: ignore[call-overload]
            ImageBar("packing", len(names), is_shown=True) as bar,
        ):
            for row, name in enumerate(names):
                archive.writestr(zipfile.ZipInfo(name), images.encode(loaded.images[row])[1])
                bar.advance()
            pairs = None if labels is None else list(zip(names, labels, strict=True))
            archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": pairs}))

    storage.write_file(path, write)


def preview(source: Source, loaded: Loaded) -> NDArray[np.uint8]:
    """A picture of some samples by class, after all conversions, each named by its class below."""
    rows = _order(plan_packing(source))[:PREVIEWED].tolist()
    labels, names = loaded.labels, source.class_names
    if labels is not None:
        rows.sort(key=lambda row: int(labels[row]))
    captions = ["" if labels is None else str(labels[row]) for row in rows]
    if labels is not None and names:
        captions = [names[labels[row]] for row in rows]
    return captioned([loaded.images[row] for row in rows], captions)
