"""What SLURM gave the job this process runs in, read from the SLURM_* variables of its environment.

Never what the host has: a node's other cores and GPUs belong to other jobs.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ddpm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A SLURM job's share of the cluster.

    cpus: cores by node, the first node first.  gpus_per_node: GPUs of this node; a job has the same
    number on every node.  memory_mb: memory of this node, None where SLURM does not share it out.
    """

    job_id: str
    cpus: tuple[int, ...]
    gpus_per_node: int = 0
    memory_mb: int | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.cpus)

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Self | None:
        """The job this process runs in; None outside of a job.

        Raises InputError where the process belongs to a job but cannot speak for it: on a host that
        is none of its nodes, or as one of several copies that srun started.
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
        cpus = _by_node(env)
        return cls(
            job_id=job_id,
            cpus=cpus,
            gpus_per_node=_whole(env, "SLURM_GPUS_ON_NODE", 0),
            memory_mb=_memory(env, cpus[0]),
        )


def node_share(env: Mapping[str, str] = os.environ) -> Allocation:
    """This node's part of the job, as one of the tasks that srun started on its nodes sees it."""
    cpus = _by_node(env)[_whole(env, "SLURM_NODEID", 0)]
    return Allocation(
        job_id=env["SLURM_JOB_ID"],
        cpus=(cpus,),
        gpus_per_node=_whole(env, "SLURM_GPUS_ON_NODE", 0),
        memory_mb=_memory(env, cpus),
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


def _memory(env: Mapping[str, str], cpus: int) -> int | None:
    """MB of this node; SLURM says it by node or by core, and 0 for all that the node has."""
    per_node = _whole(env, "SLURM_MEM_PER_NODE", 0)
    return per_node or cpus * _whole(env, "SLURM_MEM_PER_CPU", 0) or None


def _whole(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}; SLURM sets a whole number")
    return int(text)
