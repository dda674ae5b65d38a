"""Images as arrays (H, W, C), uint8 or float32 in [0, 1]: decoded, encoded, resized.

Reading is strict: what cannot become exactly such an array (16 bit, alpha, animation, CMYK, damage)
is a ValueError with the reason, never a silently different picture. A photograph is turned upright
as its EXIF says, and of several in a file (MPO) the first is read; colour profiles are left out;
palettes become RGB and bilevel images grey, which loses nothing.
"""

import io
import math
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

MAX_PIXELS = 1 << 26
MAX_LABEL = 1_000_000
NPY_MAGIC = b"\x93NUMPY"
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # the byte of a PNG file that says it
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
_SEVERAL = "MPO"  # JPEGs of phones and stereo cameras: the picture, then previews or another view
_SIDEWAYS = range(5, 9)  # EXIF orientations that swap height and width
_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}
_REASONS = {"I": "16 or 32 bit", "I;16": "16 bit", "I;16B": "16 bit", "F": "32-bit float"}
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ArrayHeader:
    """An NPY header: the array it promises, and the bytes it takes itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    header_bytes: int

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """Size and type of an image file, known before its pixels are decoded."""

    height: int
    width: int
    channels: int
    dtype: str  # "uint8" or "float32"
    is_turned: bool = False  # upright only once it is turned as its EXIF says

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.height, self.width


def array_header(stream: BinaryIO) -> ArrayHeader:
    """The header of an NPY stream, which is left at the first byte of data. Nothing is unpickled.

    Raises ValueError when it is not an NPY header, or the array holds Python objects.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _READERS:
            raise ValueError(f"NPY version {version[0]}.{version[1]} is not known")
        shape, is_fortran, dtype = _READERS[version](stream)
    except ValueError:
        raise
    except Exception as error:  # the parser of a hostile header may fail in any way
        raise ValueError(f"broken NPY header: {error}") from error
    if dtype.hasobject:
        raise ValueError(
            "holds Python objects (pickle), which are never loaded; save plain numbers"
        )
    if any(length < 0 for length in shape):
        raise ValueError(f"NPY header with shape {shape}")
    return ArrayHeader(shape=shape, dtype=dtype, is_fortran=is_fortran, header_bytes=stream.tell())


def header(data: bytes) -> ImageHeader:
    """Size, channels and type of an encoded image. Raises ValueError saying why it is unusable."""
    if not data:
        raise ValueError("empty file (zero bytes)")
    if data.startswith(NPY_MAGIC):
        return _npy_image_header(array_header(io.BytesIO(data)), len(data))
    with _open(data) as image:
        if data.startswith(_PNG_MAGIC) and data[_PNG_BIT_DEPTH] == 16:
            raise ValueError("16 bit; save 8-bit images, or NPY arrays for more precision")
        if getattr(image, "is_animated", False) and image.format != _SEVERAL:
            raise ValueError("animated; save one frame")
        if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
            raise ValueError("has an alpha channel; save it without transparency")
        if image.mode not in _CHANNELS:
            reason = _REASONS.get(image.mode, f"colour mode {image.mode}")
            raise ValueError(f"{reason}; save 8-bit grey or RGB images")
        if image.width * image.height > min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
            raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
        orientation = _orientation(image)
        width, height = image.size[::-1] if orientation in _SIDEWAYS else image.size
        return ImageHeader(
            height=height,
            width=width,
            channels=_CHANNELS[image.mode],
            dtype="uint8",
            is_turned=orientation != 1,
        )


def decode(data: bytes) -> Pixels:
    """The pixels (H, W, C) of an encoded image: uint8, or float32 in [0, 1] from a float NPY.

    data: PNG, JPEG, WebP, BMP, PPM or NPY. Raises ValueError with the reason it cannot be used.
    """
    found = header(data)
    if data.startswith(NPY_MAGIC):
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        array = array.reshape(found.height, found.width, found.channels)
        return array if found.dtype == "uint8" else unit_floats(array)
    with _open(data) as image:
        try:
            image.load()
        except Exception as error:  # decoders of damaged data raise whatever they trip over
            raise ValueError(f"cannot be decoded: {error}") from error
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        if found.is_turned:
            image = ImageOps.exif_transpose(image)
        return np.array(image).reshape(found.height, found.width, found.channels)


def unit_floats(array: NDArray) -> NDArray[np.float32]:
    """The array as float32. Raises ValueError unless every value lies in [0, 1]."""
    low, high = float(array.min()), float(array.max())
    # Written so that NaN, which compares false with everything, is refused too.
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"float values from {low:g} to {high:g}; give floats in [0, 1] or uint8")
    return array.astype(np.float32)


def encode(pixels: Pixels) -> tuple[str, bytes]:
    """The extension and the bytes of an image: PNG for uint8 of 1 or 3 channels, NPY else."""
    buffer = io.BytesIO()
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        _to_pillow(pixels).save(buffer, "PNG", compress_level=6)
        return "png", buffer.getvalue()
    np.lib.format.write_array(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return "npy", buffer.getvalue()


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The image at `size` (height, width), bicubic; shrinking widens the filter: no aliasing."""
    if pixels.shape[:2] == size:
        return pixels
    shape = (size[1], size[0])  # Pillow: (width, height)
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        resized = _to_pillow(pixels).resize(shape, Image.Resampling.BICUBIC)
        return np.asarray(resized).reshape(*size, -1)  # (H, W, C)
    planes = [
        Image.fromarray(pixels[:, :, channel].astype(np.float32)).resize(
            shape, Image.Resampling.BICUBIC
        )
        for channel in range(pixels.shape[2])
    ]
    stacked = np.stack([np.asarray(plane) for plane in planes], axis=2)
    # Bicubic overshoots at edges.
    if pixels.dtype == np.uint8:
        return np.clip(np.rint(stacked), 0, 255).astype(np.uint8)
    return np.clip(stacked, 0.0, 1.0)


def _npy_image_header(found: ArrayHeader, length: int) -> ImageHeader:
    if len(found.shape) not in (2, 3) or 0 in found.shape:
        raise ValueError(f"array of shape {found.shape}; give (H, W) or (H, W, C)")
    if found.dtype != np.uint8 and found.dtype.kind != "f":
        raise ValueError(f"array of {found.dtype}; give uint8, or floats in [0, 1]")
    if found.header_bytes + found.data_bytes != length:
        raise ValueError(
            f"array header promises {found.data_bytes} bytes, "
            f"{length - found.header_bytes} are there"
        )
    height, width, channels = (*found.shape, 1)[:3]
    kind = "uint8" if found.dtype == np.uint8 else "float32"
    return ImageHeader(height=height, width=width, channels=channels, dtype=kind)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of a picture, 1 to 8; 1, as it is stored, where there is none."""
    if "exif" not in image.info:  # else Pillow decodes a PNG to look behind its pixels
        return 1
    try:
        orientation = image.getexif().get(Base.Orientation, 1)
    except Exception:  # a broken note about a whole picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a readable PNG, JPEG, WebP, BMP or PPM image") from None
    except Exception as error:  # parsers of hostile headers raise whatever they trip over
        raise ValueError(f"cannot be read: {error}") from error


def _to_pillow(pixels: Pixels) -> Image.Image:
    return Image.fromarray(
        np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    )
