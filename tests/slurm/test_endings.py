"""What a job that cannot go on says and leaves: its exit code in sacct, and no requeue."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.jobs import Train, run_of, submit
from tests.slurm.lab import Lab


def test_a_bad_configuration_ends_the_job_before_ray(train: Train, folder: Path) -> None:
    job = train(folder, "--nodes=3", changed={"TRAINING.PRED_TIPE": "noise"})
    assert job.end() == ("FAILED", "2:0")
    assert job.steps() == ["batch"] and job.restarts == 0
    assert "did you mean TRAINING.PRED_TYPE" in job.read_log()
    assert [path.suffix for path in folder.iterdir()] == [".log"]


def test_a_gpu_configuration_without_gpus_is_refused(train: Train, folder: Path) -> None:
    job = train(folder, "--nodes=2", changed={"CLUSTER.GPUS_PER_WORKER": 1})
    assert job.end() == ("FAILED", "2:0") and job.steps() == ["batch"]
    assert f"SLURM job {job.id} has no GPU; ask for some" in job.read_log()


def test_more_workers_than_samples_are_refused(train: Train, folder: Path) -> None:
    changed = {"TRAINING.HYPER_PARAMETERS.BATCH_SIZE": 2, "TRAINING.MICRO_BATCH": "null"}
    job = train(folder, "--nodes=3", changed=changed)
    assert job.end() == ("FAILED", "2:0") and job.steps() == ["batch"]
    assert "give at most 2 workers" in job.read_log()


def test_a_folder_that_not_all_nodes_see_is_refused(lab: Lab, train: Train, folder: Path) -> None:
    job = train(folder, "--nodes=2", changed={"TRAINING.OUTPUT_DIR": "/dev/shm/results"})
    try:
        assert job.end() == ("FAILED", "2:0") and job.restarts == 0
    finally:
        for node in lab.nodes.values():
            node.run("rm", "-rf", "/dev/shm/results")
    assert "must lie on a file system that all nodes share" in job.read_log()


def test_a_failing_training_is_a_failing_job(train: Train, folder: Path) -> None:
    changed = {"TRAINING.HYPER_PARAMETERS.LEARNING_RATE": 9999, "TRAINING.CLIP_NORM": "null"}
    job = train(folder, changed=changed | {"TRAINING.HYPER_PARAMETERS.LR_TYPE": "constant"})
    assert job.end() == ("FAILED", "4:0") and job.restarts == 0
    assert "error: " in job.read_log()


def test_it_ends_soon_after_its_last_step(
    train: Train, folder: Path, figure: Callable[[str], None]
) -> None:
    job = train(folder, "--nodes=2", changed={"TRAINING.HYPER_PARAMETERS.EPOCHS": 10})
    done = folder.rglob("DONE.json")
    job.wait_for_rows(folder, 10)
    while not (found := list(done)):
        done = folder.rglob("DONE.json")
        time.sleep(0.05)
    begin = time.monotonic()
    job.completes()
    seconds = time.monotonic() - begin
    text = (run_of(folder) / "train.log").read_text()
    (line,) = [line for line in text.splitlines() if "seconds to the first step" in line]
    figure(f"the job ended {seconds:.1f} s after its result; {line.partition('INFO ')[2]}")
    assert seconds <= 5 and float(line.rpartition("total ")[2]) <= 45
    assert json.loads(found[0].read_text())["summary"]["steps"] == 10


@pytest.mark.slow
def test_scripts_outside_of_the_repository_say_where_to_submit(lab: Lab, folder: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "slurm" / "train.sh"
    job = submit(lab, str(script), "x.yaml", output=folder, cwd=folder)
    assert job.end() == ("FAILED", "2:0")
    assert "run sbatch from the root of the repository" in job.read_log()
