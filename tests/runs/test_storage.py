"""What was written stays written: through kills, full disks and power loss at every single call."""

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm.errors import LockedError, StorageError
from ddpm.runs import storage
from tests.support import storage_faults as faults

OLD, NEW = b"old " * 100, b"new content " * 1000


def replace_file(folder: Path) -> None:
    storage.write_bytes(folder / "file", NEW)


def make_new_folder(folder: Path) -> None:
    with storage.new_folder(folder / "made") as write:
        first = write("a", NEW)
        write("inner/b", OLD)
        write("seal", first.sha256.encode())


def remove_file(folder: Path) -> None:
    storage.remove(folder / "file")


def append(folder: Path) -> None:
    storage.append_line(folder / "lines", "a new line of text")


def make_nested(folder: Path) -> None:
    storage.make_folder(folder / "x" / "y")


def start(folder: Path) -> Path:
    folder.mkdir()
    (folder / "file").write_bytes(OLD)
    (folder / "lines").write_text("first\n")
    return folder


def seen(folder: Path) -> dict[str, object]:
    """What a reader sees: everything but hidden left-overs."""
    return {
        entry.name: seen(entry) if entry.is_dir() else entry.read_bytes()
        for entry in folder.iterdir()
        if not entry.name.startswith(".")
    }


@pytest.mark.slow
@pytest.mark.parametrize("action", [replace_file, make_new_folder, remove_file, make_nested])
def test_every_call_under_every_fault_leaves_the_old_or_the_new(
    action: Callable[[Path], None], tmp_path: Path
) -> None:
    clean = start(tmp_path / "clean")
    before = seen(clean)
    strikes = faults.strikes(lambda: action(clean))
    after = seen(clean)
    assert len(strikes) >= 6
    for target, fault in strikes:
        folder = start(tmp_path / f"{target}-{fault}".replace(" ", "-"))
        outcome = faults.strike(lambda at=folder: action(at), target, fault)
        found = seen(folder)
        if action is make_nested:
            assert found in (before, after, before | {"x": {}})
        else:
            assert found in (before, after), (target, fault)
        assert (outcome == "killed") == fault.startswith("kill")
        if outcome == "done":
            assert found == after, (target, fault)
        storage.clean_temporaries(folder)
        assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


@pytest.mark.slow
def test_every_call_of_an_append_under_every_fault_keeps_the_lines_before(tmp_path: Path) -> None:
    clean = start(tmp_path / "clean")
    for target, fault in faults.strikes(lambda: append(clean)):
        folder = start(tmp_path / f"{target}-{fault}".replace(" ", "-"))
        outcome = faults.strike(lambda at=folder: append(at), target, fault)
        text = (folder / "lines").read_text()
        assert text.startswith("first\n")
        assert "first\na new line of text\n".startswith(text)
        if outcome == "done":
            assert text == "first\na new line of text\n"
        elif outcome == "refused":
            assert text == "first\n", (target, fault)


@pytest.mark.parametrize("action", [replace_file, make_new_folder, remove_file, append])
def test_power_loss_at_any_moment_leaves_the_old_or_the_new(
    action: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = start(tmp_path / "work")
    before = seen(folder)
    recorder = faults.record(folder, lambda: action(folder), frozenset())
    after = seen(folder)
    states = 0
    for moment, content in faults.crash_states(recorder):
        visible = {name: value for name, value in content.items() if not name.startswith(".")}
        states += 1
        if action is append:
            assert visible["lines"].startswith(b"first\n")
        else:
            assert visible in (before, after)
        if moment == len(recorder.log):
            assert visible == after
    assert states > len(recorder.log) // 2


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_the_power_loss_model_notices_a_missing_sync(forgotten: str, tmp_path: Path) -> None:
    folder = start(tmp_path / "work")
    before = seen(folder)
    recorder = faults.record(folder, lambda: make_new_folder(folder), frozenset({forgotten}))
    after = seen(folder)
    bad = 0
    for moment, content in faults.crash_states(recorder):
        visible = {name: value for name, value in content.items() if not name.startswith(".")}
        is_lost = moment == len(recorder.log) and visible != after
        bad += visible not in (before, after) or is_lost
    assert bad > 0


def test_errors_name_the_path_the_bytes_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "system", faults.Faulty(1, "ENOSPC"))
    with pytest.raises(StorageError) as caught:
        storage.write_bytes(tmp_path / "model", NEW)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model'}: No space left on device ({len(NEW)} bytes")
    assert "bytes free); free some space or choose another folder" in message
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{1 << 60} bytes needed, .* bytes free"):
        storage.require_space(tmp_path / "not" / "yet", 1 << 60)
    storage.require_space(tmp_path, 1)


def test_a_missing_folder_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone/file: No such file or directory"):
        storage.write_text(tmp_path / "gone" / "file", "x")


