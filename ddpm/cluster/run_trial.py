"""One trial of a sweep in its own process, whoever started that: Ray Tune or an array job.

A trial with one worker trains in this process, which the next trial reuses; one with several
workers starts a Ray Train run inside. Every trial commits its own outcome to the ledger, so that
nothing depends on a driver living to see it.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm import config as configuration
from ddpm.cluster.workers import Workers
from ddpm.config import MEASURES
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import Interrupted, LockedError
from ddpm.runs import NewRows, RunDirectory, RunState, claimed, error_text, storage
from ddpm.sweep import Ladder, Ledger, Outcome, Rung, Trial, column
from ddpm.training import TrainingJob, work

if TYPE_CHECKING:
    from ddpm.cluster.open_sweep import OpenSweep

log = logging.getLogger(__name__)
STOP_POLL_S = 0.5
# trials of a driver that was killed may take some seconds to die and let go of their locks
PATIENCE_S = 60.0
Ended = Literal["done", "failed", "early", "stopped", "held"]


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """A trial for the process that trains it.

    folder: of its sweep.  outcome: the blank one.
    """

    folder: str
    outcome: Outcome
    job: TrainingJob
    workers: Workers

    @classmethod
    def of(cls, sweep: "OpenSweep", trial: Trial) -> "TrialTask":
        """A trial of a sweep that this process holds."""
        job = TrainingJob(
            config=configuration.to_dict(trial.config),
            run_dir=trial.run_dir,
            data_dir=trial.data_dir,
            threads=sweep.workers.cpus,
            command=tuple(sys.argv),
            wait_s=PATIENCE_S,
            packed=sweep.packed,
        )
        return cls(folder=str(sweep.folder), outcome=trial.outcome, job=job, workers=sweep.workers)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TrialTask":
        """The inverse of dataclasses.asdict, through JSON too."""
        return cls(
            folder=plain["folder"],
            outcome=Outcome(**plain["outcome"]),
            job=TrainingJob(**plain["job"]),
            workers=Workers(**plain["workers"]),
        )

    @property
    def ledger(self) -> Ledger:
        return Ledger(Path(self.folder) / "ledger")


class FilePoll:
    """Existence of a file, looked up at most every STOP_POLL_S seconds."""

    def __init__(self, path: Path) -> None:
        self.path, self.next, self.seen = path, 0.0, False

    def __call__(self) -> bool:
        if not self.seen and time.monotonic() >= self.next:
            self.next = time.monotonic() + STOP_POLL_S
            self.seen = self.path.exists()
        return self.seen


class HalvedTrial:
    """A trial under asha, in its own process: tells Ray Tune every evaluation, those of earlier
    commands first, and ends the trial once there is a verdict, a file.

    tell: returns when Tune has decided.
    """

    def __init__(
        self, run_dir: Path, ladder: Ladder, verdict: Path, tell: Callable[[Rung], None]
    ) -> None:
        self._tell = tell
        self._ladder, self._verdict, self._poll = ladder, verdict, FilePoll(verdict)
        self._rungs: list[Rung] = []
        for row in RunDirectory(run_dir).metrics():
            self.on_row(row)

    def on_row(self, row: Mapping[str, Any]) -> None:
        """A row of the trial's metrics, perhaps a repeated one."""
        rung = self._ladder.rung(row)
        if rung is None or rung.evaluation in {known.evaluation for known in self._rungs}:
            return
        self._rungs.append(rung)
        self._tell(rung)
        self._poll = FilePoll(self._verdict)

    def stops(self) -> bool:
        """True once there is a verdict."""
        return self._poll()

    def outcome(self, blank: Outcome) -> Outcome | None:
        """Stopped early: at which evaluation, with which number, in which place."""
        if not self._verdict.exists():
            return None
        verdict = storage.read_json(self._verdict)
        at = verdict["evaluation"]
        rung = next(rung for rung in reversed(self._rungs) if rung.evaluation == at)
        metric = self._ladder.metric
        value = rung.value * MEASURES[metric].sign
        reason = (
            f"stopped early by asha at evaluation {at} of {self._ladder.evaluations}, after "
            f"{rung.images:,} images: {metric} {value:.4g}, in place {verdict['place']} of the "
            f"{verdict['of']} that had come so far"
        )
        measured = {column(metric): value, "images": rung.images, "step": rung.step}
        return blank.stopped(reason, measured | {"rung": at})


def run_trial(
    task: TrialTask, *, should_stop: Callable[[], bool], guide: HalvedTrial | None = None
) -> Ended:
    """Train, record the outcome, let the sweep go on in any case.

    guide: of a search, which may end the trial "early".  "stopped": saved, to be continued.
    "held": another living process trains it. Neither is recorded.
    """
    outcome, job, ledger = task.outcome, task.job, task.ledger
    if should_stop():
        return "stopped"
    try:
        with claimed(RunDirectory(Path(job.run_dir)), wait_s=job.wait_s) as claim:
            if claim.run.path != Path(job.run_dir).absolute():
                raise LockedError(
                    f"{claim.run.title} was made meanwhile by another command; run the same "
                    "command again to go on with it"
                )
            released = claim.release if task.workers.count == 1 else claim.release_if_held
            summary = _run(task, released, should_stop, guide)
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
        ledger.record(outcome.failed(error_text(error)))
        return "failed"
    ledger.record(outcome.done(summary))
    return "done"


def _run(
    task: TrialTask,
    release: Callable[[], None],
    should_stop: Callable[[], bool],
    guide: HalvedTrial | None,
) -> dict[str, Any]:
    """The summary of the training.  release: lets the claim go once it holds its directory."""
    job, workers = task.job, task.workers
    tracker = Path(task.folder).name, task.outcome.cell  # sweep and cell

    def stops() -> bool:
        return should_stop() or (guide is not None and guide.stops())

    def on_report(report: RunState) -> None:
        if guide is not None:
            guide.on_row({"step": report.step, "images": report.images, **report.metrics})

    if workers.count == 1:
        from ddpm.tracking import wandb_tracker

        return work(
            job,
            Group(device=best_device() if workers.gpus else CPU),
            tracker=wandb_tracker(*tracker),
            on_report=on_report,
            should_stop=stops,
            on_held=release,
        )
    from ddpm.cluster import ray_train

    run = RunDirectory(Path(job.run_dir))
    rows = NewRows(run.path)

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
        return ray_train.run(job, workers, tracker=tracker, meanwhile=meanwhile)
    finally:
        report_rows()
