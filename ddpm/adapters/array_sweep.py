"""A sweep as many small jobs: groups of trials are submitted, watched from here, and go on without
this process.

The ledger says what is done, jobs.json which jobs hold which trials. So the same command, started
again, watches what lives and submits only what nothing holds; and an ordinary sweep continues what
array jobs began, and the other way round.
"""

import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ddpm import job_list, slurm_queue
from ddpm.adapters import job_watch, submitit_jobs, sweep_setup
from ddpm.adapters.array_request import Options, checked, expected_s, group_size
from ddpm.adapters.run_trial import Resources
from ddpm.adapters.submitit_jobs import Request
from ddpm.adapters.sweep_setup import OpenSweep, Trial
from ddpm.durable import remove
from ddpm.errors import DdpmError, Interrupted
from ddpm.groups import Group, split
from ddpm.job_list import Submitted
from ddpm.progress import Tail, watch
from ddpm.sweep import Sweep


def run(
    sweep: Sweep,
    options: Options,
    *,
    should_stop: Callable[[], bool],
    clean_stage: bool = False,
) -> int:
    """Submit, watch to the end, conclude: 0, or 1 when trials failed. A stop detaches: Interrupted,
    and the jobs go on.

    clean_stage: each job removes its node's copies of the shards at its end, if none reads them.
    """
    console = Console()
    request, resources = checked(sweep, options)
    if options.cluster == "slurm":
        slurm_queue.require_slurm()
    threads, packed = resources.cpus_per_worker, request.jobs > 1
    with sweep_setup.opened(sweep, threads=threads, packed=packed) as opened:
        living = job_watch.living(opened.folder)
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
        groups = _groups(opened, todo, options, request, resources, clean_stage)
        if options.cluster == "debug":
            with watch(
                _tails(opened), console, should_stop=should_stop, on_stop=opened.stop_file.touch
            ):
                submitit_jobs.run_here(opened.folder / "submitit", groups)
            return _concluded(opened, [], {}, console)
        jobs = _submit(opened, groups, living, request, console)
        endings = _watch_to_the_end(opened, jobs, should_stop, console)
        return _concluded(opened, jobs, endings, console)


def _groups(
    opened: OpenSweep,
    todo: Sequence[Trial],
    options: Options,
    request: Request,
    resources: Resources,
    clean_stage: bool,
) -> list[Group]:
    """The groups to submit, each in its file."""
    if not todo:
        return []
    seconds = expected_s(opened.sweep, options, resources)
    size = group_size(len(todo), options, request.jobs, seconds)
    prefix = secrets.token_hex(4)
    groups = [
        Group(
            path=opened.folder / "jobs" / f"{prefix}-{number:04d}.json",
            sweep=opened.sweep.name,
            folder=opened.folder,
            outcomes=tuple(trial.outcome for trial in part),
            jobs=tuple(asdict(trial.job) for trial in part),
            resources=asdict(resources),
            clean_stage=clean_stage,
        )
        for number, part in enumerate(split(todo, size))
    ]
    for group in groups:
        group.write()
    return groups


def _submit(
    opened: OpenSweep,
    groups: list[Group],
    living: list[Submitted],
    request: Request,
    console: Console,
) -> list[Submitted]:
    """Submit the groups; all jobs of the sweep. jobs.json names each as soon as it is there."""
    jobs, logs = list(living), opened.folder / "submitit"
    for array in submitit_jobs.submit(request, logs, groups):
        jobs += array
        job_list.write(opened.folder, jobs)
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
    return job_watch.how_to(jobs, look, folder / "stop")


def _watch_to_the_end(
    opened: OpenSweep,
    jobs: Sequence[Submitted],
    should_stop: Callable[[], bool],
    console: Console,
) -> dict[str, str]:
    """Show all trials until no job lives; how the jobs ended, by id."""
    with watch(_tails(opened), console):
        for living in job_watch.until_the_end(jobs, should_stop):
            if should_stop():
                raise Interrupted(
                    f"detached; {len(living)} job(s) go on, and the same command watches them "
                    f"again. {_how_to(living, opened.folder)}"
                )
    return job_watch.endings(jobs)


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
        if how.startswith(job_watch.FAILURES):
            reason = f"job {job.job}: {how}{job_watch.last_line(log)}"
            if Group.read(Path(job.group)).record_death(reason) is None and job.journal.is_empty:
                unstarted.append(f"{reason}; see {log}")
        console.print(f"job {job.job} was ended: {how}", soft_wrap=True, markup=False)
    if unstarted:
        raise DdpmError(
            "\n".join([f"{len(unstarted)} job(s) failed before their first trial:", *unstarted])
        )
    return sweep_setup.conclude(opened, console)


def _tails(opened: OpenSweep) -> list[Tail]:
    return [trial.tail() for trial in opened.trials]
