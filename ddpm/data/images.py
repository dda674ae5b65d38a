"""Images as arrays (H, W, C), uint8 or float32 in [0, 1]: decoded, encoded, resized.

Reading is strict: what cannot become exactly such an array (16 bit, alpha, animation, CMYK, damage)
is a ValueError with the reason, never a silently different picture. A photograph is turned upright
as its EXIF says, and of several in a file (MPO) the first is read; colour profiles are left out;
palettes become RGB and bilevel images grey, which loses nothing.
"""

import io
import math
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

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
_UPRIGHT = "turned upright, as their EXIF says"
_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I")
_SIDEWAYS = range(5, 9)  # EXIF orientations that swap height and width
_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}
_REASONS = {"I": "16 or 32 bit", "I;16": "16 bit", "I;16B": "16 bit", "F": "32-bit float"}
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Pixels = NDArray[np.uint8] | NDArray[np.float32]
# The lowest and the highest value of each channel, in the data's own units.
Ranges = tuple[tuple[float, float], ...]
Resample = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]


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
    changes: tuple[str, ...] = ()  # what decode() does to it, in words

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.height, self.width


@dataclass(frozen=True, kw_only=True)
class Conversions:
    """Changes of pictures as they are packed, each only where it is asked for.

    alpha: the colour behind what is transparent; drop takes the stored colours.  grey: rgb makes
    three equal channels of one.  bit_depth: 16-bit grey rounded to 8 bits, or kept as float32 of
    v / 65535.  size: (height, width), of the largest part of that shape in the middle.  resample:
    the filter of that; all widen when they shrink, so nothing aliases, but nearest.
    """

    alpha: Literal["white", "black", "drop"] | None = None
    grey: Literal["rgb"] | None = None
    bit_depth: Literal["8", "float"] | None = None
    size: tuple[int, int] | None = None
    resample: Resample = "bicubic"

    def header(self, found: ImageHeader) -> ImageHeader:
        """The header of an image once apply() has changed it."""
        if self.grey and found.channels == 1:
            found = replace(found, channels=3, changes=(*found.changes, "grey made RGB"))
        if self.size and (found.height, found.width) != self.size:
            words = f"cropped and resized to {self.size[0]}x{self.size[1]}, {self.resample}"
            height, width = self.size
            found = replace(found, height=height, width=width, changes=(*found.changes, words))
        return found

    def apply(self, pixels: Pixels) -> Pixels:
        """An image (H, W, C) with the channels and the size that are asked for."""
        if self.grey and pixels.shape[2] == 1:
            pixels = pixels.repeat(3, axis=2)
        if self.size and pixels.shape[:2] != self.size:
            height, width = largest_part(pixels.shape, self.size)
            top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
            pixels = resize(
                pixels[top : top + height, left : left + width], self.size, self.resample
            )
        return pixels


STRICT = Conversions()


