"""Names that a careless script would run or split."""

import shutil
from pathlib import Path

import pytest

from tests.slurm.hosts import REPOSITORY
from tests.slurm.jobs import (
    TRAINING,
    Job,
    Train,
    as_words,
    assert_same,
    run_of,
    submit,
)
from tests.slurm.lab import Lab

pytestmark = pytest.mark.slow
RUN = "$(touch PWNED)"
NAMES = ["two  words", "'", '"', RUN, f"`{RUN[2:-1]}`", f";{RUN[2:-1]};", "a\nb", "-rf", "*", "%j"]
ALL = f"a b'\"{RUN};&*?%\nc"

SHORT = {
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 5,
    "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 2,
}


def no_harm(folder: Path) -> None:
    """No name was run as a command, in any folder that a job may have been in."""
    for place in (folder, REPOSITORY / "slurm", REPOSITORY / "launch"):
        assert not list(place.rglob("PWNED"))
    assert not (REPOSITORY / "PWNED").exists()


def test_output_and_job_with_every_bad_character(
    train: Train, undisturbed: Path, folder: Path
) -> None:
    output = folder / ALL
    job = train(output, "--nodes=2", f"--output={folder}/log", f"--job-name={ALL}")
    assert job.end()[0] == "COMPLETED", (folder / "log").read_text()
    assert_same(run_of(output), undisturbed)
    no_harm(folder)


def test_repositories_and_configurations_of_every_name(
    lab: Lab, packed: Path, folder: Path
) -> None:
    """A clone in a folder of each name, a configuration of that name, data and output below it."""
    jobs = {name: train_in_clone(lab, packed, folder / name) for name in NAMES}
    for name, job in jobs.items():
        assert job.end(300) == ("COMPLETED", "0:0"), f"{name}: {job.read_log()}"
    no_harm(folder)


def train_in_clone(lab: Lab, packed: Path, home: Path) -> Job:
    """A training of five steps from a clone in a folder, which is made."""
    log = home.parent / f"{len(list(home.parent.iterdir()))}.log"
    home.mkdir()
    skipped = shutil.ignore_patterns(".*", "tests", "docs", "training_outputs", "__pycache__")
    clone = Path(shutil.copytree(REPOSITORY, home / "clone", ignore=skipped))
    config = clone / "configs" / f"{home.name}.yaml"
    (clone / "configs" / "digits.yaml").rename(config)
    data = Path(shutil.copytree(packed, home / "digits"))
    settings = {"DATASET.PATH": data, "TRAINING.OUTPUT_DIR": home / "out", **TRAINING, **SHORT}
    words = as_words(settings)
    python = REPOSITORY / ".venv" / "bin" / "python"
    options = ("--cpus-per-task=1", f"--export=ALL,DDPM_PYTHON={python}", f"--output={log}")
    words = [f"configs/{home.name}.yaml", *words]
    job = submit(lab, "slurm/train.sh", *words, options=options, output=home, cwd=clone)
    return Job(lab, job.id, log)
