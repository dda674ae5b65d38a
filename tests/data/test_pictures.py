import json
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ddpm.data import packing
from ddpm.data.sources import open_source
from tests.support.shard_data import COLOUR, GREY, LABELS, assert_holds, picture, problems_of


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
    index = packing.pack(folder, tmp_path / "out", progress=False)
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
    assert_holds(packing.pack(source, tmp_path / "a", progress=False), COLOUR[:8], LABELS[:8])
    plain = packing.pack(edm_zip(tmp_path / "b.zip", None), tmp_path / "b", progress=False)
    assert_holds(plain, COLOUR[:8], None)
    for wrong, word in ((pairs[1:], "have no label"), ([["a", 1.5]], "whole number")):
        assert word in problems_of(lambda: open_source(edm_zip(tmp_path / "c.zip", wrong)))[0]  # noqa: B023
    content = bytearray(path.read_bytes())
    content[80] ^= 1
    path.write_bytes(content)
    assert "img00000000.png" in problems_of(lambda: open_source(path).load())[0]
