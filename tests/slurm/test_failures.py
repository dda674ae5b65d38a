"""A failing training is a failing job, and bad input ends it before anything is started."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from tests.slurm.jobs import Job, Train
from tests.slurm.lab import Lab

SMALL_BATCH = {"TRAINING.HYPER_PARAMETERS.BATCH_SIZE": 2, "TRAINING.MICRO_BATCH": "null"}


def assert_refused(job: Job, *words: str) -> None:
    """Exit code 2, the reason in the log, no step beside the batch script, and not requeued."""
    assert job.end() == ("FAILED", "2:0"), job.read_log()
    assert all(word in job.read_log() for word in words), job.read_log()
    assert job.steps() == ["batch"] and job.restarts == 0


def test_numbers_that_explode_fail_the_job(train: Train, folder: Path) -> None:
    job = train(folder, changed={"TRAINING.HYPER_PARAMETERS.LEARNING_RATE": 10000.0})
    assert job.end() == ("FAILED", "4:0"), job.read_log()
    assert job.restarts == 0


def test_a_bad_configuration_is_refused_before_ray(train: Train, folder: Path) -> None:
    several = [
        train(folder / "key", "--nodes=3", changed={"TRAINING.SEEED": 1}),
        train(folder / "gpu", "--nodes=3", changed={"CLUSTER.GPUS_PER_WORKER": 1}),
        train(folder / "many", "--nodes=3", changed={"CLUSTER.NUM_WORKERS": 129}),
        train(folder / "few", "--nodes=3", changed=SMALL_BATCH),
        train(folder / "path", "--nodes=3", changed={"DATASET.PATH": folder / "nothing"}),
    ]
    words = [
        ("did you mean TRAINING.SEED",),
        (f"SLURM job {several[1].id} has no GPU", "--gpus-per-node"),
        ("129", "give at most 128"),
        ("give at most 2 workers",),
        ("nothing",),
    ]
    for job, said in zip(several, words, strict=True):
        assert_refused(job, *said)
        assert list(job.log.parent.iterdir()) == [job.log], "a refused job has written something"


def test_a_failed_job_of_three_nodes_has_its_exit_code(train: Train, folder: Path) -> None:
    job = train(folder, "--nodes=3", changed={"TRAINING.HYPER_PARAMETERS.LEARNING_RATE": 10000.0})
    assert job.end() == ("FAILED", "4:0"), job.read_log()


def test_a_run_directory_that_not_all_nodes_see_is_refused(train: Train, folder: Path) -> None:
    """/tmp is each node's own."""
    changed = {"TRAINING.OUTPUT_DIR": "/tmp/runs"}
    job = train(folder, "--nodes=3", changed=changed)
    assert job.end() == ("FAILED", "2:0"), job.read_log()
    assert "TRAINING.OUTPUT_DIR must lie on a file system that all nodes share" in job.read_log()
    assert job.restarts == 0
    # What the first node made lies where the job was told to put it.
    for node in job.lab.nodes.values():
        node.run("rm", "-rf", "/tmp/runs")


@pytest.mark.slow
def test_another_ray_on_one_node_is_refused(lab: Lab, train: Train, folder: Path) -> None:
    version = importlib.metadata.version("ray")
    installed = importlib.metadata.distribution("ray").locate_file(f"ray-{version}.dist-info")
    other = Path(shutil.copytree(str(installed), folder / "other"))
    words = (other / "METADATA").read_text().replace(f"Version: {version}", "Version: 2.0.0", 1)
    (other / "METADATA").write_text(words)
    lab.nodes["n2"].run("mount", "--bind", other, installed)
    try:
        job = train(folder, "--nodes=3")
        assert job.end() == ("FAILED", "2:0"), job.read_log()
    finally:
        lab.nodes["n2"].run("umount", installed)
    assert "node n2 has Ray 2.0.0" in job.read_log() and job.restarts == 0


@pytest.mark.slow
def test_without_slurms_commands_it_says_so(train: Train, folder: Path) -> None:
    programs = folder / "bin"
    programs.mkdir()
    for name in ("bash", "date", "rm", "mkdir", "mktemp", "env"):
        (programs / name).symlink_to(str(shutil.which(name)))
    job = train(folder, f"--export=PATH={programs}")
    assert_refused(job, "srun is not found; load SLURM's commands in slurm/site.env")
