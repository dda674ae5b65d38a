"""Paired differences between cells, with intervals.

Where two cells have at least two seeds in common, differences are paired by seed. Few seeds say
little about their own spread, so the spread is pooled over all cells (the residuals of cell means
and seed means, a randomised block design), and a pair's own spread is used where it is larger.
With one seed in common, differences are paired by (image, noise) pair: evaluation error, which
supports a statement about the two trained networks only.
"""

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from ddpm.measures import MEASURES, X0Error, influence, t_quantile
from ddpm.report.ranking import Ranking, Standing, shared_seeds


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


def gap(
    ranking: Ranking, worse: Standing, better: Standing, measure: str, confidence: float
) -> Gap:
    """The paired difference worse - better of one number, with its interval at `confidence`."""
    seeds = shared_seeds((worse, better))
    if not seeds:
        mean = worse.value(measure) - better.value(measure)
        return Gap(mean=mean, half_width=inf, num_seeds=0)
    differences = np.array(
        [worse.summaries[s].value(measure) - better.summaries[s].value(measure) for s in seeds]
    )
    if len(seeds) > 1:
        block = [
            [standing.summaries[seed].value(measure) for seed in shared_seeds(ranking.standings)]
            for standing in ranking.standings
        ]
        return _over_seeds(differences, np.array(block), confidence)
    row = MEASURES.index(measure)
    levels = worse.summaries[seeds[0]].levels
    pairs = [influence(_error(cell, seeds[0]), levels)[row] for cell in (worse, better)]
    return _over_pairs(float(differences[0]), pairs[0] - pairs[1], confidence)


def level_gaps(ranking: Ranking, a: Standing, b: Standing, confidence: float) -> list[Gap]:
    """The paired difference a - b of log10 MSE at each common level."""
    return [_level_gap(ranking, a, b, level, confidence) for level in ranking.levels]


def _level_gap(ranking: Ranking, a: Standing, b: Standing, level: int, confidence: float) -> Gap:
    seeds = shared_seeds((a, b))
    if not seeds:
        return Gap(mean=0.0, half_width=inf, num_seeds=0)
    differences = np.array([_log_mse(a, s, level) - _log_mse(b, s, level) for s in seeds])
    if len(seeds) > 1:
        block = [
            [_log_mse(standing, seed, level) for seed in shared_seeds(ranking.standings)]
            for standing in ranking.standings
        ]
        return _over_seeds(differences, np.array(block), confidence)
    pairs = [influence(_error(cell, seeds[0]), [level])[0] for cell in (a, b)]
    return _over_pairs(float(differences[0]), pairs[0] - pairs[1], confidence)


def _over_seeds(differences: np.ndarray, block: np.ndarray, confidence: float) -> Gap:
    """block: (cells, seeds all cells have), from which the spread is pooled."""
    count = len(differences)
    spread, dof = float(differences.std(ddof=1)), count - 1
    cells, seeds = block.shape
    if seeds > 1 and cells > 1:
        residuals = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0, keepdims=True)
        residuals = residuals + block.mean()
        dof = (cells - 1) * (seeds - 1)
        spread = max(spread, sqrt(2 * float(np.square(residuals).sum()) / dof))
    half_width = t_quantile(confidence, dof) * spread / sqrt(count)
    return Gap(mean=float(differences.mean()), half_width=half_width, num_seeds=count)


def _over_pairs(mean: float, differences: np.ndarray, confidence: float) -> Gap:
    count = len(differences)
    if count < 2:
        return Gap(mean=mean, half_width=inf, num_seeds=1)
    error = float(differences.std(ddof=1)) / sqrt(count)
    return Gap(mean=mean, half_width=t_quantile(confidence, count - 1) * error, num_seeds=1)


def _log_mse(standing: Standing, seed: int, level: int) -> float:
    return float(np.log10(_error(standing, seed).at([level]).mean()))


def _error(standing: Standing, seed: int) -> X0Error:
    error = standing.trials[seed].error
    assert error is not None  # `rank` keeps evaluated trials only
    return error
