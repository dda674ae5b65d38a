"""Differences between cells, with intervals that allow for how many are looked at.

Over seeds where a cell has two (see `spread`), and corrected by family:

    pairs     all pairs of cells at once (Tukey): whatever is compared after looking, so also
              everything against the best cell, which the data have picked
    baseline  every cell against one named beforehand (Dunnett)

With one seed, over (image, noise) pairs: evaluation error, which supports a statement about the
trained networks only. Both measures are compared as logarithms: a difference is a ratio of errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log, nan, sqrt
from typing import Literal

import numpy as np

from ddpm.measures import MEASURES, X0Error, influence
from ddpm.quantiles import dunnett_quantile, rounded, tukey_quantile
from ddpm.report.ranking import Ranking, Standing, shared_seeds
from ddpm.report.spread import Difference, Spread, spread

CONFIDENCE = 0.95
Family = Literal["pairs", "baseline"]
Basis = Literal["paired", "unpaired", "evaluation", "none"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much higher one cell's number is than another's, in log10, and the interval of that.

    basis: paired or unpaired over seeds; evaluation: one seed, over pairs; none: no interval.
    """

    mean: float
    half_width: float
    num_seeds: int  # the fewer of the two; 1 with evaluation error
    basis: Basis
    is_own: bool = False  # rests on the spread of these two cells alone

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.mean) > self.half_width


def gap(
    ranking: Ranking,
    worse: Standing,
    better: Standing,
    measure: str,
    confidence: float = CONFIDENCE,
    family: Family = "pairs",
) -> Gap:
    """worse - better of one number; intervals of the whole family hold at `confidence` together.

    In the family "baseline", `better` is the baseline.
    """
    found = ranking.spread(measure)
    if found is not None:
        return _over_seeds(ranking, found, worse, better, confidence, family)
    seeds = shared_seeds((worse, better))
    if not seeds:
        mean = ranking.number(worse, measure) - ranking.number(better, measure)
        return Gap(mean=mean, half_width=inf, num_seeds=0, basis="none")
    numbers = [one.summaries[seeds[0]].value(measure) for one in (worse, better)]
    levels = worse.summaries[seeds[0]].levels
    row = MEASURES.index(measure)
    pairs = [influence(_error(cell, seeds[0]), levels)[row] for cell in (worse, better)]
    if measure == MEASURES[1]:
        # To first order, the logarithm of a mean is the mean over itself.
        pairs = [part / (number * log(10)) for part, number in zip(pairs, numbers, strict=True)]
        numbers = [float(np.log10(number)) for number in numbers]
    mean = numbers[0] - numbers[1]
    return _over_pairs(ranking, mean, pairs[0] - pairs[1], confidence, family)


def level_gaps(
    ranking: Ranking, a: Standing, b: Standing, confidence: float = CONFIDENCE
) -> list[Gap]:
    """a - b of log10 MSE at each common level, for all pairs of cells and all levels together."""
    each = 1 - (1 - confidence) / max(len(ranking.levels), 1)
    return [_level_gap(ranking, a, b, level, each) for level in ranking.levels]


def _level_gap(ranking: Ranking, a: Standing, b: Standing, level: int, confidence: float) -> Gap:
    overall = ranking.spread(MEASURES[0])
    if overall is not None:
        found = spread(_table(ranking, level), codes=ranking.codes, is_paired=overall.is_paired)
        assert found is not None  # the same trials scatter at every level
        return _over_seeds(ranking, found, a, b, confidence, "pairs")
    seeds = shared_seeds((a, b))
    if not seeds:
        return Gap(mean=0.0, half_width=inf, num_seeds=0, basis="none")
    numbers = [_log_mse(cell, seeds[0], level) for cell in (a, b)]
    pairs = [influence(_error(cell, seeds[0]), [level])[0] for cell in (a, b)]
    return _over_pairs(ranking, numbers[0] - numbers[1], pairs[0] - pairs[1], confidence, "pairs")


def _over_seeds(
    ranking: Ranking, found: Spread, a: Standing, b: Standing, confidence: float, family: Family
) -> Gap:
    places = ranking.place(a), ranking.place(b)
    difference = found.difference(*places)
    count = min(len(a.summaries), len(b.summaries))
    if not isfinite(difference.error):
        return Gap(mean=difference.mean, half_width=inf, num_seeds=count, basis="none")
    loads = _loads(ranking, b, difference) if family == "baseline" else ()
    width = _quantile(len(ranking.standings), confidence, difference.dof, loads)
    return Gap(
        mean=difference.mean,
        half_width=width * difference.error,
        num_seeds=count,
        basis="paired" if found.is_paired else "unpaired",
        is_own=difference.is_own,
    )


def _over_pairs(
    ranking: Ranking, mean: float, differences: np.ndarray, confidence: float, family: Family
) -> Gap:
    count = len(differences)
    if count < 2:
        return Gap(mean=mean, half_width=inf, num_seeds=1, basis="none")
    error = float(differences.std(ddof=1)) / sqrt(count)
    cells = len(ranking.standings)
    # Nothing is known of the correlations of such comparisons: Sidak's quantile needs none.
    loads = (0.0,) * (cells - 1) if family == "baseline" else ()
    width = _quantile(cells, confidence, float(count - 1), loads)
    return Gap(mean=mean, half_width=width * error, num_seeds=1, basis="evaluation")


def _quantile(cells: int, confidence: float, dof: float, loads: Sequence[float]) -> float:
    if loads:
        return dunnett_quantile(confidence, tuple(loads), rounded(dof))
    return tukey_quantile(confidence, max(cells, 2), rounded(dof))


def _loads(ranking: Ranking, baseline: Standing, difference: Difference) -> tuple[float, ...]:
    """Square roots of the correlations of comparisons that share the baseline."""
    others = [one for one in ranking.standings if one is not baseline]
    if difference.is_own:
        return (0.0,) * len(others)
    base = len(baseline.summaries)
    return tuple(sqrt(len(one.summaries) / (len(one.summaries) + base)) for one in others)


def _table(ranking: Ranking, level: int) -> np.ndarray:
    """log10 MSE at a level, (cells, seeds), NaN where a trial is missing."""
    return np.array(
        [
            [_log_mse(one, seed, level) if seed in one.trials else nan for seed in ranking.seeds]
            for one in ranking.standings
        ]
    )


def _log_mse(standing: Standing, seed: int, level: int) -> float:
    return float(np.log10(_error(standing, seed).at([level]).mean()))


def _error(standing: Standing, seed: int) -> X0Error:
    error = standing.trials[seed].error
    assert error is not None  # `rank` keeps evaluated trials only
    return error
