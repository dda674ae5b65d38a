"""Images, files and shards that the tests of the data share, and what an index holds."""

import io
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddpm import config as configuration
from ddpm.config.schema import Config
from ddpm.data import images, packing, preparing
from ddpm.data.index import Index
from ddpm.data.source import ArraySource
from ddpm.errors import InputError

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (40, 6, 5), np.uint8)
COLOUR = RANDOM.integers(0, 256, (40, 6, 5, 3), np.uint8)
LABELS = np.arange(40) % 4


def stored(index: Index) -> list[NDArray]:
    """Every image of the index, decoded, in the order of the samples."""
    found = []
    for number, shard in enumerate(index.shards):
        content = (index.folder / shard.name).read_bytes()
        rows = index.table[index.starts[number] : index.starts[number + 1]]
        found += [images.decode(content[row["offset"] :][: row["size"]]) for row in rows]
    return found


def as_multiset(pixels: list[NDArray], labels: NDArray | None) -> list[tuple[bytes, int]]:
    marks = [-1] * len(pixels) if labels is None else labels.tolist()
    return sorted(
        (np.ascontiguousarray(p).tobytes(), m) for p, m in zip(pixels, marks, strict=True)
    )


def assert_holds(index: Index, pixels: NDArray, labels: NDArray | None) -> None:
    """The index holds exactly these images (N, H, W, C) with these labels, in some order."""
    found = stored(index)
    assert found[0].dtype == pixels.dtype
    assert as_multiset(found, index.labels) == as_multiset(list(pixels), labels)


def problems_of(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InputError) as caught:
        call()
    return list(caught.value.problems)


def picture(pixels: NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    """An encoded image of (H, W), (H, W, 1) or (H, W, 3) pixels."""
    buffer = io.BytesIO()
    grey = pixels.ndim == 3 and pixels.shape[2] == 1
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: NDArray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype.hasobject)
    return buffer.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write_tar(
    path: Path,
    members: Iterable[tuple[str | tarfile.TarInfo, bytes]],
    kind: int = tarfile.USTAR_FORMAT,
) -> Path:
    """A tar of (name or header, content); a header keeps the size it names."""
    with path.open("wb") as stream:
        for named, data in members:
            info = named if isinstance(named, tarfile.TarInfo) else member(named, size=len(data))
            stream.write(info.tobuf(kind))
            stream.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        stream.write(bytes(2 * tarfile.BLOCKSIZE))
    return path


def make_config(path: Path | str, output: Path | str = "out", **changes: object) -> Config:
    """A configuration over the data at `path`, for images of 8x8x1 unless changed."""
    tree: dict[str, object] = {
        "DATASET": {"NAME": "data", "PATH": str(path)},
        "TRAINING": {
            "OUTPUT_DIR": str(output),
            "INPUT_IMAGE_SIZE": 8,
            "INPUT_IMAGE_CHANNEL": 1,
            "NETWORK": {"NUM_CLASSES": 10},
        },
    }
    for dotted, value in changes.items():
        place, *rest = tree, *dotted.split("__")
        for key in rest[:-1]:
            place = place.setdefault(key, {})  # type: ignore[assignment, attr-defined]
        place[rest[-1]] = value
    return configuration.from_dict(tree)


def flip(path: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def run_python(code: str, *arguments: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def save_pictures(folder: Path, pixels: NDArray[np.uint8], names: list[str]) -> None:
    for row, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(folder / name)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def lying_npy(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(100)


PNG = picture(GREY[0])


def sorted_shards(folder: Path, names: str, samples: int) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        members = []
        for row in range(samples):
            members += [(f"{row:03d}.png", PNG), (f"{row:03d}.cls", str(number).encode())]
        write_tar(folder / f"{name}.tar", members)


def pack_many(out: Path) -> int:
    """The exit code of a process that packs thirty shards."""
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 16, 16, 3), np.uint8)
    source = ArraySource(pixels, np.arange(3000) % 7)
    packing.pack(source, out, samples_per_shard=100)
    return 0


def prepare_digits(out: Path) -> int:
    """The exit code of a process that packs the digits for a run and says what it has found."""
    index = preparing.prepare(make_config("digits", out))
    print(index.sha256, index.folder)
    return 0


def cifar_archive(path: Path, per_batch: int = 8, names: str = "data_batch_{}.bin") -> NDArray:
    """An archive with the layout of cifar-10-binary.tar.gz; the records of its training batches."""
    records = RANDOM.integers(0, 256, (6 * per_batch, 3073), np.uint8)
    records[:, 0] = np.arange(len(records)) % 10
    batches = np.split(records, 6)
    files = {names.format(n + 1): batch.tobytes() for n, batch in enumerate(batches[:5])}
    files["test_batch.bin"] = batches[5].tobytes()
    files["batches.meta.txt"] = b"\n".join(b"class%d" % n for n in range(10)) + b"\n\n"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = member(f"cifar-10-batches-bin/{name}", size=len(data))
            tar.addfile(info, io.BytesIO(data))
    return records[: 5 * per_batch]
