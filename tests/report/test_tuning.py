"""The choice within each cell, and the answer that one choice for all would have given."""

from dataclasses import replace

import numpy as np

from ddpm.metrics.intervals import Interval
from ddpm.report.page import next_command, progress
from ddpm.report.ranking import rank
from ddpm.report.reading import SweepResults
from ddpm.report.tuning import LENGTH, chosen_within, tuning_of
from ddpm.report.verdict import judge
from tests.support.known_sweeps import PRED_TYPE, error_of, quality_of, sampled_sweep

RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
RATES = (0.001, 0.003, 0.01, 0.03)
# log10 of KID and FID alike: each prediction type is best at a rate of its own.
CURVES = {
    "noise": (0.0, 0.2, 0.4, 0.6),
    "image": (0.3, 0.1, 0.3, 0.5),
    "velocity": (0.6, 0.25, -0.1, 0.1),
}


def sweep_of_draws() -> SweepResults:
    cells = [{PRED_TYPE: name, RATE: rate} for name in CURVES for rate in RATES]
    numbers = np.array([value for curve in CURVES.values() for value in curve])[:, None]
    drawn = sampled_sweep(numbers, numbers, cells)
    space = {RATE: (0.001, 0.03)}
    return replace(drawn, trials=(), tuning=drawn.trials, space=space)


def test_each_cell_gets_the_draw_that_is_lowest_in_it() -> None:
    assert chosen_rates(sweep_of_draws()) == {"noise": 0.001, "image": 0.003, "velocity": 0.01}


def test_the_length_of_the_average_is_chosen_among_those_of_each_training() -> None:
    """image is best by the longer average, the others by the shorter one."""
    drawn = sweep_of_draws()
    trials = []
    for trial in drawn.tuning:
        assert trial.quality is not None
        (point,) = trial.quality.points
        gain = 0.5 if trial.cell[PRED_TYPE] == "image" else 2.0
        longer = quality_of(gain * point.kid.value, gain * point.fid.value).points[0]  # type: ignore[union-attr]
        points = (replace(point, ema_length=0.05), replace(longer, ema_length=0.1))
        asked = {"EMA_LENGTHS": [0.05, 0.1]}
        quality = replace(trial.quality, points=points, identity=asked)
        trials.append(replace(trial, quality=quality))
    drawn = replace(drawn, tuning=tuple(trials))
    chosen = {one["cell"][PRED_TYPE]: one["chosen"] for one in chosen_within(drawn)}
    assert chosen == {
        "noise": {RATE: 0.001, LENGTH: [0.05]},
        "image": {RATE: 0.003, LENGTH: [0.1]},
        "velocity": {RATE: 0.01, LENGTH: [0.05]},
    }
    # as trials to be compared they are compared by the first length alone
    assert [one.value("kid") for one in rank(replace(drawn, trials=drawn.tuning)).standings] == [
        one.value("kid")
        for one in rank(replace(sweep_of_draws(), trials=sweep_of_draws().tuning)).standings
    ]


def test_draws_that_samples_do_not_resolve_are_equal_and_the_other_measure_decides() -> None:
    """A KID of less than its error is of no use, however small that error."""
    drawn = sweep_of_draws()
    trials = []
    for trial in drawn.tuning:
        assert trial.quality is not None
        (point,) = trial.quality.points
        width = 1e-9 if trial.cell[RATE] == 0.03 else 1e-3
        kid = Interval(value=-width, low=-3 * width, high=width, n=4096)
        trials.append(
            replace(trial, quality=replace(trial.quality, points=(replace(point, kid=kid),)))
        )
    expected = {"noise": 0.001, "image": 0.003, "velocity": 0.01}
    assert chosen_rates(replace(drawn, tuning=tuple(trials))) == expected
    # where FID is equal too, the x0-error
    flat = []
    for trial in trials:
        assert trial.quality is not None
        fid = Interval(value=1.0, low=0.9, high=1.1, n=4096)
        points = (replace(trial.quality.points[0], fid=fid),)
        error = error_of(-2.0 if trial.cell[RATE] == 0.003 else -1.0)
        flat.append(replace(trial, error=error, quality=replace(trial.quality, points=points)))
    assert set(chosen_rates(replace(drawn, tuning=tuple(flat))).values()) == {0.003}


def chosen_rates(sweep: SweepResults) -> dict[object, object]:
    return {one["cell"][PRED_TYPE]: one["chosen"][RATE] for one in chosen_within(sweep)}


def test_a_draw_without_samples_is_chosen_by_the_x0_error() -> None:
    """Two draws were sampled, by two lengths but not alike: no samples are compared."""
    drawn = sweep_of_draws()
    trials = []
    for number, trial in enumerate(drawn.tuning):
        assert trial.quality is not None
        (point,) = trial.quality.points
        points = tuple(replace(point, ema_length=length) for length in (0.05, 0.1))
        quality = replace(trial.quality, points=points, protocol=f"of {number}")
        error = error_of(-2.0 if trial.cell[RATE] == 0.003 else -1.0)
        trials.append(replace(trial, error=error, quality=quality if number < 2 else None))
    assert [one["chosen"] for one in chosen_within(replace(drawn, tuning=tuple(trials)))] == [
        {RATE: 0.003}
    ] * 3


def test_a_choice_at_an_end_of_its_range_is_said() -> None:
    found = tuning_of(sweep_of_draws())
    assert found is not None
    assert {one.cell[PRED_TYPE] for one in found.cells if one.is_at_edge} == {"noise"}


def test_the_order_at_one_rate_for_all_is_compared_with_that_at_each_own() -> None:
    """At 0.003, best for all, image < noise < velocity; at their own velocity < noise < image."""
    found = tuning_of(sweep_of_draws())
    assert found is not None
    tau, common = found.order_kept() or (None, None)
    assert common == {RATE: 0.003}
    # pairs: noise-image swapped, noise-velocity swapped, image-velocity swapped
    assert tau == -1.0


def test_a_sweep_without_tuning_has_none() -> None:
    drawn = sweep_of_draws()
    assert tuning_of(replace(drawn, tuning=(), trials=drawn.tuning)) is None


def test_a_cell_in_which_nothing_could_be_chosen_is_said_to_be_missing() -> None:
    drawn = sweep_of_draws()
    compared = sampled_sweep(
        np.zeros((2, 2)), np.zeros((2, 2)), [{PRED_TYPE: name} for name in ("noise", "image")]
    )
    ranking = rank(replace(drawn, trials=compared.trials))
    assert ranking.excluded == (
        ("velocity", "no training that would choose within it has finished"),
    )


def test_while_numbers_are_chosen_the_page_counts_those_trainings() -> None:
    drawn = replace(sweep_of_draws(), planned=0, planned_tuning=13, command="ddpm sweep s.yaml")
    assert progress(drawn) == "12 of 13 trainings that choose within cells finished"
    ranking = rank(drawn)
    what, command = next_command(drawn, ranking, judge(drawn, ranking))
    assert what.startswith("Unfinished: 1 of 13 trials are left") and command == drawn.command
