import gzip
import io
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddpm.data import packing
from ddpm.data.source_kinds import open_source
from ddpm.errors import InputError
from tests.support.shard_data import (
    COLOUR,
    GREY,
    LABELS,
    Trap,
    as_multiset,
    idx,
    lying_npy,
    npy,
    picture,
    problems_of,
    run_python,
    save_pictures,
)


def raw_npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


BAD_NPZ: dict[str, tuple[dict[str, NDArray], list[str]]] = {
    "no images": (
        {"x": GREY, "labels": LABELS},
        ["'images'", "x, labels", "then DATASET.PATH=DIR"],
    ),
    "no labels": ({"images": GREY}, ["'labels'", "LABEL_KEY"]),
    "flat": ({"images": GREY.reshape(40, 30), "labels": LABELS}, ["(40, 30)", "(N, H, W, C)"]),
    "channels first": (
        {"images": COLOUR.transpose(0, 3, 1, 2).repeat(2, axis=3), "labels": LABELS},
        ["images of shape (40, 3, 6, 10) look like (N, C, H, W); give (N, H, W, C)"],
    ),
    "empty": ({"images": GREY[:0], "labels": LABELS[:0]}, ["(0, 6, 5)"]),
    "int64": ({"images": GREY.astype(int), "labels": LABELS}, ["int64", "uint8"]),
    "complex": ({"images": GREY * 1j, "labels": LABELS}, ["complex128"]),
    "above 1": ({"images": GREY / 1.0, "labels": LABELS}, ["outside [0, 1]", "40 float images"]),
    "nan": (
        {"images": np.where(GREY == GREY[5, 0, 0], np.nan, 0.5), "labels": LABELS},
        ["nan", "[0, 1]"],
    ),
    "text": ({"images": GREY, "labels": np.array(["3.0"] * 40)}, ["<U3", "whole numbers"]),
    "float labels": ({"images": GREY, "labels": LABELS / 1.0}, ["float64", "whole numbers"]),
    "too few labels": ({"images": GREY, "labels": LABELS[1:]}, ["(39,)", "(40,)"]),
    "one-hot": ({"images": GREY, "labels": np.eye(40, dtype=int)}, ["(40, 40)"]),
    "negative": ({"images": GREY, "labels": LABELS - 1}, ["10 labels are below 0", "image 0"]),
    "huge": ({"images": GREY, "labels": LABELS + 2**40}, ["above", str(2**40)]),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_is_refused_in_words_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    arrays, words = BAD_NPZ[case]
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    found = problems_of(lambda: packing.pack(open_source(path), tmp_path / "a/b"))
    assert all(str(path) in problem for problem in found)
    assert all(word in "\n".join(found) for word in words), found
    assert sorted(tmp_path.iterdir()) == [path]


def test_all_problems_of_an_npz_come_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", images=GREY.astype(int)[:, :, 0], labels=LABELS[:3] * 0.5)
    assert (
        len(problems_of(lambda: packing.pack(open_source(tmp_path / "in.npz"), tmp_path / "out")))
        == 4
    )


def test_python_objects_in_an_npz_are_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "in.npz", images=np.array([Trap(marker)], object), labels=LABELS)
    found = problems_of(lambda: packing.pack(open_source(tmp_path / "in.npz"), tmp_path / "out"))
    assert "objects" in found[0] and not marker.exists()
    np.load(tmp_path / "in.npz", allow_pickle=True)["images"]
    assert marker.exists(), "the trap must be able to spring"


