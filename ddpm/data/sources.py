"""What everything that can be packed has in common. Kinds: ddpm/data/sources.py."""

import gzip
import hashlib
import json
import math
import os
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import psutil
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.data.images import ArrayHeader, array_header
from ddpm.data.scan import MAX_LABEL, limited
from ddpm.errors import InputError
from ddpm.runs import ImageBar

# Sources up to this size are identified by their content, larger ones by names, sizes and times.
_HASHED_BYTES = 1 << 28
_HASHED_FILES = 1000


class ImageSequence(Protocol):
    """Images by number: arrays (H, W, C)."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Checked images, and labels from 0, int64 (N,), or None."""

    images: ImageSequence
    labels: NDArray[np.int64] | None


class Source(ABC):
    """Images that can be packed.

    name: for messages.  num_samples.  image_shape: (C, H, W), None when only the pixels tell.
    has_labels.  class_names: by class number, where there are names.
    """

    name: str
    num_samples: int
    image_shape: tuple[int, int, int] | None = None
    has_labels: bool = False
    class_names: tuple[str, ...] | None = None

    @abstractmethod
    def identity(self) -> str:
        """A hex digest that changes when the content does."""

    @abstractmethod
    def labels(self) -> NDArray[np.int64] | None:
        """The labels from 0, (N,), without the images; None without labels. Raises InputError."""

    @abstractmethod
    def load(self, *, progress: bool = False) -> Loaded:
        """The images and labels. Raises InputError with every problem in them."""


def files_identity(paths: Sequence[Path], root: Path | None = None) -> str:
    """A digest of files: of their content when small, else of their names, sizes and times."""
    states = [path.stat() for path in paths]
    names = [str(path.relative_to(root)) if root else path.name for path in paths]
    digest = hashlib.sha256()
    if len(paths) <= _HASHED_FILES and sum(state.st_size for state in states) <= _HASHED_BYTES:
        for name, path in zip(names, paths, strict=True):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(json.dumps([name, content]).encode())
    else:
        for name, state in zip(names, states, strict=True):
            digest.update(json.dumps([name, state.st_size, state.st_mtime_ns]).encode())
    return digest.hexdigest()


# --------
# What must be true of arrays of images and labels before they become a data set, in words.


class Told(Protocol):
    """What arrays and the headers of files both say."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


@dataclass(frozen=True)
class Header:
    """What a file says of its array before the array is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def image_problems(told: Told) -> list[str]:
    """Why an array cannot be images (N, H, W[, C])."""
    problems = []
    if len(told.shape) not in (3, 4) or 0 in told.shape:
        problems.append(f"have shape {told.shape}; give (N, H, W) or (N, H, W, C)")
    if told.dtype != np.uint8 and told.dtype.kind != "f":
        problems.append(f"are {told.dtype}; give uint8, or floats in [0, 1]")
    return problems


def label_shape_problems(told: Told, count: int) -> list[str]:
    """Why an array cannot be the labels of `count` images."""
    problems = []
    if told.shape not in ((count,), (count, 1)):
        problems.append(f"have shape {told.shape}; give one label an image, ({count},)")
    if told.dtype.kind not in "iu":
        problems.append(f"are {told.dtype}; give whole numbers from 0")
    return problems


def label_problems(labels: NDArray) -> list[str]:
    """Which labels are no class numbers."""
    problems = []
    for wrong, what in ((labels < 0, "below 0"), (labels > MAX_LABEL, f"above {MAX_LABEL}")):
        if count := int(wrong.sum()):
            first = int(wrong.argmax())
            problems.append(
                f"{count} labels are {what}, the first is {labels[first]} of image {first}"
            )
    return problems


def float_problems(images: NDArray) -> list[str]:
    """Which images have values outside [0, 1], looked through piece by piece."""
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


# --------
# NPZ and IDX files as arrays: headers are checked against sizes first, nothing is unpickled.
#
# An array that lies uncompressed in its NPZ is mapped, not loaded, so it may be larger than memory. A
# compressed one is refused when it would not fit, or expands like a zip bomb. All errors are
# ValueErrors with the reason.

