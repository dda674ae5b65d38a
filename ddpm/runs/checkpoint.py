"""Checkpoints: folders that are there whole and proven, or do not count.

    checkpoints/step-00001000/
        model.safetensors  ema-0.999.safetensors  optimizer.safetensors    contiguous CPU tensors
        state.json                                                         scalars, doubles exact
        MANIFEST.json        written last: format, step, size and SHA-256 of every file, provenance,
                             and the SHA-256 of the manifest itself

Nothing in a checkpoint is code: tensors and JSON only, no other file is ever opened. Every byte is
checked before any is used: a flipped bit, a cut, missing or swapped file is DamagedCheckpoint.
A new format keeps the manifest's own SHA-256, so that an old version can tell new from damaged.
torch is imported where tensors are.
"""

import errno
import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import InputError, StorageError
from ddpm.runs import storage

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
TENSORS = ".safetensors"

_STEP = re.compile(r"step-(\d{8,})")
_REMAINS = re.compile(r"step-\d{8,}(\.corrupt\d*)?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_log = logging.getLogger(__name__)


class DamagedCheckpoint(StorageError):
    """Not the bytes that were saved."""


def folder_name(step: int) -> str:
    """The name of the folder with the checkpoint of optimizer step `step`."""
    return f"step-{step:08d}"


def folder_of(checkpoints: Path, step: int) -> Path:
    """The folder of the checkpoint of optimizer step `step`."""
    return checkpoints / folder_name(step)


def steps(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint, good or not, ascending. Names decide, never the clock."""
    if not checkpoints.is_dir():
        return []
    found = (_STEP.fullmatch(entry.name) for entry in checkpoints.iterdir())
    return sorted(int(match[1]) for match in found if match)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, genuine; the files it names are not looked at."""
    data = read_bytes(folder, MANIFEST)
    try:
        manifest = json.loads(data)
        is_genuine = manifest.keys() >= {"format", "step", "files"} and encode(manifest) == data
    except (ValueError, AttributeError):
        is_genuine = False
    if not is_genuine:
        raise DamagedCheckpoint(f"{folder}: damaged, {MANIFEST} does not match its own SHA-256")
    if manifest["format"] != FORMAT:
        raise InputError(
            f"{folder}: checkpoint format {manifest['format']}, this version reads {FORMAT}; "
            "use the version of the program that wrote it"
        )
    match = _STEP.fullmatch(folder.name)
    if match and int(match[1]) != manifest["step"]:
        raise DamagedCheckpoint(f"{folder}: damaged, holds step {manifest['step']} instead")
    return manifest


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The manifest with its own SHA-256, which covers all else, in the one accepted form."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return (
        json.dumps({**body, "sha256": storage.digest(body)}, indent=2, sort_keys=True) + "\n"
    ).encode()


def read_bytes(folder: Path, name: str) -> bytes:
    """The bytes of a file of a checkpoint; DamagedCheckpoint where it is missing."""
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR):
            raise DamagedCheckpoint(f"{folder}: damaged, {name}: {error.strerror}") from error
        raise StorageError(f"{folder / name}: {error.strerror}; make it readable") from error


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint. tensors: {"model": {name: tensor}, "ema-0.999": ..., ...}."""

    folder: Path
    step: int
    tensors: dict[str, dict[str, "Tensor"]]
    state: dict[str, Any]
    manifest: dict[str, Any]


def save(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, "Tensor"]],
    state: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> None:
    """Commits a checkpoint as `folder`: it survives whatever happens after the return.

    state: JSON values, with the optimizer step as "step". manifest: what else the manifest records.
    A good checkpoint that is there already stays as it is; a damaged one is set aside first.
    """
    if folder.exists():
        try:
            verify_checkpoint(folder)
            return
        except DamagedCheckpoint as error:
            _set_aside(folder, error)
    size = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    storage.require_space(folder.parent, size + (1 << 20))
    with storage.new_folder(folder) as write:
        files = {
            name: {"sha256": written.sha256, "bytes": written.size}
            for name, data in _contents(tensors, state)
            for written in [write(name, data)]
        }
        facts = {**manifest, "format": FORMAT, "step": state["step"], "files": files}
        write(MANIFEST, encode(facts))


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every byte was compared with it."""
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        _read(folder, name, manifest)
    return manifest


