"""The folder of a SLURM job, what is checked before it is made, and how nodes find each other."""

import json
import os
import socket
import stat
import time
from pathlib import Path

import pytest

from ddpm import config as configuration
from ddpm.cluster import ray_cluster
from ddpm.cluster.ray_cluster import JobFolder, plan, plan_evaluation
from ddpm.cluster.workers import Machine
from ddpm.errors import DdpmError, InputError
from tests.cluster.test_allocation import JOB
from tests.support.shard_data import problems_of
from tests.support.tree import ROOT

JOB_17 = Machine(job_id="17", cpus=(4, 4, 2))


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)


def digits(out: Path, *overrides: str) -> configuration.Config:
    keys = [f"TRAINING.OUTPUT_DIR={json.dumps(str(out))}", *overrides]
    return configuration.load(ROOT / "configs" / "digits.yaml", keys)


@pytest.mark.usefixtures("in_a_job")
@pytest.mark.parametrize(("workers", "needs_ray"), [("null", b"1"), ("1", b"0")])
def test_a_plan_names_the_folder_and_whether_ray_is_needed(
    tmp_path: Path, workers: str, needs_ray: bytes
) -> None:
    out = tmp_path / "a 'b' $(c)\nd"
    config = digits(out, f"CLUSTER.NUM_WORKERS={workers}")
    assert plan([config], uses_ray=None, output=tmp_path / "plan") == 0
    folder, answer, rest = (tmp_path / "plan").read_bytes().split(b"\0")
    assert (os.fsdecode(folder), answer, rest) == (str(out / ".jobs" / "17"), needs_ray, b"")


@pytest.mark.usefixtures("in_a_job")
@pytest.mark.parametrize(("workers", "needs_ray"), [(None, b"1"), (1, b"0")])
def test_an_evaluation_is_planned_likewise(
    tmp_path: Path, workers: int | None, needs_ray: bytes
) -> None:
    assert plan_evaluation(tmp_path, workers, tmp_path / "plan") == 0
    folder, answer, _ = (tmp_path / "plan").read_bytes().split(b"\0")
    assert (os.fsdecode(folder), answer) == (str(tmp_path / ".jobs" / "17"), needs_ray)


@pytest.mark.usefixtures("in_a_job")
def test_all_problems_come_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    bad = digits(tmp_path / "out", "DATASET.PATH=nowhere", "CLUSTER.GPUS_PER_WORKER=1")
    problems = problems_of(lambda: plan([bad], uses_ray=None, output=tmp_path / "plan"))
    assert len(problems) == 2
    assert any("nowhere" in line for line in problems)
    assert any("SLURM job 17 has no GPU" in line for line in problems)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("in_a_job")
def test_more_workers_than_samples_of_a_batch_are_refused(tmp_path: Path) -> None:
    bad = digits(tmp_path, "TRAINING.HYPER_PARAMETERS.BATCH_SIZE=2")
    (line,) = problems_of(lambda: plan([bad], uses_ray=None, output=tmp_path / "plan"))
    assert "give at most 2 workers" in line


def test_only_its_owner_may_enter_and_every_start_has_its_own_token(tmp_path: Path) -> None:
    folder = JobFolder.make(tmp_path, JOB_17)
    first = folder.token.read_text()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.token.stat().st_mode) == 0o600
    assert JobFolder.make(tmp_path, JOB_17).token.read_text() != first


def test_folders_that_dead_jobs_left_are_removed(tmp_path: Path) -> None:
    old, young = (
        JobFolder.make(tmp_path, Machine(job_id=name, cpus=(1,))).path for name in ("3", "4")
    )
    past = time.time() - 2 * ray_cluster.STALE_S
    os.utime(old, (past, past))
    JobFolder.make(tmp_path, JOB_17)
    assert not old.exists() and young.exists()


def test_the_folder_of_a_job_that_runs_for_days_stays(tmp_path: Path) -> None:
    living = JobFolder.make(tmp_path, Machine(job_id="3", cpus=(1,)))
    past = time.time() - 2 * ray_cluster.STALE_S
    os.utime(living.path, (past, past))
    living.keep()
    JobFolder.make(tmp_path, JOB_17)
    assert living.path.exists()


def test_a_head_that_does_not_start_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    folder = JobFolder.make(tmp_path, JOB_17)
    with pytest.raises(DdpmError, match="Ray's head did not start in 0 s"):
        folder.wait_for_head(0.0)
    folder.announce("10.0.0.1:6379")
    assert folder.wait_for_head(0.0) == "10.0.0.1:6379"


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="node n2 does not see .* all nodes share"):
        JobFolder(tmp_path / ".jobs" / "17").check("n2")


def test_a_node_with_another_ray_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder.make(tmp_path, JOB_17)
    folder.check("n2")
    here = ray_cluster.versions()
    monkeypatch.setattr(ray_cluster, "versions", lambda: here | {"Ray": "1.0"})
    with pytest.raises(InputError, match=f"node n2 has Ray 1.0 but .* {here['Ray']}"):
        folder.check("n2")


def test_the_address_is_there_once_it_is_announced(tmp_path: Path) -> None:
    folder = JobFolder.make(tmp_path, JOB_17)
    assert folder.address is None and folder.num_nodes == 3
    folder.announce("10.0.0.1:6379")
    assert folder.address == "10.0.0.1:6379"


def test_jobs_of_one_node_take_other_ports() -> None:
    first = ray_cluster._free_port("127.0.0.1", JOB_17)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert ray_cluster._free_port("127.0.0.1", JOB_17) > first
    other = Machine(job_id="18", cpus=(1,))
    assert ray_cluster._free_port("127.0.0.1", other) != first


def test_an_interface_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_INTERFACE", "ib7")
    with pytest.raises(InputError, match="no IPv4 on DDPM_INTERFACE=ib7; it has .*lo"):
        ray_cluster.own_ip("n1")
    monkeypatch.setenv("DDPM_INTERFACE", "lo")
    assert ray_cluster.own_ip("n1") == "127.0.0.1"


def test_loopback_is_no_address_for_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDPM_INTERFACE", raising=False)
    with pytest.raises(InputError, match="its name stands for no address"):
        ray_cluster.own_ip("localhost")


def test_temporaries_have_short_paths_and_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setenv("DDPM_SCRATCH", str(tmp_path / "far too long for a socket below it"))
    folder = ray_cluster._temporary_folder(JOB_17)
    try:
        assert folder.name == f"ddpm-{os.getuid()}-17-0"
        assert len(str(folder)) <= ray_cluster.LONGEST
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        folder.rmdir()