# Real images shrink to a third, drawings to a fiftieth; beyond this it is made to fill memory.
_BOMB_RATIO = 200
_BOMB_BYTES = 1 << 24
_MEMORY_SHARE = 0.8
_IDX_UNSIGNED_BYTE = 8
_ZIP_LOCAL_HEADER = 30


@dataclass(frozen=True, kw_only=True)
class NpzMember:
    """One array of an NPZ file, not read yet."""

    path: Path
    name: str
    header: ArrayHeader

    @property
    def shape(self) -> tuple[int, ...]:
        return self.header.shape

    @property
    def dtype(self) -> np.dtype:
        return self.header.dtype

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
            self.dtype,
            "r",
            start + self.header.header_bytes,
            self.shape,
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


def check_memory(member_bytes: int, stored_bytes: int, what: str) -> None:
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
    check_memory(size, stored, "it")
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
        check_memory(info.file_size, info.compress_size, info.filename)
    elif info.compress_size != info.file_size:
        raise ValueError(f"{info.filename}: its sizes in the file contradict each other")
    return NpzMember(path=path, name=info.filename, header=header)


def _check_crc(stream: BinaryIO, start: int, info: zipfile.ZipInfo) -> None:
    """What zipfile does when it reads a member: mapped pages would skip it."""
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


# --------
# Arrays as a source of shards: in memory, in NPZ and IDX files, scikit-learn's digits.

DIGITS = "digits"


