"""How soon a job has begun and ended, and where it can be submitted from."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.hosts import wait_until
from tests.slurm.jobs import Train, files_called, submit
from tests.slurm.lab import Lab


def test_it_ends_soon_after_its_last_step(
    train: Train, folder: Path, figure: Callable[[str], None]
) -> None:
    """It ends in less time than it took to begin: nothing waits for a limit to pass."""
    job = train(folder, "--nodes=2", changed={"TRAINING.HYPER_PARAMETERS.EPOCHS": 10})
    start = job.seconds_to_first_row(folder)
    wait_until("the result is there", lambda: files_called("DONE.json", folder), 60)
    begin = time.monotonic()
    job.completes()
    seconds = time.monotonic() - begin
    figure(f"the job ended {seconds:.1f} s after its result; it had begun in {start:.1f} s")
    assert seconds <= start


@pytest.mark.slow
def test_scripts_outside_of_the_repository_say_where_to_submit(lab: Lab, folder: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "slurm" / "train.sh"
    job = submit(lab, str(script), "x.yaml", output=folder, cwd=folder)
    assert job.end() == ("FAILED", "2:0")
    assert "run sbatch from the root of the repository" in job.read_log()
