"""Names that a careless script would run or split."""

import shutil
from pathlib import Path

import pytest

from tests.slurm.hosts import REPOSITORY
from tests.slurm.jobs import TRAINING, Train, Undisturbed, assert_same, run_of, submit
from tests.slurm.lab import Lab

NAMES = [
    "two  words",
    "'",
    '"',
    "$(touch PWNED)",
    "`touch PWNED`",
    ";touch PWNED;",
    "a\nb",
    "-rf",
    "*",
]
ALL = "a b'\"$(touch PWNED)`touch PWNED`;touch PWNED;&*?\nc"


def no_harm(*folders: Path) -> None:
    """No name was run as a command, in any folder a job had as its own."""
    for folder in (REPOSITORY, *folders):
        assert not list(folder.rglob("PWNED")), f"a name was run: {folder}"


def test_an_output_folder_with_every_bad_character(
    train: Train, undisturbed: Undisturbed, folder: Path
) -> None:
    job = train(folder / ALL, "--nodes=2", f"--output={folder}/log", f"--job-name={ALL}")
    job.wait_for_state("COMPLETED", "FAILED", seconds=200)
    assert job.state == "COMPLETED", (folder / "log").read_text()
    assert_same(run_of(folder / ALL), undisturbed(2))
    no_harm(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_paths_of_the_repository_the_config_and_the_data(
    lab: Lab, packed: Path, undisturbed: Undisturbed, folder: Path, name: str
) -> None:
    """A clone, its configuration, shards and output below a folder with that name."""
    home = folder / name
    home.mkdir()
    skipped = shutil.ignore_patterns(".*", "tests", "docs", "training_outputs", "__pycache__")
    clone = Path(shutil.copytree(REPOSITORY, home / "clone", ignore=skipped))
    data = Path(shutil.copytree(packed, home / "digits"))
    config = clone / "configs" / f"{name}.yaml"
    (clone / "configs" / "digits.yaml").rename(config)
    settings = TRAINING | {"DATASET.PATH": data, "TRAINING.OUTPUT_DIR": home / "out"}
    words = [f"{key}={value}" for key, value in settings.items()]
    python = REPOSITORY / ".venv" / "bin" / "python"
    options = ("--cpus-per-task=1", f"--export=ALL,DDPM_PYTHON={python}", f"--output={folder}/log")
    job = submit(
        lab,
        "slurm/train.sh",
        f"configs/{name}.yaml",
        *words,
        options=options,
        output=folder,
        cwd=clone,
    )
    assert job.end() == ("COMPLETED", "0:0"), (folder / "log").read_text()
    assert_same(run_of(home / "out"), undisturbed())
    no_harm(folder)
