"""Shards that other tools wrote, here and at a server, packed anew; webdataset's reader is the
measure of what they hold.
"""

import bz2
import functools
import gzip
import http.server
import io
import json
import lzma
import pickle
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.data import packing
from ddpm.data.index import open_index, scan_folder
from ddpm.data.source import ArraySource, Source
from ddpm.data.source_kinds import open_source
from ddpm.data.tars import shown
from tests.support.shard_data import (
    COLOUR,
    GREY,
    LABELS,
    PNG,
    Trap,
    as_multiset,
    assert_holds,
    member,
    npy,
    picture,
    problems_of,
    stored,
    write_tar,
)

ROWS = range(6)
Files = list[tuple[str, bytes]]


def label(kind: str, row: int) -> bytes:
    number = int(LABELS[row])
    return (
        json.dumps({"label": number, "caption": "é"}).encode() if kind == "json" else b"%d" % number
    )


def files(image: str, kind: str, key: str = "{:06d}") -> Files:
    """Two members a sample, as a shard has them."""
    encoded: dict[str, Callable[[int], bytes]] = {
        "png": lambda row: picture(COLOUR[row]),
        "webp": lambda row: picture(COLOUR[row], "WEBP", lossless=True),
        "npy": lambda row: npy(COLOUR[row]),
        "jpg": lambda row: picture(np.full((6, 5, 3), 40 * row, np.uint8), "JPEG", quality=100),
    }
    return [
        (f"{key.format(row)}.{end}", data)
        for row in ROWS
        for end, data in ((image, encoded[image](row)), (kind, label(kind, row)))
    ]


def by_python(kind: int) -> Callable[[Path, Files], None]:
    def write(path: Path, content: Files) -> None:
        with tarfile.open(path, "w", format=kind) as tar:
            for name, data in content:
                info = member(name, size=len(data), mtime=1700000000.25, uname="é", uid=1000)
                tar.addfile(info, io.BytesIO(data))

    return write


def by_tar(*options: str) -> Callable[[Path, Files], None]:
    """The tar command, of names that may be files."""

    def write(path: Path, content: Files) -> None:
        folder = path.with_suffix(".d")
        for name, data in content:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        subprocess.run(
            ["tar", *options, "-cf", path, "-C", folder, "--", *names], check=True, timeout=60
        )
        shutil.rmtree(folder)

    return write


def by_webdataset(path: Path, content: Files) -> None:
    from webdataset.writer import TarWriter

    samples: dict[str, dict[str, object]] = {}
    for name, data in content:
        key, _, end = name.partition(".") if "." not in name.rpartition("/")[0] else ("", "", "")
        if not key:
            folder, _, base = name.rpartition("/")
            key, end = f"{folder}/{base.partition('.')[0]}", base.partition(".")[2]
        samples.setdefault(key, {"__key__": key})[end] = data
    with path.open("wb") as stream, TarWriter(stream, encoder=False) as writer:
        for sample in samples.values():
            writer.write(sample)


WRITERS = {
    "python ustar": by_python(tarfile.USTAR_FORMAT),
    "python gnu": by_python(tarfile.GNU_FORMAT),
    "python pax": by_python(tarfile.PAX_FORMAT),
    "tar v7": by_tar("--format=v7"),
    "tar oldgnu": by_tar("--format=oldgnu"),
    "tar gnu": by_tar("--format=gnu"),
    "tar ustar": by_tar("--format=ustar"),
    "tar pax": by_tar("--format=pax", "--pax-option=comment=x"),
    "tar posix dirs": by_tar("--format=posix", "--blocking-factor=1"),
    "webdataset": by_webdataset,
}
KEYS = {
    "plain": "{:06d}",
    "folders and dots": "n0.1/{:03d}/a b",
    "long": "/".join(["é" * 40] * 2) + "/{}",
}
KINDS = [("png", "cls"), ("jpg", "json"), ("webp", "txt"), ("npy", "cls")]
CASES = [(writer, image, kind, "plain") for writer in WRITERS for image, kind in KINDS] + [
    (writer, "png", "cls", key)
    for writer in WRITERS
    for key in ("folders and dots", "long")
    if (key != "long" or writer.partition(" ")[2] not in ("v7", "ustar"))
]


