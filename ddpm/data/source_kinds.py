"""Kinds of source: what shards are made from. A new one is a Source, and a line in `KINDS`.

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npy          images alone, as in an NPZ
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *.tar.gz          CIFAR-10's binary version, or the folder in it
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FILE.zip          pictures, and their classes in EDM's dataset.json
    FILE.h5           HDF5 (h5py): arrays as in an NPZ
    *.mdb             LMDB (lmdb) of encoded pictures without labels; or its folder
    *.tar[.gz], URL   shards of others, here or remote, packed anew (tars.py)
    *.parquet         encoded pictures and labels, as Hugging Face keeps them; a folder of these
    FOLDER            png, jpg, webp, bmp, ppm; sub-folders are classes, numbered by name; a flat
                      one has no labels

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once, and in notes what is there and not read: nothing is left out in
silence. Pixels are (H, W, C), uint8, or float32 in [0, 1]; `scale` takes float arrays in any
units.
"""

import os
from pathlib import Path
from typing import Literal

from ddpm.data import images
from ddpm.data.arrays import CifarSource, DigitsSource, Hdf5Source, IdxSource, NpySource, NpzSource
from ddpm.data.pictures import FolderSource, LmdbSource, ParquetSource, ZipSource
from ddpm.data.source import DIGITS, Reading, Source
from ddpm.data.tars import TarSource, is_pattern, shown
from ddpm.errors import InputError

# In the order in which they are tried.
KINDS: tuple[type[Source], ...] = (
    DigitsSource,
    NpzSource,
    NpySource,
    Hdf5Source,
    ZipSource,
    LmdbSource,
    CifarSource,
    TarSource,
    ParquetSource,
    IdxSource,
    FolderSource,
)


def open_source(
    source: str | os.PathLike[str],
    label_key: str | None = "labels",
    *,
    image_key: str | None = None,
    classes: tuple[str, ...] | None = None,
    conversions: images.Conversions = images.STRICT,
    scale: Literal["channels"] | None = None,
    stage: Path | None = None,
) -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show.

    stage: where shards are copied to that are compressed or remote; without it none are read.
    """
    path = Path(source)
    known = f"give {', '.join(kind.takes for kind in KINDS)}, or a folder of shards"
    is_path = str(source) != DIGITS and not is_pattern(str(source))
    if is_path and not path.exists():
        raise InputError(f"{path} does not exist; {known}")
    if is_path and not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; {known}")
    reading = Reading(
        label_key=label_key,
        image_key=image_key,
        classes=classes,
        conversions=conversions,
        scale=scale,
        stage=stage,
    )
    for kind in KINDS:
        if (opened := kind.opened(str(source), reading)) is not None:
            _require_used(opened)
            return opened
    if "://" in str(source):
        raise InputError(f"{shown(str(source))}: only .tar shards are read from a URL")
    raise InputError(f"{path} is no source of images; {known}")


def _require_used(source: Source) -> None:
    """Raises InputError for an option that means nothing to a kind of source."""
    reading = source.reading
    given = {
        "--image-key": reading.image_key,
        "--classes": reading.classes,
        "--alpha": reading.conversions.alpha,
        "--bit-depth": reading.conversions.bit_depth,
        "--scale": reading.scale,
    }
    is_useless = {name: given[name] is not None and name not in source.options for name in given}
    if useless := [name for name in given if is_useless[name]]:
        raise InputError(f"{', '.join(useless)} changes nothing of {source.name}; leave it out")
