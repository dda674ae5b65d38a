"""A sweep as many small jobs: batches of trials are submitted, watched from here, and go on without
this process.

The ledger has the trials that are done, jobs.json the jobs and their trials. So the same command,
started again, watches the jobs that live and submits the trials that none of them has; and an
ordinary sweep continues what array jobs began, and the other way round.
"""

import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpm.cluster import run_sweep, slurm, submit
from ddpm.cluster.open_sweep import OpenSweep, folder_of, only_here, opened, problems
from ddpm.cluster.run_trial import FilePoll, run_trial
from ddpm.cluster.slurm import GPU_OPTIONS, from_environment
from ddpm.cluster.submit import Cluster, JobResources, Journal, Submitted, stop_asked
from ddpm.cluster.workers import Workers, workers_of_trials
from ddpm.errors import DdpmError, InputError, Interrupted
from ddpm.runs import remove, storage, watch
from ddpm.sweep import Ledger, Outcome, Sweep
from ddpm.training import Job

JOBS = 16  # tasks that run at once unless --jobs says otherwise
LEAST_BATCH_S = 120.0  # a task takes some ten seconds to start
_INSTEAD = {
    "time": "use --time",
    "partition": "use --partition",
    "job-name": "jobs are called after the sweep file; rename that",
    "cpus-per-task": "use CLUSTER.CPUS_PER_WORKER",
}


@dataclass(frozen=True, kw_only=True)
class SweepJobOptions:
    """The command line; None takes the default.

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


@dataclass(frozen=True, kw_only=True)
class TrialBatch:
    """Trials that one process trains one after the other.

    path: its file.  folder: of the sweep.  outcomes: the blank ones.  jobs: the training of each, a
    training.Job as a dictionary.  workers: of each trial.
    """

    path: Path
    sweep: str
    folder: Path
    outcomes: tuple[Outcome, ...]
    jobs: tuple[Mapping[str, Any], ...]
    workers: Workers

    def write(self) -> None:
        """Keep it at its path, for its owner's eyes."""
        storage.make_folder(self.path.parent)
        storage.write_json(self.path, asdict(self) | {"path": None, "folder": str(self.folder)})

    @classmethod
    def read(cls, path: Path) -> "TrialBatch":
        """The batch that was written at `path`."""
        facts = storage.read_json(path)
        return cls(
            path=path,
            sweep=facts["sweep"],
            folder=Path(facts["folder"]),
            outcomes=tuple(Outcome(**outcome) for outcome in facts["outcomes"]),
            jobs=tuple(facts["jobs"]),
            workers=Workers(**facts["workers"]),
        )

    @property
    def journal(self) -> Journal:
        return Journal(self.path)

    @property
    def items(self) -> tuple[str, ...]:
        """The ids of its trials."""
        return tuple(outcome.trial for outcome in self.outcomes)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger")

    @property
    def stop_file(self) -> Path:
        """Appears when all trials of the sweep shall save and stop."""
        return self.folder / "stop"

    def left(self) -> list[tuple[Outcome, Mapping[str, Any]]]:
        """The trials that neither the journal nor the ledger has as ended, each with its job."""
        ended, outcomes = self.journal.ended, self.ledger.outcomes()
        ended |= {trial for trial, outcome in outcomes.items() if outcome.status == "done"}
        pairs = zip(self.outcomes, self.jobs, strict=True)
        return [(outcome, job) for outcome, job in pairs if outcome.trial not in ended]

    def record_death(self, reason: str) -> Outcome | None:
        """The trial that the journal left open, recorded as failed; None without one."""
        trial = self.journal.open_item
        found = next((outcome for outcome in self.outcomes if outcome.trial == trial), None)
        if found is None:
            return None
        failed = found.failed(reason)
        self.ledger.record(failed)
        self.journal.end(failed.trial, failed.status)
        return failed


def train_batch(path: str) -> int:
    """`python -m ddpm.cluster trials FILE`: train what is left of a batch; the exit code.

    0 all done, 1 some failed, 75 stopped after saving (a signal, the sweep's stop file, the death
    of the FileTask): the same command goes on. Every trial ends in the ledger, or is left to be
    continued.
    """
    batch = TrialBatch.read(Path(path))
    asked, stop_file, journal = stop_asked(), FilePoll(batch.stop_file), batch.journal
    if journal.death:  # of the process before this one
        batch.record_death(journal.death)
    ends = []
    for outcome, job in batch.left():
        journal.begin(outcome.trial)
        ended = run_trial(
            outcome,
            Job(**job),
            batch.ledger,
            sweep=batch.sweep,
            workers=batch.workers,
            should_stop=lambda: asked() or stop_file(),
        )
        journal.end(outcome.trial, ended)
        ends.append(ended)
        if ended == "stopped":
            break
    outcomes = batch.ledger.outcomes()
    failed = any(o.status == "failed" for t in batch.items if (o := outcomes.get(t)))
    code = Interrupted.exit_code if {"stopped", "held"} & {*ends} else int(failed)
    journal.exit(code)
    return code


