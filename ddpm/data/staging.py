"""Where copies on a node's own disk may lie, and the locks of those who copy and those who read.

The folder is its user's alone; one that somebody else could have prepared is refused. A file system
is known by its type in /proc/self/mountinfo.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.data.index import INDEX_FILE, Index
from ddpm.errors import InputError, Interrupted, StorageError
from ddpm.runs import Sink, StageNote, storage
from ddpm.runs import storage as durable

if TYPE_CHECKING:  # removing copies takes no torch
    from ddpm.data.dataset import Dataset
    from ddpm.distributed import Group


_LOG = logging.getLogger("ddpm.staging")
NETWORK = frozenset(
    "9p acfs afs beegfs ceph cifs coda curvefs daos gfs gfs2 glusterfs gpfs lustre mmfs ncpfs nfs "
    "nfs4 ocfs2 orangefs panfs pvfs2 smb2 smb3 smbfs virtiofs wekafs".split()
)
MEMORY = frozenset(("ramfs", "tmpfs"))
_MOUNTS = Path("/proc/self/mountinfo")
_COPY_POLL_S = 0.1
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
        time.sleep(_COPY_POLL_S)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


class shared:
    """Holds the lock file together with others, from now until the `with` ends."""

    def __init__(self, path: Path) -> None:
        while (descriptor := _locked(path, fcntl.LOCK_SH)) is None:
            time.sleep(_COPY_POLL_S)
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


# --------
# Copies of shards on a node's own disk: made once a node, checked, kept for the next job.
#
#     ROOT/ddpm-stage-{user number}/{index digest}/   the shards and their index, as in their folder
#         verified.jsonl                              size, time and inode of each file once hashed
#
# ROOT is DATASET.STAGE, or with `auto` the first of $SLURM_TMPDIR, $DDPM_SCRATCH, $TMPDIR and the
# temporary folder that lies on a disk of this node, when the shards lie on a network file system.
# Whoever comes first on a node copies, the others wait; whoever reads holds a shared lock, so that
# `clean` removes only what nobody reads. What cannot be copied is read in place, with a warning.

_RECORD = "verified.jsonl"
_CHUNK = 4 << 20
_THREADS = 4  # one stream alone rarely fills the line to a network file system
_POLL_S = 0.2
_MARGIN = 20  # a twentieth more than the copies need must be free

Stop = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file to copy and what it must be."""

    source: Path
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.source.name


@contextmanager
def reading(
    data: "Dataset", setting: str, group: "Group", *, notes: Path, should_stop: Stop
) -> Iterator[None]:
    """Reads the data from copies on this node while the `with` lasts, where `setting` wants them.

    Called by every worker: all go on together, or all raise Interrupted.
    """
    assert data.index is not None  # a run's data are shards
    with ExitStack() as stack:
        stopped: Interrupted | None = None
        try:
            copies = staged(data.index, setting, notes=notes, should_stop=should_stop)
            if folder := stack.enter_context(copies):
                data.read_from(folder)
        except Interrupted as error:
            stopped = error
        if group.any(stopped is not None):
            raise stopped or Interrupted("stopped while shards were copied; run it again")
        yield


@contextmanager
def staged(
    index: Index, setting: str, *, notes: Path | None = None, should_stop: Stop = lambda: False
) -> Iterator[Path | None]:
    """The folder to read the shards from, complete and in use until the `with` ends; None: in
    place.

    setting: DATASET.STAGE.  notes: a run directory, which is told how far it is.  Raises
    InputError when STAGE cannot be used or the shards are damaged, Interrupted on `should_stop()`.
    """
    try:
        root = private_root(setting, index.folder)
        folder = _copies(root, index) if root else None
        in_use = _fill_once(folder, index, notes, should_stop) if folder else nullcontext()
    except StorageError as error:
        _LOG.warning("staging: %s; the shards are read in place: %s", error, index.folder)
        folder, in_use = None, nullcontext()
    with in_use:
        yield folder


def clean(index: Index, setting: str) -> bool:
    """Removes this node's copies of the shards unless somebody reads them; whether it did."""
    root = private_root(setting, index.folder, is_made=False)
    if root is None:
        return False
    folder = _copies(root, index)
    with exclusive(_beside(folder, "copy"), waits=False) as alone:
        done = alone and _remove(folder)
    with suppress(OSError):
        root.rmdir()  # only where nothing else is staged
    return done


def _copies(root: Path, index: Index) -> Path:
    """Where the copies lie: a name for the data and for the names of its files."""
    content = hashlib.sha256((index.folder / INDEX_FILE).read_bytes()).hexdigest()
    return root / f"{index.sha256[:16]}-{content[:8]}"


def _beside(folder: Path, use: str) -> Path:
    """The lock of those that copy, or of those that read."""
    return folder.with_name(f"{folder.name}.{use}")


