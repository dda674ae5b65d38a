"""What a task of submitit leaves on its node."""

import os
import tempfile
from pathlib import Path

import pytest

from ddpm.cluster.task import temporary_folder


@pytest.mark.parametrize("job", ["99", None])
def test_nothing_of_a_child_outlives_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    with temporary_folder() as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o700
        (Path(folder) / "left").mkdir()
    assert not list(tmp_path.iterdir())


def test_a_start_removes_what_a_killed_start_of_the_same_job_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    killed = temporary_folder()
    left = killed.__enter__()
    (Path(left) / "left").touch()
    with temporary_folder() as folder:
        assert folder == left and not list(Path(folder).iterdir())
    assert not list(tmp_path.iterdir())
