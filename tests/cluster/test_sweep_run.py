"""The sweep as a user runs it: real Ray, killed and continued, failing trials, its files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ddpm.cli import sweep
from ddpm.errors import LockedError
from ddpm.sweep.ledger import Ledger
from tests.support.processes import until
from tests.support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SWEEP = """
BASE: {base}
GRID:
  TRAINING.PRED_TYPE: [image, velocity]
  TRAINING.NETWORK.SCHEDULER: {schedulers}
"""
SMALL = {
    "TRAINING.NETWORK.FIRST_CHANNEL": 8,
    "TRAINING.NETWORK.NUM_RES_BLOCKS": 1,
    "TRAINING.NETWORK.TIMESTEPS": 60,
    "TRAINING.INLINE_GEN.NUMS": 10,
    "TRAINING.INLINE_GEN.REVERSE_STRIDE": 30,
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": 4,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 6,
    "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": 1,
    "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 2,
    "EVALUATION.NUM": 16,
    "IMAGE_GENERATION.NUM_STEPS": 2,
}


def command(
    tmp_path: Path, schedulers: str = "[linear, cosine]", **changed: object
) -> list[str | Path]:
    """The command of a small sweep whose file and results lie in tmp_path."""
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP.format(base=ROOT / "configs" / "digits.yaml", schedulers=schedulers))
    settings = SMALL | {"TRAINING.OUTPUT_DIR": tmp_path / "out"} | changed
    return [
        *(sys.executable, ROOT / "launch" / "sweep.py", file),
        *(f"{key}={value}" for key, value in settings.items()),
    ]


def attempts(tmp_path: Path) -> dict[str, int]:
    """How often each trial was started, by run id."""
    found = tmp_path.glob("out/*/*/*/provenance.json")
    return {
        facts["run_id"]: len(facts["attempts"])
        for facts in (json.loads(path.read_text()) for path in found)
    }


def outcomes(tmp_path: Path) -> dict[str, str]:
    ledger = Ledger(tmp_path / "out" / "sweeps" / "small" / "ledger")
    return {trial: outcome.status for trial, outcome in ledger.outcomes().items()}


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs and could work. Two idle agents of Ray take a minute to go."""
    try:
        is_agent = process.name().endswith("Agent")
        return process.status() != psutil.STATUS_ZOMBIE and not is_agent
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_a_killed_sweep_continues_and_reruns_no_finished_trial(tmp_path: Path) -> None:
    """kill -9 of the driver: its trials die too, and the same command does only what is left."""
    argv = command(tmp_path)
    driver = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    until("a trial ends", lambda: outcomes(tmp_path) or driver.poll() is not None)
    assert driver.poll() is None, "the sweep ended before a trial did"
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    finished = outcomes(tmp_path)
    assert 1 <= len(finished) < 4
    until("all that it started is dead", lambda: not any(map(is_alive, below)), 30)
    finished = outcomes(tmp_path)
    before = attempts(tmp_path)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(outcomes(tmp_path).values()) == ["done"] * 4
    after = attempts(tmp_path)
    assert all(after[trial] == before[trial] for trial in finished)

    folder = tmp_path / "out" / "sweeps" / "small"
    assert (folder / "report.html").stat().st_size > 10_000
    assert len((folder / "results.csv").read_text().splitlines()) == 5
    assert "# python launch/train.py" in (folder / "best.yaml").read_text().splitlines()[0]
    assert str(folder / "report.html") in done.stdout
    assert not (folder / "ray").exists()

    again = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "0 to run" in again.stdout
    assert attempts(tmp_path) == after


@pytest.mark.long
def test_sigterm_saves_trials_of_several_workers_and_asks_to_run_again(tmp_path: Path) -> None:
    longer = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 5000, "CLUSTER.NUM_WORKERS": 2}
    argv = command(tmp_path, **longer)
    driver = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until("a trial trains", lambda: list(tmp_path.glob("out/*/*/*/metrics.jsonl")))
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=100)
    assert driver.returncode == 75, errors
    assert "run the same command again" in errors
    started = list(tmp_path.glob("out/*/*/*/metrics.jsonl"))
    assert started and all(list(p.parent.glob("checkpoints/step-*")) for p in started)


@pytest.mark.long
def test_a_failing_trial_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    """One cell's learning rate ends in NaN: recorded with its reason, the other cell finishes."""
    argv = command(tmp_path, "[linear]", **{"TRAINING.CLIP_NORM": "null"})
    argv.append("GRID.TRAINING.HYPER_PARAMETERS.LEARNING_RATE=[1.0e-3, 1.0e+4]")
    argv.append("GRID.TRAINING.PRED_TYPE=[image]")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sorted(outcomes(tmp_path).values()) == ["done", "failed"]
    assert "non-finite" in done.stdout
    assert (tmp_path / "out" / "sweeps" / "small" / "report.html").exists()


def test_a_second_driver_of_the_same_sweep_is_refused(tmp_path: Path) -> None:
    from ddpm.runs.storage import lock, make_folder

    folder = tmp_path / "out" / "sweeps" / "small"
    make_folder(folder)
    argv = command(tmp_path, "[linear]")
    with lock(folder / "sweep.lock", "it"), pytest.raises(LockedError, match="sweep small in "):
        sweep.main(list(map(str, argv[2:])))
