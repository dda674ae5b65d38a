"""Index of a folder of shards, our own or foreign: its samples, where they lie, checksums of all.

index.json names the shards (samples, bytes, SHA-256) and what the images are; beside it,
samples-XXXXXXXX.npy holds one row a sample: offset and size of its image in the shard, CRC-32 of
these bytes, label. The number of a sample is its row. Opening reads the JSON and looks at file
sizes; the table is read, and checked, when first used.
"""

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.data.images import Ranges, array_header
from ddpm.data.scan import Sample, Scan, scan_tar
from ddpm.data.source import beside, entries, examples, is_held_out, note, own_split
from ddpm.errors import InputError, as_typed
from ddpm.runs import ImageBar, storage

INDEX_FILE = "index.json"
TABLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("label", "<i4")])
FORMAT = 1
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*\.tar")
_TABLE_NAME = re.compile(r"samples-[0-9a-f]{8}\.npy")
PACK_LOCK_FILE = "pack.lock"
_NO_LABEL = -1
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Fewer label changes than this share of what random order would have: the shards are sorted.
_SORTED_BELOW = 0.5
AGAIN = f"pack it again, or index it again with `{as_typed('pack')} FOLDER`"
_BEGINNING = re.compile(r'\{\s*"format":\s*[0-9]+,\s*"num_samples"')
_FOREIGN = "it is another program's file: move it out of the folder"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file of the folder."""

    name: str
    samples: int
    bytes: int
    sha256: str
    split: str | None = None  # the part of the data, where they came split


@dataclass(frozen=True, kw_only=True)
class Index:
    """Content of a folder of shards.

    image_shape: (C, H, W); None when sizes vary.  smallest_size: the least height and the least
    width. dtype: "uint8", or "float32" with values in [0, 1].  num_classes: the highest label + 1
    or the number of class names; None without labels.  sha256: identity of the data (shards,
    samples, labels), wherever it lies. is_shuffled: the samples lie in random order.  recipe: what
    `pack` made the shards from; None for foreign ones.  ranges: of the channels before they were
    scaled to [0, 1], in the data's own units; None where they were not.
    """

    folder: Path
    num_samples: int
    image_shape: tuple[int, int, int] | None
    smallest_size: tuple[int, int]
    channels: int
    dtype: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    is_shuffled: bool
    recipe: str | None
    sha256: str
    table_file: str
    table_sha256: str
    shards: tuple[Shard, ...]
    ranges: Ranges | None = None

    @cached_property
    def table(self) -> NDArray[np.void]:
        """One row of TABLE a sample, checked against its SHA-256. Raises InputError."""
        path = self.folder / self.table_file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {AGAIN}") from error
        if hashlib.sha256(content).hexdigest() != self.table_sha256:
            raise InputError(f"{path} is damaged (its SHA-256 is not the index's); {AGAIN}")
        # The content is what we wrote, so its layout needs no further check.
        return np.frombuffer(content, TABLE, self.num_samples, len(content) - self._table_bytes)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The number of each shard's first sample, and num_samples at the end."""
        return np.cumsum([0, *(shard.samples for shard in self.shards)])

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of every sample."""
        return None if self.num_classes is None else self.table["label"].astype(np.int64)

    @cached_property
    def held_out(self) -> NDArray[np.bool_] | None:
        """Mask of the samples for validation, where the data came split; else None."""
        if all(shard.split is None for shard in self.shards):
            return None
        return np.repeat(
            [shard.split is not None and is_held_out(shard.split) for shard in self.shards],
            [shard.samples for shard in self.shards],
        )

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def _table_bytes(self) -> int:
        return self.num_samples * TABLE.itemsize

    def place(self, sample: int) -> str:
        """The place of a sample, for messages."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        offset = self.table["offset"][sample]
        return f"{self.folder / self.shards[shard].name}: sample {sample} at byte {offset}"

    def __str__(self) -> str:
        size = "x".join(map(str, self.image_shape[1:])) if self.image_shape else "varying size"
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        if self.held_out is not None:
            classes += f", {self.held_out.sum():,} for validation"
        return (
            f"{self.folder}: {self.num_samples:,} images of {size}, {self.channels} "
            f"{'channel' if self.channels == 1 else 'channels'}, {classes}, "
            f"in {len(self.shards)} {'shard' if len(self.shards) == 1 else 'shards'} "
            f"({_megabytes(self.num_bytes)})"
        )


