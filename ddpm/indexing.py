"""Makes the index of a folder of shards: our own, or foreign ones, which stay as they are."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm import durable
from ddpm.errors import InputError
from ddpm.imagebar import ImageBar
from ddpm.index import FORMAT, INDEX_FILE, SHARD_NAME, TABLE, Index, Shard, data_sha256
from ddpm.tarscan import Sample, Scan, scan_tar

MAX_PROBLEMS = 200
LOCK_FILE = "pack.lock"
_NO_LABEL = -1
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Fewer label changes than this share of what random order would have: the shards are sorted.
_SORTED_BELOW = 0.5
_log = logging.getLogger(__name__)


def index_foreign(folder: Path | str, *, progress: bool = False) -> Index:
    """Indexes the tar shards in `folder` in place: writes index.json beside them, changes nothing.

    Samples are numbered in the order of the shards' names, so shards appended behind the others
    leave all numbers, and with them the split into training and validation, as they were.
    Raises InputError with all problems of all shards, naming shard and member.
    """
    folder = Path(folder)
    paths, scans = scan_folder(folder, progress=progress)
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"{folder} is read-only, and the index of foreign shards is written beside them; "
            "copy the shards into a folder of yours"
        )
    with durable.lock(folder / LOCK_FILE, f"the shards in {folder}", wait_s=float("inf")):
        durable.clean_temporaries(folder)
        index = write_index(folder, [path.name for path in paths], scans, is_shuffled=False)
    if _is_sorted(index.labels):
        _log.warning(
            "%s: the shards are sorted by class; batches mix samples from many shards to make up "
            "for it, which reads slower than shards in random order (pack them anew for that)",
            folder,
        )
    return index


def scan_folder(folder: Path, *, progress: bool = False) -> tuple[list[Path], list[Scan]]:
    """The foreign shards in `folder` and what each holds. Raises InputError with all problems."""
    paths = shard_paths(folder)
    scans = []
    with ImageBar("indexing", None, is_shown=progress) as bar:
        for path in paths:
            with path.open("rb") as stream:
                scans.append(scan_tar(stream, str(path)))
            bar.advance(len(scans[-1].samples))
    if problems := [problem for found in scans for problem in found.problems]:
        raise InputError(limited(problems))
    return paths, scans


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


def limited(problems: Sequence[str]) -> list[str]:
    """The first of many problems, and how many there are."""
    shown = list(problems[:MAX_PROBLEMS])
    more = len(problems) - len(shown)
    return [*shown, f"... and {more} problems more"] if more else shown


def write_index(
    folder: Path,
    names: Sequence[str],
    scans: Sequence[Scan],
    *,
    class_names: tuple[str, ...] | None = None,
    is_shuffled: bool,
    recipe: str | None = None,
) -> Index:
    """Writes the index of scanned shards. Raises InputError where they contradict each other."""
    samples = [sample for scan in scans for sample in scan.samples]
    if problems := _contradictions(folder, names, scans):
        raise InputError(problems)
    shards = tuple(
        Shard(name=name, samples=len(scan.samples), bytes=scan.size, sha256=scan.sha256)
        for name, scan in zip(names, scans, strict=True)
    )
    shapes = {sample.header.shape for sample in samples}
    table = _table(samples)
    before = set(folder.glob("samples-*.npy"))
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
        sha256=data_sha256(shards, table_sha256),
    )
    durable.write_json(folder / INDEX_FILE, _to_json(index))
    for old in before - {folder / table_file}:
        durable.remove(old)
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
    written = durable.write_file(
        folder / name, lambda sink: np.lib.format.write_array(sink, table, allow_pickle=False)
    )
    return name, written.sha256


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
    """What all samples of a folder must share."""
    label = "no label" if sample.label is None else "a label"
    return label, f"{sample.header.channels} channels", f"{sample.header.dtype} pixels"


def _to_json(index: Index) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "num_samples": index.num_samples,
        "image_shape": index.image_shape,
        "smallest_size": index.smallest_size,
        "channels": index.channels,
        "dtype": index.dtype,
        "num_classes": index.num_classes,
        "class_names": index.class_names,
        "is_shuffled": index.is_shuffled,
        "recipe": index.recipe,
        "sha256": index.sha256,
        "table_file": index.table_file,
        "table_sha256": index.table_sha256,
        "shards": [vars(shard) for shard in index.shards],
    }


def _is_sorted(labels: NDArray[np.int64] | None) -> bool:
    """Whether neighbours share their class far more often than in random order."""
    if labels is None:
        return False
    shares = np.bincount(labels) / len(labels)
    expected = (1.0 - float((shares**2).sum())) * (len(labels) - 1)
    return float((labels[1:] != labels[:-1]).sum()) < _SORTED_BELOW * expected
