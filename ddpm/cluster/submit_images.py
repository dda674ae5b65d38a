"""What `launch/sample.py --num` asks for: the command line's options, checked, as a plan of the
images and as what each task gets.
"""

import os
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from ddpm import errors
from ddpm.cluster import slurm, submit
from ddpm.cluster.slurm import JobStates
from ddpm.cluster.submit import (
    Cluster,
    DrawTask,
    JobResources,
    Limits,
    Submitted,
    TaskFile,
    shared_out,
    stop_asked,
)
from ddpm.errors import DdpmError, InputError, Interrupted
from ddpm.runs import LINE_EVERY_S, ImageBar, duration, remove
from ddpm.sampling import STOP, Artist, BulkFolder, BulkOptions, BulkPlan, Span, bulk

if TYPE_CHECKING:
    from ddpm.sampling import BulkPlan


JOBS = 16  # tasks that run at once unless --jobs says otherwise
_INSTEAD = {
    "time": "use --time",
    "partition": "use --partition",
    "job-name": "jobs are called after the recipe, by which they are found again",
    "cpus-per-task": "a task has as many cores as the run was trained with: they decide bits",
}


@dataclass(frozen=True, kw_only=True)
class ImageJobOptions:
    """What the command line says of jobs; None takes the default.

    cluster: None draws in this process.  jobs: tasks that run at once.  time: limit of a task, as
    SLURM writes it.  sbatch: further options of sbatch, KEY=VALUE.
    """

    cluster: Cluster | None = None
    jobs: int | None = None
    time: str | None = None
    partition: str | None = None
    sbatch: Sequence[str] = ()


def checked(wish: BulkOptions, options: ImageJobOptions) -> "tuple[BulkPlan, JobResources | None]":
    """The plan, and what to ask of the cluster for each task (None where there is no cluster).

    InputError with all that is wrong, StorageError where there is no room; nothing is written.
    """
    problems: list[str] = []
    if options.jobs is not None and options.jobs < 1:
        problems.append(f"--jobs is {options.jobs}; give at least 1")
    limits = submit.read_limits(
        options.time, options.partition, options.sbatch, problems, instead=_INSTEAD
    )
    try:
        folder = wish.request().folder.resolve()
        if options.cluster is not None:
            submit.check_folder(folder, "IMAGE_GENERATION.GEN_SAVE_DIR")
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)

    from ddpm.sampling import bulk  # imports torch, which takes seconds

    plan = bulk.make(wish, jobs=options.jobs)
    bulk.require_room(plan)
    return plan, None if options.cluster is None else _request(
        plan, options.cluster, options, limits
    )