def open_index(folder: Path | str) -> Index:
    """The index in `folder`, every shard being there with its size. Raises InputError."""
    folder = Path(folder)
    path = folder / INDEX_FILE
    try:
        index = _from_json(folder, json.loads(path.read_text()))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        again = AGAIN if is_index(path) else _FOREIGN
        raise InputError(f"{path} is not an index of shards ({error}); {again}") from error
    if problems := list(_file_problems(index)):
        raise InputError(problems)
    return index


def is_index(path: Path) -> bool:
    """Whether a file begins as the indexes that we write do, be it whole or damaged."""
    try:
        with path.open(encoding="utf-8") as stream:
            return _BEGINNING.match(stream.read(64)) is not None
    except (OSError, ValueError):
        return False


def is_packed(folder: Path) -> bool:
    """Whether the shards in `folder` were written by `pack`, as far as the index can be read."""
    try:
        content = json.loads((folder / INDEX_FILE).read_text())
        return content["recipe"] is not None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def verify_shards(index: Index) -> None:
    """Reads every byte. Raises InputError naming each damaged shard and its damaged images."""
    problems = list(_file_problems(index))
    table = index.table
    with ImageBar("verifying", index.num_samples, is_shown=True) as bar:
        for number, shard in enumerate(index.shards):
            rows = table[index.starts[number] : index.starts[number + 1]]
            path = index.folder / shard.name
            if path.is_file() and (damage := _damage(path, shard, rows)) is not None:
                first = int(index.starts[number])
                where = ", ".join(str(first + row) for row in damage[:10])
                more = f" and {len(damage) - 10} more" if len(damage) > 10 else ""
                hit = f"damaged images: {where}{more}" if damage else "outside the images"
                problems.append(f"{path} is damaged (its SHA-256 is not the index's); {hit}")
            bar.advance(shard.samples)
    if problems:
        raise InputError(problems)


def _damage(path: Path, shard: Shard, rows: NDArray[np.void]) -> list[int] | None:
    """Rows whose image bytes are damaged; None when the whole file is as it was."""
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256:
            return None
        damaged = []
        for row, (offset, size, crc, _) in enumerate(rows.tolist()):
            stream.seek(offset)
            if zlib.crc32(stream.read(size)) != crc:
                damaged.append(row)
        return damaged


def _file_problems(index: Index) -> Iterator[str]:
    root = index.folder.resolve()
    sizes = {shard.name: shard.bytes for shard in index.shards}
    table_size = index._table_bytes
    for name in (*sizes, index.table_file):
        path = index.folder / name
        if not path.is_file():
            yield f"{path} is missing; {AGAIN}"
        elif not path.resolve().is_relative_to(root):
            yield f"{path} is a link out of its folder; copy the file there"
        elif name in sizes and path.stat().st_size != sizes[name]:
            yield f"{path} has {path.stat().st_size} bytes, the index says {sizes[name]}; {AGAIN}"
        elif name not in sizes and path.stat().st_size < table_size:
            yield f"{path} is truncated; {AGAIN}"
    for path in sorted(index.folder.glob("*.tar")):
        if path.name not in sizes:
            yield f"{path} is not in {INDEX_FILE}; {AGAIN}"