def largest_part(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the largest part in size's proportions of an image (H, W, ...)."""
    scale = min(shape[0] / size[0], shape[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


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


def header(data: bytes, by: Conversions = STRICT) -> ImageHeader:
    """Size, channels and type of an encoded image as decode() gives it.

    Raises ValueError saying why it is unusable.
    """
    if not data:
        raise ValueError("empty file (zero bytes)")
    if data.startswith(NPY_MAGIC):
        return by.header(_npy_image_header(array_header(io.BytesIO(data)), len(data)))
    with _open(data) as image:
        return by.header(_picture_header(image, data, by))


def _picture_header(image: Image.Image, data: bytes, by: Conversions) -> ImageHeader:
    """The header of a picture before its channels and size are changed."""
    changes, channels, dtype = [], _CHANNELS.get(image.mode), "uint8"
    is_deep = data.startswith(_PNG_MAGIC) and data[_PNG_BIT_DEPTH] == 16
    if by.bit_depth and image.mode in _DEEP_GREY:
        words = {"8": "16 bit scaled to 8", "float": "16 bit kept as floats"}
        changes.append(words[by.bit_depth])
        channels, dtype = 1, "uint8" if by.bit_depth == "8" else "float32"
    elif is_deep and by.bit_depth:
        raise ValueError("16-bit colour, which the decoder cuts to 8 bits; save NPY arrays")
    elif is_deep:
        raise ValueError(
            "16 bit; save 8-bit images, or NPY arrays for more precision (packing grey ones: "
            "--bit-depth 8 or float)"
        )
    if getattr(image, "is_animated", False) and image.format != _SEVERAL:
        raise ValueError("animated; save one frame")
    if _has_alpha(image):
        if not by.alpha:
            raise ValueError(
                "has an alpha channel; save it without transparency (packing: --alpha white, black "
                "or drop)"
            )
        changes.append("alpha dropped" if by.alpha == "drop" else f"alpha over {by.alpha}")
        channels = 1 if image.mode in ("LA", "La", "L") else 3
    if channels is None:
        reason = _REASONS.get(image.mode, f"colour mode {image.mode}")
        raise ValueError(f"{reason}; save 8-bit grey or RGB images")
    if image.width * image.height > min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS} are read")
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in _SIDEWAYS else image.size
    if orientation != 1:
        changes.append(_UPRIGHT)
    return ImageHeader(
        height=height, width=width, channels=channels, dtype=dtype, changes=tuple(changes)
    )


def decode(data: bytes, by: Conversions = STRICT) -> Pixels:
    """The pixels (H, W, C) of an encoded image: uint8, or float32 in [0, 1] from a float NPY.

    data: PNG, JPEG, WebP, BMP, PPM or NPY. Raises ValueError with the reason it cannot be used.
    """
    found = header(data, by)
    if data.startswith(NPY_MAGIC):
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        array = array.reshape((*array.shape, 1)[:3])
        return by.apply(array if found.dtype == "uint8" else unit_floats(array))
    with _open(data) as image:
        try:
            image.load()
        except Exception as error:  # decoders of damaged data raise whatever they trip over
            raise ValueError(f"cannot be decoded: {error}") from error
        if _UPRIGHT in found.changes:
            image = ImageOps.exif_transpose(image)
        return by.apply(_pixels(image, by))


def _pixels(image: Image.Image, by: Conversions) -> Pixels:
    """The pixels (H, W, C) of a loaded picture whose header was accepted."""
    if by.bit_depth and image.mode in _DEEP_GREY:
        values = np.array(image).astype(np.uint16)[:, :, None]
        if by.bit_depth == "8":  # 65535 = 255 * 257
            return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return values.astype(np.float32) / np.float32(65535)
    if by.alpha and _has_alpha(image):
        plain = "L" if image.mode in ("LA", "La", "L") else "RGB"
        full = image.convert("RGBA")
        if by.alpha != "drop":
            full = Image.alpha_composite(Image.new("RGBA", full.size, by.alpha), full)
        image = full.convert("RGB").convert(plain)
    elif image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.mode or "a" in image.mode or "transparency" in image.info


def unit_floats(array: NDArray) -> NDArray[np.float32]:
    """The array as float32. Raises ValueError unless every value lies in [0, 1]."""
    low, high = float(array.min()), float(array.max())
    # Written so that NaN, which compares false with everything, is refused too.
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"float values from {low:g} to {high:g}; give floats in [0, 1] or uint8")
    return array.astype(np.float32)


def to_unit(pixels: NDArray, ranges: Ranges) -> NDArray[np.float32]:
    """Values (..., C) in the data's own units, each channel mapped from its range to [0, 1]."""
    low, high = np.array(ranges, np.float64).T
    return ((pixels - low) / (high - low)).astype(np.float32)


def from_unit(pixels: NDArray, ranges: Ranges) -> NDArray[np.float32]:
    """The inverse of to_unit()."""
    low, high = np.array(ranges, np.float64).T
    return (low + (high - low) * pixels).astype(np.float32)


def to_bytes(pixels: NDArray, ranges: Ranges | None) -> NDArray[np.uint8]:
    """Bytes as they are, floats in the data's own units as 0 to 255 over each channel's range."""
    if ranges is None:
        return pixels
    return np.rint(255 * to_unit(pixels, ranges)).astype(np.uint8)


def encode(pixels: Pixels) -> tuple[str, bytes]:
    """The extension and the bytes of an image: PNG for uint8 of 1 or 3 channels, NPY else."""
    buffer = io.BytesIO()
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        _to_pillow(pixels).save(buffer, "PNG", compress_level=6)
        return "png", buffer.getvalue()
    np.lib.format.write_array(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    return "npy", buffer.getvalue()


def resize(pixels: Pixels, size: tuple[int, int], resample: Resample = "bicubic") -> Pixels:
    """The image at `size` (height, width); shrinking widens the filter: no aliasing."""
    if pixels.shape[:2] == size:
        return pixels
    shape = (size[1], size[0])  # Pillow: (width, height)
    by = Image.Resampling[resample.upper()]
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        resized = _to_pillow(pixels).resize(shape, by)
        return np.asarray(resized).reshape(*size, -1)  # (H, W, C)
    planes = [
        Image.fromarray(pixels[:, :, channel].astype(np.float32)).resize(shape, by)
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
