"""Sweeps in memory whose numbers are known: what a trial measured is put in by hand."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.metrics.intervals import Interval
from ddpm.metrics.quality import Quality, QualityPoint
from ddpm.metrics.x0_error import X0Error
from ddpm.report.ranking import Ranking, rank
from ddpm.report.reading import SweepResults, TrialResult

SCHEDULER, PRED_TYPE = "TRAINING.NETWORK.SCHEDULER", "TRAINING.PRED_TYPE"
TIMESTEPS = "TRAINING.NETWORK.TIMESTEPS"
LEVELS = np.arange(-1, 2)
GRID_9 = {SCHEDULER: ["linear", "cosine", "cos6"], PRED_TYPE: ["noise", "image", "velocity"]}
GRID_27 = GRID_9 | {TIMESTEPS: [50, 250, 1000]}


def cells_of(grid: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """The cells of a grid, the last key varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def error_of(number: float, clean: float = 0.0, pairs: np.ndarray | None = None) -> X0Error:
    """A curve whose mean log10 error is `number` and whose slope at the clean end is `clean`.

    pairs: (L, N) factors of mean one, by which pairs differ.
    """
    curve = 10.0 ** (number + clean * LEVELS)
    pairs = np.ones((len(LEVELS), 2)) if pairs is None else pairs
    return X0Error(levels=LEVELS, mse=curve[:, None] * pairs, ids=np.arange(pairs.shape[1]))


def error_over(levels: Sequence[int], log10: np.ndarray | float) -> X0Error:
    """A curve with these log10 errors at these levels, the same for both pairs."""
    curve = np.broadcast_to(10.0 ** np.asarray(log10), (len(levels),))
    return X0Error(levels=np.array(levels), mse=curve[:, None].repeat(2, 1), ids=np.arange(2))


def trial_of(
    cell: Mapping[str, object], seed: int, error: X0Error | None, **facts: object
) -> TrialResult:
    """A finished trial with this error; facts replace what else a trial has."""
    usual = {
        "name": f"{abs(hash((str(cell), seed))):x}",
        **{"cell": dict(cell), "seed": seed, "status": "done", "reason": None, "run_dir": None},
        **{"summary": {}, "config": dict(cell), "error": error},
        "evaluation": {"data_sha256": "d", "seed": 0},
    }
    return TrialResult(**usual | facts)


def sweep_of(trials: Sequence[TrialResult], **facts: object) -> SweepResults:
    """A sweep of these trials."""
    usual = {
        **{"folder": Path("sweeps/known"), "name": "known", "is_sweep": True, "question": ""},
        **{"command": "", "grid": {}, "planned": len(trials), "trials": tuple(trials)},
        **{"skipped": (), "references": None},
    }
    return SweepResults(**usual | facts)


def known_sweep(
    values: np.ndarray,
    cells: Sequence[Mapping[str, object]],
    *,
    clean: np.ndarray | None = None,
    seeds: np.ndarray | None = None,
) -> SweepResults:
    """values: (cells, seeds) of the mean log10 error, NaN where a trial is missing.

    clean: slopes, by which the second measure differs.  seeds: (cells, seeds), 0, 1, ... unless
    given.
    """
    slopes = np.zeros_like(values) if clean is None else clean
    numbers = np.broadcast_to(np.arange(values.shape[1]), values.shape) if seeds is None else seeds
    return sweep_of(
        [
            trial_of(cells[c], int(numbers[c, s]), error_of(values[c, s], slopes[c, s]))
            for s in range(values.shape[1])
            for c in range(values.shape[0])
            if np.isfinite(values[c, s])
        ]
    )


def around(value: float, half: float = 0.0, n: int = 4096) -> Interval:
    """The interval of so much on both sides."""
    return Interval(value=value, low=value - half, high=value + half, n=n)


def point_of(steps: int, **facts: Any) -> QualityPoint:
    """Samples of so many network calls; what is not given was not measured."""
    usual = {"sampler": "ddim", "eta": 0.0, "evaluations": steps, "seconds": 1.0}
    usual |= dict.fromkeys(("fid", "kid", "accuracy"))
    return QualityPoint(num_steps=steps, **usual | facts)


def points_of(*points: QualityPoint, **facts: Any) -> Quality:
    """The samples of a trial."""
    usual = {"features": "pixels", "num": 4096, "protocol": "p", "unit": "core-seconds"}
    return Quality(points=points, **usual | {"is_beta_defined": False, "identity": {}} | facts)


def quality_of(
    kid: float,
    fid: float,
    error: float = 0.02,
    calls: Sequence[int] = (25,),
    real: Mapping[str, Interval] | None = None,
) -> Quality:
    """Samples with these numbers, each with a standard error of `error` of itself, and a
    tenth of them in any other number of calls than the first.
    """

    def measured(count: int, value: float) -> Interval:
        value = value if count == calls[0] else value / 10
        return around(value, 1.96 * error * abs(value))

    points = [
        point_of(count, sampler="dpmpp_2m", fid=measured(count, fid), kid=measured(count, kid))
        for count in calls
    ]
    return points_of(*points, features="classifier", real=real or {})


def sampled_sweep(
    kid: np.ndarray,
    fid: np.ndarray,
    cells: Sequence[Mapping[str, object]],
    real: Mapping[str, Interval] | None = None,
) -> SweepResults:
    """kid, fid: (cells, seeds) of log10 of a measure of a trial's samples.  real: of images."""
    return sweep_of(
        [
            trial_of(
                cells[c],
                s,
                error_of(-1.0),
                quality=quality_of(10 ** kid[c, s], 10 ** fid[c, s], real=real),
            )
            for s in range(kid.shape[1])
            for c in range(kid.shape[0])
        ]
    )


def known_ranking(values: np.ndarray, cells: Sequence[Mapping[str, object]]) -> Ranking:
    """The ranking of `known_sweep`."""
    return rank(known_sweep(values, cells))


FIRST, SECOND = X0_MEASURES
