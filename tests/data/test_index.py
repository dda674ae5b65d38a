import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddpm.data import packing, preparing
from ddpm.data.index import Index, open_index, verify_shards
from ddpm.data.source import ArraySource
from tests.support.shard_data import (
    COLOUR,
    LABELS,
    PNG,
    flip,
    problems_of,
    sorted_shards,
    write_tar,
)


@pytest.fixture
def packed(tmp_path: Path) -> Index:
    source = ArraySource(COLOUR, LABELS)
    return packing.pack(source, tmp_path / "packed", samples_per_shard=10)


def test_verify_finds_every_flipped_bit(packed: Index) -> None:
    draw = random.Random(1)
    for _ in range(30):
        shard = draw.choice(packed.shards)
        path = packed.folder / shard.name
        byte, bit = draw.randrange(shard.bytes), draw.randrange(8)
        flip(path, byte, bit)
        (problem,) = problems_of(lambda: verify_shards(packed))
        assert str(path) in problem and "SHA-256" in problem
        offsets, sizes = packed.table["offset"], packed.table["size"]
        number = packed.shards.index(shard)
        rows = range(packed.starts[number], packed.starts[number + 1])
        hit = [row for row in rows if offsets[row] <= byte < offsets[row] + sizes[row]]
        assert problem.endswith(f"damaged images: {hit[0]}" if hit else "outside the images")
        flip(path, byte, bit)
    verify_shards(packed)


def test_all_missing_truncated_and_unknown_shards_are_found_at_once(packed: Index) -> None:
    paths = [packed.folder / shard.name for shard in packed.shards]
    paths[0].unlink()
    os.truncate(paths[1], 1000)
    shutil.copy(paths[2], packed.folder / "other.tar")
    found = problems_of(lambda: open_index(packed.folder))
    assert len(found) == 3
    assert "missing" in found[0] and "1000 bytes" in found[1] and "other.tar" in found[2]
    flip(paths[3], 700)
    assert len(problems_of(lambda: verify_shards(packed))) == 5  # paths 1 and 3 by SHA-256 too


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_table_of_samples_is_refused(packed: Index, damage: str) -> None:
    path = packed.folder / packed.table_file
    if damage == "flip":
        flip(path, path.stat().st_size - 3)
    elif damage == "cut":
        os.truncate(path, 200)
    else:
        path.unlink()
    (problem,) = problems_of(lambda: open_index(packed.folder).table)
    assert packed.table_file in problem


def edits() -> dict[str, Callable[[dict], object]]:
    return {
        "format": lambda c: c.update(format=2),
        "name": lambda c: c["shards"][0].update(name="../../a.tar"),
        "hidden": lambda c: c["shards"][0].update(name="/etc/passwd"),
        "table": lambda c: c.update(table_file="../x.npy"),
        "count": lambda c: c.update(num_samples=7),
        "sha": lambda c: c["shards"][0].update(sha256="0" * 64),
        "key": lambda c: c.pop("dtype"),
        "more": lambda c: c.update(surprise=1),
        "list": lambda c: c.update(shards=[]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("edit", edits())
def test_an_edited_index_is_refused(packed: Index, edit: str) -> None:
    path = packed.folder / "index.json"
    content = json.loads(path.read_text())
    edits()[edit](content)
    path.write_text(json.dumps(content))
    assert "not an index" in problems_of(lambda: open_index(packed.folder))[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000])
def test_broken_json_is_no_index(packed: Index, content: str) -> None:
    (packed.folder / "index.json").write_text(content)
    assert "not an index" in problems_of(lambda: open_index(packed.folder))[0]


def test_refresh_takes_new_foreign_shards_but_not_lost_packed_ones(
    tmp_path: Path, packed: Index
) -> None:
    folder = tmp_path / "foreign"
    sorted_shards(folder, "ab", 5)
    assert preparing.refresh(folder).num_samples == 10
    sorted_shards(folder, "abc", 5)
    assert preparing.refresh(folder).num_samples == 15
    assert len(list(folder.glob("samples-*.npy"))) == 1
    (packed.folder / packed.shards[0].name).unlink()
    assert "missing" in problems_of(lambda: preparing.refresh(packed.folder))[0]


def test_a_file_of_somebody_else_is_never_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sorted_shards(tmp_path, "ab", 20)
    own = np.zeros(3)
    np.save(tmp_path / "samples-1.npy", own)
    np.save(tmp_path / "samples-0123abcd.npy", own)
    (tmp_path / "index.json").write_text('{"format": "webdataset", "shards": 3}')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for act in (preparing.refresh, open_index):
        assert "another program" in problems_of(lambda: act(tmp_path))[0]  # noqa: B023
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "index.json").unlink()
    (tmp_path / "more").mkdir()
    index = preparing.refresh(tmp_path)
    assert all((tmp_path / f"samples-{name}.npy").exists() for name in ("1", "0123abcd"))
    beside = "3 not read beside the shards: more, samples-0123abcd.npy, samples-1.npy"
    assert f"{tmp_path}: {beside}" in caplog.messages
    (tmp_path / "index.json").write_text((tmp_path / "index.json").read_text()[:99])
    assert preparing.refresh(tmp_path).sha256 == index.sha256  # a damaged one of ours is made anew


def test_json_members_without_a_label_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [
        (f"{n}.{kind}", PNG if kind == "png" else b'{"class": 3}')
        for n in range(5)
        for kind in ("png", "json")
    ]
    write_tar(tmp_path / "a.tar", members)
    assert preparing.refresh(tmp_path).num_classes is None
    assert '5 JSON member(s) without a "label"' in caplog.text and "and 2 more" in caplog.text