def checked(sweep: Sweep, options: SweepJobOptions) -> tuple[JobResources, Workers]:
    """The request of each task and the workers of a trial; InputError with all that is wrong."""
    found = problems(sweep) + only_here(sweep)
    try:
        submit.check_folder(folder_of(sweep), "TRAINING.OUTPUT_DIR")
    except InputError as error:
        found += error.problems
    found += [
        f"--{name.replace('_', '-')} is {value}; give at least 1"
        for name in ("group_size", "jobs")
        if (value := getattr(options, name)) is not None and value < 1
    ]
    cluster = sweep.base.CLUSTER
    gpus = cluster.GPUS_PER_WORKER or 0.0
    if (cluster.NUM_WORKERS or 1) > 1 or gpus != int(gpus):
        found.append(
            "CLUSTER.NUM_WORKERS above 1 and shares of a GPU need one allocation for the whole "
            "sweep: `sbatch slurm/sweep.sh SWEEP`; a task of --cluster trains on one worker"
        )
    limits = submit.read_limits(
        options.time, options.partition, options.sbatch, found, instead=_INSTEAD
    )
    if found:
        raise InputError(found)
    workers, jobs = _workers(sweep, options, limits.options)
    resources = JobResources(
        cluster=options.cluster,
        name=f"sweep-{sweep.name}",
        cpus=workers.cpus,
        gpus=int(gpus) if options.cluster == "slurm" else int(workers.gpus),
        jobs=jobs,
        minutes=limits.minutes,
        requeues=limits.requeues,
        options=limits.options,
    )
    return resources, workers


def _workers(
    sweep: Sweep, options: SweepJobOptions, asked: Mapping[str, str | bool]
) -> tuple[Workers, int]:
    """Workers of a trial, and how many tasks run at once. On SLURM: CLUSTER's keys; a GPU where
    options of sbatch ask for some; else one core.
    """
    cluster = sweep.base.CLUSTER
    if options.cluster != "slurm":  # this machine's part
        trials = max(len(sweep.trials), sweep.tune.trials)
        workers, concurrent = workers_of_trials(sweep.base, trials, sweep.tune.MAX_CONCURRENT)
        if workers.gpus != int(workers.gpus):
            raise InputError("--cluster local gives whole GPUs; set CLUSTER.GPUS_PER_WORKER to 1")
        return workers, 1 if options.cluster == "debug" else options.jobs or concurrent
    given = {key.replace("_", "-") for key in asked} | from_environment(os.environ).keys()
    gpus = cluster.GPUS_PER_WORKER
    if gpus is None:
        gpus = float(not given.isdisjoint(GPU_OPTIONS))
    return Workers(count=1, cpus=cluster.CPUS_PER_WORKER or 1, gpus=gpus), options.jobs or JOBS


