"""Two jobs of one user on one node: neither sees the other's Ray, and nobody else gets in."""

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.hosts import wait_until
from tests.slurm.jobs import Job, Train, assert_same, run_of
from tests.slurm.lab import Lab

TWO_WORKERS = {"CLUSTER.NUM_WORKERS": 2}
STRANGER = """
import os, sys
os.environ["RAY_AUTH_MODE"] = "token"
if sys.argv[2]:
    os.environ["RAY_AUTH_TOKEN"] = sys.argv[2]
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("let in:", len(ray.nodes()), "nodes")
"""


def ray_of(job: Job, root: Path) -> Path:
    """The folder of a job whose Ray is up."""
    folder = root / ".jobs" / job.id
    wait_until(f"Ray of job {job.id}", (folder / "head.json").exists, 60)
    return folder


def test_two_jobs_of_one_user_share_a_node_and_nothing_else(
    lab: Lab, train: Train, undisturbed: Path, folder: Path
) -> None:
    roots = [folder / "a", folder / "b"]
    options = ("--nodelist=n1", "--cpus-per-task=2")
    jobs = [train(root, *options, changed=TWO_WORKERS) for root in roots]
    folders = [ray_of(job, root) for job, root in zip(jobs, roots, strict=True)]
    tokens = [path / "token" for path in folders]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tokens)
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in folders)
    assert tokens[0].read_text() != tokens[1].read_text()
    addresses = [json.loads((path / "head.json").read_text())["address"] for path in folders]
    assert addresses[0] != addresses[1]
    assert_strangers_stay_out(lab, addresses[0], tokens[1].read_text())
    assert [job.state for job in jobs] == ["RUNNING", "RUNNING"], "they ran one after the other"
    for job, root in zip(jobs, roots, strict=True):
        job.completes()
        assert_same(run_of(root), undisturbed)


def assert_strangers_stay_out(lab: Lab, address: str, wrong: str) -> None:
    """A client without a token, and one with another job's."""
    for token in ("", wrong):
        words = ["timeout", "40", sys.executable, "-c", STRANGER, address, token]
        tried = lab.nodes["n1"].run(*words, check=False)
        assert tried.returncode != 0 and "let in" not in tried.stdout
        said = tried.stderr.lower()
        assert "token" in said or "authent" in said, tried.stderr[-1000:]


@pytest.mark.slow
def test_two_jobs_over_the_same_three_nodes(train: Train, undisturbed: Path, folder: Path) -> None:
    jobs = [train(folder / name, "--nodes=3") for name in "ab"]
    for job, name in zip(jobs, "ab", strict=True):
        job.completes(300)
        assert_same(run_of(folder / name), undisturbed)
