import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddpm.data import images, packing
from ddpm.data.index import open_index
from ddpm.data.source import ArraySource
from ddpm.data.source_kinds import open_source
from tests.support.shard_data import (
    COLOUR,
    GREY,
    LABELS,
    assert_holds,
    cifar_archive,
    idx,
    problems_of,
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


@pytest.mark.slow
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
    index = packing.pack(open_source(tmp_path / "in.npz"), tmp_path / "out")
    expected = pixels if pixels.ndim == 4 else pixels[..., None]
    expected = expected if pixels.dtype == np.uint8 else expected.astype(np.float32)
    assert_holds(index, expected, LABELS)
    with tarfile.open(tmp_path / "out" / index.shards[0].name) as tar:
        assert {name.split(".")[1] for name in tar.getnames()} == {extension, "cls"}


def test_label_key_names_the_labels_and_null_leaves_them_out(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, images=GREY, kind=LABELS)
    assert_holds(packing.pack(open_source(path, "kind"), tmp_path / "a"), GREY[..., None], LABELS)
    index = packing.pack(open_source(path, None), tmp_path / "b")
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
    train = packing.pack(open_source(folder), tmp_path / "train")
    assert_holds(train, GREY[:30, ..., None], LABELS[:30])
    test = folder / f"t10k-images-idx3-ubyte{end}"
    assert_holds(
        packing.pack(open_source(test), tmp_path / "t10k"), GREY[30:, ..., None], LABELS[30:]
    )


def test_subfolders_are_classes_sorted_by_name(tmp_path: Path) -> None:
    names = ["zebra/1.png", "ant/deep/2.bmp", "ant/3.PNG", "bee/4.webp"]
    save_pictures(tmp_path / "in", COLOUR, names[:3])
    (tmp_path / "in/bee").mkdir()
    Image.fromarray(COLOUR[3]).save(tmp_path / "in" / names[3], lossless=True)
    (tmp_path / "in/ant/notes.txt").write_text("no image")
    index = packing.pack(open_source(tmp_path / "in"), tmp_path / "out")
    assert index.class_names == ("ant", "bee", "zebra")
    assert_holds(index, COLOUR[:4], np.array([2, 0, 0, 1]))
    unlabelled = packing.pack(open_source(tmp_path / "in", None), tmp_path / "null")
    assert_holds(unlabelled, COLOUR[:4], None)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", GREY, ["b.png", "a.png"])
    index = packing.pack(open_source(tmp_path / "in"), tmp_path / "out")
    assert_holds(index, GREY[:2, ..., None], None)


def test_palette_and_bilevel_images_lose_nothing(tmp_path: Path) -> None:
    for name, mode in (("p", "P"), ("one", "1")):
        folder = tmp_path / name
        folder.mkdir()
        picture = Image.fromarray(COLOUR[0]).convert(mode)
        picture.save(folder / "a.png")
        wanted = np.asarray(picture.convert("RGB" if mode == "P" else "L"))
        index = packing.pack(open_source(folder), tmp_path / f"{name}-out")
        assert_holds(index, wanted.reshape(1, 6, 5, -1), None)


def test_sizes_may_vary(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for height, width in ((9, 12), (11, 10)):
        Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / f"{height}.png")
    index = packing.pack(open_source(folder), tmp_path / "out")
    assert index.image_shape is None and index.smallest_size == (9, 10)


def test_arrays_in_memory(tmp_path: Path) -> None:
    source = ArraySource(COLOUR, LABELS, class_names=list("abcd"))
    index = packing.pack(source, tmp_path / "out")
    assert index.class_names == ("a", "b", "c", "d")
    assert_holds(index, COLOUR, LABELS)


def test_cifar10_by_its_binary_archive_and_by_the_folder_in_it(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    records = cifar_archive(archive)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    for number, path in enumerate((archive, tmp_path / "cifar-10-batches-bin")):
        source = open_source(path)
        assert source.image_shape == (3, 32, 32) and source.notes[0].count("test_batch.bin") == 1
        index = packing.pack(source, tmp_path / str(number))
        assert_holds(index, pixels, records[:, 0].astype(np.int64))
        assert index.class_names == tuple(f"class{n}" for n in range(10))


def test_cifar10s_pickles_are_refused_with_the_archive_to_take(tmp_path: Path) -> None:
    cifar_archive(tmp_path / "cifar-10-python.tar.gz", names="data_batch_{}")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    for path in (tmp_path / "cifar-10-python.tar.gz", tmp_path / "cifar-10-batches-bin"):
        (problem,) = problems_of(lambda: open_source(path))  # noqa: B023
        assert "never loaded" in problem and "cifar-10-binary.tar.gz" in problem
    cifar_archive(tmp_path / "whole.tar.gz")
    content = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    assert "damaged" in problems_of(lambda: open_source(tmp_path / "cut.tar.gz"))[0]


def test_a_single_shard_is_no_source_to_train_on(tmp_path: Path) -> None:
    packing.pack(ArraySource(COLOUR, LABELS), tmp_path / "shards")
    (problem,) = problems_of(lambda: open_source(tmp_path / "shards" / "shard-000000.tar"))
    assert "packed first" in problem and "a folder of plain .tar may be named" in problem


def test_other_labels_of_an_npz_are_other_data(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, images=GREY, kind=LABELS, other=LABELS[::-1], labels=LABELS)
    keys = (None, "labels", "kind", "other")
    assert len({packing.plan_packing(open_source(path, key)).recipe for key in keys}) == len(keys)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A grey, a colour, a translucent and a 16-bit picture, of three sizes."""
    folder = tmp_path / "mixed" / "only"
    folder.mkdir(parents=True)
    grey, colour = np.full((8, 8), 100, np.uint8), np.full((8, 12, 3), 50, np.uint8)
    clear = np.dstack([np.full((20, 8, 3), 200, np.uint8), np.full((20, 8), 0, np.uint8)])
    for name, pixels in (("a", grey), ("b", colour), ("c", clear)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(np.full((8, 8), 32_896, np.uint16)).save(folder / "d.png")  # 128 of 255
    return folder.parent


def test_each_conversion_is_asked_for_and_counted(mixed: Path, tmp_path: Path) -> None:
    (alpha, deep) = problems_of(lambda: open_source(mixed).load())
    assert "--alpha white" in alpha and "--bit-depth 8" in deep
    by = images.Conversions(alpha="black", grey="rgb", bit_depth="8", size=(4, 4), resample="box")
    loaded = open_source(mixed, conversions=by).load()
    values = (100, 50, 0, 128)
    for place, value in enumerate(values):
        np.testing.assert_array_equal(loaded.images[place], np.full((4, 4, 3), value, np.uint8))
    assert loaded.notes == tuple(
        f"{mixed}: {what}"
        for what in (
            "2 image(s) grey made RGB",
            "4 image(s) cropped and resized to 4x4, box",
            "1 image(s) alpha over black",
            "1 image(s) 16 bit scaled to 8",
        )
    )
    index = packing.pack(open_source(mixed, conversions=by), tmp_path / "out")
    assert index.image_shape == (3, 4, 4)
    assert (
        "otherwise"
        in problems_of(
            lambda: packing.pack(open_source(mixed, None, conversions=by), tmp_path / "out")
        )[0]
    )


@pytest.mark.parametrize(("alpha", "value"), [("white", 255), ("black", 0), ("drop", 200)])
def test_alpha(mixed: Path, alpha: Literal["white", "black", "drop"], value: int) -> None:
    data = (mixed / "only/c.png").read_bytes()
    assert (images.decode(data, images.Conversions(alpha=alpha)) == value).all()


def test_sixteen_bits_kept_are_floats(mixed: Path) -> None:
    by = images.Conversions(bit_depth="float")
    pixels = images.decode((mixed / "only/d.png").read_bytes(), by)
    assert pixels.dtype == np.float32 and pixels.shape == (8, 8, 1)
    np.testing.assert_allclose(pixels, 32_896 / 65_535, rtol=1e-7)


def test_arrays_are_converted_and_their_shape_is_known_before(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=GREY, labels=LABELS)
    by = images.Conversions(grey="rgb", size=(4, 4))
    source = open_source(tmp_path / "in.npz", image_key="x", conversions=by)
    assert source.image_shape == (3, 4, 4)
    assert packing.pack(source, tmp_path / "out").image_shape == (3, 4, 4)
    assert any("40 image(s) grey made RGB" in note for note in source.load().notes)
    useless = images.Conversions(alpha="white")
    for problem in (
        problems_of(lambda: open_source("digits", image_key="x"))[0],
        problems_of(lambda: open_source("digits", classes=("1",)))[0],
        problems_of(lambda: open_source("digits", conversions=useless))[0],
    ):
        assert "changes nothing of digits" in problem


def test_chosen_classes_keep_the_order_they_are_given_in(tmp_path: Path) -> None:
    save_pictures(tmp_path / "in", COLOUR, ["ant/1.png", "bee/2.png", "val/3.png", "train/4.png"])
    source = open_source(tmp_path / "in", classes=("val", "ant"))
    assert source.class_names == ("val", "ant") and source.num_samples == 2
    assert source.labels() is not None and source.labels().tolist() == [1, 0]  # type: ignore[union-attr]
    assert "2 file(s) not read" in source.notes[0]
    (problem,) = problems_of(lambda: open_source(tmp_path / "in", classes=("cat",)))
    assert "no pictures of cat" in problem and "ant, bee" in problem


def test_an_npy_is_images_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", COLOUR[..., :2] / 255)
    index = packing.pack(open_source(tmp_path / "in.npy"), tmp_path / "out")
    assert_holds(index, (COLOUR[..., :2] / 255).astype(np.float32), None)
    np.save(tmp_path / "bad.npy", np.array([{}]), allow_pickle=True)
    assert "never loaded" in problems_of(lambda: open_source(tmp_path / "bad.npy"))[0]


@pytest.mark.parametrize("options", [{}, {"chunks": (7, 6, 5, 3), "compression": "gzip"}])
def test_hdf5_in_one_piece_and_in_chunks(tmp_path: Path, options: dict) -> None:
    import h5py

    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("train/x", data=COLOUR, **options)
        file["labels"], file["other"] = LABELS, np.zeros(3)
        file["floats"] = (COLOUR / 255).astype(">f4")
        file["odd"] = [b"a", b"b"]
        file["away"] = h5py.ExternalLink("other.h5", "/x")
        layout = h5py.VirtualLayout((40, 6, 5, 3), np.uint8)
        layout[:] = h5py.VirtualSource("other.h5", "x", (40, 6, 5, 3))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (40, 6, 5), np.uint8, external=[("/etc/passwd", 0, 1200)])
    source = open_source(tmp_path / "in.h5", image_key="train/x")
    assert "6 array(s) not read: away, floats, odd" in source.notes[0]
    assert_holds(packing.pack(source, tmp_path / "out"), COLOUR, LABELS)
    floats = open_source(tmp_path / "in.h5", None, image_key="floats")
    assert_holds(packing.pack(floats, tmp_path / "floats"), (COLOUR / 255).astype(np.float32), None)
    for key, word in (
        ("away", "by a link"),
        ("virtual", "in other files"),
        ("raw", "in other files"),
        ("train", "a group"),
        ("none", "it has: away, floats, labels, odd, other, raw, train/x, virtual; pack it"),
        ("odd", "have shape (2,)"),
    ):
        (problem, *_) = problems_of(lambda: open_source(tmp_path / "in.h5", None, image_key=key))  # noqa: B023
        assert word in problem
    (tmp_path / "bad.h5").write_bytes((tmp_path / "in.h5").read_bytes()[:900])
    assert "not a readable HDF5" in problems_of(lambda: open_source(tmp_path / "bad.h5"))[0]
