import gzip
import io
import logging
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ddpm.data.index import index_foreign, open_index, verify_shards
from tests.support.shard_data import (
    COLOUR,
    GREY,
    PNG,
    Trap,
    flip,
    lying_npy,
    member,
    npy,
    picture,
    problems_of,
    sorted_shards,
    stored,
    write_tar,
)


def test_foreign_shards_are_indexed_in_place(tmp_path: Path) -> None:
    flat = np.full((6, 5, 3), 130, np.uint8)  # survives JPEG
    write_tar(
        tmp_path / "train-0.tar",
        [
            member("./", type=tarfile.DIRTYPE),
            ("a/0001.png", picture(COLOUR[0])),
            ("a/0001.cls", b"3\n"),
            ("a/0002.json", b'{"label": 1, "caption": "a cat"}'),
            ("a/0002.webp", picture(COLOUR[1], "WEBP", lossless=True)),
        ][1:],
    )
    write_tar(
        tmp_path / "train-1.tar",
        [
            ("0003.npy", npy(COLOUR[2])),
            ("0003.cls", b"0"),
            ("0004.JPEG", picture(flat, "JPEG", quality=100)),
            ("0004.json", b'{"label": 2}'),
            ("0004.cls", b"2"),
        ],
        tarfile.PAX_FORMAT,
    )
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    index = index_foreign(tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    np.testing.assert_array_equal(np.stack(stored(index)[:3]), COLOUR[:3])
    assert abs(stored(index)[3].astype(int) - flat).max() <= 1
    assert index.labels is not None and index.labels.tolist() == [3, 1, 0, 2]
    assert not index.is_shuffled and index.image_shape == (3, 6, 5) and index.num_classes == 4
    assert open_index(tmp_path) == index
    verify_shards(index)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_times_of_common_tars_are_understood(tmp_path: Path, kind: int) -> None:
    name = "/".join(["long" * 12] * 4) + "/0001"
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        for end, data in ((".png", picture(GREY[0])), (".cls", b"1")):
            info = member(name + end, size=len(data), mtime=1700000000.5)
            tar.addfile(info, io.BytesIO(data))
    index = index_foreign(tmp_path)
    np.testing.assert_array_equal(stored(index)[0], GREY[0][..., None])


def link(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target), b""


def sparse_pax(name: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    records = b"".join(
        f"{len(text) + 4} {text}\n".encode() for text in ("GNU.sparse.realsize=999999999999",)
    )
    return [(member("pax", type=b"x", size=len(records)), records), (member(name), b"")]


HOSTILE: dict[str, tuple[list[tuple[str | tarfile.TarInfo, bytes]], str, str]] = {
    # members, the member named, a word of the reason
    "pickle": ([("a.png", PNG), ("a.pkl", b"TRAP")], "a.pkl", "extension"),
    "pickle long": ([("a.png", PNG), ("a.pickle", b"TRAP")], "a.pickle", "extension"),
    "pyd": ([("a.png", PNG), ("a.pyd", b"TRAP")], "a.pyd", "extension"),
    "torch": ([("a.png", PNG), ("a.pth", b"TRAP")], "a.pth", "extension"),
    "two extensions": ([("a.x.png", PNG)], "a.x.png", "extension"),
    "pickle as npy": ([("a.npy", b"TRAP")], "a.npy", "not what"),
    "objects in npy": ([("a.npy", b"OBJECTS")], "a.npy", "objects"),
    "symlink": ([link("a.png", tarfile.SYMTYPE, "/etc/passwd")], "a.png", "symbolic link"),
    "hard link": ([link("a.png", tarfile.LNKTYPE, "b.png")], "a.png", "hard link"),
    "device": ([link("a.png", tarfile.CHRTYPE)], "a.png", "device"),
    "block device": ([link("a.png", tarfile.BLKTYPE)], "a.png", "device"),
    "fifo": ([link("a.png", tarfile.FIFOTYPE)], "a.png", "FIFO"),
    "upwards": ([("../../marker.png", PNG)], "../../marker.png", "'..'"),
    "upwards inside": ([("a/../../marker.png", PNG)], "a/../../marker.png", "'..'"),
    "upwards folder": ([link("../out", tarfile.DIRTYPE)], "../out", "'..'"),
    "absolute": ([("/tmp/marker.png", PNG)], "/tmp/marker.png", "absolute"),
    "shell": ([("a;touch marker.png", PNG)], "a;touch marker.png", "characters"),
    "newline": ([("a\nb.png", PNG)], "a\\nb.png", "characters"),
    "unicode": ([("\u202e.png", PNG)], ".png", "characters"),
    "no key": ([(".png", PNG)], ".png", "no name"),
    "twice": ([("a.png", PNG), ("a.png", PNG)], "a.png", "twice"),
    "key twice": ([("a.png", PNG), ("b.png", PNG), ("a.png", PNG)], "sample a", "twice"),
    "two images": ([("a.png", PNG), ("a.jpg", PNG)], "a.jpg", "second image"),
    "no image": ([("a.cls", b"1"), ("b.png", PNG)], "sample a", "no image"),
    "giant": ([(member("a.png", size=2**32), b"")], "a.png", str(2**32)),
    "pax sparse": (sparse_pax("a.png"), "a.tar", "sparse"),
    "gnu sparse": ([link("a.png", tarfile.GNUTYPE_SPARSE)], "a.png", "sparse"),
    "label text": ([("a.png", PNG), ("a.cls", b"3.0")], "a.cls", "'3.0'"),
    "label empty": ([("a.png", PNG), ("a.cls", b"")], "a.cls", "''"),
    "label negative": ([("a.png", PNG), ("a.cls", b"-1")], "a.cls", "'-1'"),
    "label nan": ([("a.png", PNG), ("a.cls", b"NaN")], "a.cls", "'NaN'"),
    "label huge": ([("a.png", PNG), ("a.cls", b"1" * 5000)], "a.cls", "whole number"),
    "label true": ([("a.png", PNG), ("a.json", b'{"label": true}')], "a.json", "True"),
    "labels differ": ([("a.png", PNG), ("a.cls", b"1"), ("a.json", b'{"label": 2}')], "a", "two"),
    "json broken": ([("a.png", PNG), ("a.json", b"{")], "a.json", "JSON"),
    "json deep": ([("a.png", PNG), ("a.json", b"[" * 100_000)], "a.json", "JSON"),
    "label bytes": ([("a.png", PNG), ("a.cls", bytes(2**21))], "a.cls", "bytes"),
    "broken image": ([("a.png", PNG[:40])], "a.png", ""),
    "alpha": ([("a.png", picture(np.zeros((4, 4, 4), np.uint8)))], "a.png", "alpha"),
    "float range": ([("a.npy", npy(np.full((4, 4, 1), 1.5, np.float32)))], "a.npy", "[0, 1]"),
    "npy lies": ([("a.npy", lying_npy((2**20, 2**20)))], "a.npy", "promises"),
    "no samples": ([], "a.tar", "no samples"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_shards_are_refused_and_do_nothing(tmp_path: Path, case: str) -> None:
    import pickle

    members, named, word = HOSTILE[case]
    data, marker = tmp_path / "data", tmp_path / "marker"
    data.mkdir()
    trap = pickle.dumps(Trap(marker))
    objects = npy(np.array([Trap(marker)], object))
    real = {b"TRAP": trap, b"OBJECTS": objects}
    filled = []
    for name, content in members:
        content = real.get(content, content)
        if isinstance(name, str):
            info = member(name, size=len(content))
            name = info
        filled.append((name, content))
    write_tar(data / "a.tar", filled)
    write_tar(data / "b.tar", [("good.png", PNG), ("good.cls", b"0")])
    found = problems_of(lambda: index_foreign(data))
    assert any("a.tar" in p and named in p and word in p for p in found), found
    assert not any("b.tar" in problem for problem in found)
    assert sorted(path.name for path in data.iterdir()) == ["a.tar", "b.tar"]
    assert list(tmp_path.iterdir()) == [data] and not Path("/tmp/marker.png").exists()


def test_the_trap_of_the_hostile_shards_can_spring(tmp_path: Path) -> None:
    import pickle

    pickle.loads(pickle.dumps(Trap(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_problems_of_all_foreign_shards_come_at_once(tmp_path: Path) -> None:
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", [("1.png", PNG), ("1.pkl", b"x"), ("2.cls", b"x")])
    found = problems_of(lambda: index_foreign(tmp_path))
    assert len(found) == 9 and all(f"{name}.tar" in " ".join(found) for name in "abc")


def test_samples_of_other_kinds_contradict(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.png", PNG), ("1.cls", b"0"), ("2.png", PNG)])
    write_tar(tmp_path / "b.tar", [("3.png", picture(COLOUR[0])), ("3.cls", b"1")])
    write_tar(tmp_path / "c.tar", [("4.npy", npy(GREY[0] / 255)), ("4.cls", b"1")])
    found = problems_of(lambda: index_foreign(tmp_path))
    assert len(found) == 3
    for problem, word in zip(found, ("no label", "3 channels", "float32"), strict=True):
        assert word in problem


def test_folders_of_foreign_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_tar(tmp_path / "good.tar", [("1.png", PNG)])
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(good, folder / "ok.tar")
    (folder / "linked.tar").symlink_to(good)
    (folder / "zipped.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    shutil.copy(good, folder / "sp ace.tar")
    found = problems_of(lambda: index_foreign(folder))
    assert len(found) == 3
    assert all(any(n in p for p in found) for n in ("linked", "zipped", "sp ace"))
    for name in ("linked.tar", "zipped.tar.gz", "sp ace.tar"):
        (folder / name).unlink()
    (folder / "ok.tar").write_bytes(gzip.compress(good.read_bytes()))
    assert "compressed" in problems_of(lambda: index_foreign(folder))[0]
    shutil.copy(good, folder / "ok.tar")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "read-only" in problems_of(lambda: index_foreign(folder))[0]
    assert [path.name for path in folder.iterdir()] == ["ok.tar"]


@pytest.mark.slow
def test_class_sorted_shards_are_warned_of(
    tmp_path: Path, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sorted_shards(tmp_path / "sorted", "abc", 20)
    with caplog.at_level(logging.WARNING):
        index_foreign(tmp_path / "sorted")
    assert "sorted by class" in caplog.text and "sorted" in caplog.text
    caplog.clear()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(next(digits.glob("*.tar")), mixed)
    with caplog.at_level(logging.WARNING):
        assert index_foreign(mixed).labels is not None
    assert caplog.text == ""


@pytest.mark.slow
def test_a_flipped_bit_in_a_header_is_found(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", PNG), ("2.png", PNG)])
    second = 512 + -(-len(PNG) // 512) * 512
    for start in (0, second):
        for byte in range(start, start + 512, 5):
            flip(path, byte, byte % 8)
            assert "a.tar" in problems_of(lambda: index_foreign(tmp_path))[0]
            flip(path, byte, byte % 8)
    assert index_foreign(tmp_path).num_samples == 2


@pytest.mark.parametrize("size", [b"-0000000001", b"0x000000010", b"00000000_10", b"\xff" * 12])
def test_sizes_that_are_no_octal_numbers_are_refused(tmp_path: Path, size: bytes) -> None:
    header = bytearray(member("1.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[148:156] = size.ljust(12, b"\0"), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(header + bytes(20 * 512))
    (problem,) = problems_of(lambda: index_foreign(tmp_path))
    assert "damaged" in problem or "says it has" in problem


@pytest.mark.parametrize("length", [1, 100])
def test_a_page_in_a_shards_place_is_no_tar(tmp_path: Path, length: int) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>log in</html>" * length)
    assert "is no tar (it begins `<html>log `)" in problems_of(lambda: index_foreign(tmp_path))[0]
    write_tar(tmp_path / "a.tar", [("1.png", PNG)])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: 200 + 250 * (length > 1)])
    assert "is truncated" in problems_of(lambda: index_foreign(tmp_path))[0]
