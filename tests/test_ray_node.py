"""A node's part of a job's Ray ends with the job, also while it is still starting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.allocation import Allocation
from ddpm.job_folder import JobFolder
from tests.slurm.hosts import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1], ids=["head", "worker"])
def test_a_job_that_ends_early_leaves_nothing_on_its_nodes(tmp_path: Path, node: int) -> None:
    """Standard input is closed while Ray's head is not up yet."""
    job = JobFolder.make(tmp_path, Allocation(job_id="7", cpus=(1, 1)))
    scratch = Path("/tmp") / f"t{os.getpid()}"  # Ray needs short paths
    scratch.mkdir()
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
    command = [sys.executable, "-m", "ddpm.adapters.ray_node", str(job.path)]
    try:
        with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as part:
            wait_until("its folder is made", lambda: list(scratch.iterdir()), 30)
            assert part.stdin is not None
            part.stdin.close()
            assert part.wait(timeout=5) == 0
        assert list(scratch.iterdir()) == [] and job.address is None
    finally:
        scratch.rmdir()
