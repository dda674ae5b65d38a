"""Truncated SNR, max(SNR, 1): the prediction types that gain by it (Salimans & Ho 2022, Table 1).

In the paper noise prediction diverges under it and not under SNR + 1. On the noise these weigh by
max(1, 1 / SNR) and 1 + 1 / SNR, within a factor of two of each other everywhere: that one diverges
and the other does not is no property of the two, and is not tested. That the truncated SNR
helps image and velocity prediction, and not noise prediction, is.

The networks of sweeps/truncated_snr.yaml, compared by their x0-error at the log-SNR levels that all
of them share. A training that ends in non-finite numbers (exit code 4) counts as infinitely bad.
"""

import itertools
from collections.abc import Mapping, Sequence
from math import inf, isfinite

from ddpm.metrics import common_levels, x0_summary
from ddpm.report import SweepResults, TrialResult
from experiments.claims import Claim, Numbers, Result, spread
from experiments.trials import (
    PREDICTIONS,
    Cell,
    Cells,
    StudyOptions,
    by_cell,
    failures,
    planned,
    trained,
)

WEIGHTINGS = ("snr", "truncated_snr", "uniform")
GAINED = "truncated_snr"
LEVELS = tuple(range(-8, 6))  # of log SNR, those of docs/results.md
SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=15",
    "TRAINING.INLINE_GEN.PERIOD=15",
)

Errors = Mapping[Cell, Mapping[int, float]]  # mean log10 MSE by cell and seed


def result(options: StudyOptions) -> Result:
    """Trains what is not trained, and compares."""
    found = trained(planned("truncated_snr", options, SHORT), options)
    return compare(found)


def compare(found: SweepResults) -> Result:
    """The trainings of a sweep over prediction types and weightings, those that failed too."""
    ended = [*found.with_status("done"), *found.with_status("failed")]
    cells = by_cell(
        ended,
        ["TRAINING.PRED_TYPE", "TRAINING.LOSS_WEIGHTING"],
        itertools.product(PREDICTIONS, WEIGHTINGS),
    )
    errors, levels = _errors(cells)
    by = {cell: [errors[cell][seed] for seed in cells.seeds] for cell in errors}
    gains = {
        kind: tuple(_less(*pair) for pair in zip(by[kind, "snr"], by[kind, GAINED], strict=True))
        for kind in PREDICTIONS
    }
    lesser = [min(pair) for pair in zip(gains["image"], gains["velocity"], strict=True)]
    claims = (
        *(
            Claim(
                paper=f"the truncated SNR helps {kind} prediction.",
                number="how far it lowers the mean log10 x0-error below that under the plain loss "
                "on the noise",
                values=gains[kind],
            )
            for kind in ("image", "velocity")
        ),
        Claim(
            paper="it does not help noise prediction.",
            number="how far it raises the mean log10 x0-error of that above the plain loss",
            values=tuple(-gain for gain in gains["noise"]),
        ),
        Claim(
            paper="so it takes another output to use it.",
            number="the lesser of the two gains less that of noise prediction",
            values=tuple(_less(*pair) for pair in zip(lesser, gains["noise"], strict=True)),
        ),
    )
    return Result(
        name="truncated_snr",
        source="Salimans & Ho 2022, Table 1",
        setting=f"Handwritten digits, 8x8, instead of CIFAR-10; {_clipping(ended)}. "
        f"The x0-error is a mean over {len(levels)} levels of log SNR from "
        f"{min(levels, default=0)} to {max(levels, default=0)}.",
        claims=claims,
        tables=(_table(errors),),
        failed=failures(found),
    )


def _clipping(trials: Sequence[TrialResult]) -> str:
    norms = {trial.config["TRAINING.CLIP_NORM"] for trial in trials} - {None}
    if not norms:
        return "gradients are not clipped"
    return f"gradients are clipped to norm {' or '.join(f'{norm:g}' for norm in norms)}"


def _errors(cells: Cells) -> tuple[Errors, tuple[int, ...]]:
    """Mean log10 MSE over those of LEVELS that all trials share; inf for one that failed."""
    every = [trial for trials in cells.trials.values() for trial in trials.values()]
    there = [trial.error.levels for trial in every if trial.error is not None]
    levels = common_levels([LEVELS, *there])

    def value(trial: TrialResult) -> float:
        number = (
            inf if trial.error is None else x0_summary(trial.error, levels)["mean_log10_mse"][0]
        )
        return number if isfinite(number) else inf

    errors = {
        cell: {seed: value(trial) for seed, trial in trials.items()}
        for cell, trials in cells.trials.items()
    }
    return errors, levels


def _less(a: float, b: float) -> float:
    """a - b, where what is infinite on both sides says nothing."""
    return 0.0 if a == b else a - b


def _table(errors: Errors) -> Numbers:
    there = [one for one in WEIGHTINGS if any(cell[1] == one for cell in errors)]
    return Numbers(
        title="Mean log10 of the x0-error, lower is better",
        headings=("network says", *there),
        rows=tuple(
            (kind, *(spread(list(errors[kind, one].values())) for one in there))
            for kind in PREDICTIONS
        ),
    )