class ArraySource(Source):
    """Arrays: images (N, H, W[, C]) uint8 or float in [0, 1], labels (N,) whole numbers or None."""

    def __init__(
        self,
        images: NDArray,
        labels: NDArray | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name = name
        self._images, self._labels = np.asarray(images), labels
        self.has_labels = labels is not None
        self.class_names = tuple(class_names) if class_names and self.has_labels else None
        told = [self._labels] if self._labels is not None else []
        self._read_shape(self._images, *(np.asarray(label) for label in told))

    def _read_shape(self, images: Told, labels: Told | None = None) -> None:
        """Takes the shape from the headers. Raises InputError when they cannot be a data set's."""
        problems = [f"{self.name}: images {problem}" for problem in image_problems(images)]
        if labels is not None:
            found = label_shape_problems(labels, len(images.shape) and images.shape[0])
            problems += [f"{self.name}: labels {problem}" for problem in found]
        if problems:
            raise InputError(problems)
        count, height, width, channels = (*images.shape, 1)[:4]
        self.num_samples, self.image_shape = count, (channels, height, width)

    def identity(self) -> str:
        arrays = [self._images] + ([] if self._labels is None else [np.asarray(self._labels)])
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def labels(self) -> NDArray[np.int64] | None:
        return self._checked_labels(self._labels)

    def load(self, *, progress: bool = False) -> Loaded:
        return self._checked(self._images, self._labels)

    def _checked_labels(self, labels: NDArray | None) -> NDArray[np.int64] | None:
        if labels is None:
            return None
        flat = np.asarray(labels).reshape(-1)
        if problems := label_problems(flat):
            raise InputError([f"{self.name}: {problem}" for problem in problems])
        return flat.astype(np.int64)

    def _checked(self, images: NDArray, labels: NDArray | None) -> Loaded:
        problems = [] if images.dtype == np.uint8 else list(float_problems(images))
        checked = None if labels is None else np.asarray(labels).reshape(-1)
        if checked is not None:
            problems += label_problems(checked)
        if problems:
            raise InputError([f"{self.name}: {problem}" for problem in problems])
        if images.ndim == 3:
            images = images[..., None]  # (N, H, W, 1)
        pixels = images if images.dtype == np.uint8 else _Floats(images)
        return Loaded(images=pixels, labels=None if checked is None else checked.astype(np.int64))


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._path = str(path), path
        self.has_labels = label_key is not None
        try:
            members = open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = ["images"] + ([label_key] if label_key is not None else [])
        there = ", ".join(members) or "nothing"
        advice = {label_key: "; name another with LABEL_KEY, or null for images without labels"}
        if missing := [key for key in keys if key not in members]:
            raise InputError(
                [
                    f"{path} has no array {key!r}, it has: {there}{advice.get(key, '')}"
                    for key in missing
                ]
            )
        self._members = [members[key] for key in keys]
        self._read_shape(*self._members)

    @cached_property
    def _content(self) -> str:
        return files_identity([self._path])

    def identity(self) -> str:
        return self._content

    def labels(self) -> NDArray[np.int64] | None:
        try:
            return self._checked_labels(self._members[1].read() if self.has_labels else None)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error

    def load(self, *, progress: bool = False) -> Loaded:
        try:
            arrays = [member.read() for member in self._members]
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error
        return self._checked(arrays[0], arrays[1] if self.has_labels else None)


class IdxSource(ArraySource):
    """An IDX file of images and, unless label_key is None, the labels file beside it."""

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self.has_labels = str(path), label_key is not None
        self._paths = [path]
        if self.has_labels:
            stem = path.name.removesuffix(".gz").replace("images", "labels")
            labels = idx_file(path.parent, stem.replace("idx3", "idx1").replace("idx4", "idx1"))
            if labels is None or labels == path:
                raise InputError(
                    f"{path} has no labels file beside it; put one there, "
                    "or set LABEL_KEY to null for images without labels"
                )
            self._paths.append(labels)
        told, problems = [], []
        for file in self._paths:
            try:
                told.append(Header(idx_shape(file), np.dtype(np.uint8)))
            except (ValueError, OSError) as error:
                problems.append(f"{file} {error}")
        if problems:
            raise InputError(problems)
        self._read_shape(*told)

    def identity(self) -> str:
        return files_identity(self._paths)

    def labels(self) -> NDArray[np.int64] | None:
        try:
            labels = read_idx(self._paths[1]) if self.has_labels else None
        except ValueError as error:
            raise InputError(f"{self._paths[1]} {error}") from error
        return self._checked_labels(labels)

    def load(self, *, progress: bool = False) -> Loaded:
        arrays, problems = [], []
        for file in self._paths:
            try:
                arrays.append(read_idx(file))
            except ValueError as error:
                problems.append(f"{file} {error}")
        if problems:
            raise InputError(problems)
        return self._checked(arrays[0], arrays[1] if self.has_labels else None)


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits."""

    def __init__(self, label_key: str | None) -> None:
        self.name, self.num_samples, self.image_shape = DIGITS, 1797, (1, 8, 8)
        self.has_labels = label_key is not None
        self.class_names = tuple("0123456789") if self.has_labels else None

    def identity(self) -> str:
        return hashlib.sha256(DIGITS.encode()).hexdigest()

    def labels(self) -> NDArray[np.int64] | None:
        return self.load().labels

    def load(self, *, progress: bool = False) -> Loaded:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Whole numbers 0..16 in float64; np.rint rounds halves to even, but 255 v / 16 has none.
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return self._checked(pixels, digits.target if self.has_labels else None)


class _Floats:
    """Float images, each made float32 as it is taken."""

    def __init__(self, images: NDArray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        return np.asarray(self._images[number], np.float32)


def idx_file(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in `folder`, gzipped or not."""
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)


# --------
# A folder of pictures as a source of shards: one sub-folder a class, or flat.

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_UNREAD = (".avif", ".gif", ".heic", ".jp2", ".tif", ".tiff")
_THREADS = 4
_BATCH = 1024


