"""Jobs that SLURM stops: who saves, who comes back, and who must not."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm.runs.directory import RunDirectory
from tests.slurm.jobs import Train, assert_same, rows, run_of, steps, submit
from tests.slurm.lab import Lab
from tests.tracking import test_wandb_log as wandb

Figure = Callable[[str], None]


def test_requeued_on_three_nodes_it_goes_on_bit_for_bit(
    train: Train, undisturbed: Path, folder: Path, figure: Figure
) -> None:
    """Bit for bit, and in no more than twice the time of its first start."""
    job = train(folder, "--nodes=3")
    first = job.seconds_to_first_row(folder)
    job.wait_for_rows(folder, 20)
    job.control("requeue")
    job.wait_for_restart()
    before = rows(folder)
    seconds = job.seconds_to_first_row(folder, before)
    job.completes()
    assert job.restarts == 1 and job.starts()[0][0] == "REQUEUED"
    assert_same(run_of(folder), undisturbed)
    run = RunDirectory(run_of(folder))
    assert wandb.steps(run) == steps(run.path), "W&B has not one run with every step once"
    figure(f"from RUNNING to a step: {first:.1f} s, again {seconds:.1f} s; row {before} was saved")
    assert seconds <= 2 * first


def test_cancelled_it_saves_and_stays_cancelled(
    train: Train, undisturbed: Path, folder: Path
) -> None:
    job = train(folder)
    job.wait_for_rows(folder, 20)
    job.cancel()
    state, _ = job.end()
    assert state == "CANCELLED" and job.restarts == 0
    time.sleep(8)  # longer than a requeued job waits
    assert job.state == "CANCELLED" and "requeue 1" not in job.read_log()
    train(folder).completes()
    assert_same(run_of(folder), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["low", "grace"])
def test_preempted_it_gives_way_and_goes_on(
    lab: Lab, train: Train, undisturbed: Path, folder: Path, partition: str
) -> None:
    job = train(folder, f"--partition={partition}", "--nodelist=n1")
    job.wait_for_rows(folder, 20)
    options = ("--exclusive", "--nodelist=n1", "--wrap=sleep 3")
    above = submit(lab, *options, output=folder)
    above.wait_for_state("RUNNING", "COMPLETED", seconds=90)
    job.wait_for_restart()
    job.completes()
    first = job.starts()[0][0]
    assert first == "PREEMPTED" or partition == "grace" and first == "REQUEUED"
    assert job.restarts == 1
    assert_same(run_of(folder), undisturbed)


@pytest.mark.slow
def test_at_its_time_limit_it_saves_and_goes_on(
    lab: Lab, train: Train, undisturbed: Path, folder: Path
) -> None:
    """The minute passes while the training is held still; then the signal has to end it."""
    job = train(folder, "--time=1", "--signal=B:USR2@20", "--nodelist=n1")
    job.wait_for_rows(folder, 20)
    training = [p for p in lab.nodes["n1"].tree() if "ddpm train" in " ".join(p.cmdline())]
    for process in training:
        process.suspend()
    job.wait_for_text("USR2 received", seconds=60)
    for process in training:
        process.resume()
    job.wait_for_restart()
    lab.ctl.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")
    job.completes()
    assert job.restarts == 1 and job.starts()[0][0] == "REQUEUED"
    assert "requeue 1 of at most" in job.read_log()
    assert_same(run_of(folder), undisturbed)


@pytest.mark.slow
def test_it_is_requeued_a_bounded_number_of_times(lab: Lab, train: Train, folder: Path) -> None:
    job = train(
        folder, "--export=ALL,DDPM_REQUEUES=1", changed={"TRAINING.HYPER_PARAMETERS.EPOCHS": 3000}
    )
    for restarts in range(2):
        job.wait_for_rows(folder, 20 * (restarts + 1))
        lab.ctl.run("scancel", "--signal=USR2", "--batch", job.id)
        if restarts == 0:
            job.wait_for_restart()
    assert job.end() == ("FAILED", "75:0") and job.restarts == 1
    assert "requeued 1 times, the most that DDPM_REQUEUES allows" in job.read_log()
