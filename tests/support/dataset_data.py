"""Data sets that the tests of reading share."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.config import schema
from ddpm.data import packing
from ddpm.data.dataset import Dataset
from ddpm.data.index import Index
from ddpm.data.order import Order, is_validation
from ddpm.data.source import ArraySource
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from tests.support.shard_data import write_tar

RANDOM = np.random.default_rng(0)


def dataset_options(**options: object) -> schema.DatasetSection:
    """A DATASET section; options of PREPROCESSING may be given by their own names."""
    names = schema.Preprocessing.__dataclass_fields__
    inner = {key: options.pop(key) for key in list(options) if key in names}
    return schema.DatasetSection(
        NAME="data", PATH="unused", PREPROCESSING=schema.Preprocessing(**inner), **options
    )


def pack(
    folder: Path, pixels: NDArray, labels: NDArray | None = None, per_shard: int = 16
) -> Index:
    source = ArraySource(pixels, labels)
    return packing.pack(source, folder, samples_per_shard=per_shard)


def numbered(count: int, size: int = 4) -> NDArray[np.uint8]:
    """Images that say their number in their first pixels."""
    pixels = RANDOM.integers(0, 256, (count, size, size, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return pixels


def bytes_of(images: Tensor) -> NDArray[np.uint8]:
    """Images in model space as uint8 (n, H, W, C)."""
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


Colour = tuple[Index, NDArray[np.uint8]]


def make_colour(folder: Path) -> Colour:
    """An index of 300 images of 4x4x3 in 19 shards, and its images by sample number."""
    pixels = numbered(300)
    index = pack(folder, pixels, np.arange(300) % 7)
    order = philox.permutation(0, Stream.ORDER, 300, id=1 << 41).numpy()
    return index, pixels[order]


def open_colour(colour: Colour, **options: object) -> Dataset:
    cache = bool(options.pop("cache", False))
    seed = int(str(options.pop("seed", 0)))
    return Dataset(colour[0], dataset_options(**options), (3, 4, 4), seed=seed, cache=cache)


def make_order(counts: list[int], *, is_shuffled: bool, seed: int = 0, share: float = 0.1) -> Order:
    starts = np.cumsum([0, *counts])
    train = np.flatnonzero(~is_validation(int(starts[-1]), share))
    return Order(train, starts, seed=seed, is_shuffled=is_shuffled)


def foreign_shard(folder: Path, name: str, samples: int, label: int, image: bytes) -> None:
    members: list[tuple[str, bytes]] = []
    for row in range(samples):
        members += [(f"{row:04d}.png", image), (f"{row:04d}.cls", str(label).encode())]
    write_tar(folder / f"{name}.tar", members)  # type: ignore[arg-type]


def entropy(labels: NDArray[np.int64]) -> float:
    """Bits of the class frequencies in a batch."""
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def damage(index: Index, sample: int, byte: int = 0) -> Path:
    """Flips a bit of a sample's image; returns the shard."""
    shard = int(np.searchsorted(index.starts, sample, side="right")) - 1
    path = index.folder / index.shards[shard].name
    content = bytearray(path.read_bytes())
    content[int(index.table["offset"][sample]) + byte] ^= 4
    path.write_bytes(content)
    return path
