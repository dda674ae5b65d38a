"""The images whose known channel channel_inpaint keeps: read from an NPZ file, checked before use.

numpy only, so that a bad file is refused before torch is imported.
"""

import hashlib
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import InputError
from ddpm.images import array_header

KEY = "images"


def read(
    path: Path, image_shape: tuple[int, int, int], limit: int, what: str
) -> NDArray[np.float32]:
    """The first images, at most `limit`, of an NPZ file: (N, H, W, C) in [0, 1], bytes / 255.

    image_shape: (C, H, W) they must have.  what: the configuration key that named the file.
    Shape and type come from the header and only `limit` images are unpacked, so a file that lies
    about its size costs nothing. Raises InputError.
    """
    what = f"{what} is {path}"
    if not path.is_file():
        raise InputError(f"{what}, which is no file; give an NPZ file with `{KEY}`")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if KEY not in names:
                there = ", ".join(names) or "nothing"
                raise InputError(f"{what}, which holds {there}; it needs `{KEY}`")
            with archive.open(f"{KEY}.npy") as member:
                images = _read_array(member, image_shape, limit, what)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise InputError(f"{what}, which cannot be read: {error}") from error
    return _in_unit_range(images, what)


def sha256(images: NDArray[np.float32]) -> str:
    """Identity of base images, whatever file they came from."""
    return hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest()


def _read_array(
    member: IO[bytes], image_shape: tuple[int, int, int], limit: int, what: str
) -> NDArray[np.generic]:
    header = array_header(member)  # type: ignore[arg-type]
    channels, height, width = image_shape
    wanted = (height, width, channels)
    if len(header.shape) != 4 or header.shape[1:] != wanted or header.shape[0] < 1:
        numbers = ", ".join(map(str, wanted))
        raise InputError(f"{what}: `{KEY}` has shape {header.shape}; give (N, {numbers})")
    if header.dtype != np.uint8 and header.dtype.kind != "f":
        raise InputError(f"{what}: `{KEY}` is {header.dtype}; give floats in [0, 1] or bytes")
    if header.is_fortran:
        raise InputError(f"{what}: `{KEY}` is in Fortran order; save it in C order")
    count = min(limit, header.shape[0])
    data = member.read(count * math.prod(wanted) * header.dtype.itemsize)
    return np.frombuffer(data, dtype=header.dtype).reshape(count, *wanted)


def _in_unit_range(images: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{what}: `{KEY}` reaches from {low:g} to {high:g}; give values in [0, 1]")
    return np.asarray(images, dtype=np.float32)
