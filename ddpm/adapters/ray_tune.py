"""The trials of a sweep through Ray Tune. Tune only schedules what the ledger lacks; the ledger is
the truth.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ddpm.adapters.run_trial import FilePoll, Resources, run_trial
from ddpm.ledger import Ledger, Outcome
from ddpm.rungs import Guide, Ladder
from ddpm.worker import Job


@dataclass(frozen=True, kw_only=True)
class Search:
    """How Tune goes about trials; by default it runs each to its end.

    scheduler, searcher: make Tune's.  ladders: the rungs of trials that are watched, as plain data.
    verdicts: the folder in which asha says who is to end.
    """

    scheduler: Callable[[], Any] | None = None
    searcher: Callable[[], Any] | None = None
    ladders: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: Path | None = None


TO_THE_END = Search()


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
    search: Search = TO_THE_END,
) -> None:
    """Run the trials (outcomes still to be) to their end or to a stop; every end lies in the ledger
    afterwards.

    trials: the blank outcomes, by trial id those of `jobs`; a searcher's come from itself.
    stop_file: appears when all shall save and stop.
    """
    from ray import tune

    storage, name = ledger.folder.parent / "ray", uuid.uuid4().hex[:12]
    blank = {outcome.trial: asdict(outcome) for outcome in trials}
    plans = {key: json.dumps({"outcome": blank[key], "job": asdict(jobs[key])}) for key in blank}
    trainable = tune.with_parameters(
        _trial,
        plans=plans,
        places=(str(ledger.folder), str(stop_file), str(search.verdicts or "")),
        sweep=sweep,
        resources=asdict(resources),
        ladders=dict(search.ladders),
    )
    # a searcher says itself when there is no more
    more = {"search_alg": search.searcher(), "num_samples": -1} if search.searcher else {}
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources.request()),
        param_space={} if search.searcher else {"trial": tune.grid_search(list(blank))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,
            scheduler=search.scheduler() if search.scheduler else None,
            **more,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    _keep_credentials()
    try:
        results = tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    _record_deaths(results, blank, ledger)


def _keep_credentials() -> None:
    """Tune copies AWS_* of this process into the runtime_env of every trial, which Ray writes to
    its logs. The trials have those of the node they run on; in a Ray of our own they are the same.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    names -= {name for name in names if name.startswith("AWS_")}


def _record_deaths(results: Any, blank: Mapping[str, dict[str, Any]], ledger: Ledger) -> None:
    """Failed, in the ledger, where a trial's process died before it could say so."""
    ended = {key for key, one in ledger.outcomes().items() if one.status != "unrun"}
    for result in map(results.__getitem__, range(len(results))):
        config = result.config or {}
        key = config.get("trial")
        if result.error is None or key is None or key in ended:
            continue
        outcome = Outcome(**(blank.get(key) or json.loads(config["plan"])["outcome"]))
        reason = f"the trial's process died: {_last_line(str(result.error))}"
        ledger.record(outcome.failed(reason))


def _trial(
    params: dict[str, Any],
    *,
    plans: dict[str, str],
    places: tuple[str, str, str],
    sweep: str,
    resources: dict[str, Any],
    ladders: dict[str, dict[str, Any]],
) -> dict[str, str]:
    """One trial in its process; its outcome lies in the ledger when this returns."""
    key = params["trial"]
    plan = json.loads(params.get("plan") or plans[key])
    outcome, job, ledger = Outcome(**plan["outcome"]), _job(plan["job"]), Ledger(Path(places[0]))
    guide: Guide | None = None
    if key in ladders:
        from ddpm.adapters.asha import Obedience

        guide = Obedience(key, Path(job.run_dir), Ladder(**ladders[key]), Path(places[2]))
        guide.replay()
        if not ledger.todo([outcome], settled=("done", "stopped")):
            return {"status": "ended before"}
    ended = run_trial(
        outcome,
        job,
        ledger,
        sweep=sweep,
        resources=Resources(**resources),
        should_stop=FilePoll(Path(places[1])),
        guide=guide,
    )
    return {"status": ended}


def _job(plain: dict[str, Any]) -> Job:
    """A Job that went through JSON, where tuples are lists."""
    return Job(**(plain | {"command": tuple(plain["command"]), "startup": ()}))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
