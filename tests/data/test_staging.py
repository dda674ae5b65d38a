"""Copies on the node's own disk: whole or not at all, made once, checked, and never in the way."""

import contextlib
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ddpm.data import staging
from ddpm.data import staging as stage_folder
from ddpm.data.index import Index, open_index, verify_shards
from ddpm.distributed import Group
from ddpm.errors import InputError, Interrupted
from ddpm.runs import stage_notes, storage
from ddpm.runs.progress import Tail, watch
from tests.cluster.test_run_training import never, small
from tests.support import storage_faults as faults
from tests.support.dataset_data import damage, make_colour, open_colour, pack
from tests.training.test_resume import undisturbed

ROOT = Path(__file__).resolve().parent.parent
PROCESS = Path(__file__).parent / "stage_process.py"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """300 small images in 19 shards."""
    return make_colour(tmp_path / "shards")[0]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def copy(index: Index, place: Path, **options: object) -> Path:
    """The folder that the shards are staged to."""
    with staging.staged(index, str(place), **options) as folder:  # type: ignore[arg-type]
        assert folder is not None
        return folder


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each shard."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.tar")}


def start(index: Index, place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROCESS), str(index.folder), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_the_copies_are_a_folder_of_shards_of_the_user_alone(index: Index, place: Path) -> None:
    folder = copy(index, place)
    assert folder.is_relative_to(place) and index.sha256[:16] in folder.name
    assert str(os.geteuid()) in folder.parent.name
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o700 for p in (folder, folder.parent))
    again = open_index(folder)
    verify_shards(again)
    assert again.sha256 == index.sha256 and again.shards == index.shards


def test_stage_says_where_the_bytes_of_the_images_are_read(tmp_path: Path, place: Path) -> None:
    """DATASET.STAGE: with copies in use the originals may go; with off they may not."""
    colour = make_colour(tmp_path / "shards")
    expected = open_colour(colour).read(torch.arange(300)).images
    kept = tmp_path / "kept"
    for setting in (str(place), "off", "auto"):  # auto: these shards lie on a local disk
        data = open_colour(colour)
        with staging.reading(data, setting, Group(), notes=tmp_path, should_stop=never):
            kept.mkdir()
            for path in colour[0].folder.glob("*.tar"):
                path.rename(kept / path.name)
            try:
                if setting == str(place):
                    assert torch.equal(data.read(torch.arange(300)).images, expected)
                else:
                    with pytest.raises(Exception, match="cannot be read"):
                        data.read(torch.arange(300))
            finally:
                for path in kept.glob("*.tar"):
                    path.rename(colour[0].folder / path.name)
                kept.rmdir()
    assert not (tmp_path / "staging").exists()


def test_copies_are_kept_and_used_again(index: Index, place: Path) -> None:
    before = states(copy(index, place))
    assert states(copy(index, place)) == before and len(before) == 19


def test_a_damaged_source_is_refused_and_its_copy_left_out(index: Index, place: Path) -> None:
    hit = damage(index, 100)
    with pytest.raises(InputError, match=rf"{hit} is damaged \(its SHA-256") as caught:
        copy(index, place)
    assert caught.value.exit_code == 2 and "--verify" in str(caught.value)
    assert not list(place.rglob(hit.name)) and not list(place.rglob("*.tmp"))


@pytest.mark.parametrize("change", ["bytes", "time", "length", "gone", "link"])
def test_a_changed_copy_is_noticed_and_only_it_is_made_anew(
    index: Index, place: Path, change: str
) -> None:
    folder = copy(index, place)
    before = states(folder)
    hit = folder / index.shards[3].name
    content = hit.read_bytes()
    if change == "bytes":
        hit.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "time":
        os.utime(hit)
    elif change == "length":
        hit.write_bytes(content[:-512])
    else:
        hit.unlink()
    if change == "link":
        hit.symlink_to(index.folder / hit.name)
    assert copy(index, place) == folder
    verify_shards(open_index(folder))
    after = states(folder)
    assert {name for name in after if after[name] != before[name]} == {hit.name}
    if change == "time":  # its content was right, so it was not copied again
        assert after[hit.name][0] == before[hit.name][0]


