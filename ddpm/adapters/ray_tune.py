"""The trials of a sweep through Ray Tune. Tune only schedules what the ledger lacks; the ledger is
the truth.

A trial with one worker trains in the trial's own process, which the next trial reuses; one with
several workers starts a Ray Train run inside. Every trial commits its own outcome, so that nothing
depends on the driver living to see it.
"""

import logging
import shutil
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import DdpmError, Interrupted
from ddpm.ledger import Ledger, Outcome
from ddpm.worker import Job, work

log = logging.getLogger(__name__)
STOP_POLL_S = 0.5


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

    def request(self) -> dict[str, float]:
        """What Tune reserves for the trial; the workers of a nested run reserve their own."""
        if self.num_workers > 1:
            return {"cpu": 0.01}
        return {"cpu": self.cpus_per_worker, "gpu": self.gpus_per_worker}


def run_trials(
    trials: Sequence[Outcome],
    jobs: Mapping[str, Job],
    ledger: Ledger,
    stop_file: Path,
    *,
    sweep: str,
    resources: Resources,
    max_concurrent: int,
    max_failures: int,
) -> None:
    """Run the trials (outcomes still to be) to their end or to a stop; every end lies in the ledger
    afterwards.

    trials: the blank outcomes, by trial id those of `jobs`.  stop_file: appears when all shall save
    and stop.
    """
    from ray import tune

    storage, name = ledger.folder.parent / "ray", uuid.uuid4().hex[:12]
    blank = {outcome.trial: outcome for outcome in trials}
    trainable = tune.with_parameters(
        _trial,
        blank={key: asdict(outcome) for key, outcome in blank.items()},
        jobs={key: asdict(job) for key, job in jobs.items()},
        places=(str(ledger.folder), str(stop_file)),
        sweep=sweep,
        resources=asdict(resources),
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources.request()),
        param_space={"trial": tune.grid_search([outcome.trial for outcome in trials])},
        tune_config=tune.TuneConfig(max_concurrent_trials=max_concurrent, reuse_actors=True),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        results = tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    ended = ledger.outcomes()
    for trial, result in zip(trials, map(results.__getitem__, range(len(trials))), strict=True):
        if result.error is not None and trial.trial not in ended:
            ledger.record(
                trial.failed(f"the trial's process died: {_last_line(str(result.error))}")
            )


def _trial(
    params: dict[str, Any],
    *,
    blank: dict[str, Any],
    jobs: dict[str, Any],
    places: tuple[str, str],
    sweep: str,
    resources: dict[str, Any],
) -> dict[str, str]:
    """One trial in its process: train, record the outcome, let the sweep go on in any case."""
    ledger, stop_file = Ledger(Path(places[0])), Path(places[1])
    outcome = Outcome(**blank[params["trial"]])
    job = Job(**jobs[params["trial"]])
    if stop_file.exists():
        return {"status": "stopped"}
    try:
        summary = _run(job, sweep, Resources(**resources), stop_file)
    except Interrupted:
        return {"status": "stopped"}
    except Exception as error:  # whatever a trial dies of is its outcome; the others go on
        log.exception("trial %s failed", outcome.trial)
        ledger.record(outcome.failed(_reason(error)))
        return {"status": "failed"}
    ledger.record(outcome.done(summary))
    return {"status": "done"}


def _run(job: Job, sweep: str, resources: Resources, stop_file: Path) -> dict[str, Any]:
    from ddpm.adapters import ray_train
    from ddpm.adapters.wandb_log import wandb_mirror

    if resources.num_workers > 1:
        return ray_train.run(
            job,
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            cpus_per_worker=resources.cpus_per_worker,
            gpus_per_worker=resources.gpus_per_worker,
            sweep=sweep,
        )
    group = Group(device=best_device() if resources.gpus_per_worker else CPU)
    return work(job, group, mirror=wandb_mirror(sweep), should_stop=FilePoll(stop_file))


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


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
