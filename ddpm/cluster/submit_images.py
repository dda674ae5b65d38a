"""Images in bulk: drawn here, or by jobs that are submitted, watched, and go on without us.

What is missing is what no manifest names; jobs.json has the living jobs and their images. So the
same command, started again, watches what lives and draws only what no job has.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from ddpm import errors
from ddpm.cluster import slurm, submit
from ddpm.cluster.slurm import JobStates
from ddpm.cluster.submit import JobOptions, JobResources, Submitted
from ddpm.cluster.task import JOBS_STOP_FILE, TaskFile, stop_asked, write_tasks
from ddpm.errors import DdpmError, InputError, Interrupted, as_typed
from ddpm.runs import LINE_EVERY_S, ImageBar, RunDirectory, duration, remove, watch_runs
from ddpm.sampling import BulkFolder, SampleRequest, bulk

if TYPE_CHECKING:
    from ddpm.sampling import BulkSampler

WINDOW_S = 600.0  # images/s are those of the last minutes
_GOOD_ENDS = (0, Interrupted.exit_code)
_INSTEAD = {
    "job-name": "jobs are called after the recipe, by which they are found again",
    "cpus-per-task": "a task has as many cores as the run was trained with: they decide bits",
}


def check(
    images: SampleRequest, options: JobOptions | None
) -> "tuple[BulkSampler, JobResources | None]":
    """The plan, and the request of each task; None, as for the options, draws in this process.

    InputError with all that is wrong, StorageError where there is no room; nothing is written.
    """
    resources, problems = None, list[str]()
    if options is not None:
        folder, key = images.folder.resolve(), "IMAGE_GENERATION.GEN_SAVE_DIR"
        resources = submit.read_options(options, folder, problems, instead=_INSTEAD, key=key)
    if problems:
        raise InputError(problems)
    import torch  # seconds, which a refusal does without

    from ddpm.sampling import BulkSampler

    plan = BulkSampler(images, jobs=options.jobs if options else None)
    plan.require_room()
    if options is None or resources is None:
        return plan, None
    threads = RunDirectory(plan.request.run).threads
    gpus, most = int(plan.request.config.CLUSTER.GPUS_PER_WORKER or 0), submit.JOBS
    if options.cluster != "slurm":  # this machine's part
        there = torch.cuda.device_count()
        gpus = min(1, there)
        most = there or max(1, len(os.sched_getaffinity(0)) // threads)
    jobs = 1 if options.cluster == "debug" else options.jobs or most
    name = f"sample-{plan.folder.name[-8:]}"
    return plan, replace(resources, name=name, cpus=threads, gpus=gpus, jobs=jobs)


def draw_task(path: str) -> int:
    """`python -m ddpm.cluster images FILE`: draw what is missing of a task's units; the exit code.

    0 all drawn, 75 stopped after the network batch it was at (a signal, the stop file, the death of
    the FileTask): the same command goes on.
    """
    task = TaskFile.read(Path(path))
    asked = stop_asked()  # before torch is imported, which takes seconds
    from ddpm.sampling import BulkSampler

    journal = task.journal
    try:
        BulkSampler.of(task.folder).draw(
            BulkFolder.open(task.folder),
            [unit for name in task.items if (unit := bulk.parse_name(name))],
            should_stop=lambda: asked() or task.stop_file.exists(),
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
    begun = plan.begin()
    folder = begun.folder
    look = as_typed("sample", folder, "--status")
    with begun.launching():
        jobs, todo = _todo(plan, begun, console)
        tasks = []
        if resources is not None:
            parts = shared_out(todo, resources.jobs)
            tasks = write_tasks(folder, ({bulk.name_of(u): None for u in part} for part in parts))
            if resources.cluster != "debug":
                jobs = submit.submit(resources, folder, "images", tasks, jobs, console)
    if jobs:
        console.print(submit.how_to(jobs, look, folder), soft_wrap=True, markup=False)
    if resources is None and todo:
        with ImageBar("drawing", bulk.total(todo), is_shown=True) as bar:
            plan.draw(
                begun,
                todo,
                should_stop=lambda: should_stop() or (folder / JOBS_STOP_FILE).exists(),
                on_batch=bar.advance,
            )
    elif resources is not None and resources.cluster == "debug":
        with watch_runs(
            [], console, should_stop=should_stop, on_stop=(folder / JOBS_STOP_FILE).touch
        ):
            submit.run_here(folder, "images", tasks)
        for task in tasks:
            if (code := task.journal.exit_code) not in (None, *_GOOD_ENDS):
                raise _error(code)(f"{task.path.name} failed for the reason above")
    looks = submit.until_the_end(jobs, should_stop, look, folder)
    _show_to_the_end(begun, plan.request.num, looks, console)
    return _concluded(plan, begun, jobs, bool(todo), console)


def _todo(
    plan: "BulkSampler", begun: BulkFolder, console: Console
) -> tuple[list[Submitted], list[range]]:
    """Living jobs, and the missing images that none of them has."""
    num, living = plan.request.num, submit.living(begun.folder)
    if not living:
        remove(begun.folder / JOBS_STOP_FILE)
    if aside := begun.repair(progress=True):
        console.print(f"damaged, set aside: images {bulk.describe(aside)}", soft_wrap=True)
    begun.ask(num)
    held = {name for job in living for name in job.trials}
    missing = begun.missing(num)
    todo = [unit for unit in missing if bulk.name_of(unit) not in held]
    console.print(plan.describe(), soft_wrap=True, markup=False)
    if plan.request.options.EXPORT_INTERM:
        console.print("EXPORT_INTERM: no film is made of images in bulk")
    console.print(
        f"{num - bulk.total(missing):,} are there, {bulk.total(todo):,} to draw, "
        f"{bulk.total(missing) - bulk.total(todo):,} held by living jobs"
    )
    console.print(f"results go to {begun.folder}", soft_wrap=True, markup=False)
    return living, todo


def _show_to_the_end(
    begun: BulkFolder, num: int, looks: Iterable[Sequence[Submitted]], console: Console
) -> None:
    """The progress, at each look at the jobs that live."""
    images, next_line = BulkWatch(begun, num), time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=num)
        for living in looks:
            now = images.look(living)
            bars.update(bar, completed=now.there, description=now.short())
            if not console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + LINE_EVERY_S
                console.print(now.short(), soft_wrap=True, markup=False)


def _concluded(
    plan: "BulkSampler",
    begun: BulkFolder,
    jobs: Sequence[Submitted],
    is_fresh: bool,
    console: Console,
) -> int:
    """The files that are made of all images, and where they are.

    Interrupted when images are missing; the error of the jobs where these failed by themselves.
    """
    num, folder = plan.request.num, begun.folder
    failed = {job.job: (1, reason) for job, reason in submit.deaths(jobs, folder, console)}
    for job in jobs:
        code = job.journal.exit_code
        if code is not None and code not in _GOOD_ENDS:
            last = submit.last_line(job.log(folder))
            failed[job.job] = code, f"job {job.job}: exit code {code}{last}"
    if missing := begun.missing(num):
        left = (
            f"{bulk.total(missing):,} of {num:,} images are missing: {bulk.describe(missing)}; "
            "the same command draws them"
        )
        if not failed:
            raise Interrupted(left)
        ends = [(job, *failed[job.job]) for job in jobs if job.job in failed]
        lines = [f"{reason}; see {job.log(folder)}" for job, _, reason in ends]
        raise _error(ends[0][1])("\n".join([*lines, left]))
    with begun.launching():
        form = plan.request.bulk.format if plan.request.bulk else "shards"
        made = bulk.export(begun, num, plan.request.stem, form, is_fresh=is_fresh)
    names = ", ".join(path.name for path in made)
    shards = bulk.several(len(begun.present()), "shard")
    console.print(
        f"done: {num:,} images in {folder}: {shards} in shards, {names}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return 0


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
        units = bulk.several(self.units, "unit")
        found = [f"{self.there:,} of {self.num:,} images are there, in {units}"]
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


class BulkWatch:
    """Looks at images in bulk again and again, from their files: for the process that waits for
    them and for anybody else.
    """

    def __init__(self, images: BulkFolder, num: int) -> None:
        self.images, self.num = images, num
        self._states = JobStates()
        self._written: dict[range, float] = {}

    def look(self, living: Sequence[Submitted] | None = None) -> BulkProgress:
        """The images now.  living: their jobs, where the caller knows them."""
        there = self.images.present()
        if living is None:
            living = submit.living_jobs(submit.read_jobs(self.images.folder))
        missing = self.images.missing(self.num)
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
        for unit in there:
            if unit not in self._written:
                with suppress(OSError):  # set aside meanwhile
                    path = bulk.manifest_of(self.images.shards, unit)
                    self._written[unit] = path.stat().st_mtime
        now = time.time()
        lately = sorted((at, len(u)) for u, at in self._written.items() if at > now - WINDOW_S)
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
        unit = bulk.parse_name(next(reversed(job.journal.begun), ""))
        return state, f", at images {bulk.describe([unit])}" if unit else ""
