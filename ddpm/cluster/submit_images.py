"""Images in bulk: drawn here, or by jobs that are submitted, watched, and go on without us.

What is missing is what no manifest names; jobs.json has the living jobs and their images. So the
same command, started again, watches what lives and draws only what no job has.
"""

import os
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from ddpm.cluster.submit import Cluster, JobResources, Journal, Submitted, stop_asked
from ddpm.errors import DdpmError, InputError, Interrupted
from ddpm.runs import LINE_EVERY_S, ImageBar, RunDirectory, duration, remove, storage
from ddpm.sampling import STOP, BulkFolder, SampleRequest, bulk

if TYPE_CHECKING:
    from ddpm.sampling import BulkSampler

JOBS = 16  # tasks that run at once unless --jobs says otherwise
WINDOW_S = 600.0  # images/s are those of the last minutes
_GOOD_ENDS = (0, Interrupted.exit_code)
_INSTEAD = {
    "time": "use --time",
    "partition": "use --partition",
    "job-name": "jobs are called after the recipe, by which they are found again",
    "cpus-per-task": "a task has as many cores as the run was trained with: they decide bits",
}


@dataclass(frozen=True, kw_only=True)
class ImageJobOptions:
    """The command line on jobs; None takes the default.

    cluster: None draws in this process.  jobs: tasks that run at once.  time: limit of a task, as
    SLURM writes it.  sbatch: further options of sbatch, KEY=VALUE.
    """

    cluster: Cluster | None = None
    jobs: int | None = None
    time: str | None = None
    partition: str | None = None
    sbatch: Sequence[str] = ()


