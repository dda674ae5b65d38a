"""Tensors computed once and kept with what they were computed from: NAME.safetensors and NAME.json.

The JSON holds the facts and the tensors' SHA-256, and is written last. Whoever reads says which
facts he expects: other ones are refused, key by key, and so are damaged bytes. No pickle.
"""

import errno
import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ddpm.config import Config
from ddpm.diffusion import Snapshot, fit, name_of, reconstruct
from ddpm.errors import InputError, StorageError
from ddpm.runs import storage

TENSOR_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a pair of files holds. sha256: of the tensors' file.  results: what was found out."""

    tensors: dict[str, Tensor]
    sha256: str
    results: dict[str, Any]


def digest(facts: Mapping[str, Any]) -> str:
    """The SHA-256 of facts, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write(
    stem: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
) -> Kept:
    """Keeps tensors on the CPU as STEM.safetensors and STEM.json, durably."""
    storage.make_folder(stem.parent)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    written = storage.write_bytes(_tensors(stem), safetensors.torch.save(whole))
    found = dict(results or {})
    content = {
        "format": TENSOR_FORMAT,
        "sha256": written.sha256,
        "facts": dict(facts),
        "results": found,
    }
    storage.write_json(_facts(stem), content)
    return Kept(tensors=whole, sha256=written.sha256, results=found)


def read(stem: Path, facts: Mapping[str, Any]) -> Kept | None:
    """The tensors kept at STEM; None where there are none.

    Raises InputError when they were computed from other facts, StorageError when they are damaged.
    """
    if not _facts(stem).is_file():
        return None
    try:
        told = json.loads(_facts(stem).read_text())
        known, sha256, results = dict(told["facts"]), told["sha256"], dict(told["results"])
        if told["format"] != TENSOR_FORMAT:
            raise InputError(
                f"{_facts(stem)} has format {told['format']}; this reads {TENSOR_FORMAT}"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{_facts(stem)} is damaged ({error}); delete it") from error
    if other := _differences(known, json.loads(json.dumps(dict(facts)))):
        raise InputError(
            [
                f"{_tensors(stem)} was computed from something else; delete it, or name another "
                "--cache:",
                *other,
            ]
        )
    try:
        content = _tensors(stem).read_bytes()
    except OSError as error:
        raise StorageError(f"{_tensors(stem)}: {error.strerror}; delete {_facts(stem)}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StorageError(
            f"{_tensors(stem)} is damaged, its SHA-256 is not the kept one; delete it"
        )
    return Kept(tensors=safetensors.torch.load(content), sha256=sha256, results=results)


def _differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"  {key}: {_short(known.get(key))} is kept, {_short(wanted.get(key))} is wanted"
        for key in sorted(known.keys() | wanted.keys())
        if known.get(key) != wanted.get(key)
    ]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tensors(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.safetensors")


def _facts(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")


# --------
# The manifest of a checkpoint: which files it has, proven by its own SHA-256. No torch.
#
#     checkpoints/step-00001000/MANIFEST.json    format, step, files, config_sha256, ..., sha256
#
# checkpoint.py writes it last and reads the files; here is what can be known without them.

FORMAT = 1
MANIFEST = "MANIFEST.json"

_STEP = re.compile(r"step-(\d{8,})")


class DamagedCheckpoint(StorageError):
    """Not the bytes that were saved."""


def folder_name(step: int) -> str:
    """The name of the folder with the checkpoint of optimizer step `step`."""
    return f"step-{step:08d}"


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of optimizer step `step` lies."""
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
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=2, sort_keys=True) + "\n").encode()


def read_bytes(folder: Path, name: str) -> bytes:
    """The bytes of a file of a checkpoint; DamagedCheckpoint where it is missing."""
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO, errno.EISDIR, errno.ENOTDIR):
            raise DamagedCheckpoint(f"{folder}: damaged, {name}: {error.strerror}") from error
        raise StorageError(f"{folder / name}: {error.strerror}; make it readable") from error


# --------
# Checkpoints: folders that are there whole and proven, or do not count.
#
#     checkpoints/step-00001000/
#         model.safetensors  ema-0.999.safetensors  optimizer.safetensors    contiguous CPU tensors
#         state.json                                                         scalars, doubles exact
#         MANIFEST.json        written last: format, step, size and SHA-256 of every file, provenance,
#                              and the SHA-256 of the manifest itself
#
# Nothing in a checkpoint is code: tensors and JSON only, no other file is ever opened. Every byte is
# checked before any is used: a flipped bit, a cut, missing or swapped file is DamagedCheckpoint.
# A new format keeps the manifest's own SHA-256, so that an old version can tell new from damaged.

STATE = "state.json"
TENSORS = ".safetensors"

