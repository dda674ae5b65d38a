"""Storage that fails on purpose: every system call of a durable write killed, failed or forgotten.

`outcomes` runs an action in forked processes, one for each (call, fault). `crash_states` replays a
recorded action into every folder content that a power loss may leave: what was synced is there,
what was not may be there, in part or not at all.
"""

import errno
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm.errors import StorageError
from ddpm.runs import storage

# Between two calls nothing reaches the disk: a kill before one is a kill after the last one.
FAULTS = ("kill after", "ENOSPC", "EIO")
# Other calls are whole or not at all.
FAULTS_OF_WRITES = ("kill halfway", "short write")
CALLS = ("open", "write", "fsync", "ftruncate", "rename", "mkdir", "unlink", "rmdir", "flock")


class Faulty(storage.SystemCalls):
    """The real calls, but number `target` (from 0) meets `fault`; all are counted."""

    def __init__(self, target: int = -1, fault: str = "") -> None:
        self.made: list[str] = []
        self.target, self.fault = target, fault
        for name in CALLS:
            setattr(self, name, self._wrapped(name, getattr(storage.SystemCalls, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            is_target = len(self.made) == self.target
            self.made.append(name)
            if not is_target:
                return real(*arguments, **keywords)
            return self._strike(name, real, *arguments, **keywords)

        return call

    def _strike(self, name: str, real: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if name == "write" and self.fault != "kill after":
            descriptor, data = arguments
            arguments = (descriptor, data[: (len(data) + 1) // 2])
        if self.fault in ("ENOSPC", "EIO"):
            if name == "write":
                real(*arguments)
            code = getattr(errno, self.fault)
            raise OSError(code, os.strerror(code))
        result = real(*arguments, **keywords)
        if self.fault.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def strikes(
    action: Callable[[], object], faults: Sequence[str] = (*FAULTS, *FAULTS_OF_WRITES)
) -> list[tuple[int, str]]:
    """Every durable system call of the action, by its number, with each of the faults that it can
    meet; the action is carried out.
    """
    table = Faulty()
    original, storage.system = storage.system, table
    try:
        action()
    finally:
        storage.system = original
    return [
        (number, fault)
        for number, name in enumerate(table.made)
        for fault in faults
        if name == "write" or fault not in FAULTS_OF_WRITES
    ]


def strike(action: Callable[[], object], target: int, fault: str) -> str:
    """What became of the action in a forked process: done, refused (StorageError) or killed."""
    child = os.fork()
    if child == 0:
        storage.system = Faulty(target, fault)
        code = 70
        try:
            action()
            code = 0
        except StorageError:
            code = 5
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed"
    return {0: "done", 5: "refused"}[os.WEXITSTATUS(status)]


@dataclass
class Folder:
    entries: dict[str, Any] = field(default_factory=dict)


@dataclass
class File:
    content: bytes = b""


@dataclass(frozen=True)
class Operation:
    """One recorded change. kind: write (a file, data), names (a folder, changes), sync."""

    kind: str
    inode: Any
    data: Any = None


class Recorder(storage.SystemCalls):
    """The real calls, noted down. forgets: syncs that are not carried out ("file", "folder")."""

    def __init__(self, root: Path, forgets: frozenset[str] = frozenset()) -> None:
        self.root, self.forgets = root, forgets
        self.log: list[Operation] = []
        self.descriptors: dict[int, Any] = {}
        self.tree = _scan(root)
        self.initial = _frozen(self.tree)

    def _find(self, path: Path) -> Any:
        node: Any = self.tree
        for part in Path(path).relative_to(self.root).parts:
            node = node.entries[part]
        return node

    def _change(self, folder: Path, changes: dict[str, Any]) -> None:
        node = self._find(folder)
        _apply_names(node.entries, changes)
        self.log.append(Operation("names", node, changes))

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        is_new = bool(flags & os.O_CREAT) and not Path(path).exists()
        descriptor = os.open(path, flags, mode)
        if is_new:
            self._change(Path(path).parent, {Path(path).name: File()})
        self.descriptors[descriptor] = self._find(Path(path))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        written = os.write(descriptor, data)
        inode = self.descriptors[descriptor]
        self.log.append(Operation("write", inode, bytes(data[:written])))
        return written

    def fsync(self, descriptor: int) -> None:
        inode = self.descriptors[descriptor]
        if type(inode).__name__.lower() not in self.forgets:
            self.log.append(Operation("sync", inode))

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)
        node = self._find(Path(source))
        changes = {Path(source).name: None, Path(target).name: node}
        self._change(Path(target).parent, changes)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        self._change(Path(path).parent, {Path(path).name: Folder()})

    def unlink(self, path: Path) -> None:
        os.unlink(path)
        self._change(Path(path).parent, {Path(path).name: None})

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)
        self._change(Path(path).parent, {Path(path).name: None})


def record(root: Path, action: Callable[[], object], forgets: frozenset[str]) -> Recorder:
    """The action's changes below `root`, as they were made."""
    recorder = Recorder(root, forgets)
    original, storage.system = storage.system, recorder
    try:
        action()
    finally:
        storage.system = original
    return recorder


def crash_states(recorder: Recorder, most: int = 10) -> Iterator[tuple[int, dict[str, Any]]]:
    """(changes made, folder content) after a power loss at every moment: all the content may be.

    Content is {name: bytes | {name: ...}}. Of more than `most` unsynced changes only the last
    `most` vary; the older ones are lost or kept together.
    """
    for moment in range(len(recorder.log) + 1):
        log = recorder.log[:moment]
        synced: dict[int, int] = {}
        for index, operation in enumerate(log):
            if operation.kind == "sync":
                synced[id(operation.inode)] = index
        changes = [o for o in enumerate(log) if o[1].kind != "sync"]
        loose = [i for i, o in changes if i > synced.get(id(o.inode), -1)]
        varied, tied = loose[-most:], loose[:-most]
        choices = [(0, 1, 2) if log[i].kind == "write" else (0, 2) for i in varied]
        seen: set[str] = set()
        for fates in itertools.product((0, 2), *choices) if tied else itertools.product(*choices):
            fate = dict.fromkeys(tied, fates[0]) if tied else {}
            fate |= dict(zip(varied, fates[1:] if tied else fates, strict=True))
            content = _replay(recorder.initial, changes, fate)
            if (key := repr(content)) not in seen:
                seen.add(key)
                yield moment, content


def lay_out(content: dict[str, Any], root: Path) -> None:
    """Writes the content as real files below `root`."""
    root.mkdir(parents=True)
    for name, value in content.items():
        if isinstance(value, dict):
            lay_out(value, root / name)
        else:
            (root / name).write_bytes(value)


def _scan(root: Path) -> Folder:
    return Folder(
        {
            entry.name: _scan(entry) if entry.is_dir() else File(entry.read_bytes())
            for entry in root.iterdir()
        }
    )


def _frozen(root: Folder) -> tuple[Any, dict[int, Any]]:
    """The tree as it was: its root, and the entries or bytes of each inode."""
    known: dict[int, Any] = {}

    def visit(node: Any) -> None:
        known[id(node)] = node.content if isinstance(node, File) else dict(node.entries)
        for child in getattr(node, "entries", {}).values():
            visit(child)

    visit(root)
    return root, known


def _apply_names(entries: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, node in changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _replay(
    initial: tuple[Any, dict[int, Any]],
    changes: list[tuple[int, Operation]],
    fate: dict[int, int],
) -> dict[str, Any]:
    """The content when loose changes had their fates: 0 lost, 1 half there, 2 there."""
    root, known = initial
    inodes = {key: dict(v) if isinstance(v, dict) else v for key, v in known.items()}
    for index, operation in changes:
        kept = fate.get(index, 2)
        key = id(operation.inode)
        if operation.kind == "write":
            # a lost write may still have made the file longer: zeros, as file systems leave them
            half = len(operation.data) // 2
            data = operation.data[: [0, half, len(operation.data)][kept]]
            filler = b"\0" * (len(operation.data) - half) if kept == 1 else b""
            inodes[key] = inodes.get(key, b"") + data + filler
        elif kept:
            _apply_names(inodes.setdefault(key, {}), operation.data)

    def content(node: Any) -> Any:
        value = inodes.get(id(node), b"" if isinstance(node, File) else {})
        if isinstance(value, bytes):
            return value
        return {name: content(child) for name, child in value.items()}

    return content(root)
