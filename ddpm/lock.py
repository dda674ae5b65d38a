"""One holder at a time: a lock that dies with its holder, however that ends, and says who it is.

flock, so there is nothing to clean up after a kill and no clock to trust. It binds all processes of
one machine, and those of several machines where their common file system carries it (NFS with its
lock service, Lustre mounted with `-o flock`).
"""

import fcntl
import functools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from ddpm import storage
from ddpm.errors import LockedError

_POLL_SECONDS = 0.1
_held: set[int] = set()


class Sign(Protocol):
    """Adds words to what the holder of a lock says of itself."""

    def __call__(self, **more: str) -> None: ...


@contextmanager
def lock(path: Path, what: str, *, wait_s: float = 0.0) -> Iterator[Sign]:
    """Holds the lock file `path` (made if missing, never removed) until the block or process ends.

    When another living process still holds it after `wait_s` seconds: LockedError naming `what` and
    the holder's host, process, job and start. Yields what adds to them.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = storage.call(path, storage.system.open, path, flags, 0o600)
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
    """Whether a living process holds the lock file; None where this host cannot tell. Writes
    nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
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
    """Who holds the lock or died holding it: host, pid, job, started; empty when it was let go."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # nobody, or it has only just taken the lock
        return {}
    return found if isinstance(found, dict) else {}


def _acquire(path: Path, descriptor: int, what: str, deadline: float) -> None:
    while True:
        try:
            return storage.system.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline and _is_exclusive(descriptor):
                raise locked(what, signature(path)) from None
        except OSError as error:
            raise storage.failure(path, error) from error
        time.sleep(_POLL_SECONDS)


def _is_exclusive(descriptor: int) -> bool:
    """False where only those who look were in the way: `is_held` shares the lock for an instant."""
    try:
        storage.system.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    storage.system.flock(descriptor, fcntl.LOCK_UN)
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
    storage.call(path, storage.system.ftruncate, descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    storage.call(path, storage.system.write, descriptor, json.dumps(holder).encode())
    if more:  # which those who wait on other machines want to read: NFS shows what is synced
        storage.call(path, storage.system.fsync, descriptor)


def _described(holder: Mapping[str, Any]) -> str:
    try:
        job = f", job {holder['job']}" if holder["job"] else ""
        return f"process {holder['pid']} on {holder['host']}{job}, since {holder['started']}"
    except KeyError:
        return "another process"


def _unsign(descriptor: int) -> None:
    """A signature that stays tells those who cannot see the lock that its holder was killed."""
    if descriptor in _held:
        with suppress(OSError):
            storage.system.ftruncate(descriptor, 0)


@functools.cache
def _close_in_children() -> None:
    """Forked children drop their copies of our locks, which would outlive us, from now on."""
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()