def checked(
    images: SampleRequest, options: ImageJobOptions
) -> "tuple[BulkSampler, JobResources | None]":
    """The plan, and the request of each task (None where there is no cluster).

    InputError with all that is wrong, StorageError where there is no room; nothing is written.
    """
    problems: list[str] = []
    if options.jobs is not None and options.jobs < 1:
        problems.append(f"--jobs is {options.jobs}; give at least 1")
    limits = submit.read_limits(
        options.time, options.partition, options.sbatch, problems, instead=_INSTEAD
    )
    try:
        if options.cluster is not None:
            submit.check_folder(images.folder.resolve(), "IMAGE_GENERATION.GEN_SAVE_DIR")
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    import torch  # seconds, which a refusal does without

    from ddpm.sampling import BulkSampler

    plan = BulkSampler(images, jobs=options.jobs)
    plan.require_room()
    if options.cluster is None:
        return plan, None
    threads = RunDirectory(plan.request.run).threads
    gpus, most = int(plan.request.config.CLUSTER.GPUS_PER_WORKER or 0), JOBS
    if options.cluster != "slurm":  # this machine's part
        there = torch.cuda.device_count()
        gpus = min(1, there)
        most = there or max(1, len(os.sched_getaffinity(0)) // threads)
    return plan, JobResources(
        cluster=options.cluster,
        name=f"sample-{plan.folder.name[-8:]}",
        cpus=threads,
        gpus=gpus,
        jobs=1 if options.cluster == "debug" else options.jobs or most,
        minutes=limits.minutes,
        requeues=limits.requeues,
        options=limits.options,
    )


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """The images that one job draws, a unit after the other.

    path: its file.  folder: of the images in bulk.
    """

    path: Path
    folder: Path
    wanted: tuple[range, ...]

    def write(self) -> None:
        """Keep it at its path, for its owner's eyes."""
        storage.make_folder(self.path.parent)
        images = [[span.start, span.stop] for span in self.wanted]
        storage.write_json(self.path, {"folder": str(self.folder), "images": images})

    @classmethod
    def read(cls, path: Path) -> "ImageBatch":
        """The batch that was written at `path`."""
        facts = storage.read_json(path)
        wanted = tuple(range(start, stop) for start, stop in facts["images"])
        return cls(path=path, folder=Path(facts["folder"]), wanted=wanted)

    @property
    def journal(self) -> Journal:
        return Journal(self.path)

    @property
    def items(self) -> tuple[str, ...]:
        """The names of its units."""
        return tuple(map(bulk.name_of, self.wanted))


def draw_batch(path: str) -> int:
    """`python -m ddpm.cluster images FILE`: draw what is missing of a batch; the exit code.

    0 all drawn, 75 stopped after the network batch it was at (a signal, the stop file, the death of
    the FileTask): the same command goes on.
    """
    batch = ImageBatch.read(Path(path))
    asked = stop_asked()  # before torch is imported, which takes seconds
    from ddpm.sampling import BulkSampler

    journal, stop_file = batch.journal, batch.folder / STOP
    try:
        BulkSampler.of(batch.folder).draw(
            BulkFolder.open(batch.folder),
            batch.wanted,
            should_stop=lambda: asked() or stop_file.exists(),
            on_begin=lambda unit: journal.begin(bulk.name_of(unit)),
            on_end=lambda unit: journal.end(bulk.name_of(unit), "done"),
        )
    except DdpmError as error:
        journal.exit(error.exit_code)
        raise
    journal.exit(0)
    return 0


def shared_out(missing: Sequence[range], tasks: int) -> list[Sequence[range]]:
    """The missing units in so many parts at most, as even as units go."""
    tasks = min(tasks, len(missing))
    bounds = [len(missing) * task // tasks for task in range(tasks + 1)] if tasks else [0]
    return [missing[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def run(
    plan: "BulkSampler", resources: JobResources | None, *, should_stop: Callable[[], bool]
) -> int:
    """Draw what is missing, or submit and watch it; the exit code, 0, once all images are there.

    resources: of each task; None draws here.  A stop detaches from jobs, which go on, and ends the
    drawing here: Interrupted.
    """
    console = Console()
    if resources is not None and resources.cluster == "slurm":
        slurm.require_slurm()
    series = plan.begin()
    stop_file = series.folder / STOP
    with series.launching():
        jobs, todo = _todo(plan, series, console)
        batches = _batches(series, todo, resources.jobs) if resources else []
        if resources is not None and resources.cluster != "debug":
            jobs = _submit(series, batches, jobs, resources, console)
    if resources is None:
        with ImageBar("drawing", bulk.total(todo), is_shown=True) as bar:
            if todo:
                plan.draw(
                    series,
                    todo,
                    should_stop=lambda: should_stop() or stop_file.exists(),
                    on_batch=bar.advance,
                )
    elif resources.cluster == "debug":
        with _stopping(stop_file, should_stop):
            submit.run_here(series.folder, "images", batches)
        for batch in batches:
            if (code := batch.journal.exit_code) not in (None, *_GOOD_ENDS):
                raise _error(code)(f"{batch.path.name} failed for the reason above")
    _watch_to_the_end(series, plan.request.num, jobs, should_stop, console)
    return _concluded(plan, series, jobs, bool(todo), console)


def _todo(
    plan: "BulkSampler", series: BulkFolder, console: Console
) -> tuple[list[Submitted], list[range]]:
    """Living jobs, and the missing images that none of them has."""
    living = submit.living(series.folder)
    if not living:
        remove(series.folder / STOP)
    aside = series.repair(progress=True)
    if aside:
        console.print(f"damaged, set aside: images {bulk.describe(aside)}", soft_wrap=True)
    series.ask(plan.request.num)
    held = {name for job in living for name in job.trials}
    missing = series.missing(plan.request.num)
    todo = [unit for unit in missing if bulk.name_of(unit) not in held]
    console.print(plan.describe(), soft_wrap=True, markup=False)
    if plan.request.options.EXPORT_INTERM:
        console.print("EXPORT_INTERM: no film is made of images in bulk")
    console.print(
        f"{plan.request.num - bulk.total(missing):,} are there, {bulk.total(todo):,} to draw, "
        f"{bulk.total(missing) - bulk.total(todo):,} held by living jobs"
    )
    console.print(f"results go to {series.folder}", soft_wrap=True, markup=False)
    return living, todo


def _batches(series: BulkFolder, todo: Sequence[range], tasks: int) -> list[ImageBatch]:
    """The images to draw, for so many tasks, each batch in its file."""
    prefix, batches = secrets.token_hex(4), []
    for number, wanted in enumerate(shared_out(todo, tasks)):
        path = series.folder / "jobs" / f"{prefix}-{number:04d}.json"
        batches.append(ImageBatch(path=path, folder=series.folder, wanted=tuple(wanted)))
        batches[-1].write()
    return batches


def _submit(
    series: BulkFolder,
    batches: Sequence[ImageBatch],
    living: Sequence[Submitted],
    resources: JobResources,
    console: Console,
) -> list[Submitted]:
    """Submit the batches; all jobs, living ones first."""
    jobs = list(living)
    for array in submit.submit(resources, series.folder, "images", batches, living):
        jobs += array
        first = array[0].job.partition("_")[0]
        console.print(
            f"submitted job {first}: {len(array)} task(s); "
            f"logs: {series.folder / 'submitit' / first}*_log.out",
            soft_wrap=True,
            markup=False,
        )
    if jobs:
        console.print(_how_to(jobs, series), soft_wrap=True, markup=False)
    return jobs


def _how_to(jobs: Sequence[Submitted], series: BulkFolder) -> str:
    look = shlex.join(["ddpm", "sample", str(series.folder), "--status"])
    return submit.how_to(jobs, look, series.folder / STOP)


@contextmanager
def _stopping(stop_file: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Passes a stop on to the processes of tasks that run here."""
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.wait(0.2):
            if should_stop():
                stop_file.touch()

    thread = threading.Thread(target=pass_on, daemon=True)
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
) -> None:
    """Show the progress until no job lives."""
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


def _concluded(
    plan: "BulkSampler",
    series: BulkFolder,
    jobs: Sequence[Submitted],
    is_fresh: bool,
    console: Console,
) -> int:
    """The files that are made of all images, and where they are.

    Interrupted when images are missing; the error of the jobs where these failed by themselves.
    """
    failed, code = _failures(series, jobs, console)
    missing = series.missing(plan.request.num)
    if missing:
        left = (
            f"{bulk.total(missing):,} of {plan.request.num:,} images are missing: "
            f"{bulk.describe(missing)}; the same command draws them"
        )
        if failed:
            raise _error(code)("\n".join([*failed, left]))
        raise Interrupted(left)
    with series.launching():
        form = plan.request.bulk.format if plan.request.bulk else "shards"
        made = bulk.export(series, plan.request.num, plan.request.stem, form, is_fresh=is_fresh)
    names = ", ".join(path.name for path in made)
    console.print(
        f"done: {plan.request.num:,} images in {series.folder}: {len(series.present()):,} shards "
        f"in shards, {names}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return 0


def _failures(
    series: BulkFolder, jobs: Sequence[Submitted], console: Console
) -> tuple[list[str], int]:
    """A line for each job that failed by itself, and the exit code of the first of them."""
    failed, codes, endings = [], [], submit.endings(jobs)
    for job in jobs:
        code, log = job.journal.exit_code, job.log(series.folder)
        if code in _GOOD_ENDS:
            continue
        how = endings.get(job.job, "no record of how it ended")
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


@dataclass(frozen=True, kw_only=True)
class BulkProgress:
    """Images in bulk as they are now.

    rate: images/s over all jobs; None while that is unknown.  jobs: the living ones, by id their
    state and place; None while SLURM does not answer.
    """

    num: int
    there: int
    units: int
    missing: Sequence[range]
    rate: float | None
    jobs: dict[str, tuple[str, str]] | None = field(default_factory=dict)

    @property
    def eta(self) -> str:
        """Time for the missing images at this rate; empty where nobody draws or nobody knows."""
        if not self.rate or not self.missing:
            return ""
        return duration(bulk.total(self.missing) / self.rate)

    def short(self) -> str:
        """For a line that is printed again and again."""
        parts = [f"{self.there:,} of {self.num:,} images"]
        parts += [f"{self.rate:,.1f} images/s"] if self.rate else []
        parts += [f"{self.eta} left"] if self.eta else []
        states = [state for state, _ in (self.jobs or {}).values()]
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
        found += [f"job {job}: {state}{at}" for job, (state, at) in (self.jobs or {}).items()]
        if self.jobs is None:
            found.append("SLURM does not answer, so that nobody knows which jobs run")
        elif not self.jobs:
            found.append("no job waits or runs")
        return found


class Watch:
    """Looks at images in bulk again and again, from their files: for the process that waits for
    them and for anybody else.
    """

    def __init__(self, series: BulkFolder, num: int) -> None:
        self.series, self.num = series, num
        self._states = JobStates()
        self._written: dict[range, float] = {}

    def look(self, living: Sequence[Submitted] | None = None) -> BulkProgress:
        """The images now.  living: their jobs, where the caller knows them."""
        there = self.series.present()
        if living is None:
            living = submit.living_jobs(submit.read_jobs(self.series.folder))
        missing = self.series.missing(self.num)
        return BulkProgress(
            num=self.num,
            there=self.num - bulk.total(missing),
            units=len(there),
            missing=missing,
            rate=self._rate(there) if missing else None,
            jobs=None if living is None else {job.job: self._state(job) for job in living},
        )

    def _rate(self, there: Sequence[range]) -> float | None:
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

    def _state(self, job: Submitted) -> tuple[str, str]:
        state = "running"
        if job.cluster == "slurm":
            self._states.refresh()
            queued = self._states.living(job.job)
            state = queued.state.lower() if queued else "in the queue"
            if queued and queued.is_waiting and queued.reason not in ("", "None"):
                state += f" ({queued.reason})"
        span = bulk.parse_name(job.journal.last_begun or "")
        return state, "" if span is None else f", at images {span.start}-{span.stop - 1}"
