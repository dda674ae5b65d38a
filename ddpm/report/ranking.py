"""The two rankings of a sweep's cells, on the noise levels all of them share.

A cell is one point of the grid; its trials differ in their seed alone. Differences between two
cells are paired: by seed where both have at least two seeds in common, else by (image, noise) pair,
which supports a statement about the two trained networks only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from ddpm.measures import (
    MEASURES,
    X0Error,
    X0Summary,
    common_levels,
    influence,
    interval,
    summary,
    t_quantile,
)
from ddpm.report.data import Sweep, Trial
from ddpm.report.files import Value
from ddpm.report.labels import cell_label, varied


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One cell that can be ranked: its evaluated trials by seed and their two numbers."""

    cell: Mapping[str, Value]
    label: str
    trials: Mapping[int, Trial]
    summaries: Mapping[int, X0Summary]

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

    def order(self, measure: str) -> tuple[int, ...]:
        """Places in `standings` from the lowest of the measure up."""
        values = [standing.value(measure) for standing in self.standings]
        return tuple(int(place) for place in np.argsort(values, kind="stable"))

    def rank(self, place: int, measure: str) -> int:
        """1 for the lowest."""
        return self.order(measure).index(place) + 1

    @property
    def recommended(self) -> Standing | None:
        """The winner where both rankings agree, else the lowest sum of ranks. No claim."""
        if not self.standings or self.problem:
            return None
        both = [self.order(measure) for measure in MEASURES]
        totals = [sum(order.index(place) for order in both) for place in range(len(self.standings))]
        return self.standings[int(np.argmin(totals))]

    @property
    def num_seeds(self) -> int:
        """Seeds every ranked cell has."""
        return len(_shared_seeds(self.standings))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much higher one cell's number is than another's, with the half-width of its interval."""

    mean: float
    half_width: float
    num_seeds: int  # 1: half_width is evaluation error times its quantile, over pairs

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.half_width


def rank(sweep: Sweep) -> Ranking:
    """Ranks a sweep's cells; what cannot be compared is excluded with its reason."""
    keys = varied([*(t.cell for t in sweep.trials), *(s.cell for s in sweep.skipped)])
    usable, excluded = [], []
    for trials in _by_cell(sweep.trials):
        label = cell_label(trials[0].cell, keys)
        good = [trial for trial in trials if _why_not(trial) is None]
        if good:
            usable.append((label, good))
        reasons = sorted({_why_not(trial) or "" for trial in trials if trial not in good})
        excluded += [(label, reason) for reason in reasons]
    problem = _not_comparable([trial for _, trials in usable for trial in trials])
    levels = common_levels(_error(t).levels for _, trials in usable for t in trials)
    if usable and not levels:
        problem = problem or "The cells share no noise level, so no number compares them."
    if problem or not usable:
        return Ranking(levels=levels, standings=(), excluded=tuple(excluded), problem=problem)
    standings = [_standing(label, trials, levels) for label, trials in usable]
    standings.sort(key=lambda standing: standing.value(MEASURES[0]))
    return Ranking(levels=levels, standings=tuple(standings), excluded=tuple(excluded))


def gap(worse: Standing, better: Standing, measure: str, confidence: float) -> Gap:
    """The paired difference worse - better of one number, with its interval at `confidence`."""
    seeds = _shared_seeds((worse, better))
    differences = [
        worse.summaries[seed].value(measure) - better.summaries[seed].value(measure)
        for seed in seeds
    ]
    if len(seeds) > 1:
        return Gap(
            mean=float(np.mean(differences)),
            half_width=interval(differences, confidence)[1],
            num_seeds=len(seeds),
        )
    if not seeds:
        mean = worse.value(measure) - better.value(measure)
        return Gap(mean=mean, half_width=float("inf"), num_seeds=0)
    row, levels = MEASURES.index(measure), worse.summaries[seeds[0]].levels
    pairs = [influence(_error(cell.trials[seeds[0]]), levels)[row] for cell in (worse, better)]
    return Gap(
        mean=differences[0], half_width=_over_pairs(pairs[0] - pairs[1], confidence), num_seeds=1
    )


def level_gaps(a: Standing, b: Standing, levels: Sequence[int], confidence: float) -> list[Gap]:
    """The paired difference a - b of the MSE at each level."""
    seeds = _shared_seeds((a, b))
    gaps = []
    for level in levels:
        pairs = [
            _error(a.trials[seed]).at([level])[0] - _error(b.trials[seed]).at([level])[0]
            for seed in seeds
        ]
        means = [float(one.mean()) for one in pairs]
        if len(means) > 1:
            width = interval(means, confidence)[1]
        else:
            width = _over_pairs(pairs[0], confidence) if pairs else float("inf")
        mean = float(np.mean(means)) if means else 0.0
        gaps.append(Gap(mean=mean, half_width=width, num_seeds=len(seeds)))
    return gaps


def _over_pairs(differences: np.ndarray, confidence: float) -> float:
    count = len(differences)
    if count < 2:
        return float("inf")
    return t_quantile(confidence, count - 1) * float(differences.std(ddof=1)) / sqrt(count)


def _shared_seeds(standings: Iterable[Standing]) -> list[int]:
    sets = [set(standing.summaries) for standing in standings]
    return sorted(set.intersection(*sets)) if sets else []


def _error(trial: Trial) -> X0Error:
    assert trial.error is not None  # `rank` keeps evaluated trials only
    return trial.error


def _by_cell(trials: Sequence[Trial]) -> list[list[Trial]]:
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        cells.setdefault(trial.key, []).append(trial)
    return list(cells.values())


def _standing(label: str, trials: Sequence[Trial], levels: Sequence[int]) -> Standing:
    return Standing(
        cell=trials[0].cell,
        label=label,
        trials={trial.seed: trial for trial in trials},
        summaries={trial.seed: summary(_error(trial), levels) for trial in trials},
    )


def _why_not(trial: Trial) -> str | None:
    """Why a trial has no place in the ranking; None when it has."""
    if trial.status != "done":
        return f"seed {trial.seed} {trial.status}"
    if trial.error is None:
        return f"seed {trial.seed} has no evaluation.npz"
    if not np.isfinite(trial.error.mse).all():
        return f"seed {trial.seed} gives numbers that are not finite"
    return None


def _not_comparable(trials: Sequence[Trial]) -> str | None:
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