def load(folder: Path, parts: Collection[str] | None = None) -> Checkpoint:
    """The checkpoint in `folder`, its every byte verified; only the tensors of `parts` where given.

    Raises DamagedCheckpoint; InputError when another version of the program wrote it.
    """
    import safetensors.torch

    manifest = read_manifest(folder)
    tensors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name in manifest["files"]:
        data = _read(folder, name, manifest)
        part = name.removesuffix(TENSORS)
        try:
            if name == STATE:
                state = json.loads(data)
            elif name.endswith(TENSORS) and (parts is None or part in parts):
                tensors[part] = safetensors.torch.load(data)
        except (ValueError, safetensors.SafetensorError) as error:
            raise DamagedCheckpoint(f"{folder}: damaged, {name} cannot be read: {error}") from error
    return Checkpoint(
        folder=folder, step=manifest["step"], tensors=tensors, state=state, manifest=manifest
    )


def latest(
    checkpoints: Path, *, parts: Collection[str] | None = None, set_aside: bool = True
) -> Checkpoint | None:
    """The newest good checkpoint; None when there never was any.

    Damaged newer ones are renamed step-N.corrupt, with a warning (`set_aside=False`, for readers
    that do not own the run: only skipped). Raises StorageError when none of those saved is good.
    """
    for step in reversed(steps(checkpoints)):
        folder = folder_of(checkpoints, step)
        try:
            return load(folder, parts)
        except DamagedCheckpoint as error:
            if not folder.exists():  # its owner has just pruned it
                return latest(checkpoints, parts=parts, set_aside=set_aside)
            if set_aside:
                _set_aside(folder, error)
            else:
                _log.warning("%s; using the one before it", error)
    if checkpoints.is_dir() and any(
        _REMAINS.fullmatch(entry.name) for entry in checkpoints.iterdir()
    ):
        raise StorageError(
            f"{checkpoints}: checkpoints were saved but none is intact; restore one from a copy, "
            "or delete the folder to start from the beginning"
        )
    return None


def prune(checkpoints: Path, keep: int, pinned: Collection[int] = ()) -> None:
    """Removes all but the newest `keep` checkpoints and those of `pinned` steps, once the newest
    has been read and verified.
    """
    old = [step for step in steps(checkpoints)[:-keep] if step not in pinned]
    if not old:
        return
    verify_checkpoint(folder_of(checkpoints, steps(checkpoints)[-1]))
    for step in old:
        storage.remove(folder_of(checkpoints, step))


def _set_aside(folder: Path, error: DamagedCheckpoint) -> None:
    target, number = folder.with_name(f"{folder.name}.corrupt"), 2
    while target.exists():
        target, number = folder.with_name(f"{folder.name}.corrupt{number}"), number + 1
    _log.warning("%s; set aside as %s", error, target.name)
    storage.rename(folder, target)


def _contents(
    tensors: Mapping[str, Mapping[str, "Tensor"]], state: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file but the manifest, one in memory at a time."""
    import safetensors.torch

    for name, part in tensors.items():
        contiguous = {key: tensor.detach().contiguous().cpu() for key, tensor in part.items()}
        yield f"{name}{TENSORS}", safetensors.torch.save(contiguous)
    yield STATE, json.dumps(state, indent=2, allow_nan=False).encode()


def _read(folder: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a file, equal to those that were saved."""
    if not _FILE.fullmatch(name):
        raise DamagedCheckpoint(f"{folder}: damaged, {MANIFEST} names a file {name!r}")
    data, expected = read_bytes(folder, name), manifest["files"][name]
    if len(data) != expected["bytes"]:
        sizes = f"{len(data)} bytes instead of {expected['bytes']}"
        raise DamagedCheckpoint(f"{folder}: damaged, {name} has {sizes}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DamagedCheckpoint(f"{folder}: damaged, {name} does not match its SHA-256")
    return data