def test_bytes_that_rot_under_an_unchanged_name_are_read_in_place(
    tmp_path: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    colour = make_colour(tmp_path / "shards")
    index, data = colour[0], open_colour(colour)
    expected = open_colour(colour).read(torch.arange(300)).images
    with staging.reading(data, str(place), Group(), notes=tmp_path, should_stop=never):
        (folder,) = place.glob("*/*/")
        hit = damage(open_index(folder), 40)
        gone = folder / index.shards[-1].name
        gone.unlink()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(data.read(torch.arange(300)).images, expected)
        assert torch.equal(data.read(torch.arange(300)).images, expected)
    assert caplog.text.count("a copy is not used any more") == 2
    assert str(hit) in caplog.text and str(gone) in caplog.text
    assert not hit.exists()  # the next job copies it again
    verify_shards(open_index(copy(index, place)))


@pytest.mark.slow
def test_a_killed_copy_goes_on_where_it_was(tmp_path: Path, place: Path) -> None:
    """kill -9 in the middle of a copy of 160 MB: whole shards stay, the torn ones go."""
    pixels = np.random.default_rng(0).integers(0, 256, (640, 288, 288, 3), np.uint8)
    index = pack(tmp_path / "shards", pixels, per_shard=16)
    process = start(index, place)
    deadline = time.monotonic() + 60
    while len(list(place.rglob("*.tar"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    (folder,) = place.glob("*/*/")
    before = states(folder)
    assert 5 <= len(before) < len(index.shards), "the kill came too late"
    second = start(index, place)
    out, errors = second.communicate("\n", timeout=60)
    assert second.returncode == 0, errors
    verify_shards(open_index(folder))
    kept = {name: state for name, state in states(folder).items() if name in before}
    assert kept == before, "what was whole was copied again"
    copied = float(re.search(r"([\d.]+) MB copied", out).group(1))  # type: ignore[union-attr]
    missing = sum(s.bytes for s in index.shards if s.name not in before) / 1e6
    assert copied == pytest.approx(missing, abs=1.0)
    assert not list(folder.glob(".*"))


@pytest.mark.slow
def test_of_three_workers_of_a_node_one_copies(index: Index, place: Path) -> None:
    workers = [start(index, place) for _ in range(3)]
    outputs = [worker.communicate("\n", timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    copied = [float(mb) for out, _ in outputs for mb in re.findall(r"([\d.]+) MB copied", out)]
    assert len(copied) == 1 and copied[0] == pytest.approx(index.num_bytes / 1e6, abs=0.2)
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1


def test_the_second_of_two_waits_and_a_stop_ends_its_waiting(index: Index, place: Path) -> None:
    folder = copy(index, place)
    with stage_folder.exclusive(folder.with_name(f"{folder.name}.copy")):
        began, asked = time.monotonic(), lambda: time.monotonic() > began + 0.5
        with pytest.raises(Interrupted) as caught:
            copy(index, place, should_stop=asked)
    assert caught.value.exit_code == 75 and 0.4 < time.monotonic() - began < 5


def test_a_stop_ends_a_copy_at_once_and_the_next_goes_on(index: Index, place: Path) -> None:
    with pytest.raises(Interrupted):
        copy(index, place, should_stop=lambda: True)
    assert not list(place.rglob("*.tmp"))
    verify_shards(open_index(copy(index, place)))


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


def test_a_disk_that_is_too_small_is_not_begun_on(
    tmp_path: Path, index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    with disk_of(0.1, tmp_path / "full") as disk:
        with staging.staged(index, str(disk)) as folder:
            assert folder is None
        assert [path for path in disk.rglob("*") if path.is_file()] == []
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


def test_a_disk_that_others_fill_meanwhile_is_left_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (160, 128, 128, 3), np.uint8)
    index = pack(tmp_path / "shards", pixels, per_shard=16)
    with disk_of(1.5 * index.num_bytes / 2**20, tmp_path / "full") as disk:
        monkeypatch.setattr(storage, "system", Filling(disk / "others"))
        with staging.staged(index, str(disk)) as folder:
            assert folder is None
        assert [path for path in disk.rglob("*") if path.is_file()] == [disk / "others"]
    assert "No space left on device" in caplog.text and "read in place" in caplog.text


@pytest.mark.slow
def test_every_failing_call_leaves_whole_copies_or_none(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 4, 4, 3), np.uint8)
    index = pack(tmp_path / "shards", pixels, per_shard=16)

    def stage(place: Path) -> None:
        with staging.staged(index, str(place)) as folder:
            if folder is not None:
                verify_shards(open_index(folder))

    calls = faults.calls_of(lambda: stage(tmp_path / "clean"))
    assert calls > 30
    for target in range(calls):
        for fault in ("ENOSPC", "EIO", "kill halfway", "kill after"):
            place = tmp_path / f"{target}-{fault.replace(' ', '-')}"
            became = faults.strike(lambda place=place: stage(place), target, fault)
            if fault in ("ENOSPC", "EIO"):
                assert became == "done", (target, fault, became)
                held = [p.name for p in place.rglob("*.tar")]
                assert len(held) in (0, 3), (target, fault, held)
                assert not list(place.rglob("*.tmp")), (target, fault)
            else:
                verify_shards(open_index(copy(index, place)))


@pytest.mark.parametrize("where", ["nowhere/below", "file/below", "file"])
def test_a_place_that_cannot_be_used_is_bad_input(tmp_path: Path, index: Index, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="DATASET.STAGE: .* cannot be made on") as caught:
        copy(index, tmp_path / where)
    assert "give a folder" in str(caught.value) and caught.value.exit_code == 2


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


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:40 / /net rw - nfs4 server:/net rw,vers=4.2
23 21 0:41 / /lustre\\040old rw - lustre mds@tcp:/old rw
24 21 0:42 / /tmp rw - tmpfs tmpfs rw
25 21 8:2 / /local rw shared:2 master:1 - xfs /dev/nvme0n1 rw
26 22 0:43 / /net/me/cloud rw - fuse.sshfs me@there: rw
27 21 0:44 / /over rw - nfs server:/hidden rw
28 21 8:3 / /over rw - ext4 /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *(("/", "ext4"), ("/net/me/data", "nfs4"), ("/net/me/cloud/x", "fuse.sshfs")),
        *(
            ("/network", "ext4"),
            ("/lustre old/x", "lustre"),
            ("/local", "xfs"),
            ("/over/x", "ext4"),
        ),
    ],
)
def test_the_file_system_is_known_by_its_mount(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert stage_folder.file_system(Path(path), mounts) == kind
    assert stage_folder.file_system(Path("/proc")) == "proc"  # of the machine itself


def mounts_of(tmp_path: Path, **kinds: str) -> Path:
    """mountinfo that puts folders below tmp_path on file systems of these types."""
    lines = [
        f"{20 + n} 1 0:{n} / {tmp_path / name} rw - {kind} x rw"
        for n, (name, kind) in enumerate(kinds.items())
    ]
    for name in kinds:
        (tmp_path / name).mkdir()
    path = tmp_path / "mountinfo"
    path.write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n" + "\n".join(lines) + "\n")
    return path


def test_auto_copies_what_lies_on_a_network_to_the_first_disk_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = mounts_of(tmp_path, data="beegfs", shared="nfs", memory="tmpfs", one="xfs", two="ext4")
    data = tmp_path / "data" / "shards"
    for name in ("SLURM_TMPDIR", "DDPM_SCRATCH", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)

    def chosen() -> str:
        root = stage_folder.private_root("auto", data, mounts=mounts)
        assert root is not None
        return root.parent.name

    monkeypatch.setenv("TMPDIR", str(tmp_path / "two"))
    assert chosen() == "two"
    monkeypatch.setenv("DDPM_SCRATCH", str(tmp_path / "one"))
    assert chosen() == "one"
    for unfit in ("shared", "memory", "missing"):
        monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / unfit))
        assert chosen() == "one"
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "two"))
    assert chosen() == "two"
    # shards on a disk of the node are read where they are
    assert stage_folder.private_root("auto", tmp_path / "one" / "x", mounts=mounts) is None


