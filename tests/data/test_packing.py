import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import open_source, packing
from ddpm.data.index import open_index, verify_shards
from ddpm.data.source import ArraySource
from ddpm.errors import InputError
from tests.support.processes import forked
from tests.support.shard_data import COLOUR, GREY, LABELS, as_multiset, flip, pack_many, problems_of


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = ArraySource(GREY, LABELS)
    one, two = (packing.pack(source, tmp_path / name, samples_per_shard=7) for name in "ab")
    assert one.shards == two.shards and one.sha256 == two.sha256
    assert [shard.samples for shard in one.shards] == [7, 7, 7, 7, 7, 5]


def test_packing_again_finds_the_shards_and_other_data_is_refused(tmp_path: Path) -> None:
    source, out = ArraySource(GREY, LABELS), tmp_path / "out"
    first = packing.pack(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert packing.pack(source, out) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    other = ArraySource(GREY[:30], LABELS[:30])
    (problem,) = problems_of(lambda: packing.pack(other, out))
    assert "something else" in problem and str(out) in problem


def test_plain_webdataset_reads_our_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    source = ArraySource(COLOUR, LABELS)
    index = packing.pack(source, tmp_path / "out", samples_per_shard=16)
    paths = [str(tmp_path / "out" / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    pixels = [np.asarray(Image.open(io.BytesIO(sample["png"]))) for sample in samples]
    labels = np.array([int(sample["cls"]) for sample in samples])
    assert as_multiset(pixels, labels) == as_multiset(list(COLOUR), LABELS)
    assert [sample["__key__"] for sample in samples] == [f"{row:09d}" for row in range(40)]
    np.testing.assert_array_equal(labels, index.labels)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    source = ArraySource(GREY)
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not empty" in problems_of(lambda: packing.pack(source, tmp_path))[0]
    (tmp_path / "in").mkdir()
    Image.fromarray(GREY[0]).save(tmp_path / "in/a.png")
    inside = tmp_path / "in" / "shards"
    found = problems_of(lambda: packing.pack(open_source(tmp_path / "in"), inside))
    assert "inside the source" in found[0] and not inside.exists()
    file = tmp_path / "thesis.txt"
    assert "is a file" in problems_of(lambda: packing.pack(source, file))[0]
    (bad,) = problems_of(lambda: packing.pack(source, tmp_path / "x", samples_per_shard=0))
    assert "at least 1" in bad and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_packing_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    assert pack_many(tmp_path / "whole") == 0
    out = tmp_path / "killed"
    kept: dict[str, int] = {}
    for wanted in (3, 11):
        process = forked(pack_many, out)
        while len(list(out.glob("*.tar"))) < wanted and process.exitcode is None:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert not (out / "index.json").exists(), "killed too late to show anything"
        assert "index.json" in problems_of(lambda: open_index(out))[0]
        # Shards that the journal knows are not written again.
        finished = [
            json.loads(line)["shard"]
            for line in (out / "packing.jsonl").read_text().splitlines()[1:]
        ]
        inodes = {name: (out / name).stat().st_ino for name in finished}
        assert kept.items() <= inodes.items() and len(finished) >= wanted - 1
        kept = inodes
    assert pack_many(out) == 0
    assert open_index(out).sha256 == open_index(tmp_path / "whole").sha256
    assert kept.items() <= {path.name: path.stat().st_ino for path in out.iterdir()}.items()
    verify_shards(open_index(out))
    assert sorted(path.name for path in out.glob(".*")) == []
    assert not (out / "packing.jsonl").exists()


def test_a_damaged_leftover_is_written_again(tmp_path: Path) -> None:
    source, out = ArraySource(GREY, LABELS), tmp_path / "out"
    whole = packing.pack(source, out, samples_per_shard=10)
    journal = [{"recipe": whole.recipe}]
    journal += [{"shard": shard.name, "sha256": shard.sha256} for shard in whole.shards[:3]]
    lines = "".join(f"{json.dumps(entry)}\n" for entry in journal)
    (out / "packing.jsonl").write_text(lines + '{"shard": "sha')
    (out / "index.json").unlink()
    flip(out / whole.shards[1].name, 600)
    assert packing.pack(source, out, samples_per_shard=10) == whole
    verify_shards(open_index(out))


def test_pictures_of_a_failed_reading_do_not_stay(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bad"), packing.stage(tmp_path / "out") as place:
        place.mkdir(parents=True)
        (place / "pictures").write_bytes(b"...")
        raise InputError("bad")
    assert not any(tmp_path.iterdir())
