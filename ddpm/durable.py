"""Durable writes: what a call here reports as written survives SIGKILL, power loss and a full disk.

One recipe for files and for folders: write a temporary sibling, fsync it, rename it to its name,
fsync the parent. A reader sees the old content or the new, never a mixture. A kill leaves at most
a temporary (`.NAME.xxxxxxxx.tmp`) or something half thrown away (`.NAME.xxxxxxxx.trash`);
`clean_temporaries` removes both at the next start, under the lock of whoever owns the folder.
When the storage fails, StorageError names the path, the bytes needed and free, and what to do.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm import storage
from ddpm.errors import StorageError
from ddpm.lock import lock
from ddpm.storage import call, failure, free_bytes, require_space

__all__ = [
    "Sink",
    "Written",
    "append_line",
    "clean_temporaries",
    "create_json",
    "free_bytes",
    "lock",
    "make_folder",
    "read_json",
    "remove",
    "rename",
    "require_space",
    "sync_folder",
    "write_bytes",
    "write_file",
    "write_files",
    "write_json",
    "write_text",
]

_BUFFER = 1 << 20
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|trash)")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written to a file: its SHA-256 (hex) and its size in bytes."""

    sha256: str
    size: int


class Sink:
    """The open end of a file being written: a buffered binary stream, hashed; it cannot seek."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._buffer, self._hash, self._size = bytearray(), hashlib.sha256(), 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._size += len(view)
        if len(self._buffer) + len(view) < _BUFFER:
            self._buffer += view
        else:
            self.flush()
            _write_all(self._path, self._descriptor, view)
        return len(view)

    def flush(self) -> None:
        pending, self._buffer = self._buffer, bytearray()
        _write_all(self._path, self._descriptor, memoryview(pending))

    def tell(self) -> int:
        return self._size

    def written(self) -> Written:
        """What passed so far."""
        return Written(sha256=self._hash.hexdigest(), size=self._size)


Writer = Callable[[Sink], object]


def write_file(path: Path, writer: Writer) -> Written:
    """Puts what `writer` gives its sink at `path`, in one step; the old file stays until then."""
    temporary = _sibling(path, "tmp")
    try:
        written = _write_synced(temporary, writer, path)
        call(path, storage.system.rename, temporary, path)
    except BaseException:
        _remove_quietly(temporary)
        raise
    sync_folder(path.parent)
    return written


def write_bytes(path: Path, data: bytes) -> Written:
    return write_file(path, lambda sink: sink.write(data))


def write_text(path: Path, text: str) -> Written:
    return write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> Written:
    """Writes `value` as readable JSON, doubles exactly. Raises ValueError on NaN and infinity."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def create_json(path: Path, value: object) -> bool:
    """As write_json, where nothing lies there yet; False, changing nothing, where something does.

    Of several processes on any machines the first one wins, and nobody reads half a file.
    """
    temporary = _sibling(path, "tmp")
    data = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    try:
        _write_synced(temporary, lambda sink: sink.write(data), path)
        storage.system.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise failure(path, error) from error
    finally:
        _remove_quietly(temporary)
    sync_folder(path.parent)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that write_json wrote; empty when there is no file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def write_files(
    folder: Path,
    writers: Mapping[str, Writer],
    *,
    seal: Callable[[Mapping[str, Written]], tuple[str, bytes]] | None = None,
) -> dict[str, Written]:
    """Makes a new folder with one file for each writer: there whole or not at all.

    seal: given what was written, it returns the name and the content of one last file.
    Raises FileExistsError if the folder has files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists; a finished folder is never overwritten")
    temporary = _sibling(folder, "tmp")
    try:
        call(folder, storage.system.mkdir, temporary, 0o700)
        written = {
            name: _write_synced(temporary / name, writer, folder / name)
            for name, writer in writers.items()
        }
        if seal is not None:
            name, content = seal(written)
            written[name] = _write_synced(
                temporary / name, lambda sink: sink.write(content), folder / name
            )
        sync_folder(temporary)
        call(folder, storage.system.rename, temporary, folder)
    except BaseException:
        _remove_quietly(temporary)
        raise
    sync_folder(folder.parent)
    return written


def append_line(path: Path, text: str) -> None:
    """Adds `text` and a newline to the file and syncs it; when that fails the old content stays."""
    is_new = not path.exists()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = call(path, storage.system.open, path, flags, 0o666)
    size = os.fstat(descriptor).st_size
    try:
        _write_all(path, descriptor, memoryview(f"{text}\n".encode()))
        call(path, storage.system.fsync, descriptor)
    except StorageError:
        with suppress(OSError):
            storage.system.ftruncate(descriptor, size)
        raise
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Makes `folder` and its missing parents, by default for their owner alone, durably."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        with suppress(FileExistsError):  # another process made it meanwhile
            _make_one(place, mode)
        sync_folder(place.parent)
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file where a folder is needed; choose another folder")


def _make_one(folder: Path, mode: int) -> None:
    try:
        storage.system.mkdir(folder, mode)
    except FileExistsError:
        raise
    except OSError as error:
        raise failure(folder, error) from error


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder another name in the same folder, durably."""
    call(source, storage.system.rename, source, target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there: out of sight in one step, then for good."""
    if not path.exists():
        return
    trash = _sibling(path, "trash")
    rename(path, trash)
    _remove_quietly(trash)


def clean_temporaries(folder: Path) -> list[str]:
    """Removes what killed writers left in `folder`; returns the names. Needs the folder's lock."""
    names = sorted(entry.name for entry in folder.iterdir() if _LEFT_OVER.fullmatch(entry.name))
    for name in names:
        _remove_quietly(folder / name)
    return names


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = call(folder, storage.system.open, folder, flags)
    try:
        storage.system.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync folders and say EINVAL: they order names themselves.
        if error.errno != errno.EINVAL:
            raise failure(folder, error) from error
    finally:
        os.close(descriptor)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _write_synced(path: Path, writer: Writer, target: Path) -> Written:
    """Writes a new file and syncs its content; its name is not durable yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = call(target, storage.system.open, path, flags, 0o666)
    try:
        sink = Sink(target, descriptor)
        writer(sink)
        sink.flush()
        call(target, storage.system.fsync, descriptor)
    finally:
        os.close(descriptor)
    return sink.written()


def _write_all(path: Path, descriptor: int, data: memoryview) -> None:
    """Writes every byte, however many calls the system takes for it."""
    while len(data):
        try:
            data = data[storage.system.write(descriptor, data) :]
        except OSError as error:
            raise failure(path, error, needed=len(data)) from error


def _remove_quietly(path: Path) -> None:
    """Removes a hidden file or folder; what cannot be removed now goes at the next start."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            for entry in path.iterdir():
                _remove_quietly(entry)
            storage.system.rmdir(path)
        else:
            storage.system.unlink(path)
