"""The two rankings of a sweep's cells, on the noise levels all of them share.

A cell is one point of the grid; its trials differ in their seed alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan, prod

import numpy as np

from ddpm.metrics import MEASURES, X0Error, X0Summary, common_levels, interval, summary
from ddpm.report.labels import cell_label, varied
from ddpm.report.reading import SweepResults, TrialResult, Value
from ddpm.report.scatter import Spread, spread

# Of a grid's combinations; with fewer, what each key does cannot be separated.
_LEAST_FILLED = 0.5


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One cell that can be ranked: its evaluated trials by seed and their two numbers."""

    cell: Mapping[str, Value]
    label: str
    trials: Mapping[int, TrialResult]
    summaries: Mapping[int, X0Summary]

    def code(self, key: str) -> str:
        """Its value of a key as text that can be compared."""
        return json.dumps(self.cell.get(key), sort_keys=True)

    def value(self, measure: str) -> float:
        """The number, mean over seeds."""
        return float(np.mean([one.value(measure) for one in self.summaries.values()]))

    def error(self, measure: str) -> float:
        """95 % half-width over seeds; for one seed the evaluation error, over pairs."""
        if len(self.summaries) > 1:
            return interval([one.value(measure) for one in self.summaries.values()])[1]
        return next(iter(self.summaries.values())).evaluation_error(measure)

    def curve(self, levels: Sequence[int]) -> np.ndarray:
        """MSE at these levels, mean over pairs and seeds."""
        return np.mean([_error(t).at(levels).mean(axis=1) for t in self.trials.values()], axis=0)

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels its trials were evaluated at."""
        return common_levels(_error(trial).levels for trial in self.trials.values())


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The cells in order of mean log10 error, what they share, and what could not be ranked."""

    levels: tuple[int, ...]
    standings: tuple[Standing, ...]
    excluded: tuple[tuple[str, str], ...]  # (cell, reason)
    problem: str | None = None  # why the cells cannot be compared at all
    baseline: int | None = None  # the place of a cell that others are compared with by wish

    def order(self, measure: str) -> tuple[int, ...]:
        """Places in `standings` from the lowest of the measure up."""
        return self._orders[measure]

    def rank(self, place: int, measure: str) -> int:
        """1 for the lowest."""
        return self._ranks[measure][place]

    @cached_property
    def _orders(self) -> dict[str, tuple[int, ...]]:
        values = {m: [standing.value(m) for standing in self.standings] for m in MEASURES}
        return {m: tuple(map(int, np.argsort(values[m], kind="stable"))) for m in MEASURES}

    @cached_property
    def _ranks(self) -> dict[str, dict[int, int]]:
        return {m: {place: k + 1 for k, place in enumerate(self._orders[m])} for m in MEASURES}

    @cached_property
    def recommended(self) -> Standing | None:
        """The winner where both rankings agree, else the lowest sum of ranks. No claim."""
        if not self.standings or self.problem:
            return None
        places = range(len(self.standings))
        totals = [sum(self.rank(place, measure) for measure in MEASURES) for place in places]
        return self.standings[int(np.argmin(totals))]

    @property
    def num_seeds(self) -> int:
        """Seeds the cell with the fewest has."""
        return min((len(standing.summaries) for standing in self.standings), default=0)

    @property
    def seeds(self) -> list[int]:
        """All seeds that a ranked cell has."""
        return sorted({seed for standing in self.standings for seed in standing.summaries})

    def place(self, standing: Standing) -> int:
        """Its place in `standings`."""
        return self._places[id(standing)]

    @staticmethod
    def number(standing: Standing, measure: str) -> float:
        """What is compared: a number as log10, mean over seeds."""
        return float(np.mean([_logarithm(one, measure) for one in standing.summaries.values()]))

    def table(self, measure: str) -> np.ndarray:
        """The numbers that are compared, (cells, seeds), NaN where a trial is missing."""
        seeds = self.seeds
        return np.array(
            [
                [
                    _logarithm(one.summaries[k], measure) if k in one.summaries else nan
                    for k in seeds
                ]
                for one in self.standings
            ]
        )

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """The keys in which its cells differ; none where they are no grid but scattered points."""
        keys = varied(standing.cell for standing in self.standings)
        return keys if self.filled(keys) >= _LEAST_FILLED else ()

    def filled(self, keys: Sequence[str]) -> float:
        """The share of all combinations of these keys' values that is ranked."""
        levels = [len({standing.code(key) for standing in self.standings}) for key in keys]
        return len(self.standings) / prod(levels)

    @cached_property
    def codes(self) -> np.ndarray:
        """The number of each cell's level of each factor, (cells, factors)."""
        columns = [[standing.code(key) for standing in self.standings] for key in self.factors]
        numbers = [np.unique(column, return_inverse=True)[1].ravel() for column in columns]
        return np.array(numbers, dtype=np.int64).reshape(len(columns), len(self.standings)).T

    def spread(self, measure: str) -> Spread | None:
        """How cells scatter over seeds; None where no cell has two."""
        return self._spreads[measure]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {id(standing): place for place, standing in enumerate(self.standings)}

    @cached_property
    def _spreads(self) -> dict[str, Spread | None]:
        if not self.standings:
            return dict.fromkeys(MEASURES)
        return {measure: spread(self.table(measure), codes=self.codes) for measure in MEASURES}


