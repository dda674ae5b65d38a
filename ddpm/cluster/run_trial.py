"""One trial of a sweep in its own process, whoever started that: Ray Tune or an array job.

A trial with one worker trains in this process, which the next trial reuses; one with several
workers starts a Ray Train run inside. Every trial commits its own outcome to the ledger, so that
nothing depends on a driver living to see it.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cluster.workers import Workers
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import DdpmError, Interrupted, LockedError
from ddpm.runs import NewRows, RunDirectory, claimed
from ddpm.sweep import Ledger, Outcome, row_of
from ddpm.training import Job, work

if TYPE_CHECKING:
    from ddpm.cluster.ray_tune import HalvedTrial

log = logging.getLogger(__name__)
STOP_POLL_S = 0.5
Ended = Literal["done", "failed", "early", "stopped", "held"]


def run_trial(
    outcome: Outcome,
    job: Job,
    ledger: Ledger,
    *,
    sweep: str,
    workers: Workers,
    should_stop: Callable[[], bool],
    guide: "HalvedTrial | None" = None,
) -> Ended:
    """Train, record the outcome, let the sweep go on in any case.

    outcome: the blank one.  guide: of a search, which may end the trial "early".  "stopped": saved,
    to be continued.  "held": another living process trains it. Neither is recorded.
    """
    if should_stop():
        return "stopped"
    try:
        with claimed(RunDirectory(Path(job.run_dir)), wait_s=job.wait_s) as claim:
            if claim.run.path != Path(job.run_dir).absolute():
                raise LockedError(
                    f"{claim.run.title} was made meanwhile by another command; run the same "
                    "command again to go on with it"
                )
            released = claim.release if workers.count == 1 else claim.release_if_held
            summary = _run(job, released, (sweep, outcome.cell), workers, should_stop, guide)
    except Interrupted:
        if early := guide.outcome(outcome) if guide else None:
            ledger.record(early)
            return "early"
        return "stopped"
    except LockedError as error:
        log.warning("%s: %s", outcome.name, error)
        return "held"
    except Exception as error:  # whatever a trial dies of is its outcome; the others go on
        log.exception("trial %s failed", outcome.trial)
        ledger.record(outcome.failed(_reason(error)))
        return "failed"
    ledger.record(outcome.done(summary))
    return "done"


def _run(
    job: Job,
    release: Callable[[], None],
    mirror: tuple[str, Mapping[str, object]],
    workers: Workers,
    should_stop: Callable[[], bool],
    guide: "HalvedTrial | None",
) -> dict[str, Any]:
    """The summary of the training.  mirror: sweep and cell, for the tracker.  release: lets the
    claim go once the training holds its directory.
    """

    def stops() -> bool:
        return should_stop() or (guide is not None and guide.stops())

    if workers.count == 1:
        from ddpm.metrics import inception_of_training
        from ddpm.tracking import wandb_mirror

        return work(
            job,
            Group(device=best_device() if workers.gpus else CPU),
            mirror=wandb_mirror(*mirror),
            on_report=(lambda report: guide.on_row(row_of(report))) if guide else None,
            should_stop=stops,
            on_held=release,
            inception=inception_of_training,
        )
    from ddpm.cluster import ray_train

    run = RunDirectory(Path(job.run_dir))
    rows = NewRows(run.path / "metrics.jsonl")

    def report_rows() -> None:
        for row in rows.read():
            if guide:
                guide.on_row(row)

    def meanwhile() -> None:
        release()
        report_rows()
        if stops():  # again and again, since a start forgets earlier requests
            run.request_stop()

    try:
        return ray_train.run(job, workers, mirror=mirror, meanwhile=meanwhile)
    finally:
        report_rows()


class FilePoll:
    """Whether a file exists, looked up at most every STOP_POLL_S seconds."""

    def __init__(self, path: Path) -> None:
        self.path, self.next, self.seen = path, 0.0, False

    def __call__(self) -> bool:
        if not self.seen and time.monotonic() >= self.next:
            self.next = time.monotonic() + STOP_POLL_S
            self.seen = self.path.exists()
        return self.seen


def _reason(error: Exception) -> str:
    if isinstance(error, DdpmError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
