"""Arrays in files, NPZ, NPY, HDF5, IDX and CIFAR-10's, as data from a stranger; the digits.

Headers are checked against sizes before anything is read, and nothing is unpickled. An array that
lies uncompressed in its NPZ is mapped, not loaded, so it may be larger than memory; a compressed
one is refused when it would not fit, or expands like a zip bomb.
"""

import gzip
import hashlib
import math
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import psutil
from numpy.typing import NDArray

from ddpm.data.images import ArrayHeader, array_header
from ddpm.data.source import (
    DIGITS,
    ArraySource,
    Reading,
    Source,
    entries,
    examples,
    files_identity,
)
from ddpm.errors import InputError, as_typed

# Real images shrink to a third, drawings to a fiftieth; beyond this it is made to fill memory.
_BOMB_RATIO = 200
_BOMB_BYTES = 1 << 24
_MEMORY_SHARE = 0.8
_IDX_UNSIGNED_BYTE = 8
_ZIP_LOCAL_HEADER = 30
CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_MOST = 1 << 28
_BINARY = "take the binary version, cifar-10-binary.tar.gz, from the same page"
_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    takes = "an NPZ file (.npz)"
    options = ("--image-key", "--scale")

    def __init__(self, path: Path, reading: Reading) -> None:
        label_key, self.reading = reading.label_key, reading
        self.name, self._path, self.has_labels = str(path), path, label_key is not None
        try:
            members = open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = _keys(reading)
        if missing := [key for key in keys if key not in members]:
            raise InputError([f"{path} {_missing(path, k, members, reading)}" for k in missing])
        self._members = [members[key] for key in keys]
        self.notes = _others(path, members, keys)
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
    options = ("--scale",)

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.reading, self._path = str(path), reading, path
        try:
            with path.open("rb") as stream:
                self._header = array_header(stream)
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


class Hdf5Source(ArraySource):
    """Arrays of an HDF5 file: `images` and, unless label_key is None, labels under that key.

    One that lies in one piece is mapped; one in chunks is loaded.
    """

    takes = "an HDF5 file (.h5, .hdf5)"
    options = ("--image-key", "--scale")

    def __init__(self, path: Path, reading: Reading) -> None:
        import h5py

        self.name, self._path, self.reading = str(path), path, reading
        self.has_labels, self._keys = reading.label_key is not None, _keys(reading)
        problems, promised = [], []
        try:
            with h5py.File(path, "r") as file:
                for key in self._keys:
                    try:
                        array = _own_array(file, key, reading)
                        promised.append((array.shape, array.dtype))
                    except ValueError as error:
                        problems.append(f"{path} {error}")
                self.notes = _others(path, _arrays(file), self._keys)
        except (OSError, RuntimeError, KeyError) as error:
            raise InputError(f"{path} is not a readable HDF5 file: {error}") from error
        if problems:
            raise InputError(problems)
        self._take(*promised)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        is_hdf5 = path.suffix.lower() in (".h5", ".hdf5") and path.is_file()
        return cls(path, reading) if is_hdf5 else None

    def identity(self) -> str:
        content = f"{files_identity([self._path])} {self._keys}"
        return hashlib.sha256(content.encode()).hexdigest()

    def _read(self, part: int) -> NDArray:
        import h5py

        try:
            with h5py.File(self._path, "r") as file:
                array = _own_array(file, self._keys[part], self.reading)
                if array.chunks is None and (place := array.id.get_offset()) is not None:
                    return np.memmap(self._path, array.dtype, "r", place, array.shape)
                stored = array.id.get_storage_size()
                _check_memory(array.nbytes, stored, f"array {self._keys[part]!r}")
                return np.asarray(array[()])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"{self._path}: {error}") from error


def _keys(reading: Reading) -> list[str]:
    """The keys of images and labels."""
    key = reading.label_key
    return [reading.image_key or "images", *([key] if key is not None else [])]


def _others(path: Path, there: Iterable[str], keys: Sequence[str]) -> tuple[str, ...]:
    """A note on arrays that are not read."""
    others = [key for key in there if key not in keys]
    line = f"{path}: {len(others)} array(s) not read: {examples(others)}"
    return (line,) if others else ()


