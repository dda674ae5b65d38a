"""Asynchronous successive halving (Li 2020, "A system for massively parallel hyperparameter
tuning") by Ray Tune's scheduler: at each rung a trial goes on while it is among the best.

Tune decides, the trial obeys: the verdict is a file that the trial reads, so that it saves and
records itself how it ended; killed from outside it could do neither. Whatever a trial measured
before, in this command or an earlier one, is told to Tune again when it starts, and trials that
have ended are told first, so a sweep that continues decides as if it had never stopped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ddpm import comparable, durable
from ddpm.adapters.run_trial import FilePoll
from ddpm.ledger import Outcome
from ddpm.rundir import RunDirectory
from ddpm.rungs import Ladder, Rung

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
            durable.write_json(self._verdicts / f"{name}.json", verdict)
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
        verdict = durable.read_json(self._path)
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
