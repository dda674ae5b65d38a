"""The images a task begins with or keeps a part of, and the mask of that part: read from an NPZ
file, checked before use.

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

KEY, MASK = "images", "mask"
_KINDS = {KEY: ("f", "floats in [0, 1] or bytes"), MASK: ("b", "true and false, or bytes")}


def read(
    path: Path, image_shape: tuple[int, int, int], limit: int, what: str
) -> NDArray[np.float32]:
    """The first images, at most `limit`, of an NPZ file: (N, H, W, C) in [0, 1], bytes / 255.

    image_shape: (C, H, W) they must have.  what: the configuration key that named the file.
    Shape and type come from the header and only `limit` images are unpacked, so a file that lies
    about its size costs nothing. Raises InputError.
    """
    images = _read_member(path, KEY, _hwc(image_shape), limit, what)
    return _in_unit_range(images, f"{what} is {path}")


def read_mask(
    path: Path, image_shape: tuple[int, int, int], limit: int, what: str
) -> NDArray[np.bool_]:
    """`mask` of the same file, (M, H, W): true where the image is known; one for all may be (H, W).

    Raises InputError, also for a mask that leaves nothing to draw or nothing known.
    """
    found = _read_member(path, MASK, image_shape[1:], limit, what) != 0
    if found.all() or not found.any():
        known = "all" if found.all() else "nothing"
        raise InputError(f"{what} is {path}: `{MASK}` says that {known} is known; give both kinds")
    return np.asarray(found)


def sha256(path: Path) -> str:
    """Identity of such a file, of all that is in it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hwc(image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    channels, height, width = image_shape
    return height, width, channels


def _read_member(
    path: Path, key: str, wanted: tuple[int, ...], limit: int, what: str
) -> NDArray[np.generic]:
    """An array (N, *wanted) of an NPZ file, at most `limit` of its N; masks may lack the N."""
    what = f"{what} is {path}"
    if not path.is_file():
        raise InputError(f"{what}, which is no file; give an NPZ file with `{key}`")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                there = ", ".join(names) or "nothing"
                raise InputError(f"{what}, which holds {there}; it needs `{key}`")
            with archive.open(f"{key}.npy") as member:
                return _read_array(member, key, wanted, limit, what)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise InputError(f"{what}, which cannot be read: {error}") from error


def _read_array(
    member: IO[bytes], key: str, wanted: tuple[int, ...], limit: int, what: str
) -> NDArray[np.generic]:
    header = array_header(member)  # type: ignore[arg-type]
    shape = (1, *header.shape) if key == MASK and header.shape == wanted else header.shape
    if len(shape) != len(wanted) + 1 or shape[1:] != wanted or shape[0] < 1:
        numbers = ", ".join(map(str, wanted))
        raise InputError(f"{what}: `{key}` has shape {header.shape}; give (N, {numbers})")
    kinds, words = _KINDS[key]
    if header.dtype != np.uint8 and header.dtype.kind not in kinds:
        raise InputError(f"{what}: `{key}` is {header.dtype}; give {words}")
    if header.is_fortran:
        raise InputError(f"{what}: `{key}` is in Fortran order; save it in C order")
    count = min(limit, shape[0])
    data = member.read(count * math.prod(wanted) * header.dtype.itemsize)
    return np.frombuffer(data, dtype=header.dtype).reshape(count, *wanted)


def _in_unit_range(images: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{what}: `{KEY}` reaches from {low:g} to {high:g}; give values in [0, 1]")
    return np.asarray(images, dtype=np.float32)
