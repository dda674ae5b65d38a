"""What breaks in a cluster: each fault has landed, and the training ends as if it had not."""

import time
from pathlib import Path

import pytest

from tests.slurm.hosts import wait_until
from tests.slurm.jobs import Train, assert_same, run_of
from tests.slurm.lab import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_node_crashes(lab: Lab, train: Train, undisturbed: Path, folder: Path) -> None:
    job = train(folder, "--nodes=3")
    job.wait_for_rows(folder, 20)
    lab.crash("n3")
    wait_until("SLURM notices", lambda: "DOWN" in lab.node_field("n3", "State"), 60)
    lab.boot("n3")
    job.wait_for_restart()
    job.completes()
    assert job.starts()[0][0] == "NODE_FAIL" and job.restarts == 1
    assert_same(run_of(folder), undisturbed)


def test_a_network_cable_is_out_for_five_seconds(
    lab: Lab, train: Train, undisturbed: Path, folder: Path
) -> None:
    job = train(folder, "--nodes=3")
    job.wait_for_rows(folder, 20)
    lab.cut("n3")
    reached = lab.nodes["n1"].run(*"timeout 1 bash -c".split(), "</dev/tcp/n3/6818", check=False)
    time.sleep(5)
    lab.plug("n3")
    assert reached.returncode != 0
    job.completes()
    assert job.restarts == 0 and len(job.starts()) == 1
    assert_same(run_of(folder), undisturbed)


def test_slurmd_is_killed_and_comes_back(
    lab: Lab, train: Train, undisturbed: Path, folder: Path
) -> None:
    job = train(folder, "--nodelist=n1")
    job.wait_for_rows(folder, 20)
    before = lab.node_field("n1", "SlurmdStartTime")
    lab.kill("slurmd", "n1")
    time.sleep(2)
    lab.start("slurmd", "n1")
    wait_until("slurmd says so", lambda: lab.node_field("n1", "SlurmdStartTime") != before, 20)
    job.completes()
    assert job.restarts == 0 and len(job.starts()) == 1
    assert_same(run_of(folder), undisturbed)


def test_slurmd_is_killed_for_good(lab: Lab, train: Train, undisturbed: Path, folder: Path) -> None:
    """SLURM starts the job on another node while its first start, which nobody can end, holds the
    run directory; it is ended when its slurmd is back.
    """
    job = train(folder, "--exclude=n3")
    job.wait_for_rows(folder, 20)
    lab.kill("slurmd", "n1")
    orphans = [p for p in lab.nodes["n1"].tree() if "ddpm train" in " ".join(p.cmdline())]
    for process in orphans:
        process.suspend()  # else it would be done before SLURM notices
    wait_until("SLURM notices", lambda: "DOWN" in lab.node_field("n1", "State"), 60)
    job.wait_for_restart()
    assert job.starts("NodeList") == [("NODE_FAIL", "n1"), ("RUNNING", "n2")]
    time.sleep(15)
    lab.start("slurmd", "n1")
    job.completes()
    assert_same(run_of(folder), undisturbed)


def test_slurmctld_is_killed_and_comes_back(
    lab: Lab, train: Train, undisturbed: Path, folder: Path
) -> None:
    job = train(folder)
    job.wait_for_rows(folder, 20)
    lab.kill("slurmctld")
    assert "DOWN" in lab.ctl.run("scontrol", "ping", check=False).stdout
    lab.start("slurmctld")
    job.completes()
    assert job.restarts == 0 and len(job.starts()) == 1
    assert_same(run_of(folder), undisturbed)
