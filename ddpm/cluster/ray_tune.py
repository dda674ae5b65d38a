"""The trials of a sweep through Ray Tune. Tune only schedules what the ledger lacks; the ledger is
the truth.
"""

import json
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log10
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from ddpm import report
from ddpm.cluster.run_trial import FilePoll, Resources, run_trial
from ddpm.cluster.sweep_setup import OpenSweep, OpenTrial
from ddpm.errors import InputError
from ddpm.metrics import MEASURES
from ddpm.report import look
from ddpm.runs import RunDirectory, storage
from ddpm.sweep import (
    Guide,
    Ladder,
    Ledger,
    Outcome,
    Rung,
    Sweep,
    cell_name,
    comparable,
    cost,
)
from ddpm.training import Job, steps_per_epoch


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
    return Job(**(plain | {"command": tuple(plain["command"])}))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


# --------
# Asynchronous successive halving (Li 2020, "A system for massively parallel hyperparameter
# tuning") by Ray Tune's scheduler: at each rung a trial goes on while it is among the best.
#
# Tune decides, the trial obeys: the verdict is a file that the trial reads, so that it saves and
# records itself how it ended; killed from outside it could do neither. Whatever a trial measured
# before, in this command or an earlier one, is told to Tune again when it starts, and trials that
# have ended are told first, so a sweep that continues decides as if it had never stopped.

TIME, VALUE = "evaluation", "value"


