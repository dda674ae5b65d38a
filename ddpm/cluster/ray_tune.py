"""A round of a sweep through Ray Tune. Tune only schedules what the ledger lacks; the ledger is the
truth.

asha and bayes are Tune's own, ASHAScheduler and OptunaSearch, with the ledger before them: what was
measured in an earlier command is told again, so a sweep that goes on decides as if it had never
stopped. Asynchronous successive halving: Li 2020, "A system for massively parallel hyperparameter
tuning"; the tree-structured Parzen estimator: Bergstra 2011.
"""

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from ddpm.cluster.open_sweep import OpenSweep, Round
from ddpm.cluster.run_trial import FilePoll, HalvedTrial, TrialTask, run_trial
from ddpm.config import MEASURES
from ddpm.errors import DdpmError, InputError
from ddpm.runs import EVALUATION_FILE, RunDirectory, storage
from ddpm.sweep import (
    Ladder,
    Ledger,
    Outcome,
    Rung,
    Sweep,
    Trial,
    cell_name,
    column,
    to_minimise,
)

TIME, VALUE = "evaluation", "value"
TRIES = 50  # choices that are known or impossible, one after the other, before bayes ends


def run_round(of: OpenSweep, one: Round, max_concurrent: int) -> None:
    """Run the trials of a round to their end or to a stop; the ledger has every end."""
    store, verdicts, workers = of.folder / "ray", of.folder / "asha", of.workers
    tasks = {trial.trial_id: _as_text(of, trial) for trial in one.trials}
    scheduler: Halving | None = None
    search: dict[str, Any] = {}
    if one.ladders:
        storage.make_folder(verdicts)
        for trial in of.todo():  # of an earlier search, which did not settle it
            storage.remove(verdicts / f"{trial.trial_id}.json")
        ladder = one.ladders[of.todo()[0].trial_id]
        options, rivals = of.sweep.tune, brackets(of.sweep, one.trials)
        scheduler = Halving(ladder, options.GRACE, options.REDUCTION, verdicts, rivals)
    if one.is_search:  # it says itself when there is no more
        search = {"search_alg": Bayes(of), "num_samples": -1}
    trainable = tune.with_parameters(
        _train,
        tasks=tasks,
        ladders={name: asdict(ladder) for name, ladder in one.ladders.items()},
    )
    # the workers of a nested run reserve their own
    alone = {"cpu": workers.cpus, "gpu": workers.gpus} if workers.count == 1 else {"cpu": 0.01}
    tuner = tune.Tuner(
        tune.with_resources(trainable, alone),
        param_space={} if one.is_search else {"trial": tune.grid_search(list(tasks))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent, reuse_actors=True, scheduler=scheduler, **search
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=str(store),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=of.sweep.tune.MAX_FAILURES),
        ),
    )
    _keep_credentials()
    try:
        results = tuner.fit()
    finally:
        shutil.rmtree(store, ignore_errors=True)
    _record_deaths(results, tasks, of.ledger)


def _as_text(of: OpenSweep, trial: Trial) -> str:
    """A trial's task as text, in which Tune looks for no parameters."""
    return json.dumps(asdict(TrialTask.of(of, trial)))


def _as_task(params: Mapping[str, Any], tasks: Mapping[str, str]) -> TrialTask:
    return TrialTask.from_dict(json.loads(params.get("task") or tasks[params["trial"]]))


def _keep_credentials() -> None:
    """Tune copies AWS_* of this process into the runtime_env of every trial, which Ray writes to
    its logs. The trials have those of the node they run on; in a Ray of our own they are the same.
    """
    from ray.tune.execution import class_cache

    names = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", None)
    if not isinstance(names, set):
        raise DdpmError(
            f"Ray {ray.__version__} does not name the variables that it copies into its logs, so "
            "AWS_SECRET_ACCESS_KEY might be among them; install the Ray of constraints.txt"
        )
    names -= {name for name in names if name.startswith("AWS_")}


def _record_deaths(results: tune.ResultGrid, tasks: Mapping[str, str], ledger: Ledger) -> None:
    """Failed, in the ledger, where a trial's process died before it could say so."""
    ended = {key for key, one in ledger.outcomes().items() if one.status != "unrun"}
    for result in (results[number] for number in range(len(results))):
        config = result.config or {}
        key = config.get("trial")
        if result.error is None or key is None or key in ended:
            continue
        words = str(result.error).strip().splitlines()[-1]
        outcome = _as_task(config, tasks).outcome
        ledger.record(outcome.failed(f"the trial's process died: {words}"))


