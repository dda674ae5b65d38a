"""A training over two Ray workers: the same bits as without Ray, also when a worker is killed."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ddpm.cluster.ray_cluster import running_ray
from ddpm.cluster.run_trial import FilePoll
from ddpm.cluster.workers import Workers
from ddpm.errors import InputError, LockedError, NonFiniteError
from tests.training.test_resume import fingerprint, make_job, undisturbed

BOTH = Workers(count=2, cpus=1, gpus=0)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with running_ray(2):
        yield


def worker_processes() -> list[psutil.Process]:
    children = psutil.Process(os.getpid()).children(recursive=True)
    return [child for child in children if "TrainWorker" in " ".join(child.cmdline()[:1])]


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.long
def test_a_killed_ray_worker_changes_no_bit(
    ray: None, tmp_path: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddpm.cluster import ray_train

    job, killed = make_job(tmp_path, few_digits, {}), []

    def kill_once() -> None:
        if not killed and list(Path(job.run_dir).glob("checkpoints/step-*")):
            killed.append(worker_processes()[0])
            killed[0].kill()

    monkeypatch.setattr(ray_train, "LOOK_S", 0.05)  # it is soon at its end
    summary = ray_train.run(job, BOTH, meanwhile=kill_once)
    assert killed and summary["steps"] == 40
    assert fingerprint(Path(job.run_dir)) == undisturbed(tmp_path / "reference", few_digits, 2)
    assert not Path(job.run_dir, "ray").exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_the_workers_own_error_ends_the_training_with_its_code(
    ray: None, tmp_path: Path, few_digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A NaN is not retried: exit 4 at once, in the words of the worker."""
    from ddpm.cluster import ray_train

    hyper = "TRAINING.HYPER_PARAMETERS"
    runaway = {f"{hyper}.LEARNING_RATE": "1.0e+4", f"{hyper}.WARMUP_STEPS": 0}
    job = make_job(tmp_path, few_digits, {**runaway, "TRAINING.CLIP_NORM": "null"})
    with caplog.at_level(logging.WARNING), pytest.raises(NonFiniteError, match="non-finite"):
        ray_train.run(job, BOTH)
    assert "attempt" not in caplog.text
    failed = json.loads(Path(job.run_dir, "FAILED.json").read_text())
    assert failed["exit_code"] == 4 and "non-finite" in failed["reason"]
    assert "ERROR exit code 4: step" in Path(job.run_dir, "train.log").read_text()


def test_the_error_behind_rays_is_found() -> None:
    from ddpm.cluster.ray_train import _own_error

    class Outer(Exception):
        worker_failures = {0: RuntimeError("died"), 1: LockedError("held")}

    assert isinstance(_own_error(Outer()), LockedError)
    chained = RuntimeError("outer")
    chained.__cause__ = NonFiniteError("step 3")
    assert isinstance(_own_error(chained), NonFiniteError)
    assert _own_error(RuntimeError("other")) is None


def test_input_errors_survive_pickling_with_all_their_problems() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(InputError(["one", "two"])))
    assert error.problems == ("one", "two") and str(error) == "one\ntwo"


def test_a_file_poll_remembers_and_does_not_look_at_every_call(tmp_path: Path) -> None:
    poll = FilePoll(tmp_path / "stop")
    assert not poll()
    (tmp_path / "stop").touch()
    assert not poll(), "looked again within the poll interval"
    poll.next = 0.0
    assert poll()
    (tmp_path / "stop").unlink()
    assert poll()


@pytest.mark.parametrize(("gpus", "name"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl"), (2, "nccl")])
def test_workers_that_share_a_gpu_do_not_use_nccl(gpus: float, name: str) -> None:
    from ddpm.cluster.ray_train import backend

    assert backend(Workers(count=2, cpus=1, gpus=gpus)) == name
