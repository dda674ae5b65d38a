"""What `launch/sweep.py --cluster` asks for: the command line's options, checked, as what each task
gets, and how many trials a task trains.
"""

import os
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from ddpm.cluster import cost, slurm, submit, sweep_setup
from ddpm.cluster import sweep_setup as sweep_checks
from ddpm.cluster.run_sweep import room
from ddpm.cluster.run_trial import FilePoll, Resources, run_trial
from ddpm.cluster.slurm import GPU_OPTIONS, from_environment
from ddpm.cluster.submit import Cluster, JobResources, Submitted, TrialBatch, split, stop_asked
from ddpm.cluster.sweep_setup import OpenSweep, OpenTrial
from ddpm.errors import DdpmError, InputError, Interrupted
from ddpm.runs import Tail, remove, watch
from ddpm.sweep import Sweep
from ddpm.training import Job

JOBS = 16  # tasks that run at once unless --jobs says otherwise
LEAST_GROUP_S = 120.0  # a task takes some ten seconds to start


@dataclass(frozen=True, kw_only=True)
class SweepJobOptions:
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


def checked(sweep: Sweep, options: SweepJobOptions) -> tuple[JobResources, Resources]:
    """What to ask of the cluster for each task; InputError with all that is wrong."""
    found = sweep_checks.problems(sweep) + sweep_checks.only_here(sweep)
    made = None
    try:
        submit.check_folder(sweep_setup.folder_of(sweep))
        made = _request(sweep, options)
    except InputError as error:
        found += error.problems
    if made is None or found:
        raise InputError(found)
    return made


