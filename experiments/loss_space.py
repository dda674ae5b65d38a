"""Loss space against prediction type on Fashion-MNIST: which matters more (JiT, Li & He 2025).

The nine cells of sweeps/loss_space.yaml, each at a learning rate of its own, by the FID that every
training measures as it goes on. log10 FID = row + column + rest, by least squares over the cells
that learned more than the data's mean and covariance; the effect of a factor is the range of its
rows, the loss spaces, or of its columns, what the network predicts.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite, log10, nan

import numpy as np

from ddpm.errors import InputError
from ddpm.metrics import common_levels, x0_summary
from ddpm.report import SweepResults, TrialResult, rank
from experiments.claims import Claim, Numbers, Result, new_figure, png, spread
from experiments.trials import (
    LEAST_FID,
    PREDICTIONS,
    Cell,
    StudyOptions,
    by_cell,
    failures,
    planned,
    trained,
)

SHORT = (
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH=33",
    "EVALUATION.FEATURES=pixels",
    "EVALUATION.SAMPLES=256",
    "TUNE.TRIALS=2",
    "SEEDS=[0,1]",
)
KEYS = ("TRAINING.LOSS_SPACE", "TRAINING.PRED_TYPE")
FID = "val_fid_infinity"  # a column of metrics.jsonl

Grid = Mapping[int, np.ndarray]  # seed -> (loss space, prediction type), NaN where nothing counts


def result(options: StudyOptions) -> Result:
    """Trains what is not trained, and compares."""
    return compare(trained(planned("loss_space", options, SHORT), options))


def compare(found: SweepResults) -> Result:
    """The trainings of a sweep over both factors, at every length at which all measured a FID.

    InputError where a cell has no training that ended well, or no such length is there.
    """
    wanted = tuple(itertools.product(PREDICTIONS, PREDICTIONS))
    cells = by_cell(found.with_status("done"), KEYS, wanted)

    def grids(number: Callable[[TrialResult], float], without: Collection[Cell]) -> Grid:
        return {
            seed: np.array(
                [nan if cell in without else number(cells.trials[cell][seed]) for cell in wanted]
            ).reshape(len(PREDICTIONS), len(PREDICTIONS))
            for seed in cells.seeds
        }

    ranking = rank(found)
    unlearned = {tuple(one.cell[key] for key in KEYS) for one in ranking.set_apart}
    every = [cells.trials[cell][seed] for cell in wanted for seed in cells.seeds]
    levels = common_levels(one.error.levels for one in every if one.error is not None)
    lengths = sorted(set.intersection(*(set(_log_fids(one)) for one in every)))
    if not lengths:
        raise InputError(
            "no FID was measured at a step that all trainings share; give EVALUATION.FEATURES and "
            "EVALUATION.EVERY"
        )
    by_length = {images: grids(_log_fid_after(images), unlearned) for images in lengths}
    last = by_length[lengths[-1]]
    features = found.trials[0].config.get("EVALUATION.FEATURES")
    claims = (
        Claim(
            paper="the loss space moves FID more than the output does (ImageNet 64x64: means of "
            "rows 6.03, 3.78, 3.55, of columns 4.29, 4.62, 4.44).",
            number="range of log10 FID over loss spaces less that over outputs",
            values=tuple(_effect(grid, 0) - _effect(grid, 1) for grid in last.values()),
        ),
        Claim(
            paper="a loss on the image is the worst of the three.",
            number="its log10 FID less that of the better of the others",
            values=tuple(_worse(grid, "image") for grid in last.values()),
        ),
    )
    return Result(
        name="loss_space",
        source="computed from Li & He 2025, Table 2(b)",
        setting="Fashion-MNIST, 28x28 in 7x7 patches of 4x4 pixels, a U-Net of one level instead "
        f"of a transformer; FID of {features} features, extrapolated to infinitely many samples; "
        f"x0-error over log SNR {levels[0]} to {levels[-1]}. Effects and claims are of log10 FID = "
        f"row + column over the cells that learned more than the data's mean and covariance"
        f"{_set_apart(unlearned, ranking.too_few_learned)}.",
        claims=claims,
        tables=(
            _table(
                f"log10 FID after {lengths[-1]:,} images seen, rows are loss spaces, columns what "
                "the network predicts",
                grids(_log_fid_after(lengths[-1]), ()),
            ),
            _table(
                "Mean log10 of the x0-error, likewise",
                grids(lambda one: _log_mse(one, levels), ()),
            ),
            _effects(
                {f"log10 FID after {images:,} images": one for images, one in by_length.items()}
                | {"mean log10 x0-error": grids(lambda one: _log_mse(one, levels), unlearned)}
            ),
        ),
        pictures={"loss_space.png": _chart(by_length)},
        failed=failures(found),
    )


def _log_fids(trial: TrialResult) -> dict[int, float]:
    """log10 of every FID that the training measured, by the number of images it had seen."""
    batch = trial.config["TRAINING.HYPER_PARAMETERS.BATCH_SIZE"]
    assert isinstance(batch, int)
    rows = zip(trial.metrics["step"], trial.metrics.get(FID, ()), strict=False)
    return {round(step) * batch: log10(max(fid, LEAST_FID)) for step, fid in rows if isfinite(fid)}


def _log_fid_after(images: int) -> Callable[[TrialResult], float]:
    return lambda trial: _log_fids(trial)[images]


def _log_mse(trial: TrialResult, levels: Sequence[int]) -> float:
    assert trial.error is not None  # trials that are done have been evaluated
    return x0_summary(trial.error, levels)["mean_log10_mse"][0]


def _fit(grid: np.ndarray, axis: int) -> np.ndarray:
    """The rows (0) or columns (1) of number = row + column + rest, but for a constant each.

    Those of a full grid are its means; NaN where nothing counts.
    """
    rows, columns = places = np.nonzero(np.isfinite(grid))
    count, width = grid.shape
    design = np.hstack([np.eye(count)[rows], np.eye(width)[columns]])
    found = np.linalg.lstsq(design, grid[places], rcond=None)[0]
    found[~design.any(axis=0)] = nan
    return found[:count] if axis == 0 else found[count:]


def _effect(grid: np.ndarray, axis: int) -> float:
    """The range of the rows (0, loss spaces) or columns (1, outputs)."""
    found = _fit(grid, axis)
    return float(np.nanmax(found) - np.nanmin(found))


def _worse(grid: np.ndarray, space: str) -> float:
    rows = dict(zip(PREDICTIONS, _fit(grid, 0), strict=True))
    return float(rows.pop(space) - np.nanmin(list(rows.values())))


def _set_apart(unlearned: Collection[Cell], too_few_learned: bool) -> str:
    if too_few_learned:
        return "; none has, so all are in and have only begun"
    if not unlearned:
        return ", which all did"
    return "; set apart: " + ", ".join(
        f"{kind} with a loss on {space}" for space, kind in sorted(unlearned)
    )


def _table(title: str, grids: Grid) -> Numbers:
    return Numbers(
        title=title,
        headings=("loss on", *PREDICTIONS),
        rows=tuple(
            (space, *(spread([g[row, column] for g in grids.values()]) for column in range(3)))
            for row, space in enumerate(PREDICTIONS)
        ),
    )


def _effects(measures: Mapping[str, Grid]) -> Numbers:
    return Numbers(
        title="Effects: ranges of the rows, and of the columns",
        headings=("measure", "of the loss space", "of the output"),
        rows=tuple(
            (name, *(spread([_effect(g, axis) for g in grids.values()]) for axis in (0, 1)))
            for name, grids in measures.items()
        ),
    )


def _chart(by_length: Mapping[int, Grid]) -> bytes:
    """PNG: both effects over the images seen, one line a seed."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for axis, (name, color) in enumerate([("the loss space", "C0"), ("the output", "C1")]):
        for seed in next(iter(by_length.values())):
            values = [_effect(grids[seed], axis) for grids in by_length.values()]
            label = f"effect of {name}, seed {seed}"
            axes.plot(list(by_length), values, color=color, marker="o", ms=4, label=label)
    axes.set(xlabel="images seen", ylabel="range of log10 FID", xscale="log")
    axes.legend(fontsize=7)
    return png(figure)