def opened(source: object, tmp_path: Path, key: str | None = "labels", **options: object) -> Source:
    return open_source(str(source), key, stage=tmp_path / ".stage", **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "image", "kind", "key"), CASES)
def test_shards_of_other_tools_hold_what_webdataset_reads_in_them(
    tmp_path: Path, writer: str, image: str, kind: str, key: str
) -> None:
    import webdataset

    content = files(image, kind, KEYS[key])
    WRITERS[writer](tmp_path / "a.tar", content)
    source = opened(tmp_path / "a.tar", tmp_path)
    theirs = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False)
    known = {sample["__key__"]: sample for sample in theirs}
    assert source.num_samples == len(known) == len(ROWS)
    for name, data in zip(source.names, source.pictures, strict=True):  # type: ignore[attr-defined]
        own_key = next(k for k in known if name.endswith(f": {k!r}"))
        assert data == known[own_key][image]
    assert source.notes == ()
    loaded = source.load()
    assert loaded.labels is not None and sorted(loaded.labels) == sorted(LABELS[: len(ROWS)])
    if image != "jpg":
        found = as_multiset([loaded.images[row] for row in ROWS], loaded.labels)
        assert found == as_multiset(list(COLOUR[: len(ROWS)]), LABELS[: len(ROWS)])


def test_there_are_fifty_such_shards() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize(
    ("end", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]
)
def test_compressed_shards_are_unpacked_beside_the_new_ones(
    tmp_path: Path, end: str, pack: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        write_tar(tmp_path / "a.tar", files("png", "cls", f"{number}-{{}}"))
        (folder / f"{number}.tar.{end}").write_bytes(pack((tmp_path / "a.tar").read_bytes()))
    assert main.launch("pack", [str(folder), str(out), "--dry-run"]) == 0
    assert not out.exists() and "would pack 12 images" in capsys.readouterr().out
    assert main.launch("pack", [str(folder), str(out)]) == 0
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []
    twice = np.concatenate([COLOUR[:6]] * 2), np.concatenate([LABELS[:6]] * 2)
    assert_holds(open_index(out), *twice)


def test_several_images_a_sample_are_chosen_from_and_the_others_counted(tmp_path: Path) -> None:
    content = [
        item
        for row in ROWS
        for item in (
            (f"{row}.input.png", picture(COLOUR[row])),
            (f"{row}.mask.png", picture(GREY[row])),
            (f"{row}.txt", b"a caption"),
            (f"{row}.meta.json", b"{}"),
        )
    ]
    write_tar(tmp_path / "a.tar", [*content, ("LICENSE", b"mine"), ("._0.input.png", b"mac")])
    (problem,) = problems_of(lambda: opened(tmp_path / "a.tar", tmp_path))
    assert "6 samples" in problem and "input.png, mask.png; name --image-key" in problem
    for key in ("mask", "mask.png"):
        source = opened(tmp_path / "a.tar", tmp_path, image_key=key)
        assert not source.has_labels and "images without classes; --label-key" in source.notes[0]
        unread = "19 member(s) not read: 6 input.png, 6 meta.json, 1 of no sample, 6 txt"
        assert source.notes[1] == f"{tmp_path / 'a.tar'}: {unread}"
        index = packing.pack(source, tmp_path / key)
        assert_holds(index, GREY[:6, ..., None], None)
    (problem,) = problems_of(lambda: opened(tmp_path / "a.tar", tmp_path, image_key="depth"))
    assert "no image 'depth': only input.png, mask.png, txt, meta.json" in problem


def test_labels_by_a_member_or_a_field_of_json(tmp_path: Path) -> None:
    content = files("png", "cls")
    for row in ROWS:
        content.append((f"{row:06d}.json", json.dumps({"id": 5 - row}).encode()))
        content.append((f"{row:06d}.fine", b"7"))
    write_tar(tmp_path / "a.tar", content)  # members of a sample lie apart, too

    def labels(key: str | None) -> list[int] | None:
        found = opened(tmp_path / "a.tar", tmp_path, key).labels()
        return None if found is None else found.tolist()

    assert labels("labels") == labels("cls") == LABELS[:6].tolist()
    assert labels("id") == [5, 4, 3, 2, 1, 0] and labels("fine") == [7] * 6
    assert labels(None) is None
    (problem,) = problems_of(lambda: opened(tmp_path / "a.tar", tmp_path, "breed"))
    assert "no label 'breed'" in problem and "cls, fine, json" in problem
    write_tar(tmp_path / "b.tar", [*files("png", "cls"), ("x.png", PNG), ("y.cls", b"1")])
    found = problems_of(lambda: opened(tmp_path / "b.tar", tmp_path))
    assert "'y': has no image: only cls" in found[0]
    write_tar(tmp_path / "c.tar", [*files("png", "cls"), ("x.png", PNG)])
    assert (
        "'x': has no label in .cls, others do"
        in problems_of(lambda: opened(tmp_path / "c.tar", tmp_path))[0]
    )


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b'{"label": ["cat"]}', "is not a whole number"),
        (b'{"label": "a\\nb"}', "nor a name of one line"),
        (b'{"label": "-1"}', "is not a whole number"),
        (b'{"label": "3.0"}', "is not a whole number"),
        (b"{", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b'{"label": 1, "x": "' + b"x" * (1 << 20) + b'"}', "a label has few"),
    ],
)
def test_json_that_is_no_label_is_refused_and_left_out_with_null(
    tmp_path: Path, data: bytes, word: str
) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", PNG), ("a.json", data)])
    (problem,) = problems_of(lambda: opened(tmp_path / "a.tar", tmp_path))
    assert word in problem and "'a': " in problem and "--label-key null" in problem
    assert not opened(tmp_path / "a.tar", tmp_path, None).has_labels


