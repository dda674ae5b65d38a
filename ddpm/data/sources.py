"""Sources: what shards are made from. A new kind is a file with a Source, and a line in `KINDS`.

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npy          images alone, as in an NPZ
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *.tar.gz          CIFAR-10's binary version, or the folder in it
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FILE.zip          pictures, and their classes in EDM's dataset.json
    *.parquet         encoded pictures and labels, as Hugging Face keeps them; a folder of these
    FOLDER            png, jpg, webp, bmp, ppm; sub-folders are classes, numbered by name; a flat
                      one has no labels

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once, and in notes what is there and not read: nothing is left out in
silence. Pixels are (H, W, C), uint8, or float32 in [0, 1].
"""

import hashlib
import os
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.data.arrays import (
    CIFAR_RECORD,
    cifar_parts,
    idx_shape,
    open_npz,
    read_cifar,
    read_idx,
)
from ddpm.data.pictures import FolderSource, ParquetSource, PictureSource, ZipSource, entries
from ddpm.data.source import (
    DIGITS,
    ArraySource,
    Reading,
    Source,
    examples,
    files_identity,
)
from ddpm.errors import InputError

_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    takes = "an NPZ file (.npz)"

    def __init__(self, path: Path, reading: Reading) -> None:
        label_key, self.reading = reading.label_key, reading
        self.name, self._path, self.has_labels = str(path), path, label_key is not None
        try:
            members = open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = [reading.image_key or "images"] + ([label_key] if label_key is not None else [])
        there = ", ".join(members) or "nothing"
        advice = {label_key: "; name another with LABEL_KEY, or null for images without labels"}
        if missing := [key for key in keys if key not in members]:
            lines = [
                f"{path} has no array {k!r}, it has: {there}{advice.get(k, '')}" for k in missing
            ]
            raise InputError(lines)
        self._members = [members[key] for key in keys]
        if others := [key for key in members if key not in keys]:
            self.notes = (f"{path}: {len(others)} array(s) not read: {examples(others)}",)
        self._take(*((member.header.shape, member.header.dtype) for member in self._members))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        return cls(path, reading) if path.suffix == ".npz" and path.is_file() else None

    @cached_property
    def _content(self) -> str:
        return files_identity([self._path])

    def identity(self) -> str:
        key = self.reading.label_key
        if key in ("labels", None):
            return self._content
        # Other labels of the same file are other data.
        return hashlib.sha256(f"{self._content} {key}".encode()).hexdigest()

    def _read(self, part: int) -> NDArray:
        try:
            return self._members[part].read()
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error


class NpySource(ArraySource):
    """An NPY file of images alone, mapped where it lies."""

    takes = "an NPY file (.npy)"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.reading, self._path = str(path), reading, path
        try:
            with path.open("rb") as stream:
                self._header = images.array_header(stream)
            found = path.stat().st_size - self._header.header_bytes
            if found != self._header.data_bytes:
                raise ValueError(f"promises {self._header.data_bytes} bytes; {found} are there")
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        self._take((self._header.shape, self._header.dtype))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(Path(source), reading) if source.endswith(".npy") else None

    def identity(self) -> str:
        return files_identity([self._path])

    def _read(self, part: int) -> NDArray:
        head = self._header
        flat = np.memmap(self._path, head.dtype, "r", head.header_bytes)
        return flat.reshape(head.shape, order="F" if head.is_fortran else "C")


