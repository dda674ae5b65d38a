"""Bayesian search as a searcher of Ray Tune: the tree-structured Parzen estimator of Optuna
(Bergstra 2011) chooses each trial from what those before it measured at their end.

What is known comes from the ledger, so a search that continues knows all that was found. Trials
that run meanwhile count as bad ones until they have ended, so that choices made side by side
differ. Optuna is the optional extra `search`.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from ddpm import comparable, durable
from ddpm.adapters.sweep_setup import Trial
from ddpm.errors import InputError
from ddpm.ledger import Ledger, Outcome
from ddpm.rundir import RunDirectory
from ddpm.rungs import cost
from ddpm.sweep import Sweep

TRIES = 50  # choices that are known or impossible, one after the other, before the search ends


class Bayes(Searcher):
    """Suggests trials that are left, then new ones until the sweep has TUNE.TRIALS.

    trials: those there are, a list that grows.  plan: the trial of a cell.  added: told of every
    trial that a choice has made.  is_stopped: whether nothing more shall be begun.
    """

    def __init__(
        self,
        sweep: Sweep,
        trials: list[Trial],
        ledger: Ledger,
        *,
        plan: Callable[[Mapping[str, object]], Trial],
        added: Callable[[Trial], None],
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
        self._running: dict[str, Trial] = {}
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

    def _choose(self, trial_id: str) -> Trial | None:
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

    def _learn(self, trial: Trial) -> None:
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

    def _value(self, trial: Trial) -> float | None:
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
        value = durable.read_json(run.path / "evaluation.json").get(metric, {}).get("value")
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
