"""What shards are made from: an NPZ file, IDX files, an image folder, digits, arrays.

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once. Pixels are (H, W, C), uint8, or float32 in [0, 1].

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FOLDER            png, jpg, jpeg, webp, bmp; sub-folders are classes, numbered by name; a flat
                      one has no labels
"""

import os
from pathlib import Path

from ddpm.arraysources import DIGITS, ArraySource, DigitsSource, IdxSource, NpzSource, idx_file
from ddpm.errors import InputError
from ddpm.imagefolder import FolderSource
from ddpm.source import Loaded, Source

__all__ = ["DIGITS", "ArraySource", "Loaded", "Source", "open_source"]

_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")


def open_source(source: str | os.PathLike[str], label_key: str | None = "labels") -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show."""
    if str(source) == DIGITS:
        return DigitsSource(label_key)
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; give an NPZ file, an IDX file, an image folder, a folder of "
            f"shards, or `{DIGITS}`"
        )
    if path.is_dir():
        pair = next((found for name in _IDX_TRAINING if (found := idx_file(path, name))), None)
        return IdxSource(pair, label_key) if pair else FolderSource(path, label_key)
    if path.suffix == ".npz":
        return NpzSource(path, label_key)
    if "idx" in path.name:
        return IdxSource(path, label_key)
    raise InputError(f"{path} is no NPZ file (.npz) and no IDX file (*-idx3-ubyte, *.gz)")
