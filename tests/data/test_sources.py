import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddpm.data import packing
from ddpm.data.index import open_index
from ddpm.data.source import ArraySource
from tests.support.shard_data import (
    COLOUR,
    GREY,
    LABELS,
    assert_holds,
    idx,
    save_pictures,
)


@pytest.mark.slow
def test_digits_are_stored_as_round_255_v_over_16(digits: Path) -> None:
    from sklearn.datasets import load_digits

    known = load_digits()
    pixels = np.floor(known.images * 255 / 16 + 0.5).astype(np.uint8)[..., None]
    index = open_index(digits)
    assert_holds(index, pixels, known.target)
    assert (index.image_shape, index.dtype) == ((1, 8, 8), "uint8")
    assert (index.num_samples, index.num_classes) == (1797, 10)
    assert index.class_names == tuple("0123456789")


def test_packed_samples_lie_in_random_order(digits: Path) -> None:
    index = open_index(digits)
    labels = index.labels
    assert index.is_shuffled and labels is not None
    # The digits come as 0 1 2 ... 9 0 1 2: in random order a tenth of the neighbours are equal.
    assert 0.07 < (labels[1:] == labels[:-1]).mean() < 0.13
    assert (np.diff(labels) == 1).mean() < 0.15


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("pixels", "extension"),
    [
        (GREY, "png"),
        (COLOUR, "png"),
        (COLOUR[..., :2], "npy"),
        (np.asfortranarray(COLOUR), "png"),
        (COLOUR / 255, "npy"),
        ((GREY / 255).astype(np.float16), "npy"),
    ],
    ids=["grey", "colour", "two-channels", "fortran", "float64", "float16"],
)
def test_npz_round_trip(
    tmp_path: Path, save: Callable[..., None], pixels: NDArray, extension: str
) -> None:
    save(tmp_path / "in.npz", images=pixels, labels=LABELS[:, None].astype(np.int16))
    index = packing.pack(tmp_path / "in.npz", tmp_path / "out", progress=False)
    expected = pixels if pixels.ndim == 4 else pixels[..., None]
    expected = expected if pixels.dtype == np.uint8 else expected.astype(np.float32)
    assert_holds(index, expected, LABELS)
    with tarfile.open(tmp_path / "out" / index.shards[0].name) as tar:
        assert {name.split(".")[1] for name in tar.getnames()} == {extension, "cls"}


def test_label_key_names_the_labels_and_null_leaves_them_out(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, images=GREY, kind=LABELS)
    assert_holds(
        packing.pack(path, tmp_path / "a", label_key="kind", progress=False),
        GREY[..., None],
        LABELS,
    )
    index = packing.pack(path, tmp_path / "b", label_key=None, progress=False)
    assert index.num_classes is None
    assert_holds(index, GREY[..., None], None)


@pytest.mark.parametrize("is_zipped", [False, True])
def test_idx_pair_by_folder_and_by_file(tmp_path: Path, is_zipped: bool) -> None:
    end, squeeze = (".gz", gzip.compress) if is_zipped else ("", bytes)
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, rows in (("train", slice(0, 30)), ("t10k", slice(30, 40))):
        (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(squeeze(idx(GREY[rows])))
        labels = LABELS[rows].astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(squeeze(idx(labels)))
    train = packing.pack(folder, tmp_path / "train", progress=False)
    assert_holds(train, GREY[:30, ..., None], LABELS[:30])
    test = folder / f"t10k-images-idx3-ubyte{end}"
    assert_holds(
        packing.pack(test, tmp_path / "t10k", progress=False), GREY[30:, ..., None], LABELS[30:]
    )


def test_subfolders_are_classes_sorted_by_name(tmp_path: Path) -> None:
    names = ["zebra/1.png", "ant/deep/2.bmp", "ant/3.PNG", "bee/4.webp"]
    save_pictures(tmp_path / "in", COLOUR, names[:3])
    (tmp_path / "in/bee").mkdir()
    Image.fromarray(COLOUR[3]).save(tmp_path / "in" / names[3], lossless=True)
    (tmp_path / "in/ant/notes.txt").write_text("no image")
    index = packing.pack(tmp_path / "in", tmp_path / "out", progress=False)
    assert index.class_names == ("ant", "bee", "zebra")
    assert_holds(index, COLOUR[:4], np.array([2, 0, 0, 1]))
    unlabelled = packing.pack(tmp_path / "in", tmp_path / "null", label_key=None, progress=False)
    assert_holds(unlabelled, COLOUR[:4], None)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", GREY, ["b.png", "a.png"])
    index = packing.pack(tmp_path / "in", tmp_path / "out", progress=False)
    assert_holds(index, GREY[:2, ..., None], None)


def test_palette_and_bilevel_images_lose_nothing(tmp_path: Path) -> None:
    for name, mode in (("p", "P"), ("one", "1")):
        folder = tmp_path / name
        folder.mkdir()
        picture = Image.fromarray(COLOUR[0]).convert(mode)
        picture.save(folder / "a.png")
        wanted = np.asarray(picture.convert("RGB" if mode == "P" else "L"))
        index = packing.pack(folder, tmp_path / f"{name}-out", progress=False)
        assert_holds(index, wanted.reshape(1, 6, 5, -1), None)


def test_sizes_may_vary(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for height, width in ((9, 12), (11, 10)):
        Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / f"{height}.png")
    index = packing.pack(folder, tmp_path / "out", progress=False)
    assert index.image_shape is None and index.smallest_size == (9, 10)


def test_arrays_in_memory(tmp_path: Path) -> None:
    source = ArraySource(COLOUR, LABELS, class_names=list("abcd"))
    index = packing.pack(source, tmp_path / "out", progress=False)
    assert index.class_names == ("a", "b", "c", "d")
    assert_holds(index, COLOUR, LABELS)