def _request(
    plan: "BulkPlan", cluster: Cluster, options: ImageJobOptions, limits: Limits
) -> JobResources:
    import torch

    from ddpm.runs import RunDirectory

    threads = RunDirectory(plan.request.run).threads
    gpus = int(plan.request.config.CLUSTER.GPUS_PER_WORKER or 0)
    most = JOBS
    if cluster != "slurm":  # this machine's part
        there = torch.cuda.device_count()
        gpus = min(1, there)
        most = there or max(1, len(os.sched_getaffinity(0)) // threads)
    return JobResources(
        cluster=cluster,
        name=f"sample-{plan.folder.name[-8:]}",
        cpus=threads,
        gpus=gpus,
        jobs=1 if cluster == "debug" else options.jobs or most,
        minutes=limits.minutes,
        requeues=limits.requeues,
        options=limits.options,
    )


# --------
# python -m ddpm.cluster images FILE: the images that a file of ddpm/cluster/submit.py names.
#
# Exit codes: 0 all drawn, 75 stopped after the batch it was at: the same command goes on. Stops on
# SIGTERM, SIGUSR2 and SIGINT, when a file `stop` appears in the series' folder, and when the process
# that has started it is gone.


def draw_file(path: str) -> int:
    """Draw what is missing of the file's images; the exit code."""
    draws = TaskFile.read(Path(path))
    asked = stop_asked()  # before torch is imported, which takes seconds
    from ddpm.sampling import Artist

    journal, stop_file = draws.journal, draws.folder / STOP
    try:
        Artist(BulkFolder.open(draws.folder)).draw(
            draws.wanted,
            should_stop=lambda: asked() or stop_file.exists(),
            on_begin=lambda span: journal.begin(str(span)),
            on_end=lambda span: journal.end(str(span), "done"),
        )
    except DdpmError as error:
        journal.exit(error.exit_code)
        raise
    journal.exit(0)
    return 0


# --------
# How far a series is, from its files: for the process that waits for it and for anybody else.

WINDOW_S = 600.0  # images/s are those of the last minutes


@dataclass(frozen=True, kw_only=True)
class JobLine:
    """A living job: what it is called, its state, what it is at."""

    job: str
    state: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A series as it is now.  rate: images/s over all jobs; None while that cannot be told.

    jobs: those that live; None while SLURM does not answer.
    """

    num: int
    there: int
    units: int
    missing: Sequence[Span]
    rate: float | None
    jobs: Sequence[JobLine] | None = field(default_factory=tuple)

    @property
    def eta(self) -> str:
        """How long what is left takes at this rate; empty where nobody draws or nobody knows."""
        if not self.rate or not self.missing:
            return ""
        return duration(bulk.total(self.missing) / self.rate)

    def short(self) -> str:
        """For a line that is printed again and again."""
        parts = [f"{self.there:,} of {self.num:,} images"]
        parts += [f"{self.rate:,.1f} images/s"] if self.rate else []
        parts += [f"{self.eta} left"] if self.eta else []
        states = [job.state for job in self.jobs or ()]
        counts = [f"{states.count(state)} {state}" for state in sorted(set(states))]
        parts += [f"jobs: {', '.join(counts)}"] if counts else []
        return "  ".join(parts)

    def lines(self) -> list[str]:
        """Everything, a line each."""
        found = [f"{self.there:,} of {self.num:,} images are there, in {self.units:,} units"]
        if self.missing:
            images = bulk.total(self.missing)
            found.append(f"missing: {images:,} images: {bulk.describe(self.missing)}")
        if self.rate:
            left = f", {self.eta} left" if self.eta else ""
            found.append(f"{self.rate:,.1f} images/s{left}")
        found += [f"job {line.job}: {line.state}{line.at}" for line in self.jobs or ()]
        if self.jobs is None:
            found.append("SLURM does not answer, so that nobody knows which jobs run")
        elif not self.jobs:
            found.append("no job waits or runs")
        return found


class Watch:
    """Looks at a series again and again."""

    def __init__(self, series: BulkFolder, num: int) -> None:
        self.series, self.num = series, num
        self._states = JobStates()
        self._written: dict[Span, float] = {}

    def look(self, living: Sequence[submit.Submitted] | None = None) -> Progress:
        """The series now.  living: its jobs, where the caller knows them."""
        there = self.series.present()
        if living is None:
            living = submit.living_jobs(submit.read_jobs(self.series.folder))
        missing = bulk.difference([Span(0, self.num)], there)
        return Progress(
            num=self.num,
            there=self.num - bulk.total(missing),
            units=len(there),
            missing=missing,
            rate=self._rate(there) if missing else None,
            jobs=None if living is None else [self._line(job) for job in living],
        )

    def _rate(self, there: Sequence[Span]) -> float | None:
        """Images of the units written lately, by the time since the first of them."""
        for span in there:
            if span not in self._written:
                try:
                    path = bulk.manifest_of(self.series.shards, span)
                    self._written[span] = os.stat(path).st_mtime
                except OSError:  # set aside meanwhile
                    continue
        now = time.time()
        lately = sorted(
            (at, len(span)) for span, at in self._written.items() if at > now - WINDOW_S
        )
        if len(lately) < 2 or now <= lately[0][0]:
            return None
        # the first one was drawn before the time that counts
        return sum(images for _, images in lately[1:]) / (now - lately[0][0])

    def _line(self, job: submit.Submitted) -> JobLine:
        state = "running"
        if job.cluster == "slurm":
            self._states.refresh()
            queued = self._states.living(job.job)
            state = queued.state.lower() if queued else "in the queue"
            if queued and queued.is_waiting and queued.reason not in ("", "None"):
                state += f" ({queued.reason})"
        span = Span.parse(job.journal.last_begun or "")
        at = "" if span is None else f", at images {span.start}-{span.stop - 1}"
        return JobLine(job=job.job, state=state, at=at)


# --------
# Images in bulk: drawn here, or submitted as jobs, watched from here, which go on without us.
#
# What is missing of a series is what no manifest names; jobs.json says which living job holds which
# images. So the same command, started again, watches what lives and draws only what nothing holds.

_GOOD_ENDS = (0, Interrupted.exit_code)


def run(plan: BulkPlan, request: JobResources | None, *, should_stop: Callable[[], bool]) -> int:
    """Draw what is missing, or submit and watch it; the exit code, 0, once all images are there.

    request: what each task gets; None draws here.  A stop detaches from jobs, which go on, and ends
    the drawing here: Interrupted.
    """
    console = Console()
    if request is not None and request.cluster == "slurm":
        slurm.require_slurm()
    series = plan.begin()
    with series.launching():
        jobs, todo, parts = _prepared(plan, series, request, console)
        if request is not None and request.cluster != "debug":
            jobs = _submit(series, parts, jobs, request, console)
    if request is None:
        _draw_here(plan, series, todo, should_stop)
    elif request.cluster == "debug":
        with _stopping(series, should_stop):
            submit.run_here(series.folder / "submitit", parts, DrawTask)
        for part in parts:
            if (code := part.journal.exit_code) not in (None, *_GOOD_ENDS):
                raise _error(code)(f"{part.path.name} failed for the reason above")
    endings = _watch_to_the_end(series, plan.num, jobs, should_stop, console)
    return _concluded(plan, series, jobs, endings, bool(todo), console)


def _prepared(
    plan: BulkPlan, series: BulkFolder, request: JobResources | None, console: Console
) -> tuple[list[Submitted], list[Span], list[TaskFile]]:
    """Living jobs, the images that none of them holds, and these as parts for the tasks."""
    living = submit.living(series.folder)
    if not living:
        remove(series.folder / STOP)
        series.tidy()
    aside = series.set_damaged_aside(progress=True)
    if aside:
        console.print(f"damaged, set aside: images {bulk.describe(aside)}", soft_wrap=True)
    series.ask(plan.num)
    held = [span for job in living for text in job.trials if (span := Span.parse(text))]
    missing = series.missing(plan.num)
    todo = bulk.difference(missing, held)
    console.print(plan.describe(), soft_wrap=True, markup=False)
    if plan.request.options.EXPORT_INTERM:
        console.print("EXPORT_INTERM: no film is made of images in bulk")
    console.print(
        f"{plan.num - bulk.total(missing):,} are there, {bulk.total(todo):,} to draw, "
        f"{bulk.total(missing) - bulk.total(todo):,} held by living jobs"
    )
    console.print(f"results go to {series.folder}", soft_wrap=True, markup=False)
    if request is None:
        return living, todo, []
    parts = _parts(series, todo, request.jobs)
    for part in parts:
        part.write()
    return living, todo, parts


def _parts(series: BulkFolder, todo: Sequence[Span], tasks: int) -> list[TaskFile]:
    prefix = secrets.token_hex(4)
    return [
        TaskFile(
            path=series.folder / "jobs" / f"{prefix}-{number:04d}.json",
            folder=series.folder,
            wanted=tuple(wanted),
        )
        for number, wanted in enumerate(shared_out(todo, series.unit, tasks))
    ]


def _submit(
    series: BulkFolder,
    parts: Sequence[TaskFile],
    living: list[Submitted],
    request: JobResources,
    console: Console,
) -> list[Submitted]:
    """Submit the parts; all jobs of the series. jobs.json names each as soon as it is there."""
    jobs, logs = list(living), series.folder / "submitit"
    for array in submit.submit(request, logs, parts, DrawTask):
        jobs += array
        submit.write(series.folder, jobs)
        first = array[0].job.partition("_")[0]
        console.print(
            f"submitted job {first}: {len(array)} task(s); logs: {logs}/{first}*_log.out",
            soft_wrap=True,
            markup=False,
        )
    if jobs:
        console.print(_how_to(jobs, series), soft_wrap=True, markup=False)
    return jobs


def _how_to(jobs: Sequence[Submitted], series: BulkFolder) -> str:
    look = shlex.join(["python", "launch/sample.py", str(series.folder), "--status"])
    return submit.how_to(jobs, look, series.folder / STOP)


def _draw_here(
    plan: BulkPlan, series: BulkFolder, todo: Sequence[Span], should_stop: Callable[[], bool]
) -> None:
    stop_file = series.folder / STOP
    with ImageBar("drawing", bulk.total(todo), is_shown=True) as bar:
        if todo:
            Artist(series, plan.generator, on_batch=bar.advance).draw(
                todo, should_stop=lambda: should_stop() or stop_file.exists()
            )


@contextmanager
def _stopping(series: BulkFolder, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Tells the processes of tasks that run here when to stop."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(0.2):
            if should_stop():
                (series.folder / STOP).touch()

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch_to_the_end(
    series: BulkFolder,
    num: int,
    jobs: Sequence[Submitted],
    should_stop: Callable[[], bool],
    console: Console,
) -> dict[str, str]:
    """Show how far the series is until no job lives; how the jobs ended, by id."""
    watch, next_line = Watch(series, num), time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=num)
        for living in submit.until_the_end(jobs, should_stop):
            if should_stop():
                raise Interrupted(
                    f"detached; {len(living)} job(s) go on, and the same command watches them "
                    f"again. {_how_to(living, series)}"
                )
            now = watch.look(living)
            bars.update(bar, completed=now.there, description=now.short())
            if not console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + LINE_EVERY_S
                console.print(now.short(), soft_wrap=True, markup=False)
    return submit.endings(jobs)


def _concluded(
    plan: BulkPlan,
    series: BulkFolder,
    jobs: Sequence[Submitted],
    endings: Mapping[str, str],
    is_fresh: bool,
    console: Console,
) -> int:
    """The files that are made of all images, and where they are.

    Interrupted when images are missing; the error of the jobs where these failed by themselves.
    """
    failed, code = _failures(series, jobs, endings, console)
    missing = series.missing(plan.num)
    if missing:
        left = (
            f"{bulk.total(missing):,} of {plan.num:,} images are missing: "
            f"{bulk.describe(missing)}; the same command draws them"
        )
        if failed:
            raise _error(code)("\n".join([*failed, left]))
        raise Interrupted(left)
    with series.launching():
        made = bulk.exported(
            series, plan.num, plan.request.stem, plan.wish.format, is_fresh=is_fresh
        )
    names = ", ".join(path.name for path in made)
    console.print(
        f"done: {plan.num:,} images in {series.folder}: {len(series.present()):,} shards in "
        f"shards, {names}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return 0


def _failures(
    series: BulkFolder, jobs: Sequence[Submitted], endings: Mapping[str, str], console: Console
) -> tuple[list[str], int]:
    """A line for each job that failed by itself, and the exit code of the first of them."""
    failed, codes = [], []
    for job in jobs:
        code = job.journal.exit_code
        if code in _GOOD_ENDS:
            continue
        how = endings.get(job.job, "no record of how it ended")
        log = series.folder / "submitit" / f"{job.job}_0_log.out"
        if code is None:
            console.print(f"job {job.job} was ended: {how}", soft_wrap=True, markup=False)
        if code is not None or how.startswith(submit.FAILURES):
            how = how if code is None else f"exit code {code}"
            failed.append(f"job {job.job}: {how}{submit.last_line(log)}; see {log}")
            codes.append(code or 1)
    return failed, next(iter(codes), 0)


def _error(code: int | None) -> type[DdpmError]:
    """The kind of error that has an exit code."""
    kinds = (errors.InputError, errors.NonFiniteError, errors.StorageError)
    return next((kind for kind in kinds if kind.exit_code == code), DdpmError)