def data_sha256(shards: Sequence[Shard], table_sha256: str, ranges: Ranges | None = None) -> str:
    own = [[one.samples, one.sha256, *([one.split] if one.split else [])] for one in shards]
    content = [FORMAT, own, table_sha256, *([ranges] if ranges else [])]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _from_json(folder: Path, content: dict[str, Any]) -> Index:
    """The index in `content`; ValueError, KeyError or TypeError when it is not one."""
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
    shards = tuple(Shard(**shard) for shard in content.pop("shards"))
    shape, names = content["image_shape"], content["class_names"]
    ranges = content.get("ranges")
    fields = content | {
        "image_shape": None if shape is None else tuple(shape),
        "smallest_size": tuple(content["smallest_size"]),
        "class_names": None if names is None else tuple(names),
        "ranges": ranges and tuple((float(low), float(high)) for low, high in ranges),
    }
    del fields["format"]
    index = Index(folder=folder, shards=shards, **fields)
    for shard in shards:
        if not SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"shard name {shard.name!r}")
    if not _TABLE_NAME.fullmatch(index.table_file):
        raise ValueError(f"table name {index.table_file!r}")
    if not 0 < index.num_samples == sum(shard.samples for shard in shards):
        raise ValueError("num_samples is not the sum over shards")
    if index.sha256 != data_sha256(shards, index.table_sha256, index.ranges):
        raise ValueError("it was edited: sha256 does not match")
    return index


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def index_foreign(folder: Path | str) -> Index:
    """Indexes the tar shards in `folder` in place: writes index.json beside them, changes nothing.

    Samples are numbered in the order of the shards' names, so shards appended behind the others
    leave all numbers, and with them the split into training and validation, as they were.
    Raises InputError with all problems of all shards, naming shard and member.
    """
    folder = Path(folder)
    if (folder / INDEX_FILE).exists() and not is_index(folder / INDEX_FILE):
        raise InputError(f"{folder / INDEX_FILE} is no index of shards; {_FOREIGN}")
    paths, scans = scan_folder(folder)
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"{folder} is read-only, and the index of foreign shards is written beside them; "
            "copy the shards into a folder of yours"
        )
    with storage.lock(folder / PACK_LOCK_FILE, f"the shards in {folder}", wait_s=float("inf")):
        storage.clean_temporaries(folder)
        index = write_index(folder, [path.name for path in paths], scans, is_shuffled=False)
    if _is_sorted(index.labels):
        _log.warning(
            "%s: the shards are sorted by class; batches mix samples from many shards to make up "
            "for it, which reads slower than shards in random order (pack them anew for that)",
            folder,
        )
    return index


def scan_folder(folder: Path) -> tuple[list[Path], list[Scan]]:
    """The foreign shards in `folder` and what each holds. Raises InputError with all problems."""
    paths = shard_paths(folder)
    note(_unread(folder, paths))
    scans = []
    with ImageBar("indexing", None, is_shown=True) as bar:
        for path in paths:
            with path.open("rb") as stream:
                scans.append(scan_tar(stream, str(path)))
            bar.advance(len(scans[-1].samples))
    if problems := [problem for found in scans for problem in found.problems]:
        raise InputError(problems)
    note(
        f'{path}: {len(scan.unlabelled):,} JSON member(s) without a "label", so without a class: '
        f"{examples(scan.unlabelled)}"
        for path, scan in zip(paths, scans, strict=True)
        if scan.unlabelled
    )
    return paths, scans


def _unread(folder: Path, shards: Sequence[Path]) -> Iterator[str]:
    """Notes on what lies beside foreign shards and is not read, and on parts not kept apart."""
    ours = {*shards, folder / INDEX_FILE, folder / PACK_LOCK_FILE}
    yield from beside(folder, [e for e in entries(folder) if e not in ours and not _is_table(e)])
    if split := own_split({re.split("[^a-z]", path.name.lower())[0] for path in shards}):
        yield (
            f"{folder}: shards of {' and '.join(split)} are used as one data set where they lie; "
            f"`{as_typed('pack', folder, 'OUT_DIR')}` packs them anew and keeps the split"
        )


def shard_paths(folder: Path) -> list[Path]:
    """The tar files of a folder of foreign shards. Raises InputError where some cannot be used."""
    root = folder.resolve()
    problems, paths = [], []
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_COMPRESSED):
            problems.append(f"{path} is compressed; unpack it to .tar")
        elif path.suffix == ".tar":
            if not SHARD_NAME.fullmatch(path.name):
                problems.append(f"{path}: a shard's name has only A-Z a-z 0-9 _ . + = @ -")
            elif not path.is_file() or not path.resolve().is_relative_to(root):
                problems.append(f"{path} is not a file in this folder; copy it there")
            paths.append(path)
    if problems or not paths:
        raise InputError(problems or f"{folder} holds no .tar shards")
    return paths


