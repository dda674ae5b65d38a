"""What SLURM gave, from its variables; and the workers that follow from it."""

import pytest

from ddpm import config as configuration
from ddpm.cluster.workers import (
    Machine,
    slurm_job,
    slurm_node,
    workers_for,
    workers_of_evaluation,
)
from ddpm.errors import InputError
from tests.support.tree import ROOT

JOB = {
    "SLURM_JOB_ID": "17",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2),2",
    "SLURM_MEM_PER_NODE": "6000",
}


def test_a_job_is_read_from_the_variables_of_slurm() -> None:
    job = slurm_job(JOB | {"SLURM_GPUS_ON_NODE": "2"})
    assert job == Machine(job_id="17", cpus=(4, 4, 2), gpus_per_node=2, memory_mb=6000)
    assert job.name == "SLURM job 17" and job.num_gpus == 6


def test_memory_by_core_is_that_of_the_node() -> None:
    env = JOB | {"SLURM_MEM_PER_NODE": "0", "SLURM_MEM_PER_CPU": "750"}
    assert slurm_job(env).memory_mb == 3000
    assert slurm_job(JOB | {"SLURM_MEM_PER_NODE": "0"}).memory_mb is None


def test_a_node_has_its_own_share() -> None:
    shares = [slurm_node(JOB | {"SLURM_NODEID": str(node)}) for node in range(3)]
    assert [share.cpus for share in shares] == [(4,), (4,), (2,)]


def test_outside_of_a_job_there_is_none() -> None:
    assert slurm_job({}) is None


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SLURM_JOB_ID": "17"}, "is none of its nodes; use `sbatch"),
        (JOB | {"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 copies"),
        (JOB | {"SLURM_JOB_CPUS_PER_NODE": "4(x2"}, r"'4\(x2'"),
        (JOB | {"SLURM_GPUS_ON_NODE": "two"}, "SLURM_GPUS_ON_NODE is 'two'"),
    ],
)
def test_a_process_that_cannot_speak_for_the_job_is_told_why(
    env: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        slurm_job(env)


@pytest.mark.parametrize(
    ("gpus", "overrides", "expected"),
    [
        ("0", [], (3, 2, 0.0)),  # a worker on each node, as wide as the smallest
        ("0", ["CLUSTER.NUM_WORKERS=6"], (6, 1, 0.0)),
        ("0", ["CLUSTER.CPUS_PER_WORKER=1"], (3, 1, 0.0)),
        ("2", [], (6, 1, 1.0)),
        ("2", ["CLUSTER.GPUS_PER_WORKER=2"], (3, 2, 2.0)),
        ("2", ["CLUSTER.GPUS_PER_WORKER=0"], (3, 2, 0.0)),
    ],
)
def test_workers_take_what_slurm_gave_and_not_what_the_host_has(
    monkeypatch: pytest.MonkeyPatch,
    gpus: str,
    overrides: list[str],
    expected: tuple[int, int, float],
) -> None:
    for name, value in (JOB | {"SLURM_GPUS_ON_NODE": gpus}).items():
        monkeypatch.setenv(name, value)
    workers = workers_for(configuration.load(ROOT / "configs" / "digits.yaml", overrides))
    assert (workers.count, workers.cpus, workers.gpus) == expected


@pytest.mark.parametrize(
    ("variables", "wanted", "taken"),
    [
        ({}, None, (3, 4, 0.0)),  # one a node
        ({}, 6, (6, 2, 0.0)),
        ({"SLURM_GPUS_ON_NODE": "2"}, None, (6, 2, 1.0)),  # one a GPU
        ({"SLURM_GPUS_ON_NODE": "2"}, 3, (3, 4, 1.0)),
    ],
)
def test_an_evaluation_has_a_worker_a_gpu_or_a_node_unless_told(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    wanted: int | None,
    taken: tuple[int, int, float],
) -> None:
    for name, value in {**JOB, "SLURM_JOB_CPUS_PER_NODE": "4(x3)", **variables}.items():
        monkeypatch.setenv(name, value)
    workers = workers_of_evaluation(wanted, all_nodes=True)
    assert (workers.count, workers.cpus, workers.gpus) == taken
    here = workers_of_evaluation(None, all_nodes=False)  # where no Ray joins the nodes
    assert here.count == int(variables.get("SLURM_GPUS_ON_NODE", 1))


@pytest.mark.parametrize(("gpus", "words"), [("0", "has 4 core"), ("2", "has 6 GPU")])
def test_more_workers_of_an_evaluation_than_there_is_room_for_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: str, words: str
) -> None:
    variables = {"SLURM_JOB_CPUS_PER_NODE": "4(x3)", "SLURM_GPUS_ON_NODE": gpus}
    for name, value in (JOB | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        workers_of_evaluation(13, all_nodes=True)


def test_a_gpu_the_job_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="SLURM job 17 has no GPU; ask for some"):
        workers_for(
            configuration.load(ROOT / "configs" / "digits.yaml", ["CLUSTER.GPUS_PER_WORKER=1"])
        )


@pytest.mark.parametrize("override", ["CLUSTER.NUM_WORKERS=9", "CLUSTER.CPUS_PER_WORKER=3"])
def test_more_cores_than_slurm_gave_would_be_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="2 core.s. a node of SLURM job 17 has; ask for more"):
        workers_for(configuration.load(ROOT / "configs" / "digits.yaml", [override]))