def test_auto_never_keeps_a_training_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = mounts_of(tmp_path, data="lustre", scratch="ext4")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch" / f"ddpm-stage-{os.geteuid()}").symlink_to(tmp_path)
    assert stage_folder.private_root("auto", tmp_path / "data", mounts=mounts) is None
    assert "not a folder of your own" in caplog.text and "read in place" in caplog.text


@pytest.mark.parametrize("text", ["local", "on", "", "~/stage"])
def test_another_setting_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="DATASET.STAGE .*auto, off or an absolute path"):
        small(tmp_path, f"DATASET.STAGE={text}")
    assert small(tmp_path, "DATASET.STAGE=Off").DATASET.STAGE == "Off"


def test_clean_removes_what_nobody_reads(index: Index, place: Path) -> None:
    with staging.staged(index, str(place)) as folder:
        assert folder is not None
        assert not staging.clean(index, str(place))
        assert folder.is_dir()
    assert staging.clean(index, str(place))
    assert list(place.iterdir()) == []
    assert not staging.clean(index, str(place))
    assert not staging.clean(index, "off")
    copy(index, place)


def test_copies_of_other_data_stay(tmp_path: Path, index: Index, place: Path) -> None:
    other = pack(tmp_path / "other", np.zeros((20, 4, 4, 3), np.uint8))
    kept = copy(other, place)
    copy(index, place)
    assert staging.clean(index, str(place))
    verify_shards(open_index(kept))


