"""Machine, SLURM job or torchrun of this process, and the number, cores and GPUs of its workers."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ddpm.config import Config
from ddpm.errors import InputError

if TYPE_CHECKING:
    from ddpm.sweep import Sweep

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
    """The machine or SLURM job to train on, or one node's part of a job.

    job_id: None outside of a job, where SLURM holds nobody to anything.  cpus: cores by node, the
    first node first.  gpus_per_node: GPUs of this node; a job has the same number on every node.
    memory_mb: memory of this node, None where SLURM does not share it out.
    """

    job_id: str | None
    cpus: tuple[int, ...]
    gpus_per_node: int = 0
    memory_mb: int | None = None

    @property
    def name(self) -> str:
        return f"SLURM job {self.job_id}" if self.job_id else "this machine"

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


def slurm_job(env: Mapping[str, str] = os.environ) -> Machine | None:
    """The job this process runs in, from the SLURM_* variables alone: a node's other cores and GPUs
    belong to other jobs. None outside of a job.

    Raises InputError where the process belongs to a job but cannot speak for it: on a host that is
    none of its nodes, or as one of several copies that srun started.
    """
    job_id = env.get("SLURM_JOB_ID")
    if job_id is None:
        return None
    if "SLURMD_NODENAME" not in env:
        raise InputError(
            f"this shell holds SLURM job {job_id} but runs on {socket.gethostname()}, which is "
            "none of its nodes; use `sbatch slurm/train.sh ...` or `srun --pty bash` first"
        )
    if (copies := _whole(env, "SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise InputError(
            f"srun started {copies} copies of this command; start one, it finds all nodes of "
            "the job itself: run it in the batch script without srun, or with `srun -n 1`"
        )
    return _of_slurm(env, _by_node(env))


def slurm_node(env: Mapping[str, str] = os.environ) -> Machine:
    """This node's part of the job, as one of the tasks that srun started on its nodes sees it."""
    return _of_slurm(env, _by_node(env)[_whole(env, "SLURM_NODEID", 0) :][:1])


def _of_slurm(env: Mapping[str, str], cpus: tuple[int, ...]) -> Machine:
    # memory is said by node or by core, and as 0 for all that the node has
    memory = _whole(env, "SLURM_MEM_PER_NODE", 0) or cpus[0] * _whole(env, "SLURM_MEM_PER_CPU", 0)
    return Machine(
        job_id=env["SLURM_JOB_ID"],
        cpus=cpus,
        gpus_per_node=_whole(env, "SLURM_GPUS_ON_NODE", 0),
        memory_mb=memory or None,
    )


def _by_node(env: Mapping[str, str]) -> tuple[int, ...]:
    """Cores by node from SLURM_JOB_CPUS_PER_NODE, which reads like `4(x2),2`."""
    text = env.get("SLURM_JOB_CPUS_PER_NODE", "1")
    cpus: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None or int(match[1]) == 0:
            raise InputError(f"SLURM_JOB_CPUS_PER_NODE is {text!r}; SLURM writes it like '4(x2),2'")
        cpus += [int(match[1])] * int(match[2] or 1)
    return tuple(cpus)


def _whole(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; SLURM sets a whole number")
    return int(text)


def machine() -> Machine:
    """The SLURM job of this process, else this machine as far as this process may use it; under
    torchrun as many such machines as there are nodes.
    """
    size = torchrun_size()
    if not size and (job := slurm_job()):
        return job
    import torch  # seconds, which a job's check of its configuration does without

    nodes = size // int(os.environ["LOCAL_WORLD_SIZE"]) if size else 1
    cpus = (available_cpus(),) * max(1, nodes)
    return Machine(job_id=None, cpus=cpus, gpus_per_node=torch.cuda.device_count())


def torchrun_size() -> int:
    """Processes that torchrun has started, this one among them; 0 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def ray_address() -> str | None:
    """Address of the running Ray that RAY_ADDRESS names; None without one.

    InputError where it is that of a job server, which takes jobs and lets nobody join.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS is {address}, a job server; give HOST:PORT of the cluster or `auto`, or "
            "leave it out and name the server to `ray job submit --address`"
        )
    return address or None


def available_cpus() -> int:
    """CPU cores this process may run on (by taskset or a container, not the host's)."""
    return len(os.sched_getaffinity(0))


def workers_for(config: Config) -> Workers:
    """One worker for every GPU there is, else one on the CPUs of every node; CLUSTER keys win.

    InputError when that cannot be had.
    """
    there, wanted = machine(), config.CLUSTER
    elsewhere = ray_address() is not None
    gpus = float(there.num_gpus > 0) if wanted.GPUS_PER_WORKER is None else wanted.GPUS_PER_WORKER
    if gpus and not there.num_gpus and not elsewhere:
        raise InputError(_no_gpu(gpus, there))
    started = torchrun_size()
    if started and wanted.NUM_WORKERS not in (None, started):
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {wanted.NUM_WORKERS} but torchrun has started {started} "
            "process(es), each a worker; leave the key out"
        )
    count = started or wanted.NUM_WORKERS or there.count_for(gpus)
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
    if there.job_id and on_a_node * cpus > min(there.cpus):
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
    if there.job_id and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"--workers {count}: a node of {there.name} has {min(there.cpus)} core(s); give at "
            f"most {min(there.cpus) * len(there.cpus)}, or ask for more"
        )
    return Workers(count=count, cpus=cpus, gpus=gpus)


def workers_of_trials(sweep: "Sweep") -> tuple[Workers, int]:
    """Workers of each trial of a sweep, and how many trials run side by side: as many as there is
    room for, TUNE.MAX_CONCURRENT at most.
    """
    cluster, gpus, there = sweep.base.CLUSTER, workers_for(sweep.base).gpus, machine()
    count, cores = cluster.NUM_WORKERS or 1, sum(there.cpus)
    # on a CPU a core for each trial is the best use of the cores
    room = max(1, int(there.num_gpus / (count * gpus))) if gpus else cores
    cpus = cluster.CPUS_PER_WORKER or max(1, min(cores // (room * count), *there.cpus))
    concurrent = min(room, max(1, cores // (count * cpus)))
    if ray_address():  # the cluster knows its own room, and Tune asks it
        concurrent = max(len(sweep.trials), sweep.tune.trials)
    most = sweep.tune.MAX_CONCURRENT or concurrent
    return Workers(count=count, cpus=cpus, gpus=gpus), min(concurrent, most)


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
    if not there.job_id:
        return (
            f"{GPU_KEY} is {gpus:g} but this machine shows no GPU to torch; "
            f"set {GPU_KEY}=null to train on the CPU, or run `ddpm doctor`"
        )
    return (
        f"{GPU_KEY} is {gpus:g} but {there.name} has no GPU; ask for some, such as "
        f"`sbatch --gpus-per-node=1 ...`, or set {GPU_KEY}=null to train on CPUs"
    )
