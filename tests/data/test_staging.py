"""Copies on the node's own disk: whole or not at all, made once, verified, and never in the way."""

import contextlib
import os
import re
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data import staging
from ddpm.data.index import Index, open_index
from ddpm.distributed import Group
from ddpm.errors import InputError, Interrupted, StorageError
from ddpm.runs import storage
from tests.cluster.test_run_training import never, small
from tests.support import stage_process
from tests.support import storage_faults as faults
from tests.support.dataset_data import damage, make_colour, open_colour, pack
from tests.support.processes import exit_codes, forked
from tests.training.test_resume import undisturbed


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """300 small images in 19 shards."""
    return make_colour(tmp_path / "shards")[0]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def copy(index: Index, place: Path, **options: object) -> Path:
    """The folder that the shards are staged to."""
    folder = staging.copied(index, str(place), **options)  # type: ignore[arg-type]
    assert folder is not None
    return folder


def assert_whole(folder: Path, index: Index) -> None:
    """Exactly the shards of the index, byte for byte."""
    originals = {shard.name: index.folder / shard.name for shard in index.shards}
    assert {path.name for path in folder.iterdir()} == originals.keys()
    for name, original in originals.items():
        assert (folder / name).read_bytes() == original.read_bytes()


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each shard."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.tar")}


def start(index: Index, place: Path, said: Path) -> BaseProcess:
    return forked(stage_process.run, str(index.folder), str(place), said=said)


def megabytes_copied(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) MB copied", output)]


def test_the_copies_are_the_shards_for_the_user_alone(index: Index, place: Path) -> None:
    folder = copy(index, place)
    assert folder.is_relative_to(place) and index.sha256[:16] in folder.name
    assert str(os.geteuid()) in folder.parent.name
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o700 for p in (folder, folder.parent))
    assert_whole(folder, index)


@pytest.mark.slow
def test_stage_says_where_the_bytes_of_the_images_are_read(tmp_path: Path, place: Path) -> None:
    """DATASET.STAGE: with copies in use the originals may go; with off they may not."""
    colour = make_colour(tmp_path / "shards")
    expected = open_colour(colour).read(torch.arange(300)).images
    staged, in_place = open_colour(colour), open_colour(colour)
    staging.stage(staged, str(place), Group(), should_stop=never)
    staging.stage(in_place, "Off", Group(), should_stop=never)
    for path in colour[0].folder.glob("*.tar"):
        path.unlink()
    assert torch.equal(staged.read(torch.arange(300)).images, expected)
    with pytest.raises(StorageError, match="cannot be read"):
        in_place.read(torch.arange(300))


