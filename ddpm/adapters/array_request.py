"""What `launch/sweep.py --cluster` asks for: the command line's options, checked, as what each task
gets, and how many trials a task trains.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm import prediction
from ddpm.adapters import job_limits, submitit_jobs, sweep_checks, sweep_setup
from ddpm.adapters.run_sweep import room
from ddpm.adapters.run_trial import Resources
from ddpm.adapters.submitit_jobs import Request
from ddpm.batch_script import GPU_OPTIONS, from_environment
from ddpm.errors import InputError
from ddpm.job_list import Cluster
from ddpm.sweep import Sweep

JOBS = 16  # tasks that run at once unless --jobs says otherwise
LEAST_GROUP_S = 120.0  # a task takes some ten seconds to start


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; None takes the default.

    group_size: trials of a task.  jobs: tasks that run at once.  time: limit of a task, as SLURM
    writes it.  sbatch: further options of sbatch, KEY=VALUE.
    """

    cluster: Cluster
    group_size: int | None = None
    jobs: int | None = None
    time: str | None = None
    partition: str | None = None
    sbatch: Sequence[str] = ()
    probe: bool = True


def checked(sweep: Sweep, options: Options) -> tuple[Request, Resources]:
    """What to ask of the cluster for each task; InputError with all that is wrong."""
    found = sweep_checks.problems(sweep) + sweep_checks.only_here(sweep)
    made = None
    try:
        submitit_jobs.check_folder(sweep_setup.folder_of(sweep))
        made = _request(sweep, options)
    except InputError as error:
        found += error.problems
    if made is None or found:
        raise InputError(found)
    return made


def _request(sweep: Sweep, options: Options) -> tuple[Request, Resources]:
    cluster = sweep.base.CLUSTER
    problems = [
        f"--{name.replace('_', '-')} is {value}; give at least 1"
        for name in ("group_size", "jobs")
        if (value := getattr(options, name)) is not None and value < 1
    ]
    gpus = cluster.GPUS_PER_WORKER or 0.0
    if (cluster.NUM_WORKERS or 1) > 1 or gpus != int(gpus):
        problems.append(
            "CLUSTER.NUM_WORKERS above 1 and shares of a GPU need one allocation for the whole "
            "sweep: `sbatch slurm/sweep.sh SWEEP`; a task of --cluster trains on one worker"
        )
    limits = job_limits.read(options.time, options.partition, options.sbatch, problems)
    if problems:
        raise InputError(problems)
    resources, jobs = _resources(sweep, options, limits.options)
    request = Request(
        cluster=options.cluster,
        name=f"sweep-{sweep.name}",
        cpus=resources.cpus_per_worker,
        gpus=int(gpus) if options.cluster == "slurm" else int(resources.gpus_per_worker),
        jobs=jobs,
        minutes=limits.minutes,
        requeues=limits.requeues,
        options=limits.options,
    )
    return request, resources


def _resources(
    sweep: Sweep, options: Options, asked: Mapping[str, str | bool]
) -> tuple[Resources, int]:
    """What a trial takes, and how many tasks run at once. On SLURM: CLUSTER's keys; a GPU where
    options of sbatch ask for some; else one core.
    """
    if options.cluster != "slurm":  # this machine's part
        resources, concurrent = room(sweep)
        if resources.gpus_per_worker != int(resources.gpus_per_worker):
            raise InputError("--cluster local gives whole GPUs; set CLUSTER.GPUS_PER_WORKER to 1")
        return resources, 1 if options.cluster == "debug" else options.jobs or concurrent
    cluster = sweep.base.CLUSTER
    given = {key.replace("_", "-") for key in asked} | from_environment(os.environ).keys()
    gpus = cluster.GPUS_PER_WORKER
    if gpus is None:
        gpus = float(not given.isdisjoint(GPU_OPTIONS))
    cpus = cluster.CPUS_PER_WORKER or 1
    return Resources(
        num_workers=1, cpus_per_worker=cpus, gpus_per_worker=gpus
    ), options.jobs or JOBS


def group_size(todo: int, options: Options, jobs: int, seconds: float | None) -> int:
    """Trials of a task: so many that `jobs` tasks hold all, and more where that makes a task
    shorter than LEAST_GROUP_S.  seconds: of one trial, where that is known.
    """
    if options.group_size:
        size = options.group_size
    else:
        size = -(-todo // jobs)
        if seconds and options.cluster == "slurm":
            size = max(size, int(LEAST_GROUP_S / seconds) + 1)
    if options.cluster == "local" and -(-todo // size) > jobs:
        raise InputError(
            f"--group-size {size} makes {-(-todo // size)} processes, and nothing queues them on "
            f"this machine; give --group-size {-(-todo // jobs)} or more, or a larger --jobs"
        )
    return max(1, min(size, todo))


def expected_s(sweep: Sweep, options: Options, resources: Resources) -> float | None:
    """Seconds of a trial by a probe of this machine; None where groups do not depend on it."""
    if options.cluster != "slurm" or options.group_size or not options.probe:
        return None
    configs = [trial.config for trial in sweep.trials]
    try:
        return prediction.mean_s(prediction.predict_all(configs, resources.workers()))
    except InputError:  # too large for this machine, which is none of the nodes
        return None
