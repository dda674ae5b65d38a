"""Units of work on disk: consecutive images as one WebDataset shard with a manifest beside it.

    0000000000-0000000512.tar     {index:010d}.png (.npy for neither 1 nor 3 channels), and .cls
                                  with the label where images have one
    0000000000-0000000512.json    written last: the shard's size and SHA-256, the labels, and all
                                  that the images depend on

A unit is there when its manifest is. Equal images give equal bytes of both files, so two processes
that draw one unit at once do no harm. Nothing in it is code, and nothing is unpickled.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm import durable, images
from ddpm.spans import Span
from ddpm.tarscan import Scan, scan_tar

FORMAT = 1
ASIDE = ".damaged"
_PIECE = 1 << 20


class DamagedUnit(ValueError):
    """Not what was written; the text says what is wrong."""


def write(
    folder: Path,
    span: Span,
    pixels: NDArray[np.uint8],
    labels: Sequence[int] | None,
    facts: Mapping[str, object],
) -> None:
    """Puts a unit into the folder: its shard, then its manifest, each in one step.

    pixels: (N, H, W, C), the images of the span in order.  facts: what else the manifest says.
    """
    os.environ.setdefault("WDS_SECURE", "1")  # before webdataset is imported: no pickle, no pipes
    from webdataset.writer import TarWriter

    def fill(sink: durable.Sink) -> None:
        # Fixed owner and time: the same images give the same bytes.
        with TarWriter(sink, encoder=False, mtime=0, user="ddpm", group="ddpm") as writer:
            for row, index in enumerate(range(span.start, span.stop)):
                extension, data = images.encode(pixels[row])
                sample: dict[str, str | bytes] = {"__key__": f"{index:010d}", extension: data}
                if labels is not None:
                    sample["cls"] = str(labels[row]).encode()
                writer.write(sample)

    written = durable.write_file(shard_of(folder, span), fill)
    manifest = {
        "format": FORMAT,
        "start": span.start,
        "stop": span.stop,
        "shard": shard_of(folder, span).name,
        "bytes": written.size,
        "sha256": written.sha256,
        "labels": None if labels is None else list(labels),
        **facts,
    }
    durable.write_text(manifest_of(folder, span), json.dumps(manifest, allow_nan=False) + "\n")


def present(folder: Path) -> list[Span]:
    """The units of a folder by the names of their manifests, ascending; nothing is opened."""
    if not folder.is_dir():
        return []
    stems = (name[:-5] for name in os.listdir(folder) if name.endswith(".json"))
    return sorted(span for stem in stems if (span := Span.parse(stem)))


def shard_of(folder: Path, span: Span) -> Path:
    return folder / f"{span}.tar"


def manifest_of(folder: Path, span: Span) -> Path:
    return folder / f"{span}.json"


def read_manifest(folder: Path, span: Span, recipe: str) -> dict[str, Any]:
    """The manifest of a unit. DamagedUnit unless it is one, of this unit and this recipe."""
    path = manifest_of(folder, span)
    try:
        found = json.loads(path.read_bytes())
        is_whole = {"format", "start", "stop", "bytes", "sha256", "labels", "recipe"} <= set(found)
    except (OSError, ValueError, TypeError) as error:
        raise DamagedUnit(f"{path.name} cannot be read: {error}") from error
    if not is_whole or found["format"] != FORMAT:
        raise DamagedUnit(f"{path.name} is no manifest of format {FORMAT}")
    if (found["start"], found["stop"]) != (span.start, span.stop):
        raise DamagedUnit(f"{path.name} speaks of images {found['start']} to {found['stop']}")
    if found["recipe"] != recipe:
        raise DamagedUnit(f"{path.name} is of recipe {str(found['recipe'])[:8]}, another one")
    result: dict[str, Any] = found
    return result


def check(folder: Path, span: Span, recipe: str) -> dict[str, Any]:
    """The manifest of a unit whose shard has the manifest's size and SHA-256. DamagedUnit else."""
    manifest, path = read_manifest(folder, span, recipe), shard_of(folder, span)
    try:
        size = path.stat().st_size
        if size != manifest["bytes"]:
            raise DamagedUnit(f"{path.name} has {size} bytes instead of {manifest['bytes']}")
        digest = _sha256(path)
    except OSError as error:
        raise DamagedUnit(f"{path.name}: {error.strerror}") from error
    if digest != manifest["sha256"]:
        raise DamagedUnit(f"{path.name} does not match its SHA-256")
    return manifest


def check_samples(folder: Path, span: Span, recipe: str) -> dict[str, Any]:
    """As check(), and every image of the span is in the shard once, in order, with its label."""
    manifest = check(folder, span, recipe)
    scan = scan_of(folder, span)
    labels = manifest["labels"]
    expected = [
        (f"{index:010d}", None if labels is None else labels[row])
        for row, index in enumerate(range(span.start, span.stop))
        if labels is None or row < len(labels)
    ]
    if scan.problems or [(sample.key, sample.label) for sample in scan.samples] != expected:
        reason = scan.problems[0] if scan.problems else "other images or labels than it should have"
        raise DamagedUnit(f"{span}.tar: {reason}")
    return manifest


def scan_of(folder: Path, span: Span) -> Scan:
    """What lies in a unit's shard, and where."""
    path = shard_of(folder, span)
    with path.open("rb") as stream:
        return scan_tar(stream, path.name)


def encoded(folder: Path, span: Span) -> Iterator[tuple[int, bytes, int | None]]:
    """The images of a unit as they lie in its shard: (index, bytes of the file, label)."""
    scan = scan_of(folder, span)
    with shard_of(folder, span).open("rb") as stream:
        for sample in scan.samples:
            stream.seek(sample.offset)
            yield int(sample.key), stream.read(sample.size), sample.label


def set_aside(folder: Path, span: Span) -> None:
    """Takes a unit out of the count; its files stay, under names that nobody reads."""
    for path in (manifest_of(folder, span), shard_of(folder, span)):
        if path.exists():
            durable.rename(path, path.with_name(path.name + ASIDE))


def strays(folder: Path) -> list[Path]:
    """Shards without a manifest: of processes that were killed between the two."""
    there = {str(span) for span in present(folder)}
    return [
        path
        for path in sorted(folder.glob("*.tar"))
        if Span.parse(path.stem) and path.stem not in there
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