def test_json_round_trips_doubles_and_refuses_nan(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 1]
    storage.write_json(tmp_path / "x.json", values)
    read = json.loads((tmp_path / "x.json").read_text())
    assert [repr(v) for v in read] == [repr(v) for v in values]
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "x.json", [float("nan")])
    assert json.loads((tmp_path / "x.json").read_text()) == read


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(sink: storage.Sink) -> None:
        sink.write(b"half of it")
        raise KeyError("lost")

    with pytest.raises(KeyError):
        storage.write_file(tmp_path / "file", broken)
    with pytest.raises(KeyError), storage.new_folder(tmp_path / "folder") as write:  # noqa: PT012
        write("good", NEW)
        raise KeyError("lost")
    assert not list(tmp_path.iterdir())


def test_big_and_small_pieces_arrive_in_order_with_their_hash(tmp_path: Path) -> None:
    pieces = [os.urandom(size) for size in (3, 1 << 20, 5, (1 << 20) - 5, 7, 3 << 20, 1)]
    written = storage.write_file(tmp_path / "f", lambda sink: [sink.write(p) for p in pieces])
    whole = b"".join(pieces)
    assert (tmp_path / "f").read_bytes() == whole
    assert written == storage.Written(sha256=hashlib.sha256(whole).hexdigest(), size=len(whole))


def test_a_finished_folder_is_never_overwritten(tmp_path: Path) -> None:
    make_new_folder(tmp_path)
    with pytest.raises(FileExistsError, match="never overwritten"):
        make_new_folder(tmp_path)


def test_folders_are_their_owners_alone(tmp_path: Path) -> None:
    storage.make_folder(tmp_path / "a" / "b")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a file where a folder is needed"):
        storage.make_folder(tmp_path / "file")


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    storage.remove(tmp_path / "stop")
    (tmp_path / "stop").touch()
    storage.remove(tmp_path / "stop")
    assert not list(tmp_path.iterdir())


def test_only_left_overs_are_cleaned(tmp_path: Path) -> None:
    kept = [".hidden", "x.tmp", ".x.tmp", "f.0123abcd.tmp", ".lock"]
    for name in [*kept, ".model.0123abcd.tmp"]:
        (tmp_path / name).touch()
    (tmp_path / ".step-00000001.89abcdef.trash" / "deep").mkdir(parents=True)
    assert storage.clean_temporaries(tmp_path) == [
        ".model.0123abcd.tmp",
        ".step-00000001.89abcdef.trash",
    ]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(kept)


HOLD = """
import sys, time
from pathlib import Path
from ddpm.runs import storage
with storage.lock(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""

FORK_HOLDING = """
import os, sys, time
from pathlib import Path
from ddpm.runs import storage
with storage.lock(Path(sys.argv[1]), "the run"):
    if os.fork():
        time.sleep(60)
# the child alone comes here, where it must not close a file of its own by mistake
os.write(1, b"left\\n")
time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    environment = os.environ | {"SLURM_JOB_ID": "4711"}
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        began = time.monotonic()
        with pytest.raises(LockedError) as caught, storage.lock(path, "the run"):
            pass
        assert time.monotonic() - began < 30  # at once: its holder stays for 60 s
        for word in ("the run is in use", f"process {holder.pid}", os.uname().nodename, "job 4711"):
            assert word in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        with storage.lock(path, "the run", wait_s=5):
            assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.slow
def test_a_waiting_lock_gives_up_after_its_time(tmp_path: Path) -> None:
    with storage.lock(tmp_path / ".lock", "it"):
        began = time.monotonic()
        with pytest.raises(LockedError), storage.lock(tmp_path / ".lock", "it", wait_s=0.35):
            pass
        assert 0.3 < time.monotonic() - began < 30
    with storage.lock(tmp_path / ".lock", "it"):
        pass


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", FORK_HOLDING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"left\n"
            holder.kill()
            with storage.lock(path, "the run", wait_s=5):
                os.killpg(holder.pid, 0)  # the child still lives
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_storage_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLocks(storage.SystemCalls):
        @staticmethod
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(storage, "system", NoLocks())
    with pytest.raises(StorageError, match="has no locks"):  # noqa: SIM117
        with storage.lock(tmp_path / ".lock", "it"):
            pass


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small disk"
)
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from ddpm.runs import storage
from ddpm.errors import StorageError
folder = Path(sys.argv[1])
storage.write_bytes(folder / "file", b"old")
try:
    storage.write_bytes(folder / "file", bytes(2_000_000))
except StorageError as error:
    print(error)
assert (folder / "file").read_bytes() == b"old"
assert len(list(folder.iterdir())) == 1
"""
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", script, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd())
    if "unshare" in result.stderr or "mount:" in result.stderr:
        pytest.skip(f"cannot mount here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert "No space left on device" in result.stdout and "bytes needed" in result.stdout