def rank(sweep: SweepResults) -> Ranking:
    """Ranks a sweep's cells; what cannot be compared is excluded with its reason."""
    keys = varied([*(t.cell for t in sweep.trials), *(s.cell for s in sweep.skipped)])
    usable: list[tuple[str, list[TrialResult]]] = []
    excluded: list[tuple[str, str]] = []
    for trials in _by_cell(sweep.trials):
        label = cell_label(trials[0].cell, keys)
        reasons = {id(trial): _why_not(trial, sweep.is_sweep) for trial in trials}
        good = [trial for trial in trials if reasons[id(trial)] is None]
        if good:
            usable.append((label, good))
        excluded += [(label, reason) for reason in sorted(filter(None, reasons.values()))]
    problem = _not_comparable([trial for _, trials in usable for trial in trials])
    levels = common_levels(_error(t).levels for _, trials in usable for t in trials)
    if usable and not levels:
        problem = problem or "The cells share no noise level, so no number compares them."
    if problem or not usable:
        return Ranking(levels=levels, standings=(), excluded=tuple(excluded), problem=problem)
    standings = [_standing(label, trials, levels) for label, trials in usable]
    standings.sort(key=lambda standing: standing.value(MEASURES[0]))
    return Ranking(levels=levels, standings=tuple(standings), excluded=tuple(excluded))


def _logarithm(summary: X0Summary, measure: str) -> float:
    if measure == MEASURES[0]:
        return summary.mean_log10_mse
    return float(np.log10(summary.snr_weighted_mse))


def _error(trial: TrialResult) -> X0Error:
    assert trial.error is not None  # `rank` keeps evaluated trials only
    return trial.error


def shared_seeds(standings: Iterable[Standing]) -> list[int]:
    """The seeds all of these cells have."""
    sets = [set(standing.summaries) for standing in standings]
    return sorted(set.intersection(*sets)) if sets else []


def _by_cell(trials: Sequence[TrialResult]) -> list[list[TrialResult]]:
    cells: dict[str, list[TrialResult]] = {}
    for trial in trials:
        cells.setdefault(trial.key, []).append(trial)
    return list(cells.values())


def _standing(label: str, trials: Sequence[TrialResult], levels: Sequence[int]) -> Standing:
    return Standing(
        cell=trials[0].cell,
        label=label,
        trials={trial.seed: trial for trial in trials},
        summaries={trial.seed: summary(_error(trial), levels) for trial in trials},
    )


def _why_not(trial: TrialResult, must_be_done: bool) -> str | None:
    """Why a trial has no place in the ranking; None when it has."""
    if must_be_done and trial.status != "done":
        return f"seed {trial.seed} {trial.status}"
    if trial.error is None:
        return f"seed {trial.seed} has no evaluation.npz"
    if not np.isfinite(trial.error.mse).all():
        return f"seed {trial.seed} gives numbers that are not finite"
    if not (trial.error.mse.mean(axis=1) > 0).all():
        return f"seed {trial.seed} gives an error of zero, which has no logarithm"
    return None


def _not_comparable(trials: Sequence[TrialResult]) -> str | None:
    """Why these trials were not measured on the same pairs; None when they were."""
    data = {
        str(trial.evaluation.get("data_sha256") or trial.provenance.get("data_sha256"))
        for trial in trials
    }
    if len(data) > 1:
        return f"The trials used {len(data)} different data sets, so they cannot be ranked."
    seeds = {str(trial.evaluation.get("seed")) for trial in trials}
    pairs = {_error(trial).ids.tobytes() for trial in trials}
    if len(pairs) > 1 or len(seeds) > 1:
        return (
            "The trials were evaluated on different (image, noise) pairs (EVALUATION.SEED or "
            "EVALUATION.NUM differ), so they cannot be ranked."
        )
    return None
