"""Copies of shards on a node's own disk: made once a node, checked, kept for the next job.

    ROOT/ddpm-stage-{user number}/{index digest}/   the shards and their index, as in their folder
        verified.jsonl                              size, time and inode of each file once hashed

ROOT is DATASET.STAGE, or with `auto` the first of $SLURM_TMPDIR, $DDPM_SCRATCH, $TMPDIR and the
temporary folder that lies on a disk of this node, when the shards lie on a network file system.
Whoever comes first on a node copies, the others wait; whoever reads holds a shared lock, so that
`clean` removes only what nobody reads. What cannot be copied is read in place, with a warning.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm import durable, storage
from ddpm.durable import Sink
from ddpm.errors import InputError, Interrupted, StorageError
from ddpm.index import INDEX_FILE, Index
from ddpm.stage_folder import exclusive, make_private, private_root, shared
from ddpm.stage_notes import StageNote

if TYPE_CHECKING:  # removing copies takes no torch
    from ddpm.dataset import Dataset
    from ddpm.distributed import Group

__all__ = ["clean", "reading", "staged"]

_LOG = logging.getLogger("ddpm.staging")
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