_REMAINS = re.compile(r"step-\d{8,}(\.corrupt\d*)?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint. tensors: {"model": {name: tensor}, "ema-0.999": ..., ...}."""

    folder: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    manifest: dict[str, Any]


def save(
    folder: Path,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
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
    writers: dict[str, storage.Writer] = {
        f"{name}{TENSORS}": partial(_write_tensors, part) for name, part in tensors.items()
    }
    writers[STATE] = partial(_write_state, state)
    storage.write_files(folder, writers, seal=partial(_seal, manifest, state["step"]))


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


def _write_tensors(tensors: Mapping[str, Tensor], sink: storage.Sink) -> None:
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    sink.write(safetensors.torch.save(contiguous))


def _write_state(state: Mapping[str, Any], sink: storage.Sink) -> None:
    sink.write(json.dumps(state, indent=2, allow_nan=False).encode())


def _seal(
    extra: Mapping[str, Any], step: int, written: Mapping[str, storage.Written]
) -> tuple[str, bytes]:
    files = {name: {"sha256": file.sha256, "bytes": file.size} for name, file in written.items()}
    return MANIFEST, encode({**extra, "format": FORMAT, "step": step, "files": files})


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


# --------
# The power-function averages of a training, kept as it goes on: what any length is made from.
#
#     ema_snapshots/step-00001000/     power-0.05.safetensors  power-0.1.safetensors  state.json
#                                      MANIFEST.json                      as in a checkpoint
#
# One a SAVE_PERIOD and one at the end, none where a training was merely interrupted; a resumed run
# drops those after its checkpoint, so that they are the same whatever happened between. Retention
# of checkpoints does not touch them: each takes 4 bytes a parameter and tracked length, for good.

FOLDER = "ema_snapshots"
# Of the profile asked for, what its snapshots may miss: more is another average than the one asked.
LARGEST_ERROR = 0.1


def keep_if_due(
    run: Path,
    config: Config,
    step: int,
    total_steps: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
) -> None:
    """Keeps the power-function averages of a state at the end of a SAVE_PERIOD or of the training.

    Does nothing without EMA_POWER.  A snapshot that is there stays.
    """
    if not config.TRAINING.EMA_POWER:
        return
    hyper = config.TRAINING.HYPER_PARAMETERS
    period = (hyper.SAVE_PERIOD or hyper.EPOCHS) * (total_steps // hyper.EPOCHS)
    if step != total_steps and step % period:
        return
    folder = run / FOLDER
    storage.make_folder(folder)
    save(
        folder_of(folder, step),
        tensors={name: tensors[name] for name in _names(config)},
        state={"step": step},
        manifest=manifest,
    )


def forget_after(run: Path, step: int) -> None:
    """Removes the snapshots after `step`, and what a kill left half written."""
    folder = run / FOLDER
    if not folder.is_dir():
        return
    storage.clean_temporaries(folder)
    for later in steps(folder):
        if later > step:
            storage.remove(folder_of(folder, later))


def snapshots(
    run: Path, config: Config, step: int, own: Checkpoint | None = None
) -> list[Snapshot]:
    """All tracked averages up to `step`, which is that of a checkpoint and has averages in it.

    own: that checkpoint, read, where snapshots are to be loaded: its averages are its own.
    """
    found = []
    for sigma_rel in config.TRAINING.EMA_POWER:
        name = name_of(sigma_rel)
        for earlier in _before(run, step):
            load = partial(_load, folder_of(run / FOLDER, earlier), name)
            found.append(Snapshot(step=earlier, sigma_rel=sigma_rel, load=load))
        last = partial(_of, own, name)
        found.append(Snapshot(step=step, sigma_rel=sigma_rel, load=last))
    return found


def averaged(run: Path, config: Config, own: Checkpoint, sigma_rel: float) -> dict[str, Tensor]:
    """The average of this length at the checkpoint `own`, made from the snapshots of its run.

    Raises InputError where the run has none, or none that come near enough.
    """
    if not config.TRAINING.EMA_POWER:
        raise InputError(f"{run} was trained without TRAINING.EMA_POWER, so it has no snapshots")
    there = snapshots(run, config, own.step, own)
    error = fit(there, sigma_rel, own.step).error
    if error > LARGEST_ERROR:
        tracked = ", ".join(f"{one:g}" for one in config.TRAINING.EMA_POWER)
        raise InputError(
            f"an average of length {sigma_rel:g} cannot be made from the {len(there)} snapshots of "
            f"{run}: {error:.0%} of its profile is missing, at most {LARGEST_ERROR:.0%} may be; "
            f"ask for one nearer those tracked ({tracked}), or train with a shorter SAVE_PERIOD"
        )
    return reconstruct(there, sigma_rel, own.step)


def identity(run: Path, config: Config, own: Checkpoint, sigma_rel: float) -> str:
    """SHA-256 of all that an average made afterwards comes from: the length and the snapshots."""
    names = _names(config)
    files = [
        own.manifest["files"],
        *(read_manifest(folder_of(run / FOLDER, step))["files"] for step in _before(run, own.step)),
    ]
    hashes = [[each[f"{name}.safetensors"]["sha256"] for name in names] for each in files]
    return hashlib.sha256(json.dumps([sigma_rel, own.step, hashes]).encode()).hexdigest()


def _before(run: Path, step: int) -> list[int]:
    return [each for each in steps(run / FOLDER) if each < step]


def _of(own: Checkpoint | None, name: str) -> dict[str, Tensor]:
    assert own is not None  # only fits are asked of snapshots without it
    return own.tensors[name]


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    return load(folder, (name,)).tensors[name]


def _names(config: Config) -> list[str]:
    return [name_of(sigma_rel) for sigma_rel in config.TRAINING.EMA_POWER]