@pytest.mark.parametrize(("end", "key"), [("txt", "txt"), ("cls", "labels"), ("json", "species")])
def test_names_are_classes_in_sorted_order_and_counted(tmp_path: Path, end: str, key: str) -> None:
    names = ["owl", "Cat", "owl", "dog bone", "Cat", "dog bone"]
    texts = [json.dumps({"species": n}) if end == "json" else f"{n}\n" for n in names]
    images = [(f"{row}.png", picture(COLOUR[row])) for row in ROWS]
    labels = [(f"{row}.{end}", text.encode()) for row, text in enumerate(texts)]
    source = opened(write_tar(tmp_path / "a.tar", images + labels), tmp_path, key)
    assert source.class_names == ("Cat", "dog bone", "owl")
    assert source.notes == (
        f"{tmp_path / 'a.tar'}: 3 classes by name: 'Cat' of 2, 'dog bone' of 2, 'owl' of 2",
    )
    index = packing.pack(source, tmp_path / "out")
    assert_holds(index, COLOUR[:6], np.array([2, 0, 2, 1, 0, 1]))
    assert index.class_names == source.class_names
    caption = (labels[0][0], b"7" if end != "json" else b'{"species": 7}')
    write_tar(tmp_path / "b.tar", [*images, caption, *labels[1:]])
    (problem,) = problems_of(lambda: opened(tmp_path / "b.tar", tmp_path, key))
    assert "has names of classes, but 1 numbers" in problem
    for data in (b"-1", b"\xff\xfe") if end != "json" else ():
        write_tar(tmp_path / "d.tar", [*images, (labels[0][0], data), *labels[1:]])
        (problem,) = problems_of(lambda: opened(tmp_path / "d.tar", tmp_path, key))
        assert ("is not a whole number" if data == b"-1" else "is not UTF-8") in problem
    (tmp_path / "d.tar").unlink(missing_ok=True)
    write_tar(tmp_path / "c.tar", [images[0], labels[0]])
    (problem,) = problems_of(lambda: opened(tmp_path / "c.tar", tmp_path, key))
    assert "1 different texts in 1 samples: captions, not classes" in problem
    if end == "txt":
        (*_, note, _) = opened(tmp_path / "a.tar", tmp_path).notes
        assert "--label-key txt takes texts as names of classes" in note
    elif end == "cls":
        (problem, *_) = problems_of(lambda: scan_folder(tmp_path))
        assert "`ddpm pack FOLDER OUT_DIR` numbers names" in problem


