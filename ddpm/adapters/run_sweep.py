"""A sweep on the machines that Ray has: run what the ledger lacks, end with table and report."""

import os
from collections.abc import Callable

from rich.console import Console

from ddpm import job_list
from ddpm.adapters import sweep_setup
from ddpm.adapters.ray_cluster import ray_cluster
from ddpm.adapters.ray_tune import run_trials
from ddpm.adapters.run_trial import Resources
from ddpm.adapters.stage_clean import clean
from ddpm.adapters.sweep_setup import OpenSweep, Trial
from ddpm.durable import remove
from ddpm.errors import InputError, Interrupted, LockedError
from ddpm.progress import watch
from ddpm.sweep import Sweep
from ddpm.workers import machine, workers_for


def run(sweep: Sweep, *, should_stop: Callable[[], bool], clean_stage: bool = False) -> int:
    """Run the sweep to its end: 0, or 1 when trials failed. Raises Interrupted when stopped.

    clean_stage: remove the nodes' copies of the shards at the end.
    """
    console = Console()
    resources, concurrent = checked(sweep)
    threads = resources.cpus_per_worker
    with sweep_setup.opened(sweep, threads=threads, packed=concurrent > 1) as opened:
        _refuse_array_jobs(opened)
        remove(opened.stop_file)
        todo = opened.todo()
        sweep_setup.print_skipped(sweep, console)
        console.print(
            f"sweep {sweep.name}: {len(opened.trials)} trials, {len(todo)} to run, {concurrent} "
            "side by side"
        )
        console.print(f"results go to {opened.folder}", soft_wrap=True)
        if todo:
            _run_todo(opened, todo, resources, concurrent, should_stop, clean_stage)
        if opened.stop_file.exists():
            raise Interrupted(f"{opened.folder}: stopped; run the same command again to continue")
        return sweep_setup.conclude(opened, console)


def _refuse_array_jobs(opened: OpenSweep) -> None:
    """LockedError while jobs of --cluster wait or run: both would train the same trials."""
    jobs = job_list.living(job_list.read(opened.folder))
    if jobs:
        raise LockedError(
            f"sweep {opened.sweep.name}: job {jobs[0].job} and {len(jobs) - 1} more hold trials of "
            f"it; watch them with --cluster {jobs[0].cluster}, or stop them first"
        )


def checked(sweep: Sweep) -> tuple[Resources, int]:
    """As room(); InputError with all that keeps any trial from starting."""
    found, resources = sweep_setup.problems(sweep), None
    try:
        resources = room(sweep)
    except InputError as error:
        found += error.problems
    if resources is None or found:
        raise InputError(list(dict.fromkeys(found)))
    return resources


def room(sweep: Sweep) -> tuple[Resources, int]:
    """What each trial takes, and how many run side by side: as many as there is room for."""
    cluster, gpus, there = sweep.base.CLUSTER, workers_for(sweep.base).gpus, machine()
    count, cores = cluster.NUM_WORKERS or 1, sum(there.cpus)
    # so many trials have room on the GPUs; on a CPU a core each is the best use of the cores
    room = max(1, int(there.num_gpus / (count * gpus))) if gpus else cores
    cpus = cluster.CPUS_PER_WORKER or max(1, min(cores // (room * count), *there.cpus))
    concurrent = min(room, max(1, cores // (count * cpus)))
    if "RAY_ADDRESS" in os.environ:  # the cluster knows its own room, and Tune asks it
        concurrent = len(sweep.trials)
    resources = Resources(num_workers=count, cpus_per_worker=cpus, gpus_per_worker=gpus)
    return resources, min(concurrent, sweep.tune.MAX_CONCURRENT or concurrent)


def _run_todo(
    opened: OpenSweep,
    todo: list[Trial],
    resources: Resources,
    concurrent: int,
    should_stop: Callable[[], bool],
    clean_stage: bool,
) -> None:
    """Start Ray, run, and show all trials meanwhile."""
    tails = [trial.tail() for trial in opened.trials]
    with (
        watch(tails, Console(), should_stop=should_stop, on_stop=opened.stop_file.touch),
        ray_cluster(concurrent * resources.cores),
    ):
        run_trials(
            [trial.outcome for trial in todo],
            {trial.outcome.trial: trial.job for trial in todo},
            opened.ledger,
            opened.stop_file,
            sweep=opened.sweep.name,
            resources=resources,
            max_concurrent=concurrent,
            max_failures=opened.sweep.tune.MAX_FAILURES,
        )
        if clean_stage and not opened.stop_file.exists():
            clean(trial.job.stage for trial in opened.trials)
