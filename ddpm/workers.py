"""How many workers a training or an evaluation has, and what each takes of the machine or job."""

import os
from dataclasses import dataclass, replace

from ddpm.allocation import Allocation
from ddpm.config import Config
from ddpm.errors import InputError

GPU_KEY = "CLUSTER.GPUS_PER_WORKER"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """count: processes.  cpus: cores of each.  gpus: GPUs of each; a fraction shares one."""

    count: int
    cpus: int
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on: cores by node, and GPUs on each node.

    is_job: whether it is a SLURM job's, which is held to what it was given.
    """

    name: str
    is_job: bool
    cpus: tuple[int, ...]
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return len(self.cpus) * self.gpus_per_node


def machine() -> Machine:
    """The SLURM job this process runs in, else this machine as far as this process may use it."""
    job = Allocation.from_environment()
    if job:
        return Machine(
            name=f"SLURM job {job.job_id}",
            is_job=True,
            cpus=job.cpus,
            gpus_per_node=job.gpus_per_node,
        )
    import torch  # seconds, which a job's check of its configuration does without

    return Machine(
        name="this machine",
        is_job=False,
        cpus=(available_cpus(),),
        gpus_per_node=torch.cuda.device_count(),
    )


def available_cpus() -> int:
    """CPU cores this process may run on (what taskset or a container gave, not the host's)."""
    return len(os.sched_getaffinity(0))


def workers_for(config: Config) -> Workers:
    """One worker for every GPU there is, else one on the CPUs of every node; CLUSTER keys win.

    InputError when that cannot be had.
    """
    there, wanted = machine(), config.CLUSTER
    elsewhere = "RAY_ADDRESS" in os.environ
    share = wanted.GPUS_PER_WORKER
    if share is None:
        share = float(there.num_gpus > 0)
    if share and not there.num_gpus and not elsewhere:
        raise InputError(_no_gpu(share, there))
    count = wanted.NUM_WORKERS or _workers_that_fit(share, there)
    if count * share > there.num_gpus and not elsewhere:
        raise InputError(
            f"{count} worker(s) of {share:g} GPU(s) each are more than the {there.num_gpus} of "
            f"{there.name}; give a smaller CLUSTER.NUM_WORKERS or {GPU_KEY}"
        )
    batch = config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    if count > batch:
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is {batch}; "
            f"give at most {batch} workers, so that each has a sample"
        )
    _check_exact_parts(config, count)
    on_a_node, cpus = _cores(count, there)
    cpus = wanted.CPUS_PER_WORKER or cpus
    if there.is_job and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"{on_a_node} worker(s) of {cpus} core(s) on a node are more than the "
            f"{min(there.cpus)} core(s) a node of {there.name} has; ask for more, such as "
            f"`sbatch --cpus-per-task={on_a_node * cpus} ...`, or give a smaller "
            "CLUSTER.NUM_WORKERS or CLUSTER.CPUS_PER_WORKER"
        )
    return Workers(count=count, cpus=cpus, gpus=share)


def workers_of_evaluation(wanted: int | None, *, all_nodes: bool) -> Workers:
    """So many, or one for every GPU there is, else one on the CPUs of every node. InputError when
    that cannot be had.

    all_nodes: of the SLURM job, which Ray joins; else this one alone.
    """
    there = machine()
    if not all_nodes:
        there = replace(there, cpus=(min(there.cpus),))
    share = float(there.num_gpus > 0)
    count = wanted or _workers_that_fit(share, there)
    if share and count > there.num_gpus:
        raise InputError(
            f"--workers {count}: {there.name} has {there.num_gpus} GPU(s), and each worker takes "
            "one; give at most so many"
        )
    on_a_node, cpus = _cores(count, there)
    if there.is_job and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"--workers {count}: a node of {there.name} has {min(there.cpus)} core(s); give at "
            f"most {min(there.cpus) * len(there.cpus)}, or ask for more"
        )
    return Workers(count=count, cpus=cpus, gpus=share)


def _cores(count: int, there: Machine) -> tuple[int, int]:
    """How many workers are on a node, and the cores of each."""
    on_a_node = -(-count // len(there.cpus))
    return on_a_node, max(1, min(there.cpus) // on_a_node)


def _check_exact_parts(config: Config, count: int) -> None:
    """InputError when NUMERICS exact cuts a batch into fewer parts than there are workers."""
    if config.TRAINING.NUMERICS != "exact":
        return
    from ddpm.train_step import exact_parts

    if count > (most := exact_parts(config.TRAINING)):
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.NUMERICS exact cuts a batch into {most} "
            f"parts; give at most {most} workers, or a smaller TRAINING.MICRO_BATCH"
        )


def _workers_that_fit(share: float, there: Machine) -> int:
    """One a GPU (or a node, without GPUs), fewer where a worker takes several."""
    nodes = len(there.cpus)
    return nodes * max(1, int(there.gpus_per_node / max(1.0, share))) if share else nodes


def _no_gpu(share: float, there: Machine) -> str:
    if not there.is_job:
        return (
            f"{GPU_KEY} is {share:g} but this machine shows no GPU to torch; "
            f"set {GPU_KEY}=null to train on the CPU, or run `python -m ddpm.doctor`"
        )
    return (
        f"{GPU_KEY} is {share:g} but {there.name} has no GPU; ask for some, such as "
        f"`sbatch --gpus-per-node=1 ...`, or set {GPU_KEY}=null to train on CPUs"
    )
