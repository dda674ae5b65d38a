"""A grid of nine trainings in one allocation, also after array jobs: nothing runs twice."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.test_sweep_run import attempts, outcomes
from tests.slurm.hosts import patience, wait_until
from tests.slurm.jobs import TRAINING, as_words, submit
from tests.slurm.lab import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NINE = """
BASE: {base}
GRID:
  TRAINING.NETWORK.SCHEDULER: [linear, cosine, cos6]
  TRAINING.PRED_TYPE: [noise, image, velocity]
"""
SHORT = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 40, "CLUSTER.CPUS_PER_WORKER": 1}


@pytest.fixture
def sweep(packed: Path, folder: Path) -> list[str]:
    """The sweep's file and its changed keys."""
    file = folder / "small.yaml"
    file.write_text(NINE.format(base=Path.cwd() / "configs" / "digits.yaml"))
    settings = {"DATASET.PATH": packed, "TRAINING.OUTPUT_DIR": folder / "out", **TRAINING, **SHORT}
    return [str(file), *as_words(settings)]


def some_done(folder: Path) -> bool:
    return list(outcomes(folder).values()).count("done") >= 2


def assert_only_the_rest_ran(folder: Path, before: dict[str, int], done: set[str]) -> None:
    """All nine are done, and those that were done already have not been started again."""
    assert list(outcomes(folder).values()) == ["done"] * 9
    after = attempts(folder)
    assert len(done) < 9 and {t: after[t] for t in done} == {t: before[t] for t in done}


def test_nine_trials_in_one_allocation(lab: Lab, sweep: list[str], folder: Path) -> None:
    options = ("--nodes=3", "--cpus-per-task=1")
    first = submit(lab, "slurm/sweep.sh", *sweep, options=options, output=folder)
    wait_until("two trials are done", lambda: some_done(folder), 250)
    first.cancel()
    assert first.end()[0] == "CANCELLED" and first.restarts == 0
    done, before = set(outcomes(folder)), attempts(folder)
    second = submit(lab, "slurm/sweep.sh", *sweep, options=options, output=folder)
    second.completes(300)
    assert_only_the_rest_ran(folder, before, done)


def test_what_array_jobs_began_one_allocation_ends(
    lab: Lab, sweep: list[str], folder: Path
) -> None:
    words = ["launch/sweep.py", *sweep, "--cluster", "slurm", "--group-size", "3", "--no-probe"]
    command = lab.ctl.command(sys.executable, *words)
    log = (folder / "login.log").open("wb")
    watching = subprocess.Popen(command, env=lab.ctl.environment(), stdout=log, stderr=log)
    wait_until("two trials are done", lambda: some_done(folder), 250)
    lab.ctl.run("scancel", "--user=root")
    wait_until("the queue is empty", lambda: not lab.ctl.run("squeue", "-h").stdout, 60)
    watching.wait(timeout=patience(120))
    done, before = set(outcomes(folder)), attempts(folder)
    submit(
        lab, "slurm/sweep.sh", *sweep, options=("--nodes=3", "--cpus-per-task=1"), output=folder
    ).completes(300)
    assert_only_the_rest_ran(folder, before, done)
