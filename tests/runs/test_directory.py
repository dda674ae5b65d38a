"""The run directory: one holder, nothing lost, nothing twice, nothing that should stay private."""

import contextlib
import csv
import json
import logging
import os
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import config
from ddpm.errors import InputError, LockedError, StorageError
from ddpm.runs import checkpoint, storage
from ddpm.runs.directory import RunDirectory
from tests.support import storage_faults as faults

DATA = "d" * 64


@dataclass(frozen=True, kw_only=True)
class State:
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    scalars: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    step: int
    images: int
    metrics: Mapping[str, float]
    samples: np.ndarray | None = None
    state: State | None = None


def make_config(output_dir: Path, **training: object) -> config.Config:
    network = {"FIRST_CHANNEL": 8, "CHANNEL_MULTIPLIER": [1], "HAS_ATTENTION": [False]}
    plain = {
        "DATASET": {"NAME": "digits", "PATH": "digits"},
        "TRAINING": {
            "OUTPUT_DIR": str(output_dir),
            "INPUT_IMAGE_SIZE": 8,
            "INPUT_IMAGE_CHANNEL": 1,
            "NETWORK": network,
            **training,
        },
    }
    return config.from_dict(plain)


def start(
    run: RunDirectory, settings: config.Config, **changes: Any
) -> checkpoint.Checkpoint | None:
    arguments: dict[str, Any] = {
        "data_sha256": DATA,
        "data_dir": Path("/data"),
        "threads": 1,
        "command": ["launch/train.py", "configs/digits.yaml"],
    }
    return run.start(settings, **arguments | changes)


def state(step: int) -> State:
    tensors = {"model": {"w": torch.full((3,), float(step))}}
    return State(tensors=tensors, scalars={"step": step, "grad_scaler": None, "window": {}})


def report(step: int, *, saved: bool = False, **more: float) -> Report:
    metrics = {"loss": 1 / step, "time/seconds": 0.5} | more
    return Report(
        step=step, images=64 * step, metrics=metrics, state=state(step) if saved else None
    )


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    return make_config(tmp_path / "out")


@pytest.fixture
def run(settings: config.Config) -> Iterator[RunDirectory]:
    """A started run."""
    directory = RunDirectory.find_or_name(settings, DATA)
    assert start(directory, settings) is None
    yield directory
    directory.close()


def reopened(
    run: RunDirectory, settings: config.Config, **changes: Any
) -> checkpoint.Checkpoint | None:
    """Closes the run and starts it again, as the next process would."""
    run.close()
    again = RunDirectory.find_or_name(settings, DATA)
    assert again.path == run.path
    found = start(again, settings, **changes)
    again.close()
    return found


def test_the_name_tells_data_network_and_cell(run: RunDirectory, settings: config.Config) -> None:
    dataset, architecture, name = run.path.relative_to(settings.TRAINING.OUTPUT_DIR).parts
    assert dataset == "digits_8x8x1" and architecture == config.architecture_tag(settings)
    assert name.startswith("cosine_1000_velocity_MSE_")
    assert run.run_id == config.run_id(settings, DATA) and name.endswith(run.run_id)


def test_naming_a_run_writes_nothing(settings: config.Config, tmp_path: Path) -> None:
    RunDirectory.find_or_name(settings, DATA)
    assert not (tmp_path / "out").exists()


def test_the_same_configuration_finds_its_run_and_another_does_not(
    run: RunDirectory, settings: config.Config, tmp_path: Path
) -> None:
    assert RunDirectory.find_or_name(settings, DATA).path == run.path
    assert RunDirectory.find_or_name(settings, "e" * 64).path != run.path
    other = make_config(tmp_path / "out", PRED_TYPE="noise")
    assert RunDirectory.find_or_name(other, DATA).path != run.path


def test_an_unfinished_run_goes_before_a_finished_one_and_clocks_decide_nothing(
    run: RunDirectory, settings: config.Config
) -> None:
    run.finish({"final_loss": 1.0})
    assert RunDirectory.find_or_name(settings, DATA).path == run.path
    run.close()
    second = RunDirectory.find_or_name(settings, DATA, new=True)
    assert second.path != run.path
    start(second, settings)
    os.utime(run.path, (4070908800, 4070908800))
    os.utime(second.path, (1, 1))
    assert RunDirectory.find_or_name(settings, DATA).path == second.path
    second.finish({"final_loss": 2.0})
    second.close()
    # the newer of two finished runs, also when a clock that ran ahead named the older one
    ahead = run.path.with_name(run.path.name.replace("MSE_20", "MSE_99"))
    run.path.rename(ahead)
    assert RunDirectory.find_or_name(settings, DATA).summary == {"final_loss": 2.0}


