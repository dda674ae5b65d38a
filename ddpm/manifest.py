"""The manifest of a checkpoint: which files it has, proven by its own SHA-256. No torch.

    checkpoints/step-00001000/MANIFEST.json    format, step, files, config_sha256, ..., sha256

checkpoint.py writes it last and reads the files; here is what can be known without them.
"""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.errors import InputError, StorageError

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
