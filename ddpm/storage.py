"""The storage below the durable writes: its system calls, its free space, its failures in words.

Every system call that matters goes through the table `system`, so that a test can kill, fail or
record each one in turn.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from ddpm.errors import StorageError

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

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


def call(
    path: Path,
    function: Callable[Arguments, Result],
    *arguments: Arguments.args,
    **keywords: Arguments.kwargs,
) -> Result:
    """function(...), its OSError turned into a StorageError about `path`."""
    try:
        return function(*arguments, **keywords)
    except OSError as error:
        raise failure(path, error) from error


def failure(path: Path, error: OSError, needed: int | None = None) -> StorageError:
    """The StorageError for `error`: what was refused, the bytes needed and free, what to do."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0, f"check the disk or file system, {_RUN_AGAIN}")
    return StorageError(_message(path, reason, needed, free_bytes(path), advice))


def require_space(folder: Path, needed: int) -> None:
    """Raises StorageError unless `needed` bytes are free where `folder` lies."""
    free = free_bytes(folder)
    if free is not None and free < needed:
        raise StorageError(
            _message(folder, "not enough space", needed, free, _ADVICE[errno.ENOSPC])
        )


def free_bytes(path: Path) -> int | None:
    """Bytes free to this user where `path` lies or will lie; None when the storage does not say."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            status = system.statvfs(place)
            return status.f_bavail * status.f_frsize
    return None


def _message(path: Path, reason: str, needed: int | None, free: int | None, advice: str) -> str:
    sizes = [f"{needed} bytes needed"] if needed is not None else []
    sizes += [f"{free} bytes free"] if free is not None else []
    detail = f" ({', '.join(sizes)})" if sizes else ""
    return f"{path}: {reason}{detail}; {advice}"
