"""Tensors computed once and kept with what they were computed from: NAME.safetensors and NAME.json.

The JSON holds the facts and the tensors' SHA-256, and is written last. A reader gives the
facts it expects: other ones are refused, key by key, and so are damaged bytes. No pickle.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ddpm.errors import InputError, StorageError
from ddpm.runs import storage

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class KeptTensors:
    """Content of a pair of files. sha256: of the tensors' file.  results: of the computation."""

    tensors: dict[str, Tensor]
    sha256: str
    results: dict[str, Any]


def write(
    stem: Path,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
) -> KeptTensors:
    """Keeps tensors on the CPU as STEM.safetensors and STEM.json, durably."""
    storage.make_folder(stem.parent)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    written = storage.write_bytes(_tensors(stem), safetensors.torch.save(whole))
    found = dict(results or {})
    content = {
        "format": FORMAT,
        "sha256": written.sha256,
        "facts": dict(facts),
        "results": found,
    }
    storage.write_json(_facts(stem), content)
    return KeptTensors(tensors=whole, sha256=written.sha256, results=found)


def read(stem: Path, facts: Mapping[str, Any]) -> KeptTensors | None:
    """The tensors kept at STEM; None where there are none.

    Raises InputError when they were computed from other facts, StorageError when they are damaged.
    """
    if not _facts(stem).is_file():
        return None
    try:
        header = json.loads(_facts(stem).read_text())
        known, sha256, results = dict(header["facts"]), header["sha256"], dict(header["results"])
        if header["format"] != FORMAT:
            raise InputError(f"{_facts(stem)} has format {header['format']}; this reads {FORMAT}")
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
    return KeptTensors(tensors=safetensors.torch.load(content), sha256=sha256, results=results)


def _differences(known: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    return [
        f"  {key}: {_short(known.get(key))} is kept, {_short(expected.get(key))} is wanted"
        for key in sorted(known.keys() | expected.keys())
        if known.get(key) != expected.get(key)
    ]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tensors(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.safetensors")


def _facts(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")
