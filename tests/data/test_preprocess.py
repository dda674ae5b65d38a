import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ddpm.data.dataset import Dataset
from ddpm.data.index import Index
from tests.support.dataset_data import (
    RANDOM,
    Colour,
    bytes_of,
    dataset_options,
    make_colour,
    open_colour,
    pack,
)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Colour:
    return make_colour(tmp_path_factory.mktemp("colour"))


CORNERS = {
    "center": (2, 1),
    "top_left": (0, 0),
    "top_right": (0, 3),
    "bottom_left": (5, 0),
    "bottom_right": (5, 3),
}


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, NDArray[np.uint8]]:
    """One image of 9x7."""
    pixels = RANDOM.integers(0, 256, (1, 9, 7, 3), np.uint8)
    return pack(tmp_path_factory.mktemp("tall"), pixels), pixels[0]


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize("is_explicit", [False, True])
def test_crop_positions(
    tall: tuple[Index, NDArray[np.uint8]], position: str, is_explicit: bool
) -> None:
    options = dataset_options(CROP_POSITION=position, CROP_SIZE=4 if is_explicit else None)
    data = Dataset(tall[0], options, (3, 4, 4), seed=0)
    top, left = CORNERS[position]
    found = bytes_of(data.read(torch.tensor([0])).images)[0]
    np.testing.assert_array_equal(found, tall[1][top : top + 4, left : left + 4])


def test_random_crops_take_every_place_and_depend_on_the_position_alone(
    tall: tuple[Index, NDArray[np.uint8]],
) -> None:
    data = Dataset(tall[0], dataset_options(CROP_TYPE="random"), (3, 4, 4), seed=0)
    positions = torch.arange(1000)
    found = bytes_of(data.read(torch.zeros(1000, dtype=torch.int64), positions).images)
    windows = {
        tall[1][top : top + 4, left : left + 4].tobytes(): 0
        for top in range(6)
        for left in range(4)
    }
    for image in found:
        windows[image.tobytes()] += 1
    counts = np.array(list(windows.values()))
    assert len(counts) == 24 and counts.min() > 15 and counts.max() < 80
    some = torch.tensor([900, 3, 77])
    again = bytes_of(data.read(torch.zeros(3, dtype=torch.int64), some).images)
    np.testing.assert_array_equal(again, found[some.numpy()])
    centre = bytes_of(data.read(torch.tensor([0])).images)[0]
    np.testing.assert_array_equal(centre, tall[1][2:6, 1:5])


@pytest.mark.slow
def test_a_crop_of_another_size_is_resized(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:8, 0:8] * 8
    ramp = np.stack([rows, columns, rows * 0 + 200], axis=2)
    for number, pixels in enumerate((ramp.astype(np.uint8), ramp / 255)):
        index = pack(tmp_path / f"{number}", pixels[None])
        for side in (4, 16):
            data = Dataset(index, dataset_options(CROP_SIZE=8), (3, side, side), seed=0)
            image = (data.read(torch.tensor([0])).images[0] + 1) * 127.5  # (C, H, W)
            assert image.shape == (3, side, side)
            torch.testing.assert_close(image[2], torch.full((side, side), 200.0), atol=0.5, rtol=0)
            centres = (torch.arange(side) + 0.5) * 8 / side - 0.5
            inner = slice(side // 4, -side // 4)
            wanted = (8 * centres)[inner, None].expand(-1, side)[:, inner]
            torch.testing.assert_close(image[0][inner, inner], wanted.float(), atol=1.0, rtol=0)


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255
    index = pack(tmp_path, stripes)
    data = Dataset(index, dataset_options(CROP_SIZE=64), (1, 16, 16), seed=0)
    assert data.read(torch.tensor([0])).images.abs().max() < 0.2  # grey, not black or white


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (3, 3), (50, 40)])
def test_resize_takes_the_largest_part_of_every_size(
    tmp_path: Path, height: int, width: int
) -> None:
    pixels = np.zeros((1, height, width), np.uint8)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[0, top : top + side, left : left + side] = 200
    data = Dataset(pack(tmp_path, pixels), dataset_options(RESIZE=True), (1, 8, 8), seed=0)
    (image,) = bytes_of(data.read(torch.tensor([0])).images)
    assert image.shape == (8, 8, 1) and (image == 200).all()


FLIPS: dict[str, list[Callable[[NDArray], NDArray]]] = {
    "horizontal_flip": [lambda a: a, lambda a: a[:, ::-1]],
    "vertical_flip": [lambda a: a, lambda a: a[::-1]],
    "flip": [lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1], lambda a: a[::-1, ::-1]],
    "rot90": [lambda a, k=k: np.rot90(a, k) for k in range(4)],  # type: ignore[misc]
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLIPS)
def test_augmentations_are_equally_likely_and_drawn_by_position(colour: Colour, kind: str) -> None:
    data = open_colour(colour, AUGMENT=True, AUGMENT_TYPE=kind, cache=True)
    same, positions = torch.zeros(2000, dtype=torch.int64), torch.arange(2000)
    found = bytes_of(data.read(same, positions).images)
    original = colour[1][0]
    outcomes = {np.ascontiguousarray(turn(original)).tobytes(): 0 for turn in FLIPS[kind]}
    assert len(outcomes) == len(FLIPS[kind])
    for image in found:
        outcomes[image.tobytes()] += 1
    expected = 2000 / len(outcomes)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in outcomes.values())
    some = torch.tensor([1999, 4, 1000])
    again = bytes_of(data.read(same[:3], some).images)
    np.testing.assert_array_equal(again, found[some.numpy()])
    other = open_colour(colour, AUGMENT=True, AUGMENT_TYPE=kind, seed=1)
    assert not np.array_equal(bytes_of(other.read(same, positions).images), found)


def test_validation_images_are_never_augmented(colour: Colour) -> None:
    options: dict[str, object] = {"AUGMENT_TYPE": "rot90", "CROP_TYPE": "random"}
    batch = open_colour(colour, AUGMENT=True, **options).validation(100)
    np.testing.assert_array_equal(bytes_of(batch.images), colour[1][batch.ids.numpy()])
    off = open_colour(colour, AUGMENT=False, AUGMENT_TYPE="rot90")
    positions = torch.arange(100)
    found = off.read(positions, positions)
    np.testing.assert_array_equal(bytes_of(found.images), colour[1][:100])