def group_size(todo: int, options: SweepJobOptions, jobs: int, seconds: float | None) -> int:
    """Trials of a task: so many that `jobs` tasks have all, and more where that makes a task
    shorter than LEAST_BATCH_S.  seconds: of one trial, where that is known.
    """
    if options.group_size:
        size = options.group_size
    else:
        size = -(-todo // jobs)
        if seconds and options.cluster == "slurm":
            size = max(size, int(LEAST_BATCH_S / seconds) + 1)
    if options.cluster == "local" and -(-todo // size) > jobs:
        raise InputError(
            f"--group-size {size} makes {-(-todo // size)} processes, and nothing queues them on "
            f"this machine; give --group-size {-(-todo // jobs)} or more, or a larger --jobs"
        )
    return max(1, min(size, todo))


def run_array(sweep: Sweep, options: SweepJobOptions, *, should_stop: Callable[[], bool]) -> int:
    """Submit, watch to the end, conclude: 0, or 1 when trials failed. A stop detaches: Interrupted,
    and the jobs go on.
    """
    console = Console()
    resources, workers = checked(sweep, options)
    if options.cluster == "slurm":
        slurm.require_slurm()
    with opened(sweep, threads=workers.cpus, packed=resources.jobs > 1) as of:
        jobs = submit.living(of.folder)
        taken = {trial for job in jobs for trial in job.trials}
        if not jobs:
            remove(of.stop_file)
        todo = [trial.outcome for trial in of.todo() if trial.trial_id not in taken]
        run_sweep.print_skipped(sweep, console)
        console.print(
            f"sweep {sweep.name}: {len(of.trials)} trials, {len(todo)} to submit, "
            f"{len(taken)} held by living jobs"
        )
        console.print(f"results go to {of.folder}", soft_wrap=True)
        batches = _batches(of, todo, options, resources, workers)
        if options.cluster == "debug":
            stop = of.stop_file.touch
            with watch(of.tails(), console, should_stop=should_stop, on_stop=stop):
                submit.run_here(of.folder, "trials", batches)
            return run_sweep.conclude(of, console)
        for array in submit.submit(resources, of.folder, "trials", batches, jobs):
            jobs += array
            first = array[0].job.partition("_")[0]
            console.print(
                f"submitted job {first}: {len(array)} task(s), "
                f"{sum(len(job.trials) for job in array)} trials; "
                f"logs: {of.folder / 'submitit' / first}*_log.out",
                soft_wrap=True,
            )
        if jobs:
            console.print(_how_to(jobs, of.folder), soft_wrap=True)
        with watch(of.tails(), console):
            for living in submit.until_the_end(jobs, should_stop):
                if should_stop():
                    raise Interrupted(
                        f"detached; {len(living)} job(s) go on, and the same command watches them "
                        f"again. {_how_to(living, of.folder)}"
                    )
        _record_deaths(of.folder, jobs, console)
        return run_sweep.conclude(of, console)


def _batches(
    of: OpenSweep,
    todo: Sequence[Outcome],
    options: SweepJobOptions,
    resources: JobResources,
    workers: Workers,
) -> list[TrialBatch]:
    """The batches to submit, each in its file."""
    if not todo:
        return []
    seconds = expected_s(of.sweep, options, workers)
    size = group_size(len(todo), options, resources.jobs, seconds)
    jobs = {trial.trial_id: of.job(trial) for trial in of.trials}
    prefix = secrets.token_hex(4)
    batches: list[TrialBatch] = []
    for start in range(0, len(todo), size):
        some = tuple(todo[start : start + size])
        batch = TrialBatch(
            path=of.folder / "jobs" / f"{prefix}-{len(batches):04d}.json",
            sweep=of.sweep.name,
            folder=of.folder,
            outcomes=some,
            jobs=tuple(asdict(jobs[outcome.trial]) for outcome in some),
            workers=workers,
        )
        batch.write()
        batches.append(batch)
    return batches


def expected_s(sweep: Sweep, options: SweepJobOptions, workers: Workers) -> float | None:
    """Seconds of a trial by a probe of this machine; None where batches do not depend on it."""
    if options.cluster != "slurm" or options.group_size or not options.probe:
        return None
    from ddpm.cluster import cost

    try:
        return cost.mean_s(cost.predict_all([trial.config for trial in sweep.trials], workers))
    except InputError:  # too large for this machine, which is none of the nodes
        return None


def _how_to(jobs: Sequence[Submitted], folder: Path) -> str:
    look = shlex.join(["ddpm", "status", str(folder)])
    return submit.how_to(jobs, look, folder / "stop")


def _record_deaths(folder: Path, jobs: Sequence[Submitted], console: Console) -> None:
    """A reason, in the ledger, for the trials that killed jobs were at.

    DdpmError when jobs failed before their first trial.
    """
    unstarted, endings = [], submit.endings(jobs)
    for job in jobs:
        if job.journal.exit_code is not None:
            continue
        how, log = endings.get(job.job, "no record of how it ended"), job.log(folder)
        if how.startswith(submit.FAILURES):
            reason = f"job {job.job}: {how}{submit.last_line(log)}"
            failed = TrialBatch.read(Path(job.group)).record_death(reason)
            if failed is None and not job.journal.begun:
                unstarted.append(f"{reason}; see {log}")
        console.print(f"job {job.job} was ended: {how}", soft_wrap=True, markup=False)
    if unstarted:
        raise DdpmError(
            "\n".join([f"{len(unstarted)} job(s) failed before their first trial:", *unstarted])
        )