def test_parts_by_the_names_of_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, rows in (
        ("train-0", range(20)),
        ("train-1", range(20, 30)),
        ("val-0", range(30, 40)),
    ):
        write_tar(
            folder / f"{name}.tar",
            [
                item
                for row in rows
                for item in (
                    (f"{row}.png", picture(COLOUR[row])),
                    (f"{row}.cls", label("cls", row)),
                )
            ],
        )
    shutil.copy(folder / "val-0.tar", folder / "extra-0.tar")
    (folder / "stats.json").touch()
    assert main.launch("pack", [str(folder), "--dry-run"]) == 0  # where they lie
    assert "shards of train and val are used as one data set" in caplog.text
    source = opened(folder, tmp_path)
    assert source.split == (("train", 30), ("val", 10))
    assert source.notes[0] == f"{folder}: 1 not read beside the shards: stats.json"
    assert "1 shard(s) not read" in source.notes[-1] and "extra-0.tar" in source.notes[-1]
    index = packing.pack(source, tmp_path / "out")
    assert index.held_out is not None and index.held_out.sum() == 10
    again = opened(tmp_path / "out", tmp_path)
    assert again.split == source.split  # shards of ours say it in their index
    assert as_multiset(stored(packing.pack(again, tmp_path / "more")), None) == (
        as_multiset(list(COLOUR), None)
    )


