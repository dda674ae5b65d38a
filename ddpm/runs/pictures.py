"""Pictures of many images: grids with a thin gap; the bytes of PNG, GIF and NPZ files.

Images are uint8 (N, H, W, C). One or three channels are shown as they are; any other number as its
channels side by side, in grey. Small images are enlarged by a whole factor: pixels stay square.
"""

import io
from collections.abc import Sequence
from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

GAP = 2
BACKGROUND = 128
# Images whose shorter side is less are enlarged to at least this many pixels.
READABLE = 32
# Of a picture with captions: sides of a tile, height of a line, letters that fit.
TILE, LINE, LETTERS = 96, 14, 16


def grid(images: Pixels, columns: int | None = None) -> Pixels:
    """One picture (H', W', 1 or 3) of N images, row by row.

    columns: None makes the grid as square as it goes. Missing images of the last row stay grey.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) == 0:
        raise ValueError(f"a grid takes uint8 (N, H, W, C), not {images.dtype} {images.shape}")
    shown = _enlarged(_shown(images))
    count, height, width, channels = shown.shape
    columns = columns or ceil(count**0.5)
    rows = ceil(count / columns)
    canvas = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), BACKGROUND, np.uint8
    )
    for index, image in enumerate(shown):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    return canvas


def captioned(
    images: Sequence[Pixels | NDArray[np.float32]], captions: Sequence[str], columns: int = 8
) -> Pixels:
    """One picture (H', W', 3) of images of any size, each in a tile with a line of text below.

    images: (H, W, C), uint8 or floats in [0, 1].
    """
    step_x, step_y = TILE + GAP, TILE + LINE + GAP
    rows = ceil(len(images) / columns)
    size = (GAP + min(columns, len(images)) * step_x, GAP + rows * step_y)
    canvas = Image.new("RGB", size, (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        scaled = image if image.dtype == np.uint8 else np.rint(image * 255)
        levels = scaled.astype(np.uint8)
        tile = Image.fromarray(_flat(_shown(levels[None])[0])).convert("RGB")
        scale = TILE / max(tile.size)
        scale = scale if scale < 1 else int(scale)  # pixels stay square
        width, height = (max(1, round(side * scale)) for side in tile.size)
        by = Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST
        left, top = GAP + index % columns * step_x, GAP + index // columns * step_y
        place = (left + (TILE - width) // 2, top + (TILE - height) // 2)
        canvas.paste(tile.resize((width, height), by), place)
        words = caption if len(caption) <= LETTERS else f"{caption[: LETTERS - 1]}\u2026"
        draw.text((left + 1, top + TILE + 1), words, fill="white", font_size=LINE - 4)
    return np.asarray(canvas)


def png(picture: Pixels) -> bytes:
    """The PNG file of a picture (H, W, 1 or 3)."""
    buffer = io.BytesIO()
    Image.fromarray(_flat(picture)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def gif(pictures: Sequence[Pixels], *, frame_ms: int = 120, last_ms: int = 1500) -> bytes:
    """The GIF file of pictures of one size (H, W, 1 or 3), in a loop that dwells on the last."""
    frames = [Image.fromarray(_flat(picture)) for picture in pictures]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[frame_ms] * (len(frames) - 1) + [last_ms],
        loop=0,
    )
    return buffer.getvalue()


def npz(**arrays: NDArray[np.uint8] | NDArray[np.int64]) -> bytes:
    """The compressed NPZ file of some arrays; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # allow_pickle is no array
    return buffer.getvalue()


def columns_by_class(num_images: int, num_classes: int | None) -> int:
    """Columns of a grid that has its classes in rows, as square as it goes without classes."""
    if num_classes is None:
        return isqrt(num_images - 1) + 1
    return max(1, num_images // num_classes)


def _flat(picture: Pixels) -> Pixels:
    return picture[:, :, 0] if picture.shape[2] == 1 else picture


def _shown(images: Pixels) -> Pixels:
    """(N, H, W, 1 or 3): other numbers of channels are laid side by side."""
    count, height, width, channels = images.shape
    if channels in (1, 3):
        return images
    return images.transpose(0, 1, 3, 2).reshape(count, height, channels * width, 1)


def _enlarged(images: Pixels) -> Pixels:
    """Every pixel repeated in a square, where the images are too small to look at."""
    factor = ceil(READABLE / min(images.shape[1:3]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
