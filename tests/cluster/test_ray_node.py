"""A node's part of a job's Ray ends with the job, also while it is still starting; others cannot
read what it writes.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddpm.cluster.ray_cluster import JobFolder
from ddpm.cluster.workers import Machine
from tests.slurm.hosts import wait_until


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Ray needs short paths."""
    folder = Path("/tmp") / f"t{os.getpid()}"
    folder.mkdir()
    yield folder
    folder.rmdir()


def started(job: JobFolder, scratch: Path, node: int) -> subprocess.Popen[bytes]:
    """A node's part of the Ray of a job of two nodes."""
    env = os.environ | {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_CPUS_PER_NODE": "1(x2)",
        "SLURM_NODEID": str(node),
        "SLURMD_NODENAME": "n1",
        "DDPM_SCRATCH": str(scratch),
        "DDPM_INTERFACE": "lo",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(job.token),
    }
    command = [sys.executable, "-m", "ddpm.cluster", "node", str(job.path)]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1], ids=["head", "worker"])
def test_a_job_that_ends_early_leaves_nothing_on_its_nodes(
    tmp_path: Path, scratch: Path, node: int
) -> None:
    """Standard input is closed while Ray's head is not up yet."""
    job = JobFolder.make(tmp_path, Machine(job_id="7", cpus=(1, 1)))
    with started(job, scratch, node) as part:
        wait_until("its folder is made", lambda: list(scratch.iterdir()), 30)
        assert part.stdin is not None
        part.stdin.close()
        assert part.wait(timeout=5) == 0
    assert list(scratch.iterdir()) == [] and job.address is None


@pytest.mark.ray
@pytest.mark.long
def test_nobody_else_enters_the_session_of_a_job(tmp_path: Path, scratch: Path) -> None:
    """Ray opens the folder it is given to everyone: it lies in one that stays closed."""
    job = JobFolder.make(tmp_path, Machine(job_id="7", cpus=(1, 1)))
    with started(job, scratch, 0) as head:
        wait_until("the head is up", lambda: job.address, 60)
        (folder,) = scratch.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.glob("*/session_*/logs"))
    assert head.returncode == 0 and list(scratch.iterdir()) == []
