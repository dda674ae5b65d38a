"""Workers of a training or an evaluation: how many there are, and the cores and GPUs of each."""

import os
from dataclasses import dataclass, replace

from ddpm.cluster.slurm import Allocation
from ddpm.config import Config
from ddpm.errors import InputError

GPU_KEY = "CLUSTER.GPUS_PER_WORKER"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Worker processes of one training.  cpus: cores of each.  gpus: GPUs of each; a fraction
    shares one.
    """

    count: int
    cpus: int
    gpus: float

    @property
    def cores(self) -> int:
        """Cores of a Ray in which a trial fits: one more where it waits for its workers."""
        return self.count * self.cpus + (self.count > 1)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine or SLURM job to train on: cores by node, GPUs of each node.

    is_job: whether SLURM holds this process to what it was given.
    """

    name: str
    is_job: bool
    cpus: tuple[int, ...]
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return len(self.cpus) * self.gpus_per_node

    def count_for(self, gpus: float) -> int:
        """One worker a GPU, fewer where each takes several; one a node without GPUs."""
        nodes = len(self.cpus)
        return nodes * max(1, int(self.gpus_per_node / max(1.0, gpus))) if gpus else nodes

    def share_of(self, count: int) -> tuple[int, int]:
        """Workers on a node, and the cores of each."""
        on_a_node = -(-count // len(self.cpus))
        return on_a_node, max(1, min(self.cpus) // on_a_node)


def machine() -> Machine:
    """The SLURM job of this process, else this machine as far as this process may use it."""
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
    """CPU cores this process may run on (by taskset or a container, not the host's)."""
    return len(os.sched_getaffinity(0))


def workers_for(config: Config) -> Workers:
    """One worker for every GPU there is, else one on the CPUs of every node; CLUSTER keys win.

    InputError when that cannot be had.
    """
    there, wanted = machine(), config.CLUSTER
    elsewhere = "RAY_ADDRESS" in os.environ
    gpus = float(there.num_gpus > 0) if wanted.GPUS_PER_WORKER is None else wanted.GPUS_PER_WORKER
    if gpus and not there.num_gpus and not elsewhere:
        raise InputError(_no_gpu(gpus, there))
    count = wanted.NUM_WORKERS or there.count_for(gpus)
    if count * gpus > there.num_gpus and not elsewhere:
        raise InputError(
            f"{count} worker(s) of {gpus:g} GPU(s) each are more than the {there.num_gpus} of "
            f"{there.name}; give a smaller CLUSTER.NUM_WORKERS or {GPU_KEY}"
        )
    batch = config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    if count > batch:
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is {batch}; "
            f"give at most {batch} workers, so that each has a sample"
        )
    _check_exact_parts(config, count)
    on_a_node, cpus = there.share_of(count)
    cpus = wanted.CPUS_PER_WORKER or cpus
    if there.is_job and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"{on_a_node} worker(s) of {cpus} core(s) on a node are more than the "
            f"{min(there.cpus)} core(s) a node of {there.name} has; ask for more, such as "
            f"`sbatch --cpus-per-task={on_a_node * cpus} ...`, or give a smaller "
            "CLUSTER.NUM_WORKERS or CLUSTER.CPUS_PER_WORKER"
        )
    return Workers(count=count, cpus=cpus, gpus=gpus)


def workers_of_evaluation(wanted: int | None, *, all_nodes: bool) -> Workers:
    """`wanted` workers, else one for every GPU, else one on the CPUs of every node. InputError when
    that cannot be had.

    all_nodes: of the SLURM job, which Ray joins; else this node alone.
    """
    there = machine()
    if not all_nodes:
        there = replace(there, cpus=(min(there.cpus),))
    gpus = float(there.num_gpus > 0)
    count = wanted or there.count_for(gpus)
    if gpus and count > there.num_gpus:
        raise InputError(
            f"--workers {count}: {there.name} has {there.num_gpus} GPU(s), and each worker takes "
            "one; give at most so many"
        )
    on_a_node, cpus = there.share_of(count)
    if there.is_job and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"--workers {count}: a node of {there.name} has {min(there.cpus)} core(s); give at "
            f"most {min(there.cpus) * len(there.cpus)}, or ask for more"
        )
    return Workers(count=count, cpus=cpus, gpus=gpus)


def workers_of_trials(config: Config, trials: int, most: int | None) -> tuple[Workers, int]:
    """Workers of each trial of a sweep, and how many trials run side by side: as many as there is
    room for, `most` at most.  config: the base of the sweep.
    """
    cluster, gpus, there = config.CLUSTER, workers_for(config).gpus, machine()
    count, cores = cluster.NUM_WORKERS or 1, sum(there.cpus)
    # on a CPU a core for each trial is the best use of the cores
    room = max(1, int(there.num_gpus / (count * gpus))) if gpus else cores
    cpus = cluster.CPUS_PER_WORKER or max(1, min(cores // (room * count), *there.cpus))
    concurrent = min(room, max(1, cores // (count * cpus)))
    if "RAY_ADDRESS" in os.environ:  # the cluster knows its own room, and Tune asks it
        concurrent = trials
    return Workers(count=count, cpus=cpus, gpus=gpus), min(concurrent, most or concurrent)


def _check_exact_parts(config: Config, count: int) -> None:
    """InputError when NUMERICS exact cuts a batch into fewer parts than there are workers."""
    if config.TRAINING.NUMERICS != "exact":
        return
    from ddpm.training import exact_parts

    if count > (most := exact_parts(config.TRAINING)):
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.NUMERICS exact cuts a batch into {most} "
            f"parts; give at most {most} workers, or a smaller TRAINING.MICRO_BATCH"
        )


def _no_gpu(gpus: float, there: Machine) -> str:
    if not there.is_job:
        return (
            f"{GPU_KEY} is {gpus:g} but this machine shows no GPU to torch; "
            f"set {GPU_KEY}=null to train on the CPU, or run `ddpm doctor`"
        )
    return (
        f"{GPU_KEY} is {gpus:g} but {there.name} has no GPU; ask for some, such as "
        f"`sbatch --gpus-per-node=1 ...`, or set {GPU_KEY}=null to train on CPUs"
    )
