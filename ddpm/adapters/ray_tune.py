"""The trials of a sweep through Ray Tune. Tune only schedules what the ledger lacks; the ledger is
the truth.
"""

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm.adapters.run_trial import FilePoll, Resources, run_trial
from ddpm.ledger import Ledger, Outcome
from ddpm.worker import Job


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
    """One trial in its process; its outcome lies in the ledger when this returns."""
    key = params["trial"]
    ended = run_trial(
        Outcome(**blank[key]),
        Job(**jobs[key]),
        Ledger(Path(places[0])),
        sweep=sweep,
        resources=Resources(**resources),
        should_stop=FilePoll(Path(places[1])),
    )
    return {"status": ended}


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
