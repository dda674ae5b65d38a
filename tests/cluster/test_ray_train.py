"""A training over two Ray workers: the same bits as without Ray, also when a worker is killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ddpm.cluster.run_trial import FilePoll
from ddpm.cluster.workers import Workers
from ddpm.errors import InputError, LockedError, NonFiniteError
from tests.support.tree import ROOT
from tests.training.test_resume import DIGITS, SETTINGS, fingerprint, undisturbed


def launch(root: Path, digits: Path, **changed: object) -> subprocess.Popen[str]:
    settings = SETTINGS | {
        "TRAINING.OUTPUT_DIR": root,
        "DATASET.PATH": digits,
        "CLUSTER.NUM_WORKERS": 2,
        "CLUSTER.CPUS_PER_WORKER": 1,
        **changed,
    }
    argv = [sys.executable, ROOT / "launch" / "train.py", DIGITS]
    return subprocess.Popen(
        [*argv, *(f"{key}={value}" for key, value in settings.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker_processes(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "TrainWorker" in " ".join(child.cmdline()[:1])]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(500)
@pytest.mark.long
def test_a_killed_ray_worker_changes_no_bit(tmp_path: Path, digits: Path) -> None:
    reference = undisturbed(tmp_path / "reference", digits, 2)
    driver = launch(tmp_path / "out", digits)
    deadline, killed = time.monotonic() + 200, False
    while time.monotonic() < deadline and driver.poll() is None:
        if not killed and list(tmp_path.glob("out/*/*/*/checkpoints/step-*")):
            worker_processes(driver)[0].kill()
            killed = True
        time.sleep(0.05)
    output, _ = driver.communicate(timeout=200)
    assert killed and driver.returncode == 0, output
    (run,) = [path.parent for path in tmp_path.glob("out/*/*/*/DONE.json")]
    assert fingerprint(run) == reference
    assert not (run / "ray").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_workers_own_error_ends_the_training_with_its_code(
    tmp_path: Path, digits: Path
) -> None:
    """A NaN is not retried: exit 4 at once, in the words of the worker."""
    changed = {
        "TRAINING.HYPER_PARAMETERS.LEARNING_RATE": "1.0e+4",
        "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 0,
        "TRAINING.CLIP_NORM": "null",
    }
    driver = launch(tmp_path / "out", digits, **changed)
    output, _ = driver.communicate(timeout=250)
    assert driver.returncode == 4, output
    assert "non-finite" in output and "attempt" not in output
    (path,) = tmp_path.rglob("FAILED.json")
    failed = json.loads(path.read_text())
    assert failed["exit_code"] == 4 and "non-finite" in failed["reason"]
    assert "ERROR exit code 4: step" in (path.parent / "train.log").read_text()


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
