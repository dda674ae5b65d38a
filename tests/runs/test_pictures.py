"""Grids and the bytes of pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from ddpm.runs import pictures
from ddpm.runs.pictures import BACKGROUND, GAP


def numbered(count: int, side: int, channels: int) -> np.ndarray:
    """Images of one grey each: 1, 2, 3, ..."""
    greys = np.arange(1, count + 1, dtype=np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (count, side, side, channels)).copy()


def cell(picture: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top, left = GAP + row * (side + GAP), GAP + column * (side + GAP)
    return picture[top : top + side, left : left + side]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_once_row_by_row(channels: int) -> None:
    picture = pictures.grid(numbered(5, 32, channels), columns=3)
    assert picture.shape == (2 * (32 + GAP) + GAP, 3 * (32 + GAP) + GAP, channels)
    for index in range(5):
        assert (cell(picture, index // 3, index % 3, 32) == index + 1).all()
    assert (cell(picture, 1, 2, 32) == BACKGROUND).all()
    shown = sum(int((picture == index + 1).sum()) for index in range(5))
    assert shown + int((picture == BACKGROUND).sum()) == picture.size


def test_small_images_are_enlarged_with_square_pixels() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    shown = cell(pictures.grid(image), 0, 0, 32)
    assert (shown[::4, ::4, 0] == image[0, ..., 0]).all()
    assert (shown[:, :, 0] == image[0, ..., 0].repeat(4, 0).repeat(4, 1)).all()


def test_channels_that_are_no_colours_lie_side_by_side() -> None:
    images = np.zeros((1, 32, 32, 2), np.uint8)
    images[..., 1] = 9
    picture = pictures.grid(images)
    assert picture.shape[2] == 1
    assert (picture[GAP:-GAP, GAP : GAP + 32] == 0).all()
    assert (picture[GAP:-GAP, GAP + 32 : GAP + 64] == 9).all()


@pytest.mark.parametrize(
    ("count", "classes", "columns"),
    [(20, 10, 2), (20, 3, 6), (4, 10, 1), (20, None, 5), (16, None, 4), (1, None, 1)],
)
def test_classes_are_rows_and_without_classes_a_grid_is_nearly_square(
    count: int, classes: int | None, columns: int
) -> None:
    assert pictures.columns_by_class(count, classes) == columns


@pytest.mark.parametrize("images", [np.zeros((0, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 1))])
def test_what_is_no_image_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a grid takes uint8"):
        pictures.grid(images)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_bytes_decode_to_the_picture(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, channels), dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(pictures.png(picture)))).reshape(picture.shape)
    assert (read == picture).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_shows_every_picture_and_dwells_on_the_last(channels: int) -> None:
    frames = [np.full((6, 8, channels), grey, np.uint8) for grey in (0, 100, 255)]
    with Image.open(io.BytesIO(pictures.gif(frames, frame_ms=50, last_ms=900))) as film:
        shown, times = [], []
        for number in range(film.n_frames):
            film.seek(number)
            shown.append(np.asarray(film.convert("L")))
            times.append(film.info["duration"])
    assert [picture.shape for picture in shown] == [(6, 8)] * 3 and times == [50, 50, 900]
    assert [int(picture.mean().round()) for picture in shown] == [0, 100, 255]


def test_npz_bytes_depend_on_the_arrays_alone() -> None:
    images = numbered(3, 4, 1)
    first = pictures.npz(images=images, labels=np.arange(3))
    assert first == pictures.npz(images=images.copy(), labels=np.arange(3))
    with np.load(io.BytesIO(first), allow_pickle=False) as arrays:
        assert (arrays["images"] == images).all() and arrays["labels"].tolist() == [0, 1, 2]