class FolderSource(Source):
    """Pictures below `path`, sorted by path; unless label_key is None, sub-folders are classes."""

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._root = str(path), path
        files = list(_files(path))
        if unread := [file for file in files if file.suffix.lower() in _UNREAD]:
            raise InputError(
                limited([f"{file}: {file.suffix} is not read; save it as PNG" for file in unread])
            )
        self._paths = [file for file in files if file.suffix.lower() in EXTENSIONS]
        folders = sorted({file.relative_to(path).parts[0] for file in self._in_folders()})
        self.has_labels = label_key is not None and bool(folders)
        self.class_names = tuple(folders) if self.has_labels else None
        self.num_samples = len(self._paths)
        if not self._paths:
            raise InputError(
                f"{path} holds no images ({', '.join(EXTENSIONS)}), no shards and no IDX files"
            )
        flat = self.num_samples - len(self._in_folders())
        if self.has_labels and flat:
            raise InputError(
                f"{path} holds {flat} images beside its class folders; move them into one, or set "
                "LABEL_KEY to null for images without labels"
            )

    def identity(self) -> str:
        return files_identity(self._paths, self._root)

    def labels(self) -> np.ndarray | None:
        return self._labels

    def load(self, *, progress: bool = False) -> Loaded:
        """Decodes every picture once: all broken ones are known before anything is written."""
        problems: list[str] = []
        shapes: list[tuple[int, ...]] = []
        with ImageBar("checking", self.num_samples, is_shown=progress) as bar:
            for path, outcome in zip(self._paths, _outcomes(self._paths), strict=True):
                if isinstance(outcome, str):
                    problems.append(f"{path}: {outcome}")
                else:
                    shapes.append(outcome)
                bar.advance()
        if not problems:
            problems = self._channel_problems(shapes)
        if problems:
            raise InputError(limited(problems))
        return Loaded(images=_Pictures(self._paths), labels=self._labels)

    @cached_property
    def _labels(self) -> np.ndarray | None:
        if self.class_names is None:
            return None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        names = (path.relative_to(self._root).parts[0] for path in self._paths)
        return np.array([numbers[name] for name in names], np.int64)

    def _in_folders(self) -> list[Path]:
        return [path for path in self._paths if path.parent != self._root]

    def _channel_problems(self, shapes: list[tuple[int, ...]]) -> list[str]:
        """The odd ones, when some pictures are grey and some in colour."""
        channels = np.array([shape[2] for shape in shapes])
        usual = 3 if 2 * int((channels == 3).sum()) >= len(channels) else 1
        kinds = {1: "grey", 3: "RGB"}
        return [
            f"{self._paths[row]} is {kinds[int(channels[row])]}, most images are {kinds[usual]}; "
            "convert it"
            for row in np.flatnonzero(channels != usual)
        ]


class _Pictures:
    """Pictures, each decoded as it is taken."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> images.Pixels:
        path = self._paths[number]
        try:
            return images.decode(path.read_bytes())
        except (ValueError, OSError) as error:  # it was whole when it was checked
            raise InputError(f"{path}: {error}") from error


def _files(folder: Path) -> Iterator[Path]:
    """The files below `folder` in an order that does not depend on the file system."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _outcomes(paths: list[Path]) -> Iterator[tuple[int, ...] | str]:
    """_shape_or_reason of each path; decoders release the interpreter, so threads help."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _BATCH):
            yield from pool.map(_shape_or_reason, paths[start : start + _BATCH])


def _shape_or_reason(path: Path) -> tuple[int, ...] | str:
    """The shape of a picture (H, W, C), or why it cannot be used."""
    try:
        return images.decode(path.read_bytes()).shape
    except (ValueError, OSError) as error:
        return str(error)


# --------
# What shards are made from: an NPZ file, IDX files, an image folder, digits, arrays.
#
# Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
# both report all problems at once. Pixels are (H, W, C), uint8, or float32 in [0, 1].
#
#     digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
#     FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
#     *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
#     FOLDER            png, jpg, jpeg, webp, bmp; sub-folders are classes, numbered by name; a flat
#                       one has no labels

_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")


def open_source(source: str | os.PathLike[str], label_key: str | None = "labels") -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show."""
    if str(source) == DIGITS:
        return DigitsSource(label_key)
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give an NPZ file, an IDX file, an image folder, a folder of "
            f"shards, or `{DIGITS}`"
        )
    if path.is_dir():
        pair = next((found for name in _IDX_TRAINING if (found := idx_file(path, name))), None)
        return IdxSource(pair, label_key) if pair else FolderSource(path, label_key)
    if path.suffix == ".npz":
        return NpzSource(path, label_key)
    if "idx" in path.name:
        return IdxSource(path, label_key)
    raise InputError(f"{path} is no NPZ file (.npz) and no IDX file (*-idx3-ubyte, *.gz)")
