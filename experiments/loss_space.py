"""Loss space against prediction type on Fashion-MNIST: which matters more (JiT, Li & He 2025).

The nine cells of sweeps/loss_space.yaml, by the FID that every training measures at its end and by
the x0-error at the log-SNR levels that all share. The effect of a factor is the range of its means
over the other factor: of the three rows, or the three columns, of the table.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import log10

import numpy as np

from ddpm.metrics import common_levels, summary
from ddpm.report import SweepResults, TrialResult
from ddpm.runs import RunDirectory
from experiments.claims import Claim, Numbers, Result, spread
from experiments.trials import (
    PREDICTIONS,
    Cells,
    StudyOptions,
    by_cell,
    failures,
    planned,
    run_of,
    trained,
)

SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=2",
    "TRAINING.INLINE_GEN.PERIOD=2",
    "EVALUATION.EVERY=2",
    "EVALUATION.FEATURES=pixels",
    "EVALUATION.SAMPLES=256",
)

Grid = Mapping[int, np.ndarray]  # seed -> (loss space, prediction type), both in PREDICTIONS order


def result(options: StudyOptions) -> Result:
    """Trains what is not trained, and compares."""
    found = trained(planned("loss_space", options, SHORT), options)
    return compare(found)


def compare(found: SweepResults) -> Result:
    """The trainings of a sweep over both factors."""
    cells = by_cell(
        found.with_status("done"),
        ["TRAINING.LOSS_SPACE", "TRAINING.PRED_TYPE"],
        itertools.product(PREDICTIONS, PREDICTIONS),
    )
    trials = {seed: _by_place(cells, seed) for seed in cells.seeds}
    levels = common_levels(
        one.error.levels for grid in trials.values() for one in grid.flat if one.error is not None
    )
    features = found.trials[0].config.get("EVALUATION.FEATURES")
    fids = {seed: _each(grid, _log_fid) for seed, grid in trials.items()}
    errors = {seed: _each(grid, lambda one: _log_mse(one, levels)) for seed, grid in trials.items()}
    claims = (
        Claim(
            paper="the loss space moves FID more than the output does (ImageNet 64x64: means of "
            "rows 6.03, 3.78, 3.55, of columns 4.29, 4.62, 4.44).",
            number="range of log10 FID over loss spaces less that over outputs",
            values=tuple(_effect(grid, 0) - _effect(grid, 1) for grid in fids.values()),
        ),
        Claim(
            paper="a loss on the image is the worst of the three.",
            number="its mean log10 FID less that of the better of the others",
            values=tuple(_worse(grid, "image") for grid in fids.values()),
        ),
    )
    return Result(
        name="loss_space",
        source="computed from Li & He 2025, Table 2(b)",
        setting="Fashion-MNIST, 28x28 in 7x7 patches of 4x4 pixels, a U-Net of one level instead "
        f"of a transformer; FID of {features} features, extrapolated to infinitely many samples; "
        f"x0-error over log SNR {levels[0]} to {levels[-1]}.",
        claims=claims,
        tables=(
            _table("log10 FID, rows are loss spaces, columns what the network says", fids),
            _table("Mean log10 of the x0-error, likewise", errors),
            _effects({"log10 FID": fids, "mean log10 x0-error": errors}),
        ),
        failed=failures(found),
    )


def _by_place(cells: Cells, seed: int) -> np.ndarray:
    grid = np.empty((len(PREDICTIONS), len(PREDICTIONS)), dtype=object)
    for row, space in enumerate(PREDICTIONS):
        for column, kind in enumerate(PREDICTIONS):
            grid[row, column] = cells.trials[space, kind][seed]
    return grid


def _each(grid: np.ndarray, number: Callable[[TrialResult], float]) -> np.ndarray:
    return np.vectorize(number, otypes=[np.float64])(grid)


def _log_fid(trial: TrialResult) -> float:
    """log10 of the FID that the training measured at its end."""
    rows = [row for row in RunDirectory(run_of(trial)).metrics() if "val_fid_infinity" in row]
    return log10(max(rows[-1]["val_fid_infinity"], 1e-6))


def _log_mse(trial: TrialResult, levels: Sequence[int]) -> float:
    assert trial.error is not None  # trials that are done have been evaluated
    return summary(trial.error, levels).mean_log10_mse


def _effect(grid: np.ndarray, axis: int) -> float:
    """The range of the means of rows (0, loss spaces) or columns (1, outputs)."""
    return float(np.ptp(grid.mean(axis=1 - axis)))


def _worse(grid: np.ndarray, space: str) -> float:
    rows = dict(zip(PREDICTIONS, grid.mean(axis=1), strict=True))
    return float(rows.pop(space) - min(rows.values()))


def _table(title: str, grids: Grid) -> Numbers:
    return Numbers(
        title=title,
        headings=("loss on", *PREDICTIONS, "mean"),
        rows=tuple(
            (
                space,
                *(spread([g[row, column] for g in grids.values()]) for column in range(3)),
                spread([float(g[row].mean()) for g in grids.values()]),
            )
            for row, space in enumerate(PREDICTIONS)
        ),
    )


def _effects(measures: Mapping[str, Grid]) -> Numbers:
    return Numbers(
        title="Effects: ranges of the means",
        headings=("measure", "of the loss space", "of the output"),
        rows=tuple(
            (name, *(spread([_effect(g, axis) for g in grids.values()]) for axis in (0, 1)))
            for name, grids in measures.items()
        ),
    )
