"""Array files, NPZ, IDX and CIFAR-10's, as data from a stranger.

Headers are checked against sizes before anything is read, and nothing is unpickled. An array that
lies uncompressed in its NPZ is mapped, not loaded, so it may be larger than memory; a compressed
one is refused when it would not fit, or expands like a zip bomb.
"""

import gzip
import math
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import psutil
from numpy.typing import NDArray

from ddpm.data.images import ArrayHeader, array_header

# Real images shrink to a third, drawings to a fiftieth; beyond this it is made to fill memory.
_BOMB_RATIO = 200
_BOMB_BYTES = 1 << 24
_MEMORY_SHARE = 0.8
_IDX_UNSIGNED_BYTE = 8
_ZIP_LOCAL_HEADER = 30
CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_MOST = 1 << 28
_BINARY = "take the binary version, cifar-10-binary.tar.gz, from the same page"


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
    if not parts and path.suffix == ".tar":
        raise ValueError(
            "holds no CIFAR-10, and a single shard is not taken; name the folder of the shards, "
            f"{path.absolute().parent}"
        )
    if not parts:
        raise ValueError(f"holds no CIFAR-10 (data_batch_1.bin ...); {_BINARY}, or unpack it")
    return sorted(parts), names, others


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