class IdxSource(ArraySource):
    """An IDX file of images and, unless label_key is None, the labels file beside it."""

    takes = "an IDX file (*-idx3-ubyte, *.gz)"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.has_labels = str(path), reading.label_key is not None
        self.reading, self._paths = reading, [path]
        if self.has_labels:
            stem = path.name.removesuffix(".gz").replace("images", "labels")
            labels = _idx_file(path.parent, stem.replace("idx3", "idx1").replace("idx4", "idx1"))
            if labels is None or labels == path:
                raise InputError(
                    f"{path} has no labels file beside it; put one there, "
                    "or set LABEL_KEY to null for images without labels"
                )
            self._paths.append(labels)
        promised, problems = [], []
        for file in self._paths:
            try:
                promised.append((idx_shape(file), np.dtype(np.uint8)))
            except (ValueError, OSError) as error:
                problems.append(f"{file} {error}")
        if problems:
            raise InputError(problems)
        self._take(*promised)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        if path.is_dir():
            pair = next((found for name in _IDX_TRAINING if (found := _idx_file(path, name))), None)
            if pair is None:
                return None
            opened = cls(pair, reading)
            if others := [e.name for e in entries(path) if e not in opened._paths]:
                opened.notes = (
                    f"{path}: {len(others)} file(s) not read: {examples(others)}; name another "
                    "file of images to pack that",
                )
            return opened
        return cls(path, reading) if "idx" in path.name else None

    def identity(self) -> str:
        return files_identity(self._paths)

    def _read(self, part: int) -> NDArray:
        try:
            return read_idx(self._paths[part])
        except ValueError as error:
            raise InputError(f"{self._paths[part]} {error}") from error


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits."""

    takes = f"`{DIGITS}`"

    def __init__(self, reading: Reading) -> None:
        self.name, self.has_labels, self.reading = DIGITS, reading.label_key is not None, reading
        self._take(((1797, 8, 8), np.dtype(np.uint8)))
        self.class_names = tuple("0123456789") if self.has_labels else None

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(reading) if source == DIGITS else None

    def identity(self) -> str:
        return hashlib.sha256(DIGITS.encode()).hexdigest()

    def _read(self, part: int) -> NDArray:
        # The file that sklearn.datasets.load_digits() reads, without its seconds of imports.
        found = find_spec("sklearn")
        if found is None or not found.origin:
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
        if part:  # the labels
            return table[:, -1].astype(np.int64)
        # Whole numbers 0..16 in float64; np.rint rounds halves to even, but 255 v / 16 has none.
        return np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)


class CifarSource(ArraySource):
    """The training images of CIFAR-10's binary version: the archive, or the folder in it.

    A record is the class, a byte, and 32 x 32 red, then green, then blue values.
    """

    takes = "CIFAR-10's cifar-10-binary.tar.gz"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.reading, self._path = str(path), reading, path
        self.has_labels = reading.label_key is not None
        try:
            self._parts, names, others = cifar_parts(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        self.class_names = names if self.has_labels else None
        if others:
            self.notes = (f"{path}: {len(others)} file(s) not read: {examples(others)}",)
        count = sum(size for _, size in self._parts) // CIFAR_RECORD
        self._take(((count, 32, 32, 3), np.dtype(np.uint8)))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        is_archive = path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar"))
        is_folder = path.is_dir() and any(
            (path / f"data_batch_1{end}").is_file() for end in (".bin", "")
        )
        return cls(path, reading) if is_archive or is_folder else None

    def identity(self) -> str:
        if self._path.is_file():
            return files_identity([self._path])
        return files_identity([self._path / name for name, _ in self._parts], self._path)

    @cached_property
    def _records(self) -> NDArray[np.uint8]:
        try:
            return read_cifar(self._path, self._parts)
        except (ValueError, OSError) as error:
            raise InputError(f"{self.name}: {error}") from error

    def _read(self, part: int) -> NDArray:
        if part:  # the labels
            return self._records[:, 0]
        planes = self._records[:, 1:].reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in `folder`, gzipped or not."""
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)


# In the order in which they are tried.
KINDS: tuple[type[Source], ...] = (
    DigitsSource,
    NpzSource,
    NpySource,
    ParquetSource,
    ZipSource,
    CifarSource,
    IdxSource,
    FolderSource,
)


def open_source(
    source: str | os.PathLike[str],
    label_key: str | None = "labels",
    *,
    image_key: str | None = None,
    classes: tuple[str, ...] | None = None,
    conversions: images.Conversions = images.STRICT,
) -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show."""
    path = Path(source)
    known = f"give {', '.join(kind.takes for kind in KINDS)}, or a folder of shards"
    if str(source) != DIGITS and not path.exists():
        raise InputError(f"{path} does not exist; {known}")
    if str(source) != DIGITS and not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; {known}")
    reading = Reading(
        label_key=label_key, image_key=image_key, classes=classes, conversions=conversions
    )
    for kind in KINDS:
        if (opened := kind.opened(str(source), reading)) is not None:
            _require_used(opened)
            return opened
    raise InputError(f"{path} is no source of images; {known}")


def _require_used(source: Source) -> None:
    """Raises InputError for an option that means nothing to a kind of source."""
    reading, has_pictures = source.reading, isinstance(source, PictureSource)
    by = reading.conversions
    given = {
        "--image-key": reading.image_key is not None
        and not isinstance(source, NpzSource | ParquetSource),
        "--classes": reading.classes is not None and not isinstance(source, FolderSource),
        "--alpha": by.alpha is not None and not has_pictures,
        "--bit-depth": by.bit_depth is not None and not has_pictures,
    }
    if useless := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{', '.join(useless)} changes nothing of {source.name}; leave it out")
