"""Another user with a home of its own; jobs that wait for jobs; arrays."""

import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.hosts import wait_until
from tests.slurm.jobs import TRAINING, Train, as_words, assert_same, run_of, submit
from tests.slurm.lab import Lab

pytestmark = pytest.mark.slow
EPOCHS = "TRAINING.HYPER_PARAMETERS.EPOCHS"


@pytest.fixture
def open_interpreter(lab: Lab) -> Iterator[None]:
    """On the nodes, every user may run the interpreter below .venv, wherever it is installed."""
    prefix = Path(sys.base_prefix).resolve()
    closed = [path for path in reversed(prefix.parents) if not path.stat().st_mode & stat.S_IXOTH]
    for node in lab.nodes.values() if closed else ():
        node.run("mkdir", "/run/python")
        node.run("mount", "--bind", prefix, "/run/python")
        node.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", closed[0])
        node.run("mkdir", "-p", prefix)
        node.run("mount", "--bind", "/run/python", prefix)
    yield
    for node in lab.nodes.values() if closed else ():
        node.run("umount", "--recursive", closed[0])
        node.run("umount", "/run/python")
        node.run("rmdir", "/run/python")


@pytest.mark.usefixtures("open_interpreter")
def test_nobody_trains_in_a_home_of_its_own(
    lab: Lab, packed: Path, undisturbed: Path, folder: Path
) -> None:
    home = folder / "home"
    home.mkdir()
    shutil.chown(home, "nobody", "nogroup")
    home.chmod(0o700)
    settings = TRAINING | {"DATASET.PATH": packed, "TRAINING.OUTPUT_DIR": home / "runs"}
    words = as_words(settings)
    options = ("--uid=nobody", "--gid=nogroup", "--nodes=2", "--cpus-per-task=1")
    job = submit(
        lab,
        "slurm/train.sh",
        "configs/digits.yaml",
        *words,
        options=(*options, f"--export=ALL,HOME={home}", f"--output={home}/log"),
        output=home,
    )
    assert job.end() == ("COMPLETED", "0:0"), (home / "log").read_text()
    assert job.starts("User")[0][1] == "nobody"
    assert_same(run_of(home / "runs"), undisturbed)
    owners = {path.owner() for path in home.rglob("*")}
    assert owners == {"nobody"}
    open_to_others = [
        path for path in run_of(home / "runs").rglob("*") if path.stat().st_mode & 0o022
    ]
    assert not open_to_others


def test_images_are_drawn_after_the_training(lab: Lab, train: Train, folder: Path) -> None:
    """--dependency=afterok: the second job waits for the first, and does not run if it fails."""
    first = train(folder, changed={EPOCHS: 10})
    options = (f"--dependency=afterok:{first.id}", "--cpus-per-task=1")
    # The run's directory has a name of its own; its parent is known.
    wanted = ("IMAGE_GENERATION.NUM_GEN_IMAGES=4", "IMAGE_GENERATION.REVERSE_STRIDE=250")
    first.wait_for_rows(folder, 1)
    second = submit(lab, "slurm/sample.sh", run_of(folder), *wanted, options=options, output=folder)
    assert second.state == "PENDING"
    first.completes()
    second.completes()
    failing = train(folder / "bad", changed={"TRAINING.SEEED": 1})
    options = (f"--dependency=afterok:{failing.id}", "--kill-on-invalid-dep=yes")
    third = submit(lab, "slurm/sample.sh", run_of(folder), options=options, output=folder)
    assert failing.end() == ("FAILED", "2:0")
    assert third.end()[0] == "CANCELLED"


def test_every_task_of_an_array_is_a_job_of_its_own(
    lab: Lab, packed: Path, undisturbed: Path, folder: Path
) -> None:
    """Two trainings on two workers each, as two tasks of one array on one node."""
    script = folder / "array.sh"
    settings = TRAINING | {"DATASET.PATH": packed}
    words = " ".join(f"'{word}'" for word in as_words(settings))
    script.write_text(
        "#!/bin/bash\n"
        f"exec bash slurm/train.sh configs/digits.yaml {words} CLUSTER.NUM_WORKERS=2 "
        f"TRAINING.OUTPUT_DIR='{folder}'/$SLURM_ARRAY_TASK_ID\n"
    )
    options = ("--array=1-2", "--nodelist=n1", "--cpus-per-task=2", "--ntasks-per-node=1")
    job = submit(lab, str(script), options=options, output=folder)
    tasks = lambda: [row[0].split()[0] for row in job.starts()]  # noqa: E731
    wait_until("both tasks end", lambda: tasks() == ["COMPLETED"] * 2, 200)
    for number in "12":
        assert_same(run_of(folder / number), undisturbed)