def write_index(
    folder: Path,
    names: Sequence[str],
    scans: Sequence[Scan],
    *,
    splits: Sequence[str | None] | None = None,
    class_names: tuple[str, ...] | None = None,
    is_shuffled: bool,
    recipe: str | None = None,
    ranges: Ranges | None = None,
) -> Index:
    """Writes the index of scanned shards. Raises InputError where they contradict each other."""
    samples = [sample for scan in scans for sample in scan.samples]
    if problems := _contradictions(folder, names, scans):
        raise InputError(problems)
    shards = tuple(
        Shard(
            name=name, samples=len(scan.samples), bytes=scan.size, sha256=scan.sha256, split=split
        )
        for name, scan, split in zip(names, scans, splits or [None] * len(names), strict=True)
    )
    shapes = {sample.header.shape for sample in samples}
    table = _table(samples)
    before = {path for path in folder.glob("samples-*.npy") if _is_table(path)}
    table_file, table_sha256 = _write_table(folder, table)
    has_labels = samples[0].label is not None
    highest = int(table["label"].max()) + 1
    index = Index(
        folder=folder,
        num_samples=len(samples),
        image_shape=shapes.pop() if len(shapes) == 1 else None,
        smallest_size=(
            min(sample.header.height for sample in samples),
            min(sample.header.width for sample in samples),
        ),
        channels=samples[0].header.channels,
        dtype=samples[0].header.dtype,
        num_classes=max(highest, len(class_names or ())) if has_labels else None,
        class_names=class_names if has_labels else None,
        shards=shards,
        is_shuffled=is_shuffled,
        recipe=recipe,
        table_file=table_file,
        table_sha256=table_sha256,
        sha256=data_sha256(shards, table_sha256, ranges),
        ranges=ranges,
    )
    storage.write_json(folder / INDEX_FILE, _to_json(index))
    for old in before - {folder / table_file}:
        storage.remove(old)
    return index


def _table(samples: Sequence[Sample]) -> NDArray[np.void]:
    labels = (_NO_LABEL if sample.label is None else sample.label for sample in samples)
    rows = [
        (sample.offset, sample.size, sample.crc, label)
        for sample, label in zip(samples, labels, strict=True)
    ]
    return np.array(rows, TABLE)


def _write_table(folder: Path, table: NDArray[np.void]) -> tuple[str, str]:
    """Name and SHA-256 of the table's file; named by its content, so old and new never mix."""
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    name = f"samples-{digest[:8]}.npy"
    written = storage.write_file(
        folder / name, lambda sink: np.lib.format.write_array(sink, table, allow_pickle=False)
    )
    return name, written.sha256


def _is_table(path: Path) -> bool:
    """Whether a file is a table of ours, by name and type, and no array of somebody else."""
    try:
        with path.open("rb") as stream:
            return bool(_TABLE_NAME.fullmatch(path.name)) and array_header(stream).dtype == TABLE
    except (OSError, ValueError):
        return False


def _contradictions(folder: Path, names: Sequence[str], scans: Sequence[Scan]) -> list[str]:
    """Samples that differ from the first in what all of a data set must share."""
    first = next(sample for scan in scans for sample in scan.samples)
    expected = _traits(first)
    problems = []
    for name, scan in zip(names, scans, strict=True):
        for sample in scan.samples:
            for trait, other in zip(_traits(sample), expected, strict=True):
                if trait != other:
                    place = f"{folder / name}: sample {sample.key}"
                    problems.append(f"{place} has {trait}; the first sample has {other}")
    return problems


def _traits(sample: Sample) -> tuple[str, str, str]:
    """Traits that all samples of a folder share."""
    label = "no label" if sample.label is None else "a label"
    return label, f"{sample.header.channels} channels", f"{sample.header.dtype} pixels"


def _to_json(index: Index) -> dict[str, Any]:
    content = asdict(index)
    del content["folder"]
    if content["ranges"] is None:
        del content["ranges"]
    for shard in content["shards"]:
        if shard["split"] is None:
            del shard["split"]
    return {"format": FORMAT, **content}


def _is_sorted(labels: NDArray[np.int64] | None) -> bool:
    """Whether neighbours share their class far more often than in random order."""
    if labels is None:
        return False
    shares = np.bincount(labels) / len(labels)
    expected = (1.0 - float((shares**2).sum())) * (len(labels) - 1)
    return float((labels[1:] != labels[:-1]).sum()) < _SORTED_BELOW * expected
