"""ddpm.report.best_samples: the best cell over network calls and over guidance."""

from collections.abc import Mapping
from dataclasses import replace

import altair
import numpy as np

from ddpm.metrics.quality import LeftOut
from ddpm.report import charts
from ddpm.report.best_samples import Along, along, left_out, spots_of
from ddpm.report.labels import axes_of
from ddpm.report.ranking import rank
from ddpm.report.reading import SweepResults
from ddpm.report.tables import tables
from ddpm.report.verdict import judge
from tests.support.known_sweeps import SCHEDULER, error_of, quality_of, sweep_of, trial_of

# calls or guidance -> log10 of KID and FID of a cell
Curve = Mapping[float, float]


def swept(curves: Mapping[str, Curve], over: str = "calls", seeds: int = 4) -> SweepResults:
    """A deviation of 0.01 over seeds, the same for no two of them."""
    rng = np.random.default_rng(0)
    trials = []
    for name, curve in curves.items():
        for seed in range(seeds):
            points = []
            for value, truth in curve.items():
                number = 10 ** (truth + 0.01 * rng.normal())
                (point,) = quality_of(number, 20 * number).points
                calls = {"num_steps": int(value), "evaluations": int(value)}
                points.append(replace(point, **calls if over == "calls" else {"guidance": value}))
            quality = replace(quality_of(1.0, 1.0), points=tuple(points))
            trials.append(trial_of({SCHEDULER: name}, seed, error_of(-1.0), quality=quality))
    return sweep_of(trials)


def found(sweep: SweepResults) -> list[Along]:
    return along(sweep, rank(sweep))


CROSSING = {
    "linear": {5: -0.5, 10: -0.7, 25: -1.0, 50: -1.0},
    "cosine": {5: -0.2, 10: -0.6, 25: -1.0, 50: -1.2},
    "cos6": {5: 0.5, 10: 0.5, 25: 0.5, 50: 0.5},
}


def test_the_page_says_where_the_best_cell_changes() -> None:
    sweep = swept(CROSSING)
    (calls,) = found(sweep)
    assert calls.name == "network calls" and list(calls.rankings) == [5, 10, 25, 50]
    (said,) = calls.sentences()
    assert said == (
        "The answer depends on network calls: at 5 and 10 linear beats cosine; at 50 cosine beats "
        "linear."
    ) or said == (
        "The answer depends on network calls: at 50 cosine beats linear; at 5 and 10 linear beats "
        "cosine."
    )
    ranking = rank(sweep)
    assert said in judge(sweep, ranking).sentences
    # intervals hold for all four numbers of calls together
    one = rank(sweep, at=ranking.point)
    pair = (one.standings[0], one.standings[1], "kid")
    of_all = calls.rankings[50]
    wide = of_all.gap(of_all.standings[0], of_all.standings[1], "kid").half_width
    assert of_all.confidence == 1 - 0.05 / 4 and wide > 1.1 * one.gap(*pair).half_width


def test_a_crossing_that_intervals_do_not_show_is_not_said() -> None:
    near = {"linear": {10: -0.70, 50: -1.00}, "cosine": {10: -0.69, 50: -1.01}}
    (calls,) = found(swept(near, seeds=3))
    assert calls.sentences() == []
    one_sided = {"linear": {10: -0.9, 50: -1.00}, "cosine": {10: -0.5, 50: -1.005}}
    (calls,) = found(swept(one_sided, seeds=3))
    assert not [said for said in calls.sentences() if "depends" in said]


def test_a_cell_that_wins_everywhere_is_said_to() -> None:
    curves = {"linear": {10: -0.9, 50: -1.2}, "cosine": {10: -0.5, 50: -0.8}}
    (calls,) = found(swept(curves))
    assert calls.sentences() == [
        "linear wins at every value of network calls tried, from 10 to 50."
    ]


def test_one_value_of_an_axis_is_no_range_over_which_a_cell_wins() -> None:
    curves = {"linear": {10: -0.9, 50: -1.2}, "cosine": {10: -0.5, 50: -0.8}}
    (calls,) = found(swept(curves))
    one = replace(calls, rankings={50: calls.rankings[50]})
    assert one.rankings[50].winner is not None and one.sentences() == []


def test_each_length_of_the_average_has_a_panel_and_a_line_left_out_of_its_own() -> None:
    sweep = swept({"linear": {1.0: -1.0, 2.0: -0.5}, "cosine": {1.0: -0.8, 2.0: -1.2}}, "guidance")
    trials = []
    for trial in sweep.trials:
        assert trial.quality is not None
        points = tuple(
            replace(point, ema_length=length)
            for length in (0.05, 0.1)
            for point in trial.quality.points
        )
        lost = tuple(
            LeftOut(num_steps=5, eta=0.0, reason="no", ema_length=one) for one in (0.05, 0.1)
        )
        trials.append(replace(trial, quality=replace(trial.quality, points=points, left_out=lost)))
    sweep = replace(sweep, trials=tuple(trials))
    axes, ranking = axes_of(sweep), rank(sweep)
    spec = charts.sampling_curves(spots_of(sweep, axes), ["kid"], ranking, axes, over="guidance")
    rows = spec["datasets"]["kid"]
    assert {row["panel"].rpartition(", ")[2] for row in rows} == {
        "\u03b7=0 length=0.05",
        "\u03b7=0 length=0.1",
    }
    assert len(left_out(sweep, axes)) == 2 * 2
    (guidance,) = along(sweep, ranking)
    assert list(guidance.rankings) == [1.0, 2.0]
    assert set(tables(sweep)["sampling"]["ema_length"]) == {0.05, 0.1}


def test_guidance_is_an_axis_too_and_the_headline_stays_unguided() -> None:
    curves = {"linear": {1.0: -1.0, 2.0: -0.5}, "cosine": {1.0: -0.8, 2.0: -1.2}}
    sweep = swept(curves, over="guidance")
    ranking = rank(sweep)
    assert ranking.point is not None and ranking.point.guidance == 1.0
    (guidance,) = along(sweep, ranking)
    assert guidance.name == "guidance" and list(guidance.rankings) == [1.0, 2.0]
    (said,) = guidance.sentences()
    assert "at 1 linear beats cosine" in said and "at 2 cosine beats linear" in said
    axes = axes_of(sweep)
    spec = charts.sampling_curves(spots_of(sweep, axes), ["kid"], ranking, axes, over="guidance")
    altair.Chart.from_dict(spec)
    assert {row["calls"] for row in spec["datasets"]["kid"]} == {1.0, 2.0}