def _train(
    params: dict[str, Any],
    *,
    tasks: dict[str, str],
    ladders: dict[str, dict[str, Any]],
) -> dict[str, str]:
    """One trial in its process; its outcome lies in the ledger when this returns."""
    task, halved = _as_task(params, tasks), None
    key, folder = task.outcome.trial, Path(task.folder)
    if key in ladders:
        verdict = folder / "asha" / f"{key}.json"
        halved = HalvedTrial(Path(task.job.run_dir), Ladder(**ladders[key]), verdict, _tell)
        if not task.ledger.todo([task.outcome], settled=("done", "stopped")):
            return {"status": "ended before"}
    return {"status": run_trial(task, should_stop=FilePoll(folder / "stop"), guide=halved)}


def _tell(rung: Rung) -> None:
    """Tune hears an evaluation, and has decided on it when this returns."""
    tune.report({TIME: rung.evaluation, VALUE: rung.value})


def brackets(sweep: Sweep, trials: Iterable[Trial]) -> dict[str, str]:
    """Trial id -> the trials that compete with it: the draws of SPACE of its cell of GRID, so that
    a cell that learns slowly keeps its own best; without a SPACE all of them.
    """
    return {
        trial.trial_id: cell_name({k: v for k, v in trial.cell.items() if k in sweep.grid})
        if sweep.space
        else ""
        for trial in trials
    }