def _fill_once(folder: Path, index: Index, notes: Path | None, should_stop: Stop) -> shared:
    """Completes the folder; the lock that keeps it. When storage fails nothing of it is left."""
    with exclusive(_beside(folder, "copy"), should_stop=should_stop):
        try:
            storage.call(folder, make_private, folder)
            durable.clean_temporaries(folder)
            _fill(folder, index, StageNote(notes), should_stop)
            return shared(_beside(folder, "use"))
        except StorageError:
            _remove(folder)
            raise


def _remove(folder: Path) -> bool:
    """Removes copies and locks unless somebody reads them; needs the lock of those that copy."""
    with exclusive(_beside(folder, "use"), waits=False) as alone:
        if not alone:
            return False
        existed = folder.is_dir()
        with suppress(StorageError):
            durable.remove(folder)
            durable.clean_temporaries(folder.parent)
        for use in ("use", "copy"):
            _beside(folder, use).unlink(missing_ok=True)
    return existed


def _fill(folder: Path, index: Index, shown: StageNote, should_stop: Stop) -> None:
    """Every file of the index in `folder`, verified."""
    files = _files(index)
    record = _read_record(folder)
    todo = [f for f in files if _state(folder / f.name) != record.get(f.name, "unverified")]
    if not todo:
        return
    present = {file.name for file in todo if _size(folder / file.name) == file.size}
    needed = sum(file.size for file in todo if file.name not in present)
    durable.require_space(folder, needed + needed // _MARGIN)
    started, copier = time.monotonic(), _Copier(folder)
    total = sum(file.size for file in todo)
    _LOG.info("staging: %d files, %.1f MB, to %s", len(todo), total / 1e6, folder)
    with shown, ThreadPoolExecutor(_THREADS, thread_name_prefix="ddpm-stage") as pool:
        waiting = {pool.submit(copier.provide, file) for file in todo}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                shown.show(copier.bytes_done / max(total, 1))
                if should_stop():
                    raise Interrupted("stopped while staging; run the same command again")
        finally:
            copier.is_halted = True
            pool.shutdown(cancel_futures=True)
    seconds = time.monotonic() - started
    _LOG.info("staging: complete after %.1f s, %.1f MB copied", seconds, copier.bytes_copied / 1e6)


class _Copier:
    """Brings single files into a folder; its methods run in several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_halted = folder, False
        # Threads may lose some counts to each other: they are only shown.
        self.bytes_done, self.bytes_copied = 0, 0

    def provide(self, file: _File) -> None:
        """The file with its content verified and noted: as it lies there, or copied."""
        target = self.folder / file.name
        if not self._is_right(target, file):
            durable.remove(target)
            durable.write_file(target, lambda sink: self._copy(file, sink))
        line = json.dumps({"name": file.name, "state": _state(target)})
        durable.append_line(self.folder / _RECORD, line)

    def _copy(self, file: _File, sink: Sink) -> None:
        for chunk in self._chunks(file.source):
            sink.write(chunk)
            self.bytes_copied += len(chunk)
        written = sink.written()
        if (written.sha256, written.size) != (file.sha256, file.size):
            raise InputError(
                f"{file.source} is damaged (its SHA-256 is not the index's); find all damage with "
                f"`python launch/pack.py {file.source.parent} --verify`"
            )

    def _is_right(self, path: Path, file: _File) -> bool:
        if _size(path) != file.size:
            return False
        digest = hashlib.sha256()
        for chunk in self._chunks(path):
            digest.update(chunk)
        if digest.hexdigest() == file.sha256:
            return True
        self.bytes_done -= file.size
        return False

    def _chunks(self, path: Path) -> Iterator[bytes]:
        try:
            with path.open("rb", buffering=0) as stream:
                while chunk := stream.read(_CHUNK):
                    if self.is_halted:
                        raise Interrupted("stopped while staging")
                    yield chunk
                    self.bytes_done += len(chunk)
        except OSError as error:
            raise storage.failure(path, error) from error


def _files(index: Index) -> list[_File]:
    """All that makes the copies a folder of shards: shards, table and index."""
    content = (index.folder / INDEX_FILE).read_bytes()
    table = index.folder / index.table_file
    return [
        *(
            _File(source=index.folder / shard.name, size=shard.bytes, sha256=shard.sha256)
            for shard in index.shards
        ),
        _File(source=table, size=_size(table) or 0, sha256=index.table_sha256),
        _File(
            source=index.folder / INDEX_FILE,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        ),
    ]


def _read_record(folder: Path) -> dict[str, Any]:
    """Name -> state of each file when its content was last found right."""
    found = {}
    with suppress(OSError):
        for line in (folder / _RECORD).read_text().splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a kill has cut it
                entry = json.loads(line)
                found[entry["name"]] = entry["state"]
    return found


def _state(path: Path) -> list[int] | None:
    """[size, time of change in ns, inode] of a file; another content has another of them."""
    with suppress(OSError):
        status = path.lstat()
        return [status.st_size, status.st_mtime_ns, status.st_ino]
    return None


def _size(path: Path) -> int | None:
    """Bytes of a regular file; None where there is none."""
    state = _state(path)
    return state[0] if state and path.is_file() and not path.is_symlink() else None
