"""Images in bulk: drawn here, or submitted as jobs, watched from here, which go on without us.

What is missing of a series is what no manifest names; jobs.json says which living job holds which
images. So the same command, started again, watches what lives and draws only what nothing holds.
"""

import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from ddpm import errors, job_list, series_export, slurm_queue, spans
from ddpm.adapters import job_watch, submitit_jobs
from ddpm.adapters.draw_task import DrawTask
from ddpm.adapters.submitit_jobs import Request
from ddpm.draws import Draws, shared_out
from ddpm.durable import remove
from ddpm.errors import DdpmError, Interrupted
from ddpm.imagebar import ImageBar
from ddpm.job_list import Submitted
from ddpm.progress import LINE_EVERY_S
from ddpm.series import STOP, Series
from ddpm.series_draw import Artist
from ddpm.series_plan import Plan
from ddpm.series_status import Watch
from ddpm.spans import Span

_GOOD_ENDS = (0, Interrupted.exit_code)


def run(plan: Plan, request: Request | None, *, should_stop: Callable[[], bool]) -> int:
    """Draw what is missing, or submit and watch it; the exit code, 0, once all images are there.

    request: what each task gets; None draws here.  A stop detaches from jobs, which go on, and ends
    the drawing here: Interrupted.
    """
    console = Console()
    if request is not None and request.cluster == "slurm":
        slurm_queue.require_slurm()
    series = plan.begin()
    with series.launching():
        jobs, todo, parts = _prepared(plan, series, request, console)
        if request is not None and request.cluster != "debug":
            jobs = _submit(series, parts, jobs, request, console)
    if request is None:
        _draw_here(plan, series, todo, should_stop)
    elif request.cluster == "debug":
        with _stopping(series, should_stop):
            submitit_jobs.run_here(series.folder / "submitit", parts, DrawTask)
        for part in parts:
            if (code := part.journal.exit_code) not in (None, *_GOOD_ENDS):
                raise _error(code)(f"{part.path.name} failed for the reason above")
    endings = _watch_to_the_end(series, plan.num, jobs, should_stop, console)
    return _concluded(plan, series, jobs, endings, bool(todo), console)


def _prepared(
    plan: Plan, series: Series, request: Request | None, console: Console
) -> tuple[list[Submitted], list[Span], list[Draws]]:
    """Living jobs, the images that none of them holds, and these as parts for the tasks."""
    living = job_watch.living(series.folder)
    if not living:
        remove(series.folder / STOP)
        series.tidy()
    aside = series.set_damaged_aside(progress=True)
    if aside:
        console.print(f"damaged, set aside: images {spans.describe(aside)}", soft_wrap=True)
    series.ask(plan.num)
    held = [span for job in living for text in job.trials if (span := Span.parse(text))]
    missing = series.missing(plan.num)
    todo = spans.difference(missing, held)
    console.print(plan.describe(), soft_wrap=True, markup=False)
    if plan.request.options.EXPORT_INTERM:
        console.print("EXPORT_INTERM: no film is made of images in bulk")
    console.print(
        f"{plan.num - spans.total(missing):,} are there, {spans.total(todo):,} to draw, "
        f"{spans.total(missing) - spans.total(todo):,} held by living jobs"
    )
    console.print(f"results go to {series.folder}", soft_wrap=True, markup=False)
    if request is None:
        return living, todo, []
    parts = _parts(series, todo, request.jobs)
    for part in parts:
        part.write()
    return living, todo, parts


def _parts(series: Series, todo: Sequence[Span], tasks: int) -> list[Draws]:
    prefix = secrets.token_hex(4)
    return [
        Draws(
            path=series.folder / "jobs" / f"{prefix}-{number:04d}.json",
            folder=series.folder,
            wanted=tuple(wanted),
        )
        for number, wanted in enumerate(shared_out(todo, series.unit, tasks))
    ]


def _submit(
    series: Series,
    parts: Sequence[Draws],
    living: list[Submitted],
    request: Request,
    console: Console,
) -> list[Submitted]:
    """Submit the parts; all jobs of the series. jobs.json names each as soon as it is there."""
    jobs, logs = list(living), series.folder / "submitit"
    for array in submitit_jobs.submit(request, logs, parts, DrawTask):
        jobs += array
        job_list.write(series.folder, jobs)
        first = array[0].job.partition("_")[0]
        console.print(
            f"submitted job {first}: {len(array)} task(s); logs: {logs}/{first}*_log.out",
            soft_wrap=True,
            markup=False,
        )
    if jobs:
        console.print(_how_to(jobs, series), soft_wrap=True, markup=False)
    return jobs


def _how_to(jobs: Sequence[Submitted], series: Series) -> str:
    look = shlex.join(["python", "launch/sample.py", str(series.folder), "--status"])
    return job_watch.how_to(jobs, look, series.folder / STOP)


def _draw_here(
    plan: Plan, series: Series, todo: Sequence[Span], should_stop: Callable[[], bool]
) -> None:
    stop_file = series.folder / STOP
    with ImageBar("drawing", spans.total(todo), is_shown=True) as bar:
        if todo:
            Artist(series, plan.generator, on_batch=bar.advance).draw(
                todo, should_stop=lambda: should_stop() or stop_file.exists()
            )


@contextmanager
def _stopping(series: Series, should_stop: Callable[[], bool]) -> Iterator[None]:
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
    series: Series,
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
        for living in job_watch.until_the_end(jobs, should_stop):
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
    return job_watch.endings(jobs)


def _concluded(
    plan: Plan,
    series: Series,
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
            f"{spans.total(missing):,} of {plan.num:,} images are missing: "
            f"{spans.describe(missing)}; the same command draws them"
        )
        if failed:
            raise _error(code)("\n".join([*failed, left]))
        raise Interrupted(left)
    with series.launching():
        made = series_export.exported(
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
    series: Series, jobs: Sequence[Submitted], endings: Mapping[str, str], console: Console
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
        if code is not None or how.startswith(job_watch.FAILURES):
            how = how if code is None else f"exit code {code}"
            failed.append(f"job {job.job}: {how}{job_watch.last_line(log)}; see {log}")
            codes.append(code or 1)
    return failed, next(iter(codes), 0)


def _error(code: int | None) -> type[DdpmError]:
    """The kind of error that has an exit code."""
    kinds = (errors.InputError, errors.NonFiniteError, errors.StorageError)
    return next((kind for kind in kinds if kind.exit_code == code), DdpmError)