def test_our_own_shards_are_packed_anew_with_the_names_of_classes(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog"]
    source = ArraySource(GREY, LABELS, class_names=names)
    packing.pack(source, tmp_path / "a")
    assert main.launch("pack", [str(tmp_path / "a"), str(tmp_path / "b"), "--grey", "rgb"]) == 0
    index = open_index(tmp_path / "b")
    assert index.class_names == tuple(names)
    assert_holds(index, GREY[..., None].repeat(3, axis=3), LABELS)
    np.save(tmp_path / "in.npy", GREY * 3.0)
    scaled = open_source(tmp_path / "in.npy", scale="channels")
    ranges = packing.pack(scaled, tmp_path / "c").ranges
    assert ranges == ((3.0 * GREY.min(), 3.0 * GREY.max()),)
    again = opened(tmp_path / "c", tmp_path)
    assert packing.pack(again, tmp_path / "d").ranges == ranges


HOSTILE: dict[str, tuple[list, str]] = {
    "symlink": ([(member("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")], "symbolic"),
    "hard link": ([(member("a.png", type=tarfile.LNKTYPE, linkname="b.png"), b"")], "hard link"),
    "device": ([(member("a.png", type=tarfile.CHRTYPE), b"")], "device"),
    "giant": ([(member("a.png", size=2**32), b"")], str(2**32)),
    "twice": ([("a.png", PNG), ("b.png", PNG), ("a.png", PNG)], "twice"),
    "empty": ([], "no samples"),
    "no image": ([("a.pkl", b"x")], "no image"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_shard_may_hold_is_refused(tmp_path: Path, case: str) -> None:
    members, word = HOSTILE[case]
    write_tar(tmp_path / "a.tar", members)
    assert word in problems_of(lambda: opened(tmp_path / "a.tar", tmp_path))[0]


def test_names_become_no_paths_and_pickles_no_objects(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    trap = pickle.dumps(Trap(marker))
    content = [
        ("../../up.png", PNG),
        ("../../up.pkl", trap),
        ("/etc/abs.png", PNG),
        ("a;rm.png", PNG),
    ]
    write_tar(tmp_path / "in.tar", [*content, ("a;rm.pyd", trap), ("a;rm.pth", trap)])
    before = {path.name for path in tmp_path.iterdir()}
    source = opened(tmp_path / "in.tar", tmp_path)
    assert source.num_samples == 3 and "1 pkl, 1 pth, 1 pyd" in source.notes[-1]
    packing.pack(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} - before == {"out"}
    write_tar(tmp_path / "as.tar", [("a.npy", trap)])
    assert problems_of(lambda: opened(tmp_path / "as.tar", tmp_path).load())
    assert not marker.exists()


def test_a_shard_that_is_damaged_in_its_middle_is_refused(tmp_path: Path) -> None:
    """webdataset ends there without an error."""
    import webdataset

    path = write_tar(tmp_path / "a.tar", files("png", "cls"))
    whole = path.read_bytes()
    for place in (148, 100):  # checksum, mode, of the third sample's header
        at = 4 * 1024 + place
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        theirs = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
        assert len(list(theirs)) < len(ROWS)
        assert "damaged" in problems_of(lambda: opened(path, tmp_path))[0]
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in problems_of(lambda: opened(path, tmp_path))[0]


@pytest.mark.slow
def test_a_bomb_is_refused_as_it_grows(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.tar.gz", "wb") as stream:
        for _ in range(96):
            stream.write(bytes(1 << 20))
    (problem,) = problems_of(lambda: opened(tmp_path / "a.tar.gz", tmp_path))
    assert "zip bomb" in problem and not list((tmp_path / ".stage").glob("*"))
    content = gzip.compress(write_tar(tmp_path / "b.tar", files("png", "cls")).read_bytes())
    (tmp_path / "b.tar.gz").write_bytes(content[: len(content) // 2])
    assert "b.tar.gz: " in problems_of(lambda: opened(tmp_path / "b.tar.gz", tmp_path))[0]


def test_training_names_no_shards_that_have_to_be_fetched(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", files("png", "cls"))
    for source in (
        tmp_path / "a.tar",
        "https://127.0.0.1:1/a.tar?secret",
        f"{tmp_path}/{{a,b}}.tar",
    ):
        (problem,) = problems_of(lambda: open_source(source))  # noqa: B023
        assert "packed first" in problem and "secret" not in problem


class _Answers(http.server.SimpleHTTPRequestHandler):
    """A folder, shards once cut short, and what asked for it."""

    cut: set[str] = set()
    seen: list[str] = []

    def do_GET(self) -> None:  # noqa: N802
        name = self.path.partition("?")[0]
        self.seen.append(name)
        if name in self.cut:
            self.cut.discard(name)
            content = (Path(self.directory) / name[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A loopback server's address, and its folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    _Answers.cut, _Answers.seen = set(), []
    handler = functools.partial(_Answers, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


@pytest.mark.slow
def test_shards_at_a_server_are_fetched_once_and_a_cut_answer_again(
    tmp_path: Path,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ddpm.data.tars._PAUSE_S", 0.01)
    address, folder = server
    for number in range(3):
        write_tar(folder / f"s-{number}.tar", files("png", "cls", f"{number}-{{}}"))
    (folder / "s-2.tar").rename(folder / "plain")
    (folder / "s-2.tar.gz").write_bytes(gzip.compress((folder / "plain").read_bytes()))
    _Answers.cut = {"/s-1.tar"}
    url = f"{address}/s-{{0,1}}.tar?token=SECRET"
    out = tmp_path / "out"
    assert main.launch("pack", [url, str(out)]) == 0
    assert sorted(_Answers.seen) == ["/s-0.tar", "/s-1.tar", "/s-1.tar"]
    said = capsys.readouterr()
    assert "SECRET" not in said.out + said.err + caplog.text
    both = np.concatenate([COLOUR[:6]] * 2), np.concatenate([LABELS[:6]] * 2)
    assert_holds(open_index(out), *both)
    assert sorted(path.name for path in out.glob(".*")) == []
    assert main.launch("pack", [url, str(out)]) == 2  # nothing is fetched for it
    assert "holds packed shards already" in capsys.readouterr().err
    source = opened(f"{address}/s-2.tar.gz", tmp_path)
    assert source.num_samples == 6
    count = len(_Answers.seen)
    assert opened(f"{address}/s-2.tar.gz", tmp_path).identity() == source.identity()
    assert len(list((tmp_path / ".stage").glob("*.tar"))) == 1 and len(_Answers.seen) == count + 1


@pytest.mark.slow
def test_a_server_that_has_nothing_or_lies_is_said(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm.data.tars._PAUSE_S", 0.01)
    address, folder = server
    (problem,) = problems_of(lambda: opened(f"{address}/none.tar?token=SECRET", tmp_path))
    assert problem.startswith(f"{address}/none.tar: HTTP Error 404") and "SECRET" not in problem
    (folder / "page.tar").write_text("<html>sign in</html>" * 100)
    assert f"{address}/page.tar" in problems_of(lambda: opened(f"{address}/page.tar", tmp_path))[0]
    for wrong, word in (
        ("pipe:curl https://x/a.tar", "is not read"),
        ("file:///etc/a.tar", "is not read"),
        ("ftp://x/a.tar", "give http, https, s3, gs, az, hf"),
        ("https://me:SECRET@x/a.tar", "no password"),
        (f"{address}/{{0..200000}}.tar", "more than 100,000"),
        ("https://127.0.0.1:1/a.tar?k=SECRET", "refused"),
        (f"{tmp_path}/{{0..3}}.tar", "4 shard(s) do not exist"),
    ):
        (problem,) = problems_of(lambda: opened(wrong, tmp_path))  # noqa: B023
        assert word in problem and "SECRET" not in problem, problem


def test_object_stores_are_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = "s3"
        store: dict = {}
        pseudo_dirs = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return super()._strip_protocol(path.replace("s3://", "memory://"))

    fsspec.register_implementation("s3", Bucket, clobber=True)
    try:
        for number in range(2):
            path = write_tar(tmp_path / f"{number}.tar", files("png", "cls", f"{number}-{{}}"))
            fsspec.filesystem("s3").pipe_file(f"/bucket/{number}.tar", path.read_bytes())
        source = opened("s3://bucket/{0..1}.tar", tmp_path)
        assert source.num_samples == 12 and "s3://bucket/0.tar: '0-0'" in source.names[0]  # type: ignore[attr-defined]
        (problem,) = problems_of(lambda: opened("s3://bucket/2.tar", tmp_path))
        assert problem.startswith("s3://bucket/2.tar: ")
    finally:
        fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)
    assert (
        "adlfs: pip install 'ddpm[remote]'"
        in problems_of(lambda: opened("az://a/b/c.tar", tmp_path))[0]
    )


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://a.org/b.tar?X-Amz-Signature=1", "https://a.org/b.tar"),
        ("https://me:pw@a.org/b.tar#x", "https://a.org/b.tar"),
        ("data/{0..9}.tar", "data/{0..9}.tar"),
    ],
)
def test_what_is_shown_of_a_url_is_no_secret(url: str, plain: str) -> None:
    assert shown(url) == plain


def test_urls_of_other_things_than_shards_are_refused_as_they_were_given(tmp_path: Path) -> None:
    problems = problems_of(lambda: opened("https://a.org/birds?token=secret", tmp_path))
    assert problems == ["https://a.org/birds: only .tar shards are read from a URL"]


def test_several_samples_have_and_one_has(tmp_path: Path) -> None:
    twice = [(f"{row}.{end}.png", PNG) for row in range(2) for end in "ab"]
    path = write_tar(tmp_path / "a.tar", twice[:2])
    assert "'0': has several images" in problems_of(lambda: opened(path, tmp_path))[0]
    path = write_tar(tmp_path / "a.tar", twice)
    assert "2 samples: have several images" in problems_of(lambda: opened(path, tmp_path))[0]
