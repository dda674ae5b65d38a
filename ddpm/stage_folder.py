"""Where copies on a node's own disk may lie, and the locks of those who copy and those who read.

The folder is its user's alone; one that somebody else could have prepared is refused. A file system
is known by its type in /proc/self/mountinfo.
"""

import errno
import fcntl
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ddpm import storage
from ddpm.errors import InputError, Interrupted

_LOG = logging.getLogger("ddpm.staging")
NETWORK = frozenset(
    "9p acfs afs beegfs ceph cifs coda curvefs daos gfs gfs2 glusterfs gpfs lustre mmfs ncpfs nfs "
    "nfs4 ocfs2 orangefs panfs pvfs2 smb2 smb3 smbfs virtiofs wekafs".split()
)
MEMORY = frozenset(("ramfs", "tmpfs"))
_MOUNTS = Path("/proc/self/mountinfo")
_POLL_S = 0.1
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # not the place is wrong, its disk is


def private_root(
    setting: str, data: Path, *, is_made: bool = True, mounts: Path = _MOUNTS
) -> Path | None:
    """The user's folder for copies on this node; None: `data` is read in place.

    setting: auto, off or a folder. A folder that cannot be used is an InputError, auto then reads
    in place. is_made: make it where it is missing.
    """
    if setting.lower() == "off":
        return None
    if setting.lower() != "auto":
        if is_made and _is_network(kind := file_system(Path(setting), mounts)):
            _LOG.warning("staging: %s is not this node's own disk (%s)", setting, kind)
        return _under(Path(setting), is_made)
    if not _is_network(kind := file_system(data, mounts)):
        return None
    if (place := local_place(mounts)) is None:
        _LOG.warning("staging: no folder on a disk of this node; the shards are read from %s", kind)
        return None
    try:
        return _under(place, is_made)
    except InputError as error:
        _LOG.warning("staging: %s; the shards are read in place: %s", error, data)
        return None


def local_place(mounts: Path = _MOUNTS) -> Path | None:
    """The folder that `auto` copies into: on a disk, since memory is counted as the job's."""
    named = [os.environ.get(name) for name in ("SLURM_TMPDIR", "DDPM_SCRATCH", "TMPDIR")]
    for place in (*filter(None, named), tempfile.gettempdir()):
        kind = file_system(Path(place), mounts)
        if os.path.isdir(place) and not _is_network(kind) and kind not in MEMORY:
            return Path(place)
    return None


def file_system(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that `path` lies on, as the kernel names it; "" if unknown."""
    found, longest = "", -1
    with suppress(OSError):
        where = path.resolve()
        for line in mounts.read_text(errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            point = Path(_unescaped(before.split()[4]))
            # of two mounts on one point the later hides the earlier
            if where.is_relative_to(point) and len(point.parts) >= longest:
                found, longest = after.split()[0], len(point.parts)
    return found


def _is_network(kind: str) -> bool:
    return kind in NETWORK or kind == "fuse" or kind.startswith("fuse.")


def _unescaped(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal numbers."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text


def _under(place: Path, is_made: bool) -> Path | None:
    """ROOT/ddpm-stage-{user}, made private; None when it is missing and not to be made."""
    root = place / f"ddpm-stage-{os.geteuid()}"
    if not is_made:
        return root if root.is_dir() and root.stat().st_uid == os.geteuid() else None
    try:
        with suppress(FileExistsError):  # another worker of this node may be faster
            place.mkdir(0o700)  # its parents must be there: a disk may not be mounted
        make_private(root)
    except OSError as error:
        if error.errno in _DISK:
            raise storage.failure(root, error) from error
        raise InputError(
            f"DATASET.STAGE: {root} cannot be made on {os.uname().nodename} ({error.strerror}); "
            "give a folder on that node's own disk that you may write, auto, or off"
        ) from error
    return root


def make_private(folder: Path) -> None:
    """Makes a folder for this user alone. Raises InputError when it is somebody else's, OSError."""
    with suppress(FileExistsError):
        storage.system.mkdir(folder, 0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise InputError(
            f"DATASET.STAGE: {folder} is not a folder of your own (user {os.geteuid()}); another "
            "user may have put it there: give another folder, auto, or off"
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)


@contextmanager
def exclusive(
    path: Path, *, waits: bool = True, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[bool]:
    """Holds the lock file alone while the `with` lasts; False when `waits` is and others hold it.

    Raises Interrupted when `should_stop()` turns true first.
    """
    while (descriptor := _locked(path, fcntl.LOCK_EX)) is None and waits:
        if should_stop():
            raise Interrupted("stopped while waiting for the copies of the shards")
        time.sleep(_POLL_S)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


class shared:
    """Holds the lock file together with others, from now until the `with` ends."""

    def __init__(self, path: Path) -> None:
        while (descriptor := _locked(path, fcntl.LOCK_SH)) is None:
            time.sleep(_POLL_S)
        self._descriptor = descriptor

    def __enter__(self) -> None:
        """Held already."""

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def _locked(path: Path, kind: int) -> int | None:
    """A descriptor that holds the lock, made if missing; None when others hold it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = storage.call(path, storage.system.open, path, flags, 0o600)
    try:
        storage.system.flock(descriptor, kind | fcntl.LOCK_NB)
        # `clean` removes lock files: one that lost its name guards nothing
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        os.close(descriptor)
        raise storage.failure(path, error) from error
    os.close(descriptor)
    return None
