"""The sweep as a user runs it: real Ray, killed and continued, its files."""

import json
from pathlib import Path

import psutil
import pytest

from ddpm.cli import sweep
from ddpm.cli.main import launch
from ddpm.errors import LockedError
from ddpm.runs.storage import lock, make_folder
from ddpm.sweep.ledger import Ledger
from tests.support.processes import forked, until
from tests.support.tiny_training import TINY
from tests.support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

SWEEP = """
BASE: {base}
GRID:
  TRAINING.PRED_TYPE: [image, velocity]
  TRAINING.NETWORK.SCHEDULER: {schedulers}
"""
SMALL = TINY | {
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": 4,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 6,
    "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": 1,
}
RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
WITHIN = {
    f"SPACE.{RATE}": "{loguniform: [1.0e-4, 1.0e-1]}",
    **{"TUNE.WITHIN": "cell", "TUNE.TRIALS": 2, "TUNE.MAX_CONCURRENT": 1, "SEEDS": "[0]"},
}


def arguments(
    tmp_path: Path, data: Path, schedulers: str = "[linear, cosine]", **changed: object
) -> list[str]:
    """The arguments of a small sweep of these data, whose file and results lie in tmp_path."""
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP.format(base=ROOT / "configs" / "digits.yaml", schedulers=schedulers))
    settings = SMALL | {"TRAINING.OUTPUT_DIR": tmp_path / "out", "DATASET.PATH": data} | changed
    return [str(file), *(f"{key}={value}" for key, value in settings.items())]


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
def test_a_killed_sweep_continues_and_reruns_no_finished_trial(
    tmp_path: Path, few_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of the driver: its trials die too, and the same command does only what is left. The
    sweep is tuned within each cell, then its cells are compared at the rates chosen in them.
    """
    argv = arguments(tmp_path, few_digits, "[cosine]", **WITHIN)
    driver = forked(launch, "sweep", argv)
    until("a trial ends", lambda: outcomes(tmp_path) or driver.exitcode is not None)
    assert driver.exitcode is None, "the sweep ended before a trial did"
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    assert 1 <= len(outcomes(tmp_path)) < 4
    until("all that it started is dead", lambda: not any(map(is_alive, below)), 30)
    finished, before = outcomes(tmp_path), attempts(tmp_path)
    assert launch("sweep", argv) == 0
    after = attempts(tmp_path)
    assert all(after[trial] == before[trial] for trial in finished)
    assert set(outcomes(tmp_path).values()) == {"done"}

    folder = tmp_path / "out" / "sweeps" / "small"
    assert (folder / "report.html").stat().st_size > 10_000
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert f" train {folder / 'best.yaml'}" in (folder / "best.yaml").read_text().splitlines()[0]
    assert str(folder / "report.html") in capsys.readouterr().out
    assert not (folder / "ray").exists()

    chosen = json.loads((folder / "within.json").read_text())["cells"]
    facts = json.loads((folder / "sweep.json").read_text())["planned"]
    tuning = [one for one in facts if one.get("is_tuning")]
    compared = [one for one in facts if not one.get("is_tuning")]
    assert len(chosen) == 2 and len(tuning) == 4 and len(compared) == 2
    assert {(one["seed"], one["steps"]) for one in tuning} == {(1000, 8)}
    assert {(one["seed"], one["steps"]) for one in compared} == {(0, 24)}
    rates = {one["cell"]["TRAINING.PRED_TYPE"]: one["chosen"][RATE] for one in chosen}
    for one in compared:
        assert RATE not in one["cell"]
        assert one["chosen"][RATE] == rates[one["cell"]["TRAINING.PRED_TYPE"]]
    assert "Tuned within cells" in (folder / "report.md").read_text()

    assert launch("sweep", argv) == 0
    assert "0 to run" in capsys.readouterr().out
    assert attempts(tmp_path) == after


def test_a_second_driver_of_the_same_sweep_is_refused(tmp_path: Path, few_digits: Path) -> None:
    folder = tmp_path / "out" / "sweeps" / "small"
    make_folder(folder)
    argv = arguments(tmp_path, few_digits, "[linear]")
    with lock(folder / "sweep.lock", "it"), pytest.raises(LockedError, match="sweep small in "):
        sweep.main(argv)
