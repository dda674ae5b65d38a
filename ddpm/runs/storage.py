"""Storage: durable writes, and locks that die with their holder.

A write that has returned survives SIGKILL, power loss and a full disk. One recipe for files and for
folders: write a temporary sibling, fsync it, rename it to its name, fsync the parent. A reader sees
the old content or the new, never a mixture. A kill leaves at most a temporary
(`.NAME.xxxxxxxx.tmp`) or something half thrown away (`.NAME.xxxxxxxx.trash`); `clean_temporaries`
removes both at the next start, under the lock of whoever owns the folder. When the storage fails,
StorageError names the path, the bytes needed and free, and what to do.

A lock is flock, so there is nothing to clean up after a kill and no clock to trust. It binds all
processes of one machine, and those of several machines where their common file system carries it
(NFS with its lock service, Lustre mounted with `-o flock`). The file names its holder.

Every system call that matters goes through the table `system`, so that a test can kill, fail or
record each one in turn.
"""

import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm.errors import LockedError, StorageError

_BUFFER = 1 << 20
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|trash)")
_POLL_SECONDS = 0.1
_held: set[int] = set()

_RUN_AGAIN = "then run the same command again"
_ADVICE = {
    errno.ENOSPC: f"free some space or choose another folder, {_RUN_AGAIN}",
    errno.EDQUOT: f"the quota is used up: delete files or choose another folder, {_RUN_AGAIN}",
    errno.EROFS: f"the file system is read-only: choose another folder, {_RUN_AGAIN}",
    errno.EACCES: f"make it accessible to you or choose another folder, {_RUN_AGAIN}",
    errno.EPERM: f"make it accessible to you or choose another folder, {_RUN_AGAIN}",
    errno.ENOLCK: f"the file system has no locks: choose a folder on another one, {_RUN_AGAIN}",
}


class SystemCalls:
    """The system calls of durable writes; tests put a failing or recording table in its place."""

    open = staticmethod(os.open)
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    close = staticmethod(os.close)
    ftruncate = staticmethod(os.ftruncate)
    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    mkdir = staticmethod(os.mkdir)
    unlink = staticmethod(os.unlink)
    rmdir = staticmethod(os.rmdir)
    statvfs = staticmethod(os.statvfs)
    flock = staticmethod(fcntl.flock)


system = SystemCalls()


def digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts as JSON, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns an OSError of the block into the StorageError about `path`.

    Passes on that something exists, or is locked, which is for the caller to answer.
    """
    try:
        yield
    except (FileExistsError, BlockingIOError):
        raise
    except OSError as error:
        raise failure(path, error, needed) from error


def failure(path: Path, error: OSError, needed: int | None = None) -> StorageError:
    """The StorageError for `error`: what was refused, the bytes needed and free, what to do."""
    advice = _ADVICE.get(error.errno or 0, f"check the disk or file system, {_RUN_AGAIN}")
    return _refusal(path, error.strerror or str(error), advice, needed)


def require_space(folder: Path, needed: int) -> None:
    """Raises StorageError unless `needed` bytes are free where `folder` lies."""
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise _refusal(folder, "not enough space", _ADVICE[errno.ENOSPC], needed)


def free_bytes(path: Path) -> int | None:
    """Bytes free to this user where `path` lies or will lie; None when the storage does not say."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            status = system.statvfs(place)
            return status.f_bavail * status.f_frsize
    return None


def _refusal(path: Path, reason: str, advice: str, needed: int | None) -> StorageError:
    sizes = {"needed": needed, "free": free_bytes(path)}
    known = [f"{size} bytes {what}" for what, size in sizes.items() if size is not None]
    detail = f" ({', '.join(known)})" if known else ""
    return StorageError(f"{path}: {reason}{detail}; {advice}")


@dataclass(frozen=True, kw_only=True)
class Written:
    """SHA-256 (hex) and size in bytes of a file that was written."""

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
        """Hash and size of all that passed so far."""
        return Written(sha256=self._hash.hexdigest(), size=self._size)


Writer = Callable[[Sink], object]


def write_file(path: Path, writer: Writer) -> Written:
    """Puts what `writer` gives its sink at `path`, in one step; the old file stays until then."""
    with _named_last(path) as temporary:
        return _write_synced(temporary, writer, path)


def write_bytes(path: Path, data: bytes) -> Written:
    """Puts `data` at `path`, in one step."""
    return write_file(path, lambda sink: sink.write(data))