LIMITED = """
import resource, sys
from ddpm.data import open_source
from ddpm.errors import InputError
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_source(sys.argv[1]).load()
except InputError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lying header", "bomb", "lying idx", "lying gz"])
def test_bombs_and_lying_headers_take_no_memory(tmp_path: Path, case: str) -> None:
    labels = npy(np.zeros(200_000, int))
    if case == "lying header":
        path = raw_npz(tmp_path / "in.npz", images=lying_npy((2**20, 1024, 1024)), labels=labels)
    elif case == "bomb":
        zeros = npy(np.zeros((200_000, 32, 32), np.uint8))
        path = raw_npz(tmp_path / "in.npz", images=zeros, labels=labels)
        assert path.stat().st_size < 1_000_000
    else:
        path = tmp_path / "a-images-idx3-ubyte"
        content = struct.pack(">HBB3I", 0, 8, 3, 2**20, 1024, 1024) + bytes(1000)
        path.write_bytes(gzip.compress(content) if case == "lying gz" else content)
        (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.zeros(2**20, np.uint8)))
    word = "bomb" if case in ("bomb", "lying gz") else "promises"
    output = run_python(LIMITED, path).communicate(timeout=60)[0].splitlines()
    assert str(path) in output[0] and word in output[0]
    assert int(output[-1]) < 100_000, "kilobytes"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_never_packed(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "in.npz"
    pixels = np.tile(COLOUR, (1, 4, 4, 1))  # more than zipfile reads, and checks, with a header
    save(path, images=pixels, labels=LABELS)
    whole, draw = path.read_bytes(), random.Random(0)
    expected = as_multiset(list(pixels), LABELS)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(whole)) :]
        else:
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = open_source(path).load()
        except InputError:
            refused += 1
        else:  # a bit that says nothing, such as the time of a member
            found = [loaded.images[row] for row in range(len(loaded.images))]
            assert as_multiset(found, loaded.labels) == expected
    assert refused > 100


def test_idx_problems(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(GREY))
    assert "labels file" in problems_of(lambda: open_source(tmp_path))[0]
    assert open_source(tmp_path, None).num_samples == 40
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(LABELS[:39].astype(np.uint8)))
    assert "(39,)" in problems_of(lambda: open_source(tmp_path))[0]
    labels.write_bytes(b"\0\0\x0d\1" + bytes(8))
    path.write_bytes(idx(GREY)[:-1])
    found = problems_of(lambda: open_source(tmp_path))
    assert len(found) == 2 and "promises" in found[0] and "type 0xd" in found[1]
    path.write_bytes(gzip.compress(idx(GREY))[:-20])
    labels.write_bytes(idx(LABELS.astype(np.uint8)))
    assert "damaged" in problems_of(lambda: open_source(tmp_path).load())[0]


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """File name -> content, a word of the reason."""
    grey, png = GREY[0], picture(COLOUR[0])
    rgba = np.dstack([COLOUR[0], GREY[0]])
    deep = bytearray(png)
    deep[24] = 16  # bit depth: 16-bit colour, which Pillow would cut to 8 bits in silence
    deep[29:33] = struct.pack(">I", zlib.crc32(deep[12:29]))
    wide = bytearray(picture(grey))
    wide[16:24] = struct.pack(">2I", 60_000, 60_000)
    wide[29:33] = struct.pack(">I", zlib.crc32(wide[12:29]))
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    animated = {}
    for kind in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        frames[0].convert("RGB").save(buffer, kind, save_all=True, append_images=frames[1:])
        animated[kind] = buffer.getvalue()
    cmyk = io.BytesIO()
    Image.new("CMYK", (4, 4)).save(cmyk, "JPEG")
    clear = io.BytesIO()
    Image.fromarray(COLOUR[0]).convert("P").save(clear, "PNG", transparency=0)
    jpeg = picture(np.tile(COLOUR[0], (20, 20, 1)), "JPEG")
    return {
        "zero.png": (b"", "zero bytes"),
        "text.png": (b"hello, this is no image", "not a readable"),
        "html.jpg": (b"<html>404</html>", "not a readable"),
        "gif.png": (picture(grey, "GIF"), "not a readable"),
        "tiff.png": (picture(grey, "TIFF"), "not a readable"),
        "cut.png": (png[: len(png) // 2], "decoded"),
        "cut-header.png": (png[:20], ""),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "decoded"),
        "cut.webp": (picture(COLOUR[0], "WEBP")[:60], ""),
        "cut.bmp": (picture(COLOUR[0], "BMP")[:60], "decoded"),
        "flipped.png": (png[:60] + bytes([png[60] ^ 255]) + png[61:], ""),
        "deep-grey.png": (picture(grey.astype(np.uint16) * 257), "16 bit"),
        "deep-colour.png": (bytes(deep), "16 bit"),
        "alpha.png": (picture(rgba), "alpha"),
        "alpha.webp": (picture(rgba, "WEBP", lossless=True), "alpha"),
        "grey-alpha.png": (picture(rgba[:, :, 2:]), "alpha"),
        "transparent-palette.png": (clear.getvalue(), "alpha"),
        "animated.png": (animated["PNG"], "animated"),
        "animated.webp": (animated["WEBP"], "animated"),
        "cmyk.jpg": (cmyk.getvalue(), "CMYK"),
        "enormous.png": (bytes(wide), ""),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_all_bad_pictures_are_reported_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    bad = bad_pictures()
    save_pictures(tmp_path / "in", COLOUR, ["good/a.png", "good/b.png"])
    for name, (content, _) in bad.items():
        (tmp_path / "in/good" / name).write_bytes(content)
    found = problems_of(lambda: packing.pack(open_source(tmp_path / "in"), tmp_path / "out"))
    # One reason is one line: the number of pictures, three of them.
    assert len(found) < len(bad) and len({line.split(": ")[1] for line in found}) == len(found)
    assert any(line.startswith("4 pictures: have an alpha channel") for line in found), found
    assert not (tmp_path / "out").exists()
    for name, (content, word) in bad.items():
        folder = tmp_path / "one" / name
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        (problem,) = problems_of(lambda: open_source(folder, None).load())  # noqa: B023
        assert problem.startswith(f"{folder / name}: ") and word in problem


def test_mixed_folders_are_refused(tmp_path: Path) -> None:
    save_pictures(tmp_path / "mixed", COLOUR, ["a/1.png", "a/2.png"])
    Image.fromarray(GREY[0]).save(tmp_path / "mixed/a/odd.png")
    (problem,) = problems_of(lambda: open_source(tmp_path / "mixed").load())
    assert "odd.png is grey" in problem
    save_pictures(tmp_path / "beside", COLOUR, ["a/1.png", "stray.png"])
    assert "beside its class" in problems_of(lambda: open_source(tmp_path / "beside"))[0]
    save_pictures(tmp_path / "gif", COLOUR, ["a.gif", "b.png"])
    assert "a.gif" in problems_of(lambda: open_source(tmp_path / "gif"))[0]
    (tmp_path / "void").mkdir()
    assert "no images" in problems_of(lambda: open_source(tmp_path / "void"))[0]
    assert "does not exist" in problems_of(lambda: open_source(tmp_path / "nowhere"))[0]
    save_pictures(tmp_path / "grey", COLOUR, [f"a/{name}.png" for name in range(9)])
    for name in "wxyz":
        Image.fromarray(GREY[0]).save(tmp_path / f"grey/a/{name}.png")
    (problem,) = problems_of(lambda: open_source(tmp_path / "grey").load())
    assert problem.startswith("4 of 13 pictures are grey") and problem.endswith(" and 1 more")
    (tmp_path / "notes.txt").touch()
    assert "no source" in problems_of(lambda: open_source(tmp_path / "notes.txt"))[0]


def labelled_folder(folder: Path) -> Path:
    """18 pictures of three classes of six."""
    save_pictures(folder, COLOUR, [f"{c}/{n}.png" for c in ("ant", "bee", "cat") for n in range(6)])
    return folder


def test_folders_that_are_links_are_read(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "in")
    expected = open_source(folder).load()
    (folder / "bee").rename(tmp_path / "elsewhere")
    (folder / "bee").symlink_to(tmp_path / "elsewhere")
    found = open_source(folder)
    assert (found.num_samples, found.class_names) == (18, ("ant", "bee", "cat"))
    np.testing.assert_array_equal(found.labels(), expected.labels)
    (folder / "bee/up").symlink_to(folder)
    assert "lies in" in problems_of(lambda: open_source(folder))[0]


@pytest.mark.parametrize("name", ["x.heif", "x.jxl", "x.tif", "x.heic"])
def test_pictures_that_are_not_read_are_refused_with_their_number(
    tmp_path: Path, name: str
) -> None:
    folder = labelled_folder(tmp_path / "in")
    for number in range(5):
        (folder / "bee" / f"{number}{name}").write_bytes(b"picture")
    (problem,) = problems_of(lambda: open_source(folder))
    assert (
        problem.startswith(f"5 files: {Path(name).suffix} is not read") and "and 2 more" in problem
    )


@pytest.mark.parametrize("name", ["{}.jfif", "{}.JPE", "{}"])
def test_pictures_by_other_names_are_pictures(tmp_path: Path, name: str) -> None:
    folder = labelled_folder(tmp_path / "in")
    for number in range(6):
        (folder / f"bee/{number}.png").unlink()
        (folder / "bee" / name.format(number)).write_bytes(picture(COLOUR[0], "JPEG"))
    (folder / "bee" / "b.ppm").write_bytes(picture(COLOUR[7], "PPM"))
    found = open_source(folder)
    assert (found.num_samples, found.class_names) == (19, ("ant", "bee", "cat"))
    assert found.notes == ()
    np.testing.assert_array_equal(found.load().images[12], COLOUR[7])


def test_a_class_without_a_picture_is_a_problem_and_never_a_renumbering(tmp_path: Path) -> None:
    folder = labelled_folder(tmp_path / "in")
    (folder / "awful").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad/notes.txt").write_text("none")
    for litter in (".git", "__MACOSX"):
        (folder / litter).mkdir()
    (problem,) = problems_of(lambda: open_source(folder))
    assert "2 class folder(s) without an image" in problem and "awful, bad" in problem
    assert open_source(folder, None).num_samples == 18


def test_what_is_not_read_is_said_with_its_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = labelled_folder(tmp_path / "in")
    for number in range(5):
        (folder / f"ant/{number}.txt").touch()
    for litter in ("Thumbs.db", ".DS_Store", "ant/desktop.ini"):
        (folder / litter).touch()
    (folder / "labels.csv").touch()
    (folder / "README").write_text("hello")
    (note,) = open_source(folder).notes
    assert "7 file(s) not read: 1 .csv (labels.csv), 5 .txt (ant/0.txt, " in note
    assert "and 2 more" in note and "1 without extension (README)" in note
    packing.pack(open_source(folder), tmp_path / "out")
    assert note in caplog.messages
    np.savez(tmp_path / "in.npz", images=GREY, labels=LABELS, depth=GREY)
    assert "1 array(s) not read: depth" in open_source(tmp_path / "in.npz").notes[0]


@pytest.mark.parametrize("parts", [("test", "val"), ("train",)])
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        labelled_folder(tmp_path / "in" / part)
    (problem,) = problems_of(lambda: open_source(tmp_path / "in"))
    assert "parts of a data set" in problem and str(tmp_path / "in" / parts[-1]) in problem
    assert open_source(tmp_path / "in", None).num_samples == 18 * len(parts)
    assert open_source(tmp_path / "in" / parts[0]).class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.repeat(np.repeat(COLOUR[0], 16, axis=0), 16, axis=1)  # 96x80
    to_stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = np.ascontiguousarray(to_stored(upright))
    more = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    (tmp_path / "in").mkdir()
    name = f"a.{kind.lower()}"
    (tmp_path / "in" / name).write_bytes(picture(stored, kind, exif=exif, **more))
    loaded = open_source(tmp_path / "in").load()
    tolerance = 60 if kind == "JPEG" else 0  # colour is stored at half the resolution
    assert loaded.images[0].shape == upright.shape
    middle = np.s_[8::16, 8::16]
    difference = loaded.images[0][middle].astype(int) - upright[middle]
    assert np.abs(difference).max() <= tolerance
    assert len(loaded.notes) == (orientation != 1)
    assert all("1 image(s) turned upright" in note for note in loaded.notes)


def test_the_first_picture_of_a_phones_mpo_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    views = [Image.fromarray(np.full((8, 8, 3), grey, np.uint8)) for grey in (30, 200)]
    views[0].save(folder / "a.jpg", "MPO", save_all=True, append_images=views[1:])
    with Image.open(folder / "a.jpg") as stored:
        assert stored.format == "MPO" and stored.n_frames == 2
    assert np.abs(open_source(folder).load().images[0].astype(int) - 30).max() < 3


@pytest.mark.parametrize("name", ["ant/9.png", "ant/pipe", "in.npz", "x-images-idx3-ubyte"])
def test_a_pipe_named_like_a_picture_hangs_nothing(tmp_path: Path, name: str) -> None:
    folder = labelled_folder(tmp_path / "in")
    pipe = folder / name
    os.mkfifo(pipe)
    source = folder if name.startswith("ant") else pipe
    assert str(pipe) in problems_of(lambda: open_source(source))[0]
    pipe.unlink()
    pipe.symlink_to(tmp_path / "nowhere")
    assert str(pipe) in problems_of(lambda: open_source(source))[0]


def test_channels_that_cannot_be_scaled_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.npy"
    floats = np.stack([GREY / 1.0, np.full(GREY.shape, 4.5), np.where(GREY == 7, np.inf, GREY)], 3)
    np.save(path, floats)
    found = problems_of(lambda: open_source(path, scale="channels").load())
    assert "values that are not finite, the first is image" in found[0]
    assert "channel 1 is 4.5 everywhere; leave it out" in found[1]
    assert "packing: --scale channels" in problems_of(lambda: open_source(path).load())[0]
    np.save(path, GREY)
    for source in (path, "digits"):
        (problem,) = problems_of(lambda: open_source(source, scale="channels"))  # noqa: B023
        assert "are uint8, which --scale does not change" in problem
    save_pictures(tmp_path / "pictures", GREY, ["a.png"])
    (problem,) = problems_of(lambda: open_source(tmp_path / "pictures", scale="channels"))
    assert "--scale changes nothing of" in problem
