"""Which prediction types bear which weighting: noise under the truncated SNR (Salimans & Ho 2022).

The networks of sweeps/truncated_snr.yaml, compared by their x0-error at the log-SNR levels that all
of them share. A training that ends in non-finite numbers (exit code 4) counts as infinitely bad.
"""

from collections.abc import Mapping
from math import inf, isfinite

from ddpm.diffusion import PRED_TYPES
from ddpm.measures import common_levels, summary
from ddpm.published.claims import Claim, Numbers, Result, spread
from ddpm.published.trials import Options, by_cell, failures, planned, shared_seeds, trained
from ddpm.report.data import Trial

WEIGHTINGS = ("snr", "truncated_snr", "uniform")
SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=15",
    "TRAINING.INLINE_GEN.PERIOD=15",
    "GRID.TRAINING.LOSS_WEIGHTING=[truncated_snr,uniform]",
)

Errors = Mapping[tuple[object, ...], Mapping[int, float]]  # mean log10 MSE by cell and seed


def result(options: Options) -> Result:
    """Trains what is not trained, and compares."""
    found = trained(planned("truncated_snr", options, SHORT), options)
    ended = [*found.with_status("done"), *found.with_status("failed")]
    cells = by_cell(ended, "TRAINING.PRED_TYPE", "TRAINING.LOSS_WEIGHTING")
    errors, levels = _errors(cells)
    seeds = shared_seeds(cells)
    cost = {
        kind: [
            _less(errors[kind, "truncated_snr"][seed], errors[kind, "uniform"][seed])
            for seed in seeds
        ]
        for kind in PRED_TYPES
    }
    others = zip(cost["image"], cost["velocity"], strict=True)
    claims = (
        Claim(
            paper="noise prediction diverges under the truncated SNR.",
            number="how much its mean log10 x0-error is higher there than under the plain loss on "
            "the velocity",
            values=tuple(cost["noise"]),
        ),
        Claim(
            paper="image and velocity prediction do not (their FID even gains).",
            number="how much less that weighting costs the worse of them than it costs noise "
            "prediction",
            values=tuple(
                _less(noise, max(pair)) for noise, pair in zip(cost["noise"], others, strict=True)
            ),
        ),
    )
    return Result(
        name="truncated_snr",
        source="Salimans & Ho 2022, Table 1",
        setting="Handwritten digits, 8x8, instead of CIFAR-10, 600 steps at most; gradients are "
        f"clipped to norm 1 as in the paper. The x0-error is a mean over log SNR {levels[0]} to "
        f"{levels[-1]}.",
        claims=claims,
        tables=(_table(errors),),
        failed=failures(found),
    )


def _errors(cells: Mapping[tuple[object, ...], Mapping[int, Trial]]) -> tuple[Errors, tuple[int, ...]]:
    """Mean log10 MSE over the levels that all finished trials share; inf for one that failed."""
    done = [one.error for cell in cells.values() for one in cell.values() if one.error is not None]
    levels = common_levels(error.levels for error in done)

    def value(trial: Trial) -> float:
        number = inf if trial.error is None else summary(trial.error, levels).mean_log10_mse
        return number if isfinite(number) else inf

    errors = {
        cell: {seed: value(trial) for seed, trial in trials.items()}
        for cell, trials in cells.items()
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
            for kind in PRED_TYPES
        ),
    )