def write_text(path: Path, text: str) -> Written:
    """Puts `text` at `path` as UTF-8, in one step."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> Written:
    """Writes `value` as readable JSON, doubles exactly. Raises ValueError on NaN and infinity."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def create_json(path: Path, value: object) -> bool:
    """Writes JSON where nothing lies yet; False, changing nothing, where something does.

    Of several processes on any machines the first one wins, and nobody reads half a file.
    """
    temporary = _sibling(path, "tmp")
    data = (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    try:
        _write_synced(temporary, lambda sink: sink.write(data), path)
        with explained(path):
            system.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        _remove_quietly(temporary)
    sync_folder(path.parent)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that write_json wrote; empty when there is no file."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


@contextmanager
def new_folder(folder: Path) -> Iterator[Callable[[str, bytes], Written]]:
    """Makes a folder of files: there whole, when the block ends, or not at all.

    Yields the function that writes a file, given its name, `unet/config.json` too, and content.
    Raises FileExistsError if the folder has files already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists; a finished folder is never overwritten")
    with _named_last(folder) as temporary:
        with explained(folder):
            system.mkdir(temporary, 0o700)

        def write(name: str, data: bytes) -> Written:
            make_folder((temporary / name).parent)
            return _write_synced(temporary / name, lambda sink: sink.write(data), folder / name)

        yield write
        for inner in (path for path in temporary.rglob("*") if path.is_dir()):
            sync_folder(inner)
        sync_folder(temporary)


@contextmanager
def _named_last(path: Path) -> Iterator[Path]:
    """A temporary sibling, which gets the name `path`, durably, once the block has ended well."""
    temporary = _sibling(path, "tmp")
    try:
        yield temporary
        with explained(path):
            system.rename(temporary, path)
    except BaseException:
        _remove_quietly(temporary)
        raise
    sync_folder(path.parent)


def append_line(path: Path, text: str) -> None:
    """Adds `text` and a newline to the file and syncs it; when that fails the old content stays."""
    is_new = not path.exists()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    with explained(path):
        descriptor = system.open(path, flags, 0o666)
    size = os.fstat(descriptor).st_size
    try:
        _write_all(path, descriptor, memoryview(f"{text}\n".encode()))
        with explained(path):
            system.fsync(descriptor)
    except StorageError:
        with suppress(OSError):
            system.ftruncate(descriptor, size)
        raise
    finally:
        os.close(descriptor)
    if is_new:
        sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes `folder` and its missing parents, for their owner alone, durably."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        with suppress(FileExistsError), explained(place):  # another process made it meanwhile
            system.mkdir(place, 0o700)
        sync_folder(place.parent)
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file where a folder is needed; choose another folder")


def rename(source: Path, target: Path) -> None:
    """Gives a file or folder another name in the same folder, durably."""
    with explained(source):
        system.rename(source, target)
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
    with explained(folder):
        descriptor = system.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            system.fsync(descriptor)
        except OSError as error:
            # Some file systems cannot sync folders and say EINVAL: they order names themselves.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _write_synced(path: Path, writer: Writer, target: Path) -> Written:
    """Writes a new file and syncs its content; its name is not durable yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with explained(target):
        descriptor = system.open(path, flags, 0o666)
    try:
        sink = Sink(target, descriptor)
        writer(sink)
        sink.flush()
        with explained(target):
            system.fsync(descriptor)
    finally:
        os.close(descriptor)
    return sink.written()


def _write_all(path: Path, descriptor: int, data: memoryview) -> None:
    """Writes every byte, however many calls the system takes for it."""
    while len(data):
        with explained(path, needed=len(data)):
            data = data[system.write(descriptor, data) :]


def _remove_quietly(path: Path) -> None:
    """Removes a hidden file or folder; what cannot be removed now goes at the next start."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            for entry in path.iterdir():
                _remove_quietly(entry)
            system.rmdir(path)
        else:
            system.unlink(path)


Sign = Callable[..., None]  # adds words to what the holder of a lock says of itself


@contextmanager
def lock(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[Sign]:
    """Holds the lock file `path` (made if missing, never removed) until the block or process ends.

    When another living process still holds it after `wait_s` seconds: LockedError naming `what` and
    the holder's host, process, job and start. Yields what adds to them.
    """
    with explained(path):
        descriptor = system.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _close_in_children()
    _held.add(descriptor)
    try:
        _acquire(path, descriptor, what, time.monotonic() + wait_s)
        try:
            _sign(path, descriptor)
            yield functools.partial(_sign, path, descriptor)
        finally:
            _unsign(descriptor)
    finally:
        # In a forked child it is closed already, and its number may be another file's.
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def is_held(path: Path) -> bool | None:
    """True where a living process holds the lock file; None where this host cannot tell. Writes
    nothing.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def refuse_held(path: Path, what: str, *, wait_s: float = 0.0) -> None:
    """LockedError, as of `lock`, when a living process is seen to hold the lock file for `wait_s`
    seconds. Takes nothing and writes nothing.
    """
    deadline = time.monotonic() + wait_s
    while is_held(path):
        if time.monotonic() >= deadline:
            raise locked(what, signature(path))
        time.sleep(_POLL_SECONDS)


def locked(what: str, holder: Mapping[str, Any]) -> LockedError:
    """The error of those who find `what` held. holder: the signature."""
    return LockedError(f"{what} is in use by {_described(holder)}; wait for it or stop it")


def signature(path: Path) -> dict[str, Any]:
    """Holder of the lock, alive or dead: host, pid, job, started; empty when it was let go."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # nobody, or it has only just taken the lock
        return {}
    return found if isinstance(found, dict) else {}


def _acquire(path: Path, descriptor: int, what: str, deadline: float) -> None:
    while True:
        try:
            with explained(path):
                return system.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline and _is_exclusive(descriptor):
                raise locked(what, signature(path)) from None
        time.sleep(_POLL_SECONDS)


def _is_exclusive(descriptor: int) -> bool:
    """False where only those who look were in the way: `is_held` shares the lock for an instant."""
    try:
        system.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    system.flock(descriptor, fcntl.LOCK_UN)
    return False


def _sign(path: Path, descriptor: int, **more: str) -> None:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        **more,
    }
    # Only for people to read: losing it loses nothing, so it is not synced as a rule.
    with explained(path):
        system.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        system.write(descriptor, json.dumps(holder).encode())
        if more:  # which those who wait on other machines want to read: NFS shows what is synced
            system.fsync(descriptor)


def _described(holder: Mapping[str, Any]) -> str:
    try:
        job = f", job {holder['job']}" if holder["job"] else ""
        return f"process {holder['pid']} on {holder['host']}{job}, since {holder['started']}"
    except KeyError:
        return "another process"


def _unsign(descriptor: int) -> None:
    """Removed at the end: one that stays shows, without the lock, that its holder was killed."""
    if descriptor in _held:
        with suppress(OSError):
            system.ftruncate(descriptor, 0)


@functools.cache
def _close_in_children() -> None:
    """Forked children drop their copies of our locks, which would outlive us, from now on."""
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()
