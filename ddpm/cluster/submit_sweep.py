"""A sweep as many small jobs: tasks of some trials are submitted, watched from here, and go on
without this process.

The ledger has the trials that are done, jobs.json the jobs and their trials. So the same command,
started again, watches the jobs that live and submits the trials that none of them has; and an
ordinary sweep continues what array jobs began, and the other way round.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from ddpm.cluster import run_sweep, slurm, submit
from ddpm.cluster.open_sweep import OpenSweep, folder_of, only_here, opened, problems
from ddpm.cluster.run_trial import FilePoll, TrialTask, run_trial
from ddpm.cluster.slurm import GPU_OPTIONS, from_environment
from ddpm.cluster.submit import JobOptions, JobResources, Submitted
from ddpm.cluster.task import TaskFile, stop_asked, write_tasks
from ddpm.cluster.workers import Workers, workers_of_trials
from ddpm.errors import DdpmError, InputError, Interrupted, as_typed
from ddpm.runs import remove, watch_runs
from ddpm.sweep import Ledger, Outcome, Sweep

LEAST_TASK_S = 120.0  # a task takes some ten seconds to start
_INSTEAD = {
    "job-name": "jobs are called after the sweep file; rename that",
    "cpus-per-task": "use CLUSTER.CPUS_PER_WORKER",
}


def left(task: TaskFile) -> list[TrialTask]:
    """The trials that neither the journal nor the ledger has as ended."""
    outcomes = Ledger(task.folder / "ledger").outcomes()
    ended = task.journal.ended | {name for name, o in outcomes.items() if o.status == "done"}
    return [TrialTask.from_dict(one) for name, one in task.items.items() if name not in ended]


def record_death(task: TaskFile, reason: str) -> Outcome | None:
    """The trial that the journal left open, recorded as failed; None without one."""
    if (name := task.journal.open_item) is None:
        return None
    trial = TrialTask.from_dict(task.items[name])
    failed = trial.outcome.failed(reason)
    trial.ledger.record(failed)
    task.journal.end(name, failed.status)
    return failed


def train_task(path: str) -> int:
    """`python -m ddpm.cluster trials FILE`: train what is left of a task's trials; the exit code.

    0 all done, 1 some failed, 75 stopped after saving (a signal, the sweep's stop file, the death
    of the FileTask): the same command goes on. Every trial ends in the ledger, or is left to be
    continued.
    """
    task = TaskFile.read(Path(path))
    asked, stop_file, journal = stop_asked(), FilePoll(task.stop_file), task.journal
    if journal.death:  # of the process before this one
        record_death(task, journal.death)
    ends = set()
    for trial in left(task):
        journal.begin(trial.outcome.trial)
        ended = run_trial(trial, should_stop=lambda: asked() or stop_file())
        journal.end(trial.outcome.trial, ended)
        ends.add(ended)
        if ended == "stopped":
            break
    outcomes = Ledger(task.folder / "ledger").outcomes()
    failed = any(o.status == "failed" for name in task.items if (o := outcomes.get(name)))
    code = Interrupted.exit_code if {"stopped", "held"} & ends else int(failed)
    journal.exit(code)
    return code


def check(sweep: Sweep, options: JobOptions) -> tuple[JobResources, Workers]:
    """The request of each task and the workers of a trial; InputError with all that is wrong."""
    found = problems(sweep) + only_here(sweep)
    resources = submit.read_options(
        options, folder_of(sweep), found, instead=_INSTEAD, key="TRAINING.OUTPUT_DIR"
    )
    gpus = sweep.base.CLUSTER.GPUS_PER_WORKER or 0.0
    if (sweep.base.CLUSTER.NUM_WORKERS or 1) > 1 or gpus != int(gpus):
        found.append(
            "CLUSTER.NUM_WORKERS above 1 and shares of a GPU need one allocation for the whole "
            "sweep: `sbatch slurm/sweep.sh SWEEP`; a task of --cluster trains on one worker"
        )
    if found:
        raise InputError(found)
    workers, jobs = _workers(sweep, options, resources.options)
    return replace(
        resources,
        name=f"sweep-{sweep.name}",
        cpus=workers.cpus,
        gpus=int(gpus) if options.cluster == "slurm" else int(workers.gpus),
        jobs=jobs,
    ), workers


def _workers(
    sweep: Sweep, options: JobOptions, given: Mapping[str, str | bool]
) -> tuple[Workers, int]:
    """Workers of a trial, and how many tasks run at once. On SLURM: CLUSTER's keys; a GPU where
    options of sbatch ask for some; else one core.
    """
    if options.cluster != "slurm":  # this machine's part
        workers, concurrent = workers_of_trials(sweep)
        if workers.gpus != int(workers.gpus):
            raise InputError("--cluster local gives whole GPUs; set CLUSTER.GPUS_PER_WORKER to 1")
        return workers, 1 if options.cluster == "debug" else options.jobs or concurrent
    names = {key.replace("_", "-") for key in given} | from_environment(os.environ).keys()
    gpus = sweep.base.CLUSTER.GPUS_PER_WORKER
    if gpus is None:
        gpus = float(not names.isdisjoint(GPU_OPTIONS))
    cpus = sweep.base.CLUSTER.CPUS_PER_WORKER or 1
    return Workers(count=1, cpus=cpus, gpus=gpus), options.jobs or submit.JOBS


def group_size(todo: int, options: JobOptions, jobs: int, seconds: float | None) -> int:
    """Trials of a task: so many that `jobs` tasks have all, and more where that makes a task
    shorter than LEAST_TASK_S.  seconds: of one trial, where that is known.
    """
    size = options.group_size or -(-todo // jobs)
    if seconds and options.cluster == "slurm" and not options.group_size:
        size = max(size, int(LEAST_TASK_S / seconds) + 1)
    if options.cluster == "local" and -(-todo // size) > jobs:
        raise InputError(
            f"--group-size {size} makes {-(-todo // size)} processes, and nothing queues them on "
            f"this machine; give --group-size {-(-todo // jobs)} or more, or a larger --jobs"
        )
    return max(1, min(size, todo))


def run_array(
    sweep: Sweep, options: JobOptions, *, should_stop: Callable[[], bool], probe: bool = True
) -> int:
    """Submit, watch to the end, conclude: 0, or 1 when trials failed. A stop detaches: Interrupted,
    and the jobs go on.

    probe: size tasks by the seconds of a trial, as this machine takes them.
    """
    console = Console()
    resources, workers = check(sweep, options)
    if options.cluster == "slurm":
        slurm.require_slurm()
    with opened(sweep, workers=workers, packed=resources.jobs > 1) as of:
        folder, jobs = of.folder, submit.living(of.folder)
        taken = {trial for job in jobs for trial in job.trials}
        if not jobs:
            remove(of.stop_file)
        todo = [trial for trial in of.todo() if trial.trial_id not in taken]
        what = f"{len(todo)} to submit, {len(taken)} held by living jobs"
        run_sweep.print_start(of, what, console)
        by_number = options.cluster != "slurm" or options.group_size or not probe or not todo
        seconds = None if by_number else _expected_s(of)
        size = group_size(len(todo), options, resources.jobs, seconds) if todo else 1
        items = [(trial.trial_id, asdict(TrialTask.of(of, trial))) for trial in todo]
        parts = (dict(items[start : start + size]) for start in range(0, len(items), size))
        tasks = write_tasks(folder, parts)
        if options.cluster == "debug":
            stop = of.stop_file.touch
            with watch_runs(of.tails(), console, should_stop=should_stop, on_stop=stop):
                submit.run_here(folder, "trials", tasks)
            return run_sweep.conclude(of, console)
        jobs = submit.submit(resources, folder, "trials", tasks, jobs, console)
        look = as_typed("status", folder)
        if jobs:
            console.print(submit.how_to(jobs, look, folder), soft_wrap=True, markup=False)
        with watch_runs(of.tails(), console):
            for _ in submit.until_the_end(jobs, should_stop, look, folder):
                pass
        _record_deaths(folder, jobs, console)
        return run_sweep.conclude(of, console)


def _expected_s(of: OpenSweep) -> float | None:
    """Seconds of a trial; None where it is too large for this machine, no node of the cluster."""
    from ddpm.cluster import cost

    try:
        found = cost.predict_all([trial.config for trial in of.sweep.trials], of.workers)
    except InputError:
        return None
    return cost.mean_s(found)


def _record_deaths(folder: Path, jobs: Sequence[Submitted], console: Console) -> None:
    """A reason, in the ledger, for the trials that killed jobs were at.

    DdpmError when jobs failed before their first trial.
    """
    unstarted = []
    for job, reason in submit.deaths(jobs, folder, console):
        if record_death(job.task, reason) is None and not job.journal.begun:
            unstarted.append(f"{reason}; see {job.log(folder)}")
    if unstarted:
        raise DdpmError(
            "\n".join([f"{len(unstarted)} job(s) failed before their first trial:", *unstarted])
        )
