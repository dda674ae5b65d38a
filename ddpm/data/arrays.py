"""Arrays as sources: in memory, in NPZ and IDX files, scikit-learn's digits.

Headers are checked against sizes before anything is read, and nothing is unpickled. An array that
lies uncompressed in its NPZ is mapped, not loaded, so it may be larger than memory; a compressed
one is refused when it would not fit, or expands like a zip bomb.
"""

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import psutil
from numpy.typing import NDArray

from ddpm.data.images import ArrayHeader, array_header
from ddpm.data.scan import MAX_LABEL
from ddpm.data.source import DIGITS, Loaded, Source, files_identity
from ddpm.errors import InputError

# Real images shrink to a third, drawings to a fiftieth; beyond this it is made to fill memory.
_BOMB_RATIO = 200
_BOMB_BYTES = 1 << 24
_MEMORY_SHARE = 0.8
_IDX_UNSIGNED_BYTE = 8
_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
_ZIP_LOCAL_HEADER = 30
_IMAGES, _LABELS = 0, 1

Shape = tuple[int, ...]


class ArraySource(Source):
    """Arrays: images (N, H, W[, C]) uint8 or float in [0, 1], labels (N,) whole numbers or None."""

    takes = "arrays"

    def __init__(
        self,
        images: NDArray,
        labels: NDArray | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name, self.has_labels = name, labels is not None
        self.class_names = tuple(class_names) if class_names and self.has_labels else None
        self._arrays = [np.asarray(a) for a in (images, labels) if a is not None]
        self._take(*((array.shape, array.dtype) for array in self._arrays))

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        return None  # has no path

    def identity(self) -> str:
        digest = hashlib.sha256()
        for array in self._arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def labels(self) -> NDArray[np.int64] | None:
        if not self.has_labels:
            return None
        labels = self._read(_LABELS).reshape(-1)
        self._refuse(_label_problems(labels))
        return labels.astype(np.int64)

    def load(self, *, progress: bool = False) -> Loaded:
        arrays: list[NDArray] = []
        broken: list[str] = []
        for part in (_IMAGES, _LABELS)[: 1 + self.has_labels]:
            try:
                arrays.append(self._read(part))
            except InputError as error:
                broken += error.problems
        if broken:
            raise InputError(broken)
        images, labels = arrays[0], arrays[1].reshape(-1) if self.has_labels else None
        problems = [] if images.dtype == np.uint8 else _float_problems(images)
        self._refuse(problems + ([] if labels is None else _label_problems(labels)))
        if images.ndim == 3:
            images = images[..., None]  # (N, H, W, 1)
        pixels = images if images.dtype == np.uint8 else _Floats(images)
        return Loaded(images=pixels, labels=None if labels is None else labels.astype(np.int64))

    def _read(self, part: int) -> NDArray:
        """The images or the labels, as they are. Raises InputError."""
        return self._arrays[part]

    def _take(self, images: tuple[Shape, np.dtype], *labels: tuple[Shape, np.dtype]) -> None:
        """Takes the shape from what headers promise. Raises InputError when that cannot be."""
        problems = [f"images {problem}" for problem in _image_problems(*images)]
        for promised in labels:
            found = _label_shape_problems(*promised, count=images[0][0] if images[0] else 0)
            problems += [f"labels {problem}" for problem in found]
        self._refuse(problems)
        count, height, width, channels = (*images[0], 1)[:4]
        self.num_samples, self.image_shape = count, (channels, height, width)

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            raise InputError([f"{self.name}: {problem}" for problem in problems])


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    takes = "an NPZ file (.npz)"

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._path, self.has_labels = str(path), path, label_key is not None
        try:
            members = open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = ["images"] + ([label_key] if label_key is not None else [])
        there = ", ".join(members) or "nothing"
        advice = {label_key: "; name another with LABEL_KEY, or null for images without labels"}
        if missing := [key for key in keys if key not in members]:
            lines = [
                f"{path} has no array {k!r}, it has: {there}{advice.get(k, '')}" for k in missing
            ]
            raise InputError(lines)
        self._members = [members[key] for key in keys]
        self._take(*((member.header.shape, member.header.dtype) for member in self._members))

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        path = Path(source)
        return cls(path, label_key) if path.suffix == ".npz" and path.is_file() else None

    @cached_property
    def _content(self) -> str:
        return files_identity([self._path])

    def identity(self) -> str:
        return self._content

    def _read(self, part: int) -> NDArray:
        try:
            return self._members[part].read()
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error


class IdxSource(ArraySource):
    """An IDX file of images and, unless label_key is None, the labels file beside it."""

    takes = "an IDX file (*-idx3-ubyte, *.gz)"

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self.has_labels = str(path), label_key is not None
        self._paths = [path]
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
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        path = Path(source)
        if path.is_dir():
            pair = next((found for name in _IDX_TRAINING if (found := _idx_file(path, name))), None)
            return cls(pair, label_key) if pair else None
        return cls(path, label_key) if "idx" in path.name else None

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

    def __init__(self, label_key: str | None) -> None:
        self.name, self.num_samples, self.image_shape = DIGITS, 1797, (1, 8, 8)
        self.has_labels = label_key is not None
        self.class_names = tuple("0123456789") if self.has_labels else None

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        return cls(label_key) if source == DIGITS else None

    def identity(self) -> str:
        return hashlib.sha256(DIGITS.encode()).hexdigest()

    def _read(self, part: int) -> NDArray:
        from sklearn.datasets import load_digits

        digits = load_digits()
        if part == _LABELS:
            return np.asarray(digits.target)
        # Whole numbers 0..16 in float64; np.rint rounds halves to even, but 255 v / 16 has none.
        return np.rint(digits.images * (255 / 16)).astype(np.uint8)


class _Floats:
    """Float images, each made float32 as it is taken."""

    def __init__(self, images: NDArray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        return np.asarray(self._images[number], np.float32)


def _image_problems(shape: Shape, dtype: np.dtype) -> list[str]:
    """Reasons why an array cannot be images (N, H, W[, C])."""
    problems = []
    if len(shape) not in (3, 4) or 0 in shape:
        problems.append(f"have shape {shape}; give (N, H, W) or (N, H, W, C)")
    if dtype != np.uint8 and dtype.kind != "f":
        problems.append(f"are {dtype}; give uint8, or floats in [0, 1]")
    return problems


def _label_shape_problems(shape: Shape, dtype: np.dtype, *, count: int) -> list[str]:
    """Reasons why an array cannot be the labels of `count` images."""
    problems = []
    if shape not in ((count,), (count, 1)):
        problems.append(f"have shape {shape}; give one label an image, ({count},)")
    if dtype.kind not in "iu":
        problems.append(f"are {dtype}; give whole numbers from 0")
    return problems


def _label_problems(labels: NDArray) -> list[str]:
    """Labels that are no class numbers."""
    problems = []
    for wrong, what in ((labels < 0, "below 0"), (labels > MAX_LABEL, f"above {MAX_LABEL}")):
        if count := int(wrong.sum()):
            first = int(wrong.argmax())
            problems.append(
                f"{count} labels are {what}, the first is {labels[first]} of image {first}"
            )
    return problems


def _float_problems(images: NDArray) -> list[str]:
    """Images with values outside [0, 1], read piece by piece."""
    wrong: list[int] = []
    step = max(1, (1 << 22) // max(1, images[0].size))
    for start in range(0, len(images), step):
        piece = images[start : start + step].reshape(len(images[start : start + step]), -1)
        with np.errstate(invalid="ignore"):
            is_wrong = ~((piece.min(axis=1) >= 0) & (piece.max(axis=1) <= 1))  # NaN is wrong too
        wrong += (start + np.flatnonzero(is_wrong)).tolist()
    if not wrong:
        return []
    low, high = float(images[wrong[0]].min()), float(images[wrong[0]].max())
    return [
        f"{len(wrong)} float images have values outside [0, 1], the first is image {wrong[0]} "
        f"with {low:g} to {high:g}; scale them, or give uint8"
    ]


@dataclass(frozen=True, kw_only=True)
class NpzMember:
    """One array of an NPZ file, not read yet."""

    path: Path
    name: str
    header: ArrayHeader

    def read(self) -> NDArray:
        """The array, mapped from the file where it lies there uncompressed."""
        with zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(self.name)
            if info.compress_type == zipfile.ZIP_STORED and self.header.data_bytes:
                return self._map(info)
            try:
                with archive.open(info) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
            except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
                raise ValueError(f"{self.name} is damaged: {error}") from error

    def _map(self, info: zipfile.ZipInfo) -> NDArray:
        with self.path.open("rb") as stream:
            stream.seek(info.header_offset)
            local = stream.read(_ZIP_LOCAL_HEADER)
            name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
            start = info.header_offset + _ZIP_LOCAL_HEADER + name_bytes + extra_bytes
            _check_crc(stream, start, info)
        return np.memmap(
            self.path,
            self.header.dtype,
            "r",
            start + self.header.header_bytes,
            self.header.shape,
            "F" if self.header.is_fortran else "C",
        )


def open_npz(path: Path) -> dict[str, NpzMember]:
    """The arrays of an NPZ file by key, their headers checked against the sizes in the file."""
    members: dict[str, NpzMember] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in members:
                    raise ValueError(f"holds {key!r} twice")
                if info.flag_bits & 1:
                    raise ValueError(f"{info.filename} is encrypted")
                if info.filename.endswith(".npy"):
                    members[key] = _member(path, archive, info)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error) as error:
        raise ValueError(f"is not a readable NPZ file: {error}") from error
    return members


def _check_memory(member_bytes: int, stored_bytes: int, what: str) -> None:
    """Raises ValueError when `member_bytes` are implausible for the file or do not fit memory."""
    if member_bytes > _BOMB_BYTES and member_bytes > _BOMB_RATIO * stored_bytes:
        raise ValueError(
            f"{what} expands {member_bytes // max(stored_bytes, 1)}-fold to {member_bytes} bytes, "
            "like a zip bomb; save it uncompressed"
        )
    available = psutil.virtual_memory().available
    if member_bytes > _MEMORY_SHARE * available:
        raise ValueError(
            f"{what} needs {member_bytes} bytes of memory, {available} are available; "
            "save it uncompressed (np.savez), which is read piece by piece"
        )


def idx_shape(path: Path) -> tuple[int, ...]:
    """The shape in the header of an IDX file of unsigned bytes, gzipped or not."""
    with _open_idx(path) as stream:
        try:
            start = stream.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or not 1 <= start[3] <= 4:
                raise ValueError("is not an IDX file")
            if start[2] != _IDX_UNSIGNED_BYTE:
                raise ValueError(
                    f"is an IDX file of type {start[2]:#x}; unsigned bytes (0x8) are read"
                )
            lengths = stream.read(4 * start[3])
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"is damaged: {error}") from error
    if len(lengths) != 4 * start[3]:
        raise ValueError("is truncated in its header")
    shape = struct.unpack(f">{start[3]}I", lengths)
    size, stored = 4 + len(lengths) + math.prod(shape), path.stat().st_size
    if not _is_gzip(path) and size != stored:
        raise ValueError(f"has {stored} bytes; its header, shape {shape}, promises {size}")
    _check_memory(size, stored, "it")
    return shape


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes."""
    shape = idx_shape(path)
    count = math.prod(shape)
    with _open_idx(path) as stream:
        try:
            stream.read(4 + 4 * len(shape))
            content = stream.read(count)
            is_longer = bool(stream.read(1))
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"is damaged: {error}") from error
    if len(content) != count or is_longer:
        found = "more" if is_longer else str(len(content))
        raise ValueError(
            f"holds {found} bytes of data; its header, shape {shape}, promises {count}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NpzMember:
    with archive.open(info) as stream:
        try:
            header = array_header(cast(BinaryIO, stream))
        except ValueError as error:
            raise ValueError(f"{info.filename}: {error}") from error
    found = info.file_size - header.header_bytes
    if found != header.data_bytes:
        raise ValueError(
            f"{info.filename}: its header, {header.dtype} {header.shape}, promises "
            f"{header.data_bytes} bytes; {found} are there"
        )
    if info.compress_type != zipfile.ZIP_STORED:
        _check_memory(info.file_size, info.compress_size, info.filename)
    elif info.compress_size != info.file_size:
        raise ValueError(f"{info.filename}: its sizes in the file contradict each other")
    return NpzMember(path=path, name=info.filename, header=header)


def _check_crc(stream: BinaryIO, start: int, info: zipfile.ZipInfo) -> None:
    """The check that zipfile makes when it reads a member, which mapped pages would skip."""
    stream.seek(start)
    crc, rest = 0, info.file_size
    while rest:
        piece = stream.read(min(rest, 1 << 20))
        if not piece:
            break
        crc, rest = zlib.crc32(piece, crc), rest - len(piece)
    if rest or crc != info.CRC:
        raise ValueError(f"{info.filename} is damaged: its bytes do not match its checksum")


def _open_idx(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path) if _is_gzip(path) else path.open("rb"))


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _idx_file(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in `folder`, gzipped or not."""
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)
