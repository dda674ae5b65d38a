"""What `launch/sample.py --num` asks for: the command line's options, checked, as a plan of the
images and as what each task gets.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.adapters import job_limits, submitit_jobs
from ddpm.adapters.job_limits import Limits
from ddpm.adapters.submitit_jobs import Request
from ddpm.errors import InputError
from ddpm.job_list import Cluster
from ddpm.wish import Wish

if TYPE_CHECKING:
    from ddpm.series_plan import Plan

JOBS = 16  # tasks that run at once unless --jobs says otherwise
_INSTEAD = {
    "time": "use --time",
    "partition": "use --partition",
    "job-name": "jobs are called after the recipe, by which they are found again",
    "cpus-per-task": "a task has as many cores as the run was trained with: they decide bits",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says of jobs; None takes the default.

    cluster: None draws in this process.  jobs: tasks that run at once.  time: limit of a task, as
    SLURM writes it.  sbatch: further options of sbatch, KEY=VALUE.
    """

    cluster: Cluster | None = None
    jobs: int | None = None
    time: str | None = None
    partition: str | None = None
    sbatch: Sequence[str] = ()


def checked(wish: Wish, options: Options) -> "tuple[Plan, Request | None]":
    """The plan, and what to ask of the cluster for each task (None where there is no cluster).

    InputError with all that is wrong, StorageError where there is no room; nothing is written.
    """
    problems: list[str] = []
    if options.jobs is not None and options.jobs < 1:
        problems.append(f"--jobs is {options.jobs}; give at least 1")
    limits = job_limits.read(
        options.time, options.partition, options.sbatch, problems, instead=_INSTEAD
    )
    try:
        folder = wish.request().folder.resolve()
        if options.cluster is not None:
            submitit_jobs.check_folder(folder, "IMAGE_GENERATION.GEN_SAVE_DIR")
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)

    from ddpm import series_plan  # imports torch, which takes seconds

    plan = series_plan.make(wish, jobs=options.jobs)
    series_plan.require_room(plan)
    return plan, None if options.cluster is None else _request(
        plan, options.cluster, options, limits
    )


def _request(plan: "Plan", cluster: Cluster, options: Options, limits: Limits) -> Request:
    import torch

    from ddpm.rundir import RunDirectory

    threads = RunDirectory(plan.request.run).threads
    gpus = int(plan.request.config.CLUSTER.GPUS_PER_WORKER or 0)
    most = JOBS
    if cluster != "slurm":  # this machine's part
        there = torch.cuda.device_count()
        gpus = min(1, there)
        most = there or max(1, len(os.sched_getaffinity(0)) // threads)
    return Request(
        cluster=cluster,
        name=f"sample-{plan.folder.name[-8:]}",
        cpus=threads,
        gpus=gpus,
        jobs=1 if cluster == "debug" else options.jobs or most,
        minutes=limits.minutes,
        requeues=limits.requeues,
        options=limits.options,
    )