def test_finishing_keeps_the_summary(run: RunDirectory) -> None:
    assert not run.is_finished and run.summary == {}
    run.finish({"steps": 3, "psnr": float("nan"), "levels": [1.0, float("inf")]})
    assert run.is_finished
    assert run.summary == {"steps": 3, "psnr": None, "levels": [1.0, None]}


def test_the_configuration_is_saved_as_it_is(run: RunDirectory, settings: config.Config) -> None:
    assert (run.path / "training_config.yaml").read_text() == config.to_yaml(settings)
    assert run.config() == settings


def test_reports_become_rows_tables_pictures_and_checkpoints(run: RunDirectory) -> None:
    samples = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8, 1)
    run.record(report(10))
    run.record(
        Report(step=20, images=1280, metrics={"loss": 0.5}, samples=samples, state=state(20))
    )
    assert run.metrics() == [
        {"step": 10, "images": 640, "loss": 0.1, "time/seconds": 0.5},
        {"step": 20, "images": 1280, "loss": 0.5},
    ]
    with (run.path / "log.csv").open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["0.1", "0.5"]
    with Image.open(run.path / "inline_gen" / "step-00000020.png") as picture:
        assert picture.size[0] >= 5 * 32
    assert checkpoint.steps(run.checkpoints) == [20]
    with (run.path / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    stages = ["start", "train", "train", "sampling", "checkpoint"]
    assert [row["stage"] for row in rows] == stages
    assert all(int(row["process_peak"]) >= int(row["process_rss"]) > 0 for row in rows)
    assert "step 20" in (run.path / "train.log").read_text()


def test_a_report_of_a_stop_has_a_state_but_no_row(run: RunDirectory) -> None:
    run.record(Report(step=7, images=448, metrics={}, state=state(7)))
    assert run.metrics() == [] and checkpoint.steps(run.checkpoints) == [7]


def test_log_csv_grows_columns_and_stays_readable(run: RunDirectory) -> None:
    run.record(report(1))
    run.record(report(2, psnr=31.5))
    run.record(report(3))
    with (run.path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["psnr"] for row in rows] == ["", "31.5", ""]
    assert [float(row["loss"]) for row in rows] == [1.0, 0.5, 1 / 3]


def test_numbers_survive_to_the_last_bit_and_nan_is_null(run: RunDirectory) -> None:
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": float("nan"), "d": float("-inf")}
    run.record(report(1, **values))
    row = run.metrics()[0]
    assert (row["a"], row["b"], row["c"], row["d"]) == (0.1 + 0.2, 5e-324, None, None)


def test_rows_after_the_checkpoint_are_dropped_on_resume(
    run: RunDirectory, settings: config.Config
) -> None:
    for step in (10, 20, 30, 40):
        run.record(report(step, saved=step == 20))
    found = reopened(run, settings)
    assert found is not None and found.step == 20
    assert torch.equal(found.tensors["model"]["w"], torch.full((3,), 20.0))
    assert [row["step"] for row in run.metrics()] == [10, 20]
    with (run.path / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["10", "20"]


def test_without_a_checkpoint_the_rows_start_over(
    run: RunDirectory, settings: config.Config
) -> None:
    run.record(report(10))
    assert reopened(run, settings) is None
    assert run.metrics() == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.csv", "memory.csv"])
def test_a_torn_last_line_is_repaired(
    name: str, run: RunDirectory, settings: config.Config
) -> None:
    run.record(report(10))
    run.record(report(20, saved=True))
    whole = (run.path / name).read_bytes()
    with (run.path / name).open("ab") as file:
        file.write(b'{"step": 30, "ima')
    if name == "metrics.jsonl":
        assert len(run.metrics()) == 2
    reopened(run, settings)
    repaired = (run.path / name).read_bytes()
    if name == "memory.csv":  # the new attempt has added its own row
        assert repaired.startswith(whole) and repaired.count(b"\n") == whole.count(b"\n") + 1
    else:
        assert repaired == whole


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    settings = make_config(tmp_path / "out", CHECKPOINTS_KEEP=2)
    run = RunDirectory.find_or_name(settings, DATA)
    start(run, settings)
    for step in (1, 2, 3, 4):
        run.record(report(step, saved=True))
    run.close()
    assert checkpoint.steps(run.checkpoints) == [3, 4]


def test_a_damaged_checkpoint_rewinds_the_metrics_with_it(
    run: RunDirectory, settings: config.Config
) -> None:
    run.record(report(10, saved=True))
    run.record(report(20, saved=True))
    (run.checkpoints / "step-00000020" / "state.json").write_text("{}")
    found = reopened(run, settings)
    assert found is not None and found.step == 10
    assert [row["step"] for row in run.metrics()] == [10]
    assert "set aside as step-00000020.corrupt" in (run.path / "train.log").read_text()


def session(run: RunDirectory, settings: config.Config, last: int) -> None:
    """A training in small: starts or continues, reports every step, saves every second one."""
    found = start(run, settings)
    for step in range(found.step + 1 if found else 1, last + 1):
        run.record(report(step, saved=step % 2 == 0))
    run.finish({"steps": last})
    run.close()


def result(run: RunDirectory) -> tuple[Any, ...]:
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None
    return run.metrics(), (run.path / "log.csv").read_text(), newest.step, run.summary


@pytest.mark.long
def test_every_call_of_a_whole_session_under_every_fault_ends_the_same(tmp_path: Path) -> None:
    clean = make_config(tmp_path / "clean")
    strikes = faults.strikes(
        lambda: session(RunDirectory.find_or_name(clean, DATA), clean, 3),
        ("kill halfway", "kill after", "EIO"),
    )
    expected = result(RunDirectory.find_or_name(clean, DATA))
    killed = 0
    for target, fault in strikes:
        settings = make_config(tmp_path / f"{target}-{fault.replace(' ', '-')}")

        def one(settings: config.Config = settings) -> None:
            session(RunDirectory.find_or_name(settings, DATA), settings, 3)

        killed += faults.strike(one, target, fault) == "killed"
        one()
        runs = list(Path(settings.TRAINING.OUTPUT_DIR).glob("*/*/*"))
        assert len(runs) == 1, (target, fault)
        assert result(RunDirectory(runs[0])) == expected, (target, fault)
        assert not [p for p in runs[0].rglob(".*") if p.name != ".lock"]
    assert len(strikes) > 160 and killed == sum("kill" in fault for _, fault in strikes)


@pytest.mark.slow
def test_of_twenty_launches_one_runs_and_the_others_are_told_who(
    run: RunDirectory, settings: config.Config
) -> None:
    run.close()
    path, children = run.path, []
    ready, gate = os.pipe(), os.pipe()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.close(gate[1])
            os.read(gate[0], 1)
            began, code = time.monotonic(), 70
            with contextlib.suppress(BaseException):
                try:
                    held = RunDirectory(path)  # for as long as the object lives
                    start(held, settings)
                    os.write(ready[1], b"x")
                    signal.pause()
                except LockedError as error:
                    assert f"run directory {path} is in use by" in str(error)
                    code = error.exit_code if time.monotonic() - began < 30 else 71
            os._exit(code)
        children.append(child)
    for end in gate:  # all at once
        os.close(end)
    try:
        os.read(ready[0], 1)
        codes, alive = [], set(children)
        while len(codes) < 19:
            child, status = os.waitpid(-1, 0)
            alive.discard(child)
            codes.append(os.waitstatus_to_exitcode(status))
        assert codes == [3] * 19
        (holder,) = alive
        with pytest.raises(LockedError, match=f"process {holder} on"):
            start(RunDirectory(path), settings)
    finally:
        for child in alive:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    start(run, settings, wait_s=5)


def test_the_directory_can_be_taken_again_after_close(
    run: RunDirectory, settings: config.Config
) -> None:
    with pytest.raises(LockedError):
        start(RunDirectory(run.path), settings)
    run.close()
    run.close()
    start(run, settings)


def test_another_configuration_is_refused_with_the_difference(
    run: RunDirectory, tmp_path: Path
) -> None:
    run.close()
    before = sorted(run.path.iterdir())
    other = make_config(tmp_path / "out", PRED_TYPE="noise", SEED=3)
    with pytest.raises(InputError) as caught:
        start(RunDirectory(run.path), other)
    text = str(caught.value)
    assert f"{run.path} belongs to another configuration" in text
    assert 'TRAINING.PRED_TYPE: "velocity" -> "noise"' in text and "TRAINING.SEED: 0 -> 3" in text
    assert "OUTPUT_DIR" not in text and caught.value.exit_code == 2
    assert sorted(run.path.iterdir()) == before


def test_other_data_is_refused(run: RunDirectory, settings: config.Config) -> None:
    run.close()
    with pytest.raises(InputError, match="data: index dddddddd -> eeeeeeee"):
        start(RunDirectory(run.path), settings, data_sha256="e" * 64)


def test_keys_of_the_machine_may_change(run: RunDirectory, tmp_path: Path) -> None:
    moved = make_config(tmp_path / "out", CHECKPOINTS_KEEP=7)
    assert reopened(run, moved) is None
    assert run.config().TRAINING.CHECKPOINTS_KEEP == 7


def test_threads_are_those_of_the_first_start(run: RunDirectory, settings: config.Config) -> None:
    reopened(run, settings, threads=4)
    assert run.threads == 1
    assert "4 threads asked for; the run keeps its 1" in (run.path / "train.log").read_text()


def test_every_attempt_is_recorded_and_changes_are_warned_of(
    run: RunDirectory, settings: config.Config, caplog: pytest.LogCaptureFixture
) -> None:
    facts = run.provenance
    storage.write_json(run.path / "provenance.json", facts | {"torch": "2.0.0"})
    with caplog.at_level(logging.WARNING):
        reopened(run, settings, command=["launch/train.py", "--resume", "x"])
    assert "torch changed from 2.0.0 to" in caplog.text
    attempts = run.provenance["attempts"]
    assert [each["command"] for each in attempts] == [
        "launch/train.py configs/digits.yaml",
        "launch/train.py --resume x",
    ]
    for key in ("git", "python", "torch", "ray", "wandb", "host", "cpu", "gpus", "source_sha256"):
        assert key in attempts[0]
    assert run.provenance["data_sha256"] == DATA
    assert run.provenance["config_sha256"] == config.config_sha256(settings)


def test_an_unchanged_attempt_warns_of_nothing(
    run: RunDirectory, settings: config.Config, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reopened(run, settings)
    assert not caplog.records


def test_the_manifest_of_a_checkpoint_says_what_made_it(run: RunDirectory) -> None:
    run.record(report(5, saved=True))
    manifest = json.loads((run.checkpoints / "step-00000005" / "MANIFEST.json").read_text())
    facts = run.provenance
    for key in ("config_sha256", "data_sha256", "torch", "threads"):
        assert manifest[key] == facts[key]
    assert manifest["cpu"] == facts["cpu_capability"]


def test_a_stop_is_seen_by_another_process_and_forgotten_by_the_next_start(
    run: RunDirectory, settings: config.Config
) -> None:
    assert not run.stop_requested
    RunDirectory(run.path).request_stop()
    assert run.stop_requested
    reopened(run, settings)
    assert not run.stop_requested


def test_the_directory_is_its_owners_alone(run: RunDirectory) -> None:
    for folder in (run.path, run.checkpoints, run.inline_gen):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_secrets_of_environment_and_command_never_reach_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries = {
        "WANDB_API_KEY": "canary-wandb-1234567890",
        "RAY_AUTH_TOKEN": "canary-ray-1234567890",
        "MY_PASSWORD": "canary-password-1234567890",
        "SOMETHING_ELSE": "canary-other-1234567890",
    }
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    settings = make_config(tmp_path / "out")
    run = RunDirectory.find_or_name(settings, DATA)
    command = ["train.py", "x.yaml", f"KEY={canaries['WANDB_API_KEY']}", "API_KEY=canary-argument"]
    command += ["--token", "canary-option", "https://me:canary-login@host/"]
    start(run, settings, command=command)
    run.record(report(1, saved=True))
    run.finish({"steps": 1})
    run.close()
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert b"canary" not in path.read_bytes(), path
    masked = run.provenance["command"]
    assert masked.startswith("train.py x.yaml") and "host" in masked and masked.count("***") == 4


def test_a_folder_that_cannot_be_written_is_a_storage_error(
    settings: config.Config, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(StorageError) as caught:
        start(RunDirectory.find_or_name(settings, DATA), settings)
    assert caught.value.exit_code == 5 and str(tmp_path / "out") in str(caught.value)
