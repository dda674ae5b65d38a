"""Staging: the shards copied once to a disk of each node, verified, and kept for the next job.

    STAGE/ddpm-stage-{user number}/{first 16 digits of the index's SHA-256}/    the shards

The first worker of a node copies, the others wait for its lock. A copy gets its name only when its
SHA-256 is the index's, so a kill leaves whole shards, and the next job copies what is missing. One
that rots later fails the CRC-32 of its images and is read in place (ShardStore), as is everything
that cannot be copied. The folder is its user's alone: what somebody else prepared is refused.
"""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.data.index import Index, Shard
from ddpm.errors import InputError, Interrupted, LockedError, StorageError, as_typed
from ddpm.runs import Sink, storage

if TYPE_CHECKING:
    from ddpm.data.dataset import Dataset
    from ddpm.distributed import Group

_LOG = logging.getLogger("ddpm.staging")
_CHUNK = 4 << 20
_THREADS = 4  # one stream alone rarely fills the line to a network file system
_POLL_S = 0.2
_MARGIN = 20  # a twentieth more than the copies need must be free
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def stage(
    data: "Dataset", setting: str, group: "Group", *, should_stop: Callable[[], bool]
) -> None:
    """Reads the data from copies on this node from now on, where DATASET.STAGE is a folder.

    Called by every worker: all go on together, or all raise Interrupted.
    """
    assert data.index is not None  # a run's data are shards
    stopped: Interrupted | None = None
    try:
        if folder := copied(data.index, setting, should_stop=should_stop):
            data.read_from(folder)
    except Interrupted as error:
        stopped = error
    if group.any(stopped is not None):
        raise stopped or Interrupted("stopped while shards were copied; run it again")


def copied(
    index: Index, setting: str, *, should_stop: Callable[[], bool] = lambda: False
) -> Path | None:
    """The folder with this node's copies of the shards; None: they are read in place.

    setting: DATASET.STAGE, `off` or a folder; $NAMES in it are this node's.  Raises InputError when
    the folder cannot be used or a shard is damaged, Interrupted when `should_stop()` turns true.
    """
    if setting.lower() == "off":
        return None
    try:
        root = _root(Path(os.path.expandvars(setting)))
        folder = root / index.sha256[:16]
        with _lock(folder.with_suffix(".lock"), should_stop):
            try:
                with storage.explained(folder):
                    _make_private(folder)
                storage.clean_temporaries(folder)
                _copy_missing(index, folder, should_stop)
            except StorageError:
                storage.remove(folder)
                raise
        return folder
    except StorageError as error:
        _LOG.warning("staging: %s; the shards are read in place: %s", error, index.folder)
        return None


def _root(place: Path) -> Path:
    """STAGE/ddpm-stage-{user}, made private."""
    root = place / f"ddpm-stage-{os.geteuid()}"
    try:
        with suppress(FileExistsError):  # another worker of this node may be faster
            place.mkdir(0o700)  # its parents must be there: a disk may not be mounted
        _make_private(root)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise storage.failure(root, error) from error
        raise InputError(
            f"DATASET.STAGE: {root} cannot be made on {os.uname().nodename} ({error.strerror}); "
            "give a folder on that node's own disk that you may write, or off"
        ) from error
    return root


def _make_private(folder: Path) -> None:
    """Makes a folder for this user alone. Raises InputError when it is somebody else's, OSError."""
    with suppress(FileExistsError):
        storage.system.mkdir(folder, 0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise InputError(
            f"DATASET.STAGE: {folder} is not a folder of your own (user {os.geteuid()}); another "
            "user may have put it there: give another folder, or off"
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)


@contextmanager
def _lock(path: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """The lock of the node's one copier. Raises Interrupted when `should_stop()` comes first."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(storage.lock(path, f"the copies beside {path}"))
                break
            except LockedError:
                if should_stop():
                    text = "stopped while waiting for the copies of the shards"
                    raise Interrupted(text) from None
                time.sleep(_POLL_S)
        yield


def _copy_missing(index: Index, folder: Path, should_stop: Callable[[], bool]) -> None:
    """Every shard of the index in `folder`, those that are there left as they are."""
    missing = [shard for shard in index.shards if not _is_there(folder / shard.name, shard.bytes)]
    if not missing:
        return
    total, began = sum(shard.bytes for shard in missing), time.monotonic()
    storage.require_space(folder, total + total // _MARGIN)
    _LOG.info("staging: %d shards, %.1f MB, to %s", len(missing), total / 1e6, folder)
    halted = threading.Event()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ddpm-stage") as pool:
        waiting = {
            pool.submit(_copy, shard, index.folder / shard.name, folder / shard.name, halted)
            for shard in missing
        }
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if should_stop():
                    raise Interrupted("stopped while staging; run the same command again")
        finally:
            halted.set()
            pool.shutdown(cancel_futures=True)
    _LOG.info(
        "staging: complete after %.1f s, %.1f MB copied", time.monotonic() - began, total / 1e6
    )


def _copy(shard: Shard, source: Path, target: Path, halted: threading.Event) -> None:
    def write(sink: Sink) -> None:
        try:
            with source.open("rb", buffering=0) as stream:
                while chunk := stream.read(_CHUNK):
                    if halted.is_set():
                        raise Interrupted("stopped while staging")
                    sink.write(chunk)
        except OSError as error:
            raise storage.failure(source, error) from error
        if sink.written().sha256 != shard.sha256:
            raise InputError(
                f"{source} is damaged (its SHA-256 is not the index's); find all damage with "
                f"`{as_typed('pack', source.parent, '--verify')}`"
            )

    storage.remove(target)
    storage.write_file(target, write)


def _is_there(path: Path, size: int) -> bool:
    """Whether a regular file of this size lies at `path`; links are never followed."""
    with suppress(OSError):
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == size
    return False