@pytest.mark.slow
def test_names_in_the_setting_are_the_nodes(
    tmp_path: Path, index: Index, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_SCRATCH", str(place))
    setting = small(tmp_path, "DATASET.STAGE=$DDPM_SCRATCH").DATASET.STAGE
    assert copy(index, Path(setting)).is_relative_to(place)


def test_copies_are_kept_and_used_again(index: Index, place: Path) -> None:
    before = states(copy(index, place))
    assert states(copy(index, place)) == before and len(before) == 19


def test_a_damaged_source_is_refused_and_its_copy_left_out(index: Index, place: Path) -> None:
    hit = damage(index, 100)
    with pytest.raises(InputError, match=rf"{hit} is damaged \(its SHA-256") as caught:
        copy(index, place)
    assert caught.value.exit_code == 2 and "--verify" in str(caught.value)
    assert not list(place.rglob(hit.name)) and not list(place.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["length", "gone", "link"])
def test_only_a_copy_that_is_not_whole_is_made_anew(index: Index, place: Path, change: str) -> None:
    folder = copy(index, place)
    before = states(folder)
    hit = folder / index.shards[3].name
    content = hit.read_bytes()
    hit.unlink()
    if change == "length":
        hit.write_bytes(content[:-512])
    elif change == "link":
        hit.symlink_to(index.folder / hit.name)
    assert copy(index, place) == folder
    assert_whole(folder, index)
    after = states(folder)
    assert {name for name in after if after[name] != before[name]} == {hit.name}


@pytest.mark.slow
def test_copies_that_rot_or_vanish_are_read_in_place(
    tmp_path: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    colour = make_colour(tmp_path / "shards")
    index, data = colour[0], open_colour(colour)
    expected = open_colour(colour).read(torch.arange(300)).images
    staging.stage(data, str(place), Group(), should_stop=never)
    folder = copy(index, place)
    rotten, gone = folder / index.shards[2].name, folder / index.shards[-1].name
    content = bytearray(rotten.read_bytes())
    content[int(index.table["offset"][40])] ^= 4
    rotten.write_bytes(content)
    gone.unlink()
    for _ in range(2):
        assert torch.equal(data.read(torch.arange(300)).images, expected)
    assert caplog.text.count("a copy is not used any more") == 2
    assert str(rotten) in caplog.text and str(gone) in caplog.text
    assert not rotten.exists()  # the next job copies it again
    assert_whole(copy(index, place), index)


@pytest.mark.long
def test_a_killed_copy_goes_on_where_it_was(tmp_path: Path, place: Path) -> None:
    """kill -9 in the middle of a copy of 160 MB: whole shards stay, the torn ones go."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 288, 288, 3), np.uint8)
    index = pack(tmp_path / "shards", pixels, per_shard=16)
    process = start(index, place, tmp_path / "first")
    while len(list(place.rglob("*.tar"))) < 5:
        assert process.exitcode is None
        time.sleep(0.001)
    process.kill()
    process.join()
    (folder,) = place.glob("*/*/")
    before = states(folder)
    assert 5 <= len(before) < len(index.shards), "the kill came too late"
    second = start(index, place, tmp_path / "second")
    assert exit_codes([second]) == [0], (tmp_path / "second").read_text()
    assert_whole(folder, index)
    kept = {name: state for name, state in states(folder).items() if name in before}
    assert kept == before, "what was whole was copied again"
    missing = sum(s.bytes for s in index.shards if s.name not in before) / 1e6
    copied = megabytes_copied((tmp_path / "second").read_text())
    assert copied == [pytest.approx(missing, abs=1.0)]


@pytest.mark.slow
def test_of_three_workers_of_a_node_one_copies(tmp_path: Path, index: Index, place: Path) -> None:
    said = [tmp_path / f"said-{number}" for number in range(3)]
    codes = exit_codes([start(index, place, path) for path in said])
    outputs = [path.read_text() for path in said]
    assert codes == [0, 0, 0], outputs
    copied = [number for out in outputs for number in megabytes_copied(out)]
    assert copied == [pytest.approx(index.num_bytes / 1e6, abs=0.2)]
    assert len({out.splitlines()[-1] for out in outputs}) == 1


def test_a_stop_ends_waiting_for_another_copier(index: Index, place: Path) -> None:
    folder = copy(index, place)
    with storage.lock(folder.with_suffix(".lock"), "the copies"):
        with pytest.raises(Interrupted) as caught:
            copy(index, place, should_stop=lambda: True)
    assert caught.value.exit_code == 75


@pytest.mark.slow
def test_a_stop_ends_a_copy_at_once_and_the_next_goes_on(index: Index, place: Path) -> None:
    with pytest.raises(Interrupted):
        copy(index, place, should_stop=lambda: True)
    assert not list(place.rglob("*.tmp"))
    assert_whole(copy(index, place), index)


@contextlib.contextmanager
def disk_of(megabytes: float, at: Path) -> Iterator[Path]:
    """A small disk of its own."""
    at.mkdir()
    size = f"size={int(megabytes * 2**20)}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(at)])
    if mounted.returncode != 0:
        pytest.skip("mounting a file system takes root")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def files_in(disk: Path) -> list[Path]:
    """All but the empty lock."""
    return [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_disk_that_is_too_small_is_not_begun_on(
    tmp_path: Path, index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    with disk_of(0.1, tmp_path / "full") as disk:
        assert staging.copied(index, str(disk)) is None
        assert files_in(disk) == []
    assert "not enough space" in caplog.text and "read in place" in caplog.text


class Filling(storage.SystemCalls):
    """The real calls; at the third rename others fill the disk to its last byte."""

    def __init__(self, others: Path) -> None:
        self.others, self.renames, self.lock = others, 0, threading.Lock()

    def rename(self, source: Path, target: Path) -> None:  # type: ignore[override]
        with self.lock:  # the threads that copy wait meanwhile
            self.renames += 1
            if self.renames == 3:
                with contextlib.suppress(OSError), self.others.open("ab", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)
            os.rename(source, target)


@pytest.mark.slow
def test_a_disk_that_others_fill_meanwhile_is_left_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (160, 128, 128, 3), np.uint8)
    index = pack(tmp_path / "shards", pixels, per_shard=16)
    with disk_of(1.5 * index.num_bytes / 2**20, tmp_path / "full") as disk:
        monkeypatch.setattr(storage, "system", Filling(disk / "others"))
        assert staging.copied(index, str(disk)) is None
        assert files_in(disk) == [disk / "others"]
    assert "No space left on device" in caplog.text and "read in place" in caplog.text


@pytest.mark.slow
def test_every_failing_call_leaves_whole_copies_or_none(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 4, 4, 3), np.uint8)
    index = pack(tmp_path / "shards", pixels, per_shard=16)

    def stage(place: Path) -> None:
        if folder := staging.copied(index, str(place)):
            assert_whole(folder, index)

    chosen = ("ENOSPC", "EIO", "kill halfway", "kill after")
    strikes = faults.strikes(lambda: stage(tmp_path / "clean"), chosen)
    assert len(strikes) > 60
    for target, fault in strikes:
        place = tmp_path / f"{target}-{fault.replace(' ', '-')}"
        became = faults.strike(lambda place=place: stage(place), target, fault)
        if fault in ("ENOSPC", "EIO"):
            assert became == "done", (target, fault, became)
            held = [p.name for p in place.rglob("*.tar")]
            assert len(held) in (0, 3), (target, fault, held)
            assert not list(place.rglob("*.tmp")), (target, fault)
        else:
            assert_whole(copy(index, place), index)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["nowhere/below", "file/below", "file"])
def test_a_place_that_cannot_be_used_is_bad_input(tmp_path: Path, index: Index, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="DATASET.STAGE: .* cannot be made on") as caught:
        copy(index, tmp_path / where)
    assert "give a folder" in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.slow
def test_a_folder_that_somebody_else_has_put_there_is_refused(
    tmp_path: Path, index: Index, place: Path
) -> None:
    place.mkdir()
    root = place / f"ddpm-stage-{os.geteuid()}"
    root.symlink_to(tmp_path)
    with pytest.raises(InputError, match="not a folder of your own"):
        copy(index, place)
    root.unlink()
    if os.geteuid() == 0:
        root.mkdir()
        os.chown(root, 12345, 12345)
        with pytest.raises(InputError, match="not a folder of your own"):
            copy(index, place)
        root.rmdir()
    root.mkdir(mode=0o777)
    copy(index, place)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["local", "on", "auto", "~/stage"])
def test_another_setting_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="DATASET.STAGE .*off or an absolute path"):
        small(tmp_path, f"DATASET.STAGE={text}")
    assert small(tmp_path, "DATASET.STAGE=Off").DATASET.STAGE == "Off"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_bits_of_a_training_are_the_same_with_copies(
    tmp_path: Path, digits: Path, place: Path
) -> None:
    plain = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 2}
    expected = undisturbed(tmp_path / "in-place", digits, 2, plain)
    staged = undisturbed(tmp_path / "staged", digits, 2, plain | {"DATASET.STAGE": place})
    assert staged == expected
    assert len(list(place.rglob("*.tar"))) == len(open_index(digits).shards)