def _missing(path: object, key: str, there: Iterable[str], reading: Reading) -> str:
    """The absence of an array, those that are there, and the remedy: of `ddpm pack`, which has a
    stage, or of a configuration.
    """
    if reading.stage is not None:
        option = "--label-key" if key == reading.label_key else "--image-key"
        advice = f"name another with {option}"
        advice += ", or null for images without labels" if key == reading.label_key else ""
    elif key == reading.label_key:
        advice = "name another with LABEL_KEY, or null for images without labels"
    else:
        advice = (
            f"pack it: `{as_typed('pack', path, 'DIR')} --image-key KEY --label-key KEY`, then "
            "DATASET.PATH=DIR"
        )
    return f"has no array {key!r}, it has: {', '.join(there) or 'nothing'}; {advice}"


def _arrays(file: Any) -> list[str]:
    """The arrays of an HDF5 file, in groups too, and links that lead out of their place."""
    import h5py

    found: list[str] = []

    def look(name: str, link: object) -> None:
        if not isinstance(link, h5py.HardLink) or isinstance(file[name], h5py.Dataset):
            found.append(name)

    file.visititems_links(look)
    return found


def _own_array(file: Any, key: str, reading: Reading) -> Any:
    """The h5py data set under a key, its bytes in this file. Raises ValueError."""
    import h5py

    place = file
    for name in key.split("/"):
        link = place.get(name, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise ValueError(_missing(file.filename, key, _arrays(file), reading))
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"has {key!r} by a link; only what lies in the file is read")
        place = place[name]
    if not isinstance(place, h5py.Dataset):
        raise ValueError(f"has a group {key!r}; name an array in it")
    if place.is_virtual or place.external:
        raise ValueError(f"keeps {key!r} in other files; only what lies in the file is read")
    return place


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
        return cls(Path(source), reading) if is_cifar(Path(source)) else None

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


def cifar_parts(path: Path) -> tuple[list[tuple[str, int]], tuple[str, ...] | None, list[str]]:
    """(name, bytes) of CIFAR-10's training batches in the archive or folder at `path`, the names of
    the classes where they are there, and what else is.

    Raises ValueError where that is not the binary version.
    """
    names: tuple[str, ...] | None = None
    parts, others = [], []
    for name, size, stream in _cifar_files(path):
        base = name.rpartition("/")[2]
        if re.fullmatch(r"data_batch_[0-9]", base):
            raise ValueError(f"is the version for Python, pickled and never loaded; {_BINARY}")
        if re.fullmatch(r"data_batch_[0-9]\.bin", base):
            if size % CIFAR_RECORD or not 0 < size <= _CIFAR_MOST:
                raise ValueError(f"{name} has {size} bytes; records have {CIFAR_RECORD} each")
            parts.append((name, size))
        elif base == "batches.meta.txt" and size < 10_000:
            names = tuple(stream.read().decode("ascii", "replace").split()) or None
        else:
            others.append(name)
    if not parts:
        raise ValueError(f"holds no CIFAR-10 (data_batch_1.bin ...); {_BINARY}, or unpack it")
    return sorted(parts), names, others


def is_cifar(path: Path) -> bool:
    """Whether a path is CIFAR-10's archive or the folder in it, of whichever version."""
    if path.is_dir():
        return any((path / f"data_batch_1{end}").is_file() for end in (".bin", ""))
    return path.name.endswith((".tar.gz", ".tgz", ".tar")) and _begins_as_cifar(path)


def _begins_as_cifar(path: Path) -> bool:
    """Whether an archive is CIFAR-10's, by the first of its names; it has eight."""
    if not path.is_file():
        return False
    try:
        names = (name.rpartition("/")[2] for name, _, _ in islice(_cifar_files(path), 9))
        return any(re.fullmatch(r"data_batch_[0-9](\.bin)?", name) for name in names)
    except ValueError:
        return path.name.startswith("cifar-10")


def read_cifar(path: Path, parts: list[tuple[str, int]]) -> NDArray[np.uint8]:
    """The records of these files, (N, 3073)."""
    wanted = dict(parts)
    found = {name: stream.read() for name, _, stream in _cifar_files(path) if name in wanted}
    if broken := [name for name, size in parts if len(found.get(name, b"")) != size]:
        raise ValueError(f"{broken[0]} is damaged: it does not have {wanted[broken[0]]} bytes")
    return np.frombuffer(b"".join(found[name] for name, _ in parts), np.uint8).reshape(
        -1, CIFAR_RECORD
    )


def _cifar_files(path: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    """(name, size, stream) of the regular files of an archive, or in a folder."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                with file.open("rb") as opened:
                    yield file.name, file.stat().st_size, opened
        return
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isfile() and (stream := tar.extractfile(member)) is not None:
                    yield member.name, member.size, cast(BinaryIO, stream)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"is damaged, or no archive: {error}") from error


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
