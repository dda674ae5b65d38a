import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ddpm.data import packing
from ddpm.data.source import PictureSource
from ddpm.data.source_kinds import open_source
from ddpm.errors import InputError
from tests.support.shard_data import (
    COLOUR,
    GREY,
    LABELS,
    as_multiset,
    assert_holds,
    picture,
    problems_of,
    stored,
)


def parquet(path: Path, rows: slice, **columns: object) -> None:
    """Rows of COLOUR as Hugging Face's datasets writes them."""
    cells = [{"bytes": picture(one), "path": None} for one in COLOUR[rows]]
    names = {"_type": "ClassLabel", "names": ["ant", "bee", "cat", "dog"]}
    table = pyarrow.table({"image": cells, "label": LABELS[rows], **columns})
    info = json.dumps({"info": {"features": {"label": names}}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": info}), path)


def test_parquet_by_file_and_by_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    parquet(folder / "train-00000-of-00002.parquet", slice(0, 30))
    parquet(folder / "train-00001-of-00002.parquet", slice(30, 40))
    index = packing.pack(open_source(folder), tmp_path / "out")
    assert_holds(index, COLOUR, LABELS)
    assert index.class_names == ("ant", "bee", "cat", "dog")
    one = open_source(folder / "train-00001-of-00002.parquet", None)
    assert one.num_samples == 10 and not one.has_labels
    assert one.notes[0].endswith("1 column(s) not read: label")


def test_a_bad_parquet_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    parquet(path, slice(0, 4), kind=["a", "b", "c", "d"], raw=[picture(GREY[0])] * 3 + [b"no"])
    for key, word in (("x", "has no column 'x'"), ("kind", "whole numbers")):
        assert word in problems_of(lambda: open_source(path, key))[0]  # noqa: B023
    assert "encoded pictures" in problems_of(lambda: open_source(path, image_key="kind"))[0]
    (problem,) = problems_of(lambda: open_source(path, image_key="raw").load())
    assert problem.startswith(f"{path}: row 3: not a readable")
    path.write_bytes(path.read_bytes()[:-30])
    assert str(path) in problems_of(lambda: open_source(path))[0]


def test_parts_in_one_folder_of_parquet_are_the_split_and_others_are_counted(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    parquet(folder / "train-00000-of-00002.parquet", slice(0, 20))
    parquet(folder / "train-00001-of-00002.parquet", slice(20, 30))
    parquet(folder / "test-00000-of-00001.parquet", slice(30, 40))
    parquet(folder / "extra-00000-of-00001.parquet", slice(0, 40))
    (folder / "README.md").write_text("of ants")
    source = open_source(folder)
    assert source.split == (("train", 30), ("test", 10))
    assert "30 images of train and 10 images of test, the split that is there" in source.notes[0]
    unread = "2 file(s) or folder(s) not read: README.md, extra-00000-of-00001.parquet"
    assert source.notes[1] == f"{folder}: {unread}"
    index = packing.pack(source, tmp_path / "out")
    held_out = stored(index)[30:]
    assert as_multiset(held_out, index.labels[30:]) == as_multiset(list(COLOUR[30:]), LABELS[30:])
    (folder / "test-00000-of-00001.parquet").unlink()
    alone = open_source(folder)
    assert (alone.num_samples, alone.split) == (30, ())
    for number in (0, 1):
        (folder / f"train-0000{number}-of-00002.parquet").unlink()
    for part in ("test", "validation"):
        parquet(folder / f"{part}-00000-of-00001.parquet", slice(30, 40))
    (problem,) = problems_of(lambda: open_source(folder))
    assert "test, validation, which are parts" in problem and "name one file" in problem


def test_columns_that_hold_no_pictures_or_null_labels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    parquet(path, slice(0, 3), bare=[{"path": "a.png"}] * 3, some=[1, None, None])
    (problem,) = problems_of(lambda: open_source(path, image_key="bare"))
    assert "column 'bare' is struct<path: string>; give encoded pictures" in problem
    (problem,) = problems_of(lambda: open_source(path, "some"))
    assert problem == f"{path}: 2 labels of column 'some' are null; give numbers"


def test_labels_that_are_no_classes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    huge = pyarrow.array([0, 1_000_001, 2**63], pyarrow.uint64())
    parquet(tmp_path / "in.parquet", slice(0, 3), huge=huge, below=[0, 1, -1])
    pairs = [[f"00000/img{row:08d}.png", 10**6 + row] for row in range(8)]
    for path, key, problem in (
        (tmp_path / "in.parquet", "huge", "2 labels are above 1000000, the first is 1000001 of"),
        (tmp_path / "in.parquet", "below", "1 labels are below 0, the first is -1 of image 2"),
        (edm_zip(tmp_path / "in.zip", pairs), "labels", "7 labels are above 1000000, the first"),
    ):
        source, out = open_source(path, key), tmp_path / "out"
        for refused in (source.load, lambda: packing.pack(source, out)):  # noqa: B023
            assert problem in problems_of(refused)[0]
        assert not out.exists()


@pytest.mark.slow
def test_a_column_of_pictures_is_not_copied(tmp_path: Path) -> None:
    """One array of binary holds 2 GiB at most; chunks hold any number of bytes."""
    path = tmp_path / "in.parquet"
    cells = [np.random.default_rng(row).bytes(1 << 18) for row in range(64)]
    table = pyarrow.table({"image": [{"bytes": cell, "path": None} for cell in cells]})
    pyarrow.parquet.write_table(table, path, row_group_size=4, compression="none")
    source = open_source(path, None)
    assert isinstance(source, PictureSource)
    assert [source.pictures[row] for row in (0, 4, 63)] == [cells[0], cells[4], cells[63]]
    script = (  # the most that Arrow holds is counted over a whole process
        "import pyarrow, sys; from ddpm.data import open_source\n"
        "source = open_source(sys.argv[1], None); print(pyarrow.default_memory_pool().max_memory())"
    )
    command = [sys.executable, "-c", script, str(path)]
    peak = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert peak < 1.5 * table.nbytes


def test_a_column_beyond_memory_is_laid_down_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm.data.pictures._MEMORY_SHARE", 0)
    monkeypatch.setattr("ddpm.data.pictures._ROWS", 7)
    path, out = tmp_path / "in.parquet", tmp_path / "out"
    parquet(path, slice(0, 40), bare=[None] * 40)
    (problem,) = problems_of(lambda: open_source(path))
    assert "bytes of memory" in problem and f"pack {path} OUT_DIR" in problem
    for _ in range(2):  # the second time it is there already
        source = open_source(path, stage=out / packing.STAGE)
        assert (out / packing.STAGE / "pictures").is_file()
        assert_holds(packing.pack(source, out), COLOUR, LABELS)
        assert not list(out.glob(".*"))
    with pytest.raises(InputError, match="give encoded pictures"):
        open_source(path, image_key="label", stage=tmp_path / "stage")


def edm_zip(path: Path, labels: object, **more: bytes) -> Path:
    """Eight pictures and dataset.json, as EDM's dataset tool writes them."""
    with zipfile.ZipFile(path, "w") as archive:
        for row in range(8):
            archive.writestr(f"00000/img{row:08d}.png", picture(COLOUR[row]))
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
        for name, data in more.items():
            archive.writestr(name, data)
    return path


def test_edms_zip_with_its_labels(tmp_path: Path) -> None:
    pairs = [[f"00000/img{row:08d}.png", int(LABELS[row])] for row in range(8)]
    path = edm_zip(tmp_path / "a.zip", pairs, readme=b"hello")
    source = open_source(path)
    assert "1 file(s) not read: readme" in source.notes[0]
    assert_holds(packing.pack(source, tmp_path / "a"), COLOUR[:8], LABELS[:8])
    plain = packing.pack(open_source(edm_zip(tmp_path / "b.zip", None)), tmp_path / "b")
    assert_holds(plain, COLOUR[:8], None)
    for wrong, word in ((pairs[1:], "have no label"), ([["a", 1.5]], "whole number")):
        assert word in problems_of(lambda: open_source(edm_zip(tmp_path / "c.zip", wrong)))[0]  # noqa: B023
    content = bytearray(path.read_bytes())
    content[80] ^= 1
    path.write_bytes(content)
    assert "img00000000.png" in problems_of(lambda: open_source(path).load())[0]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("5", "has labels 5; give a list of [name, class]"),
        ("[" * 100_000, "is nested too deeply"),
        ('[["00000/img00000000.png", 1' + "0" * 30 + "]]", "give [name, whole number]"),
    ],
)
def test_a_dataset_json_of_something_else_is_refused(
    tmp_path: Path, labels: str, problem: str
) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("00000/img00000000.png", picture(COLOUR[0]))
        archive.writestr("dataset.json", f'{{"labels": {labels}}}')
    (found,) = problems_of(lambda: open_source(path))
    assert found.startswith(f"{path}: dataset.json") and problem in found


def test_an_encrypted_dataset_json_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("dataset.json", "{}")
        archive.getinfo("dataset.json").flag_bits |= 1
    assert "encrypted" in problems_of(lambda: open_source(tmp_path / "in.zip"))[0]


def test_the_pictures_of_an_lmdb(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "in"), map_size=1 << 24) as data, data.begin(write=True) as write:
        for row, pixels in enumerate(COLOUR):
            write.put(b"%06d" % row, picture(pixels, "WEBP", lossless=True))
        write.put(b"length", b"40")
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    for path in (tmp_path / "in", tmp_path / "in" / "data.mdb"):
        source = open_source(path)
        assert source.notes == (f"{path}: 1 value(s) not read: b'length'",)
        index = packing.pack(source, tmp_path / path.name.replace("in", "out"))
        assert_holds(index, COLOUR, None)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    assert "no labels" in problems_of(lambda: open_source(tmp_path / "in", "kind"))[0]
    (tmp_path / "bad.mdb").write_bytes(b"x" * 9000)
    assert "not a readable LMDB" in problems_of(lambda: open_source(tmp_path / "bad.mdb"))[0]