def test_the_bar_of_a_training_shows_how_far_the_nodes_are(tmp_path: Path) -> None:
    tail = Tail(tmp_path, "training", 100)
    tail.poll()
    assert tail.text() == "waiting"
    with stage_notes.StageNote(tmp_path):
        (tmp_path / "staging" / "n1").write_text("34 %")
        tail.poll()
        assert re.fullmatch(r"staging n1 34 %, \S+ 0 %|staging \S+ 0 %, n1 34 %", tail.text())
        with (tmp_path / "shown").open("w") as file:
            with watch([tail], Console(file=file)):
                time.sleep(0.1)
        assert "n1 34 %" in (tmp_path / "shown").read_text()
    assert (tmp_path / "staging" / "n1").exists()  # the other node's is its own
    stage_notes.forget(tmp_path)
    tail.poll()
    assert tail.text() == "waiting" and not (tmp_path / "staging").exists()


def test_a_copy_tells_how_far_it_is(tmp_path: Path, index: Index, place: Path) -> None:
    seen: set[str] = set()

    def look() -> bool:
        seen.add(stage_notes.read(tmp_path))
        return False

    copy(index, place, notes=tmp_path, should_stop=look)
    assert len(seen) == 1 and re.fullmatch(r"staging \S+ \d+ %", seen.pop())
    assert stage_notes.read(tmp_path) == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_bits_of_a_training_are_the_same_with_copies(
    tmp_path: Path, digits: Path, place: Path
) -> None:
    plain = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 2}
    expected = undisturbed(tmp_path / "in-place", digits, 2, plain)
    staged = undisturbed(tmp_path / "staged", digits, 2, plain | {"DATASET.STAGE": place})
    assert staged == expected
    assert len(list(place.rglob("*.tar"))) == len(open_index(digits).shards)


# a network that trains in a second
SETTINGS = (
    *("TRAINING.NETWORK.FIRST_CHANNEL=8", "TRAINING.NETWORK.NUM_RES_BLOCKS=1"),
    *("TRAINING.HYPER_PARAMETERS.EPOCHS=1", "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH=2"),
    *("TRAINING.HYPER_PARAMETERS.WARMUP_STEPS=0", "TRAINING.INLINE_GEN.ENABLE=false"),
    *("EVALUATION.NUM=8", "WANDB.MODE=disabled"),
)


def train(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """launch/train.py."""
    words = [*SETTINGS, f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}", *arguments]
    return subprocess.run(
        [sys.executable, "launch/train.py", "configs/digits.yaml", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_train_stages_keeps_and_cleans(tmp_path: Path, place: Path) -> None:
    refused = train(tmp_path, f"DATASET.STAGE={tmp_path / 'no' / 'disk'}")
    assert refused.returncode == 2 and "DATASET.STAGE" in refused.stderr
    done = train(tmp_path, f"DATASET.STAGE={place}")
    assert done.returncode == 0, done.stderr
    assert list(place.rglob("*.tar"))
    (log,) = tmp_path.glob("out/*/*/*/train.log")
    assert "staging: complete" in log.read_text()
    again = train(tmp_path, f"DATASET.STAGE={place}", "--clean-stage", "--new")
    assert again.returncode == 0, again.stderr
    assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_workers_of_ray_stage_and_every_node_is_cleaned(tmp_path: Path, place: Path) -> None:
    two = ("CLUSTER.NUM_WORKERS=2", "CLUSTER.CPUS_PER_WORKER=1", f"DATASET.STAGE={place}")
    done = train(tmp_path, *two)
    assert done.returncode == 0, done.stderr
    assert list(place.rglob("*.tar"))
    done = train(tmp_path, *two, "--clean-stage", "--new")
    assert done.returncode == 0, done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [(), ("--cluster", "debug", "--group-size", "2")])
def test_a_sweep_stages_for_all_its_trials_and_cleans(
    tmp_path: Path, place: Path, how: tuple[str, ...]
) -> None:
    file = tmp_path / "one.yaml"
    grid = "GRID: {TRAINING.PRED_TYPE: [noise, image]}"
    file.write_text(f"BASE: {ROOT / 'configs' / 'digits.yaml'}\n{grid}\n")
    words = [*SETTINGS, f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}", f"DATASET.STAGE={place}"]
    done = subprocess.run(
        [sys.executable, "launch/sweep.py", str(file), *words, *how, "--clean-stage"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    logs = [path.read_text() for path in tmp_path.glob("out/*/*/*/train.log")]
    assert len(logs) == 2 and any("staging: complete" in log for log in logs)
    assert list(place.iterdir()) == []