def _request(sweep: Sweep, options: SweepJobOptions) -> tuple[JobResources, Resources]:
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
    limits = submit.read_limits(options.time, options.partition, options.sbatch, problems)
    if problems:
        raise InputError(problems)
    resources, jobs = _resources(sweep, options, limits.options)
    request = JobResources(
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
    sweep: Sweep, options: SweepJobOptions, asked: Mapping[str, str | bool]
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


def group_size(todo: int, options: SweepJobOptions, jobs: int, seconds: float | None) -> int:
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


def expected_s(sweep: Sweep, options: SweepJobOptions, resources: Resources) -> float | None:
    """Seconds of a trial by a probe of this machine; None where groups do not depend on it."""
    if options.cluster != "slurm" or options.group_size or not options.probe:
        return None
    configs = [trial.config for trial in sweep.trials]
    try:
        return cost.mean_s(cost.predict_all(configs, resources.workers()))
    except InputError:  # too large for this machine, which is none of the nodes
        return None


# --------
# A sweep as many small jobs: groups of trials are submitted, watched from here, and go on without
# this process.
#
# The ledger says what is done, jobs.json which jobs hold which trials. So the same command, started
# again, watches what lives and submits only what nothing holds; and an ordinary sweep continues what
# array jobs began, and the other way round.


def run_array(
    sweep: Sweep,
    options: SweepJobOptions,
    *,
    should_stop: Callable[[], bool],
) -> int:
    """Submit, watch to the end, conclude: 0, or 1 when trials failed. A stop detaches: Interrupted,
    and the jobs go on.
    """
    console = Console()
    request, resources = checked(sweep, options)
    if options.cluster == "slurm":
        slurm.require_slurm()
    threads, packed = resources.cpus_per_worker, request.jobs > 1
    with sweep_setup.opened(sweep, threads=threads, packed=packed) as opened:
        living = submit.living(opened.folder)
        held = {trial for job in living for trial in job.trials}
        if not living:
            remove(opened.stop_file)
        todo = [trial for trial in opened.todo() if trial.outcome.trial not in held]
        sweep_setup.print_skipped(sweep, console)
        console.print(
            f"sweep {sweep.name}: {len(opened.trials)} trials, {len(todo)} to submit, "
            f"{len(held)} held by living jobs"
        )
        console.print(f"results go to {opened.folder}", soft_wrap=True)
        groups = _groups(opened, todo, options, request, resources)
        if options.cluster == "debug":
            with watch(
                _tails(opened), console, should_stop=should_stop, on_stop=opened.stop_file.touch
            ):
                submit.run_here(opened.folder / "submitit", groups)
            return _concluded(opened, [], {}, console)
        jobs = _submit(opened, groups, living, request, console)
        endings = _watch_to_the_end(opened, jobs, should_stop, console)
        return _concluded(opened, jobs, endings, console)


def _groups(
    opened: OpenSweep,
    todo: Sequence[OpenTrial],
    options: SweepJobOptions,
    request: JobResources,
    resources: Resources,
) -> list[TrialBatch]:
    """The groups to submit, each in its file."""
    if not todo:
        return []
    seconds = expected_s(opened.sweep, options, resources)
    size = group_size(len(todo), options, request.jobs, seconds)
    prefix = secrets.token_hex(4)
    groups = [
        TrialBatch(
            path=opened.folder / "jobs" / f"{prefix}-{number:04d}.json",
            sweep=opened.sweep.name,
            folder=opened.folder,
            outcomes=tuple(trial.outcome for trial in part),
            jobs=tuple(asdict(trial.job) for trial in part),
            resources=asdict(resources),
        )
        for number, part in enumerate(split(todo, size))
    ]
    for group in groups:
        group.write()
    return groups


def _submit(
    opened: OpenSweep,
    groups: list[TrialBatch],
    living: list[Submitted],
    request: JobResources,
    console: Console,
) -> list[Submitted]:
    """Submit the groups; all jobs of the sweep. jobs.json names each as soon as it is there."""
    jobs, logs = list(living), opened.folder / "submitit"
    for array in submit.submit(request, logs, groups):
        jobs += array
        submit.write(opened.folder, jobs)
        first = array[0].job.partition("_")[0]
        console.print(
            f"submitted job {first}: {len(array)} task(s), {sum(len(j.trials) for j in array)} "
            f"trials; logs: {logs}/{first}*_log.out",
            soft_wrap=True,
        )
    if jobs:
        console.print(_how_to(jobs, opened.folder), soft_wrap=True)
    return jobs


def _how_to(jobs: Sequence[Submitted], folder: Path) -> str:
    """How to look after the jobs without this process."""
    look = shlex.join(["python", "launch/status.py", str(folder)])
    return submit.how_to(jobs, look, folder / "stop")


def _watch_to_the_end(
    opened: OpenSweep,
    jobs: Sequence[Submitted],
    should_stop: Callable[[], bool],
    console: Console,
) -> dict[str, str]:
    """Show all trials until no job lives; how the jobs ended, by id."""
    with watch(_tails(opened), console):
        for living in submit.until_the_end(jobs, should_stop):
            if should_stop():
                raise Interrupted(
                    f"detached; {len(living)} job(s) go on, and the same command watches them "
                    f"again. {_how_to(living, opened.folder)}"
                )
    return submit.endings(jobs)


def _concluded(
    opened: OpenSweep, jobs: Sequence[Submitted], endings: Mapping[str, str], console: Console
) -> int:
    """Give a reason to the trials that killed jobs were at, then as every sweep ends.

    Interrupted when trials are left; DdpmError when jobs failed before their first trial.
    """
    unstarted = []
    for job in jobs:
        if job.journal.exit_code is not None:
            continue
        how = endings.get(job.job, "no record of how it ended")
        log = opened.folder / "submitit" / f"{job.job}_0_log.out"
        if how.startswith(submit.FAILURES):
            reason = f"job {job.job}: {how}{submit.last_line(log)}"
            if (
                TrialBatch.read(Path(job.group)).record_death(reason) is None
                and job.journal.is_empty
            ):
                unstarted.append(f"{reason}; see {log}")
        console.print(f"job {job.job} was ended: {how}", soft_wrap=True, markup=False)
    if unstarted:
        raise DdpmError(
            "\n".join([f"{len(unstarted)} job(s) failed before their first trial:", *unstarted])
        )
    return sweep_setup.conclude(opened, console)


def _tails(opened: OpenSweep) -> list[Tail]:
    return [trial.tail() for trial in opened.trials]


# --------
# python -m ddpm.cluster trials GROUP.json: the trials of a group, one after the other.
#
# Exit codes: 0 all done, 1 some failed, 75 stopped after saving: the same command goes on. Stops on
# SIGTERM, SIGUSR2 and SIGINT, however often they come, when the sweep's stop file appears, and when
# the process that has started it is gone.


def train_batch(path: str) -> int:
    """Train what is left of the group; the exit code."""
    group = TrialBatch.read(Path(path))
    asked, stop_file = stop_asked(), FilePoll(group.stop_file)
    code = run_group(group, lambda: asked() or stop_file())
    group.journal.exit(code)
    return code


def run_group(group: TrialBatch, should_stop: Callable[[], bool]) -> int:
    """As train_batch(). Every trial ends in the ledger, or is left to be continued."""
    journal, ends = group.journal, []
    for outcome, job in group.left():
        journal.begin(outcome.trial)
        ended = run_trial(
            outcome,
            Job(**job),
            group.ledger,
            sweep=group.sweep,
            resources=Resources(**group.resources),
            should_stop=should_stop,
        )
        journal.end(outcome.trial, ended)
        ends.append(ended)
        if ended == "stopped":
            break
    if "stopped" in ends or "held" in ends:
        return Interrupted.exit_code
    outcomes = group.ledger.outcomes()
    return int(
        any(o.trial in outcomes and outcomes[o.trial].status == "failed" for o in group.outcomes)
    )