class Halving(FIFOScheduler):
    """ASHA that writes its verdicts, one file a trial that is to end, and never stops a trial.

    Every bracket has rungs of its own: trials are compared with those of their bracket alone.

    Tune that stops a trial does not wait for it (FunctionTrainable.cleanup joins its thread for
    0 s, then the process is reused or killed), so that it could neither save nor record how it
    ended; over a nested Ray Train run that leaves a placement group behind, for which the next
    trial waits for ever. So the trial reads its verdict and ends by itself (run_trial.HalvedTrial).

    brackets: trial id -> name of its bracket.
    """

    def __init__(
        self,
        ladder: Ladder,
        grace: int,
        reduction: int,
        verdicts: Path,
        brackets: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._verdicts, self._brackets = verdicts, brackets
        self._most = most = ladder.evaluations
        self._asha = {
            bracket: ASHAScheduler(
                time_attr=TIME,
                metric=VALUE,
                mode="min",
                max_t=most,
                grace_period=min(grace, most),
                reduction_factor=reduction,
                stop_last_trials=False,
            )
            for bracket in set(brackets.values())
        }
        self._seen: dict[tuple[str, int], dict[str, float]] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """The bracket learns of its trial."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The bracket learns of its end."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Likewise."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Any) -> ASHAScheduler:
        return self._asha[self._brackets[trial.config["trial"]]]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Always CONTINUE for Tune; ASHA's STOP is written down for the trial."""
        decision = self._of(trial).on_trial_result(tune_controller, trial, result)
        if TIME not in result:
            return decision
        name, evaluation, value = trial.config["trial"], result[TIME], result[VALUE]
        others = self._seen.setdefault((self._brackets[name], evaluation), {})
        others[name] = value
        if decision == TrialScheduler.STOP and evaluation < self._most:
            place = 1 + sum(other < value for other in others.values())
            verdict = {"evaluation": evaluation, "place": place, "of": len(others)}
            storage.write_json(self._verdicts / f"{name}.json", verdict)
        return TrialScheduler.CONTINUE


class Bayes(OptunaSearch):
    """Optuna's search over GRID and SPACE: trials that are left, then new ones up to TUNE.TRIALS.

    A point is the place of each value in its list of GRID, and a number of each range of SPACE.
    Trials that run meanwhile count as bad ones until they have ended (constant_liar), so that
    choices made side by side differ. Optuna is the optional extra `search`.
    """

    def __init__(self, of: OpenSweep) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        left = {trial.trial_id for trial in of.todo()}
        values = {t.trial_id: self._value(of, t) for t in of.trials if t.trial_id not in left}
        known = [t for t in of.trials if values.get(t.trial_id) is not None]
        super().__init__(
            space=distributions(of),
            metric=VALUE,
            mode="min",
            sampler=optuna.samplers.TPESampler(seed=len(of.trials), constant_liar=True),
            points_to_evaluate=[self._point(of, trial) for trial in known],
            evaluated_rewards=[values[trial.trial_id] for trial in known],
        )
        self._of = of
        self._left = [trial for trial in of.trials if trial.trial_id in left]
        self._running: dict[str, tuple[Trial, str]] = {}  # and the study's name of it
        self._asked = 0

    def suggest(self, trial_id: str) -> Any:
        """The next trial as plain data, or Searcher.FINISHED."""
        of = self._of
        if of.stop_file.exists():
            return Searcher.FINISHED
        if self._left:
            trial = self._left.pop(0)
            study: Any = self._ot_study  # Ray gives it no type
            study.enqueue_trial(self._point(of, trial))
            asked, _ = self._ask()
        elif len(of.trials) >= of.sweep.tune.trials or (chosen := self._choose()) is None:
            return Searcher.FINISHED
        else:
            trial, asked = chosen
            of.add([trial])
        self._running[trial_id] = trial, asked
        return {"trial": trial.trial_id, "task": _as_text(of, trial)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a choice is judged by its end."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learns how a trial ended, from the ledger."""
        trial, asked = self._running.pop(trial_id)
        self._tell(asked, self._value(self._of, trial))

    def _choose(self) -> tuple[Trial, str] | None:
        """A trial that is not there yet; None when the space seems to have no other."""
        of, (seed,) = self._of, self._of.sweep.seeds
        known = {trial.trial_id for trial in of.trials}
        for _ in range(TRIES):
            asked, chosen = self._ask()
            grid = {key: values[chosen[key]] for key, values in of.sweep.grid.items()}
            ranges = {key: one.rounded(chosen[key]) for key, one in of.sweep.space.items()}
            try:
                trial = of.with_run_dir(of.sweep.make(grid | ranges, seed))
            except InputError:  # a combination that cannot be trained
                self._tell(asked, None)
                continue
            if trial.trial_id not in known:
                return trial, asked
            self._tell(asked, self._value(of, trial))
        return None

    def _ask(self) -> tuple[str, dict[str, Any]]:
        """The study's next point, under a name of its own."""
        self._asked += 1
        point: Any = super().suggest(str(self._asked))
        return str(self._asked), point

    def _tell(self, asked: str, value: float | None) -> None:
        super().on_trial_complete(asked, None if value is None else {VALUE: value}, value is None)

    @staticmethod
    def _value(of: OpenSweep, trial: Trial) -> float | None:
        outcome = of.ledger.outcomes().get(trial.trial_id)
        return None if outcome is None else final(of.sweep.tune.METRIC, outcome)

    @staticmethod
    def _point(of: OpenSweep, trial: Trial) -> dict[str, Any]:
        grid, cell = of.sweep.grid, trial.cell
        return {key: grid[key].index(cell[key]) if key in grid else cell[key] for key in cell}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune to keep: the ledger knows."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Likewise."""

    def restore(self, checkpoint_path: str) -> None:
        """Likewise."""


def final(metric: str, outcome: Outcome) -> float | None:
    """The number a trial is judged by, lower is better; None unless it is done and has it."""
    if outcome.status != "done":
        return None
    run = RunDirectory(Path(outcome.run_dir))
    if metric == "bits_per_dim":
        value = storage.read_json(run.path / EVALUATION_FILE).get(metric, {}).get("value")
    elif MEASURES[metric].of == "samples":
        value = run.metrics()[-1].get(column(metric))
    else:
        value = outcome.summary.get({"loss": "final_loss"}.get(metric, column(metric)))
    return None if value is None else to_minimise(metric, value)


def distributions(of: OpenSweep) -> dict[str, Any]:
    """GRID and SPACE as Optuna's: a place in the list of values, a number of the range."""
    from optuna import distributions as kinds

    found: dict[str, Any] = {
        key: kinds.CategoricalDistribution(list(range(len(values))))
        for key, values in of.sweep.grid.items()
    }
    for key, one in of.sweep.space.items():
        if one.is_integer:
            found[key] = kinds.IntDistribution(int(one.low), int(one.high), log=one.is_log)
        else:
            found[key] = kinds.FloatDistribution(one.low, one.high, log=one.is_log)
    return found
