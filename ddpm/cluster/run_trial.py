"""One trial of a sweep in its own process, whoever started that: Ray Tune or an array job.

A trial with one worker trains in this process, which the next trial reuses; one with several
workers starts a Ray Train run inside. Every trial commits its own outcome to the ledger, so that
nothing depends on a driver living to see it.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.cluster.cost import Workers
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import DdpmError, Interrupted, LockedError
from ddpm.runs import NewRows, RunClaim, RunDirectory, claimed
from ddpm.sweep import Guide, Ledger, Outcome, row_of
from ddpm.training import Job, work

log = logging.getLogger(__name__)
STOP_POLL_S = 0.5
Ended = Literal["done", "failed", "early", "stopped", "held"]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial takes: workers, CPU cores and GPUs (a fraction shares one) of each worker."""

    num_workers: int
    cpus_per_worker: int
    gpus_per_worker: float

    @property
    def cores(self) -> int:
        """Cores of a cluster that the trial fits in: one more where it waits for its workers."""
        return self.num_workers * self.cpus_per_worker + (self.num_workers > 1)

    def workers(self) -> Workers:
        """The same, as one training's."""
        return Workers(count=self.num_workers, cpus=self.cpus_per_worker, gpus=self.gpus_per_worker)

    def request(self) -> dict[str, float]:
        """What Tune reserves for the trial; the workers of a nested run reserve their own."""
        if self.num_workers > 1:
            return {"cpu": 0.01}
        return {"cpu": self.cpus_per_worker, "gpu": self.gpus_per_worker}


def run_trial(
    outcome: Outcome,
    job: Job,
    ledger: Ledger,
    *,
    sweep: str,
    resources: Resources,
    should_stop: Callable[[], bool],
    guide: Guide | None = None,
) -> Ended:
    """Train, record the outcome, let the sweep go on in any case.

    outcome: the blank one.  guide: of a search, which may end the trial "early".  "stopped": saved,
    to be continued.  "held": another living process trains it. Neither is recorded.
    """
    if should_stop():
        return "stopped"
    try:
        with claimed(RunDirectory(Path(job.run_dir)), wait_s=job.wait_s) as claim:
            _refuse_other(claim, job)
            summary = _run(job, claim, sweep, outcome.cell, resources, should_stop, guide)
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


def _refuse_other(claim: RunClaim, job: Job) -> None:
    """LockedError where the run has got another directory than the one this sweep planned."""
    if claim.run.path != Path(job.run_dir).absolute():
        raise LockedError(
            f"{claim.run.title} was made meanwhile by another command; run the same command again "
            "to go on with it"
        )


def _run(
    job: Job,
    claim: RunClaim,
    sweep: str,
    cell: Mapping[str, object],
    resources: Resources,
    should_stop: Callable[[], bool],
    guide: Guide | None,
) -> dict[str, Any]:
    from ddpm.cluster import ray_train
    from ddpm.metrics import inception_of_training
    from ddpm.tracking import wandb_mirror

    def stops() -> bool:
        return should_stop() or (guide is not None and guide.stops())

    if resources.num_workers > 1:
        watch = _Watch(Path(job.run_dir), stops, guide)

        def meanwhile() -> None:
            claim.release_if_held()
            watch.look()

        try:
            return ray_train.run(
                job,
                num_workers=resources.num_workers,
                use_gpu=resources.gpus_per_worker > 0,
                cpus_per_worker=resources.cpus_per_worker,
                gpus_per_worker=resources.gpus_per_worker,
                sweep=sweep,
                cell=cell,
                meanwhile=meanwhile,
            )
        finally:
            watch.hear()
    group = Group(device=best_device() if resources.gpus_per_worker else CPU)
    return work(
        job,
        group,
        mirror=wandb_mirror(sweep, cell),
        on_report=(lambda report: guide.on_row(row_of(report))) if guide else None,
        should_stop=stops,
        on_held=claim.release,
        inception=inception_of_training,
    )


class _Watch:
    """Follows a trial that other processes train: tells its guide what it measured, and asks it to
    save and stop when that is wanted.
    """

    def __init__(self, run_dir: Path, stops: Callable[[], bool], guide: Guide | None) -> None:
        self._run, self._stops, self._guide = RunDirectory(run_dir), stops, guide
        self._new = NewRows(run_dir / "metrics.jsonl")

    def look(self) -> None:
        """Once; to be called again and again, since a start forgets earlier requests."""
        self.hear()
        if self._stops():
            self._run.request_stop()

    def hear(self) -> None:
        """Tells the guide what is new."""
        if self._guide:
            for row in self._new.read():
                self._guide.on_row(row)


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