class Halving(ASHAScheduler):
    """ASHA whose verdicts are files in a folder, one a trial that is to end."""

    def __init__(self, ladder: Ladder, *, grace: int, reduction: int, verdicts: Path) -> None:
        most = ladder.evaluations
        super().__init__(
            time_attr=TIME,
            metric=VALUE,
            mode="min",
            max_t=most,
            grace_period=min(grace, most),
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self._verdicts, self._most = verdicts, most
        self._seen: dict[int, dict[str, float]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Always CONTINUE for Tune; what ASHA says is written down for the trial."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if TIME not in result:
            return decision
        name, evaluation, value = trial.config["trial"], result[TIME], result[VALUE]
        others = self._seen.setdefault(evaluation, {})
        others[name] = value
        if decision == TrialScheduler.STOP and evaluation < self._most:
            place = 1 + sum(other < value for other in others.values())
            verdict = {"evaluation": evaluation, "place": place, "of": len(others)}
            storage.write_json(self._verdicts / f"{name}.json", verdict)
        return TrialScheduler.CONTINUE


class Obedience:
    """A trial's guide: tells Tune every rung, ends the trial when its verdict is there."""

    def __init__(self, name: str, run_dir: Path, ladder: Ladder, verdicts: Path) -> None:
        self._path = verdicts / f"{name}.json"
        self._ladder, self._poll = ladder, FilePoll(self._path)
        self._rungs = ladder.rungs(RunDirectory(run_dir).metrics())

    def replay(self) -> None:
        """Tells Tune what was measured before."""
        for rung in self._rungs:
            _tell(rung)

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Tells Tune a rung that is new; it has decided when this returns."""
        rung = self._ladder.rung(row)
        if rung is None or rung.evaluation in {known.evaluation for known in self._rungs}:
            return
        self._rungs.append(rung)
        _tell(rung)
        self._poll = FilePoll(self._path)

    def stops(self) -> bool:
        """Whether there is a verdict."""
        return self._poll()

    def outcome(self, blank: Outcome) -> Outcome | None:
        """Stopped early: at which rung, with which number, in which place."""
        if not self._path.exists():
            return None
        verdict = storage.read_json(self._path)
        at = verdict["evaluation"]
        rung = next(rung for rung in reversed(self._rungs) if rung.evaluation == at)
        metric = self._ladder.metric
        value = rung.value * comparable.sign(metric)
        reason = (
            f"stopped early by asha at evaluation {at} of {self._ladder.evaluations}, after "
            f"{rung.images:,} images: {metric} {value:.4g}, in place {verdict['place']} of the "
            f"{verdict['of']} that had come so far"
        )
        measured = {comparable.column(metric): value, "images": rung.images, "step": rung.step}
        return blank.stopped(reason, measured | {"rung": at})


def _tell(rung: Rung) -> None:
    tune.report({TIME: rung.evaluation, VALUE: rung.value})


# --------
# Bayesian search as a searcher of Ray Tune: the tree-structured Parzen estimator of Optuna
# (Bergstra 2011) chooses each trial from what those before it measured at their end.
#
# What is known comes from the ledger, so a search that continues knows all that was found. Trials
# that run meanwhile count as bad ones until they have ended, so that choices made side by side
# differ. Optuna is the optional extra `search`.

TRIES = 50  # choices that are known or impossible, one after the other, before the search ends


class Bayes(Searcher):
    """Suggests trials that are left, then new ones until the sweep has TUNE.TRIALS.

    trials: those there are, a list that grows.  plan: the trial of a cell.  added: told of every
    trial that a choice has made.  is_stopped: whether nothing more shall be begun.
    """

    def __init__(
        self,
        sweep: Sweep,
        trials: list[OpenTrial],
        ledger: Ledger,
        *,
        plan: Callable[[Mapping[str, object]], OpenTrial],
        added: Callable[[OpenTrial], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        super().__init__(metric="value", mode="min")
        optuna = _optuna()
        self._sweep, self._trials, self._ledger = sweep, trials, ledger
        self._plan, self._added, self._is_stopped = plan, added, is_stopped
        self._distributions = distributions(sweep)
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=len(trials), constant_liar=True)
        )
        self._asked: dict[str, Any] = {}
        self._running: dict[str, OpenTrial] = {}
        left = {outcome.trial for outcome in ledger.todo([t.outcome for t in trials])}
        self._left = deque(trial for trial in trials if trial.outcome.trial in left)
        for trial in trials:
            if trial.outcome.trial not in left:
                self._learn(trial)

    def suggest(self, trial_id: str) -> Any:
        """The next trial as plain data, or Searcher.FINISHED."""
        if self._is_stopped():
            return Searcher.FINISHED
        if self._left:
            trial = self._left.popleft()
        elif len(self._trials) >= self._sweep.tune.trials:
            return Searcher.FINISHED
        elif (chosen := self._choose(trial_id)) is None:
            return Searcher.FINISHED
        else:
            trial = chosen
            self._added(trial)
        self._running[trial_id] = trial
        plan = json.dumps({"outcome": asdict(trial.outcome), "job": asdict(trial.job)})
        return {"trial": trial.outcome.trial, "plan": plan}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learns how a trial ended, from the ledger."""
        trial, asked = self._running.pop(trial_id), self._asked.pop(trial_id, None)
        if asked is None:
            self._learn(trial)
            return
        value = self._value(trial)
        if value is None:
            self._study.tell(asked, state=_optuna().trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)

    def _choose(self, trial_id: str) -> OpenTrial | None:
        """A trial that is not there yet; None when the space seems to have no other."""
        known = {trial.outcome.trial for trial in self._trials}
        for _ in range(TRIES):
            asked = self._study.ask(self._distributions)
            try:
                trial = self._plan(self._cell(asked.params))
            except InputError:  # a combination that cannot be trained
                trial = None
            if trial is not None and trial.outcome.trial not in known:
                self._asked[trial_id] = asked
                return trial
            value = None if trial is None else self._value(trial)
            if value is None:
                self._study.tell(asked, state=_optuna().trial.TrialState.FAIL)
            else:
                self._study.tell(asked, value)
        return None

    def _cell(self, chosen: Mapping[str, Any]) -> dict[str, object]:
        grid = {key: values[chosen[key]] for key, values in self._sweep.grid.items()}
        return grid | {key: one.rounded(chosen[key]) for key, one in self._sweep.space.items()}

    def _learn(self, trial: OpenTrial) -> None:
        """Adds a trial that the study did not ask for."""
        value = self._value(trial)
        if value is None:
            return
        cell, grid = trial.outcome.cell, self._sweep.grid
        params = {key: grid[key].index(cell[key]) if key in grid else cell[key] for key in cell}
        self._study.add_trial(
            _optuna().trial.create_trial(
                params=params, distributions=self._distributions, value=value
            )
        )

    def _value(self, trial: OpenTrial) -> float | None:
        outcome = self._ledger.outcomes().get(trial.outcome.trial)
        return None if outcome is None else final(self._sweep.tune.METRIC, outcome)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune to keep: the ledger knows."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Likewise."""

    def restore(self, checkpoint_path: str) -> None:
        """Likewise."""


def final(metric: str, outcome: Outcome) -> float | None:
    """What a trial is judged by, lower is better; None unless it is done and has the number."""
    if outcome.status != "done":
        return None
    run = RunDirectory(Path(outcome.run_dir))
    if metric == "bits_per_dim":
        value = storage.read_json(run.path / "evaluation.json").get(metric, {}).get("value")
    elif metric in comparable.OF_SAMPLES:
        value = run.metrics()[-1].get(comparable.column(metric))
    else:
        value = outcome.summary.get({"loss": "final_loss"}.get(metric, comparable.column(metric)))
    return None if value is None else cost(metric, value)


def distributions(sweep: Sweep) -> dict[str, Any]:
    """GRID and SPACE as Optuna's: a place in the list of values, a number of the range."""
    kinds = _optuna().distributions
    found: dict[str, Any] = {
        key: kinds.CategoricalDistribution(list(range(len(values))))
        for key, values in sweep.grid.items()
    }
    for key, one in sweep.space.items():
        if one.is_integer:
            found[key] = kinds.IntDistribution(int(one.low), int(one.high), log=one.is_log)
        else:
            found[key] = kinds.FloatDistribution(one.low, one.high, log=one.is_log)
    return found


def _optuna() -> Any:
    """Loaded where it is needed, since it is optional, and quiet."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# --------
# One round of a sweep: trials to run, and how Tune goes about them.


@dataclass(frozen=True, kw_only=True)
class Round:
    """Trials to run, and how Tune goes about them."""

    trials: Sequence[OpenTrial]
    search: Search = TO_THE_END


def ladder_of(opened: OpenSweep, trial: OpenTrial) -> Ladder:
    """The rungs of a trial."""
    config = opened.configs[trial.outcome.trial]
    every = config.EVALUATION.EVERY
    assert every is not None  # ddpm/sweep/comparable.py has asked for it
    steps = every * steps_per_epoch(config.TRAINING, trial.num_train)
    return Ladder(metric=opened.sweep.tune.METRIC, every=steps, total=trial.steps)


# --------
# In what rounds the trials of a sweep are run: one for a grid, asha and bayes, one for each look
# of a race.
#
# Each search is a generator of rounds that reads from the ledger, when it is asked for the next, what
# the last has come to. So it goes on wherever the ledger says the sweep is, and whoever runs the
# rounds may stop after any of them. Ray is not imported before it is started with its secret.

RACE = "race.json"


def rounds(opened: OpenSweep) -> Iterator[Round]:
    """The rounds that are left of a sweep."""
    if opened.sweep.race is not None:
        return _race(opened)
    searches = {"grid": _grid, "asha": _asha, "bayes": _bayes}
    return searches[opened.sweep.tune.SEARCH](opened)


def _grid(opened: OpenSweep) -> Iterator[Round]:
    if todo := opened.todo():
        yield Round(trials=todo)


def _asha(opened: OpenSweep) -> Iterator[Round]:
    if not (todo := opened.todo()):
        return
    left = {trial.outcome.trial for trial in todo}
    ended = [trial for trial in opened.trials if trial.outcome.trial not in left]
    tune, verdicts = opened.sweep.tune, opened.folder / "asha"
    storage.make_folder(verdicts)
    for trial in todo:  # of an earlier search, which did not settle it
        storage.remove(verdicts / f"{trial.outcome.trial}.json")
    ladders = {trial.outcome.trial: ladder_of(opened, trial) for trial in opened.trials}
    ladder = ladders[todo[0].outcome.trial]

    def scheduler() -> Any:

        return Halving(ladder, grace=tune.GRACE, reduction=tune.REDUCTION, verdicts=verdicts)

    plain = {name: asdict(one) for name, one in ladders.items()}
    search = Search(scheduler=scheduler, ladders=plain, verdicts=verdicts)
    yield Round(trials=[*ended, *todo], search=search)


def _bayes(opened: OpenSweep) -> Iterator[Round]:
    if not opened.todo() and len(opened.trials) >= opened.sweep.tune.trials:
        return
    (seed,) = opened.sweep.seeds

    def searcher() -> Any:

        return Bayes(
            opened.sweep,
            opened.trials,
            opened.ledger,
            plan=lambda cell: opened.plan(cell, seed),
            added=lambda trial: opened.add([trial]),
            is_stopped=opened.stop_file.exists,
        )

    yield Round(trials=[], search=Search(searcher=searcher))


def _race(opened: OpenSweep) -> Iterator[Round]:
    """A round for each look, with the seeds it needs more; what it finds is kept in race.json."""
    race = opened.sweep.race
    assert race is not None
    path, cells = opened.folder / RACE, {cell_name(t.outcome.cell) for t in opened.pool}
    taken = storage.read_json(path).get("looks", [])
    if [one["seeds"] for one in taken] != list(race.looks[: len(taken)]):
        taken = []  # of another START or MAX: what was trained stays, the looks begin anew
    racing: Collection[str] = cells
    for number, count in enumerate(race.looks, 1):
        there = {trial.outcome.trial for trial in opened.trials}
        opened.add(
            trial
            for trial in opened.pool
            if trial.outcome.seed < count
            and cell_name(trial.outcome.cell) in racing
            and trial.outcome.trial not in there
        )
        if todo := opened.todo():
            yield Round(trials=todo)
        if number > len(taken):
            found = look(_numbers(opened, racing), number, len(race.looks), len(cells))
            facts = {"candidates": found.candidates, "racing": found.racing}
            taken.append({"seeds": count, "is_decided": found.is_decided, **facts})
            storage.write_json(path, {"of": len(race.looks), "looks": taken})
        racing = taken[number - 1]["racing"]
        if taken[number - 1]["is_decided"]:
            return


def _numbers(opened: OpenSweep, racing: Collection[str]) -> dict[str, dict[str, dict[int, float]]]:
    """What the cells that race have measured: the report's numbers, compared as logarithms."""
    standings = report.rank(report.read(opened.folder)).standings
    cells = {cell_name(one.cell): one.summaries for one in standings}
    return {
        measure: {
            name: {
                seed: value if measure == MEASURES[0] else log10(value)
                for seed, one in cells.get(name, {}).items()
                if (value := one.value(measure)) > 0 or measure == MEASURES[0]
            }
            for name in racing
        }
        for measure in MEASURES
    }
