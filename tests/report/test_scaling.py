"""ddpm.report.scaling: slopes over compute, and crossings that intervals show."""

from math import log10

import altair
import numpy as np
import pytest

from ddpm.config import X0_MEASURES
from ddpm.metrics import mean_interval
from ddpm.report import charts
from ddpm.report.labels import axes_of
from ddpm.report.ranking import rank
from ddpm.report.reading import SweepResults
from ddpm.report.scaling import SIZES, crossings, laws, seconds_of
from ddpm.report.sections import Table, Text, scaled
from tests.support.known_sweeps import PRED_TYPE, error_of, quality_of, sweep_of, trial_of

WIDTH, EPOCHS = SIZES


def sizes(
    slopes: dict[str, tuple[float, float]], seeds: int = 4, scatter: float = 0.01
) -> SweepResults:
    """log10 error = a + b log10 seconds on three widths, each at one length; shorter ones are
    far worse, and so not on the front.
    """
    rng = np.random.default_rng(0)
    trials = []
    for name, (a, b) in slopes.items():
        for width, seconds in ((8, 10.0), (16, 100.0), (32, 1000.0)):
            for epochs, spent, worse in ((60, seconds, 0.0), (20, 1.1 * seconds, 0.5)):
                for seed in range(seeds):
                    level = a + b * log10(spent) + worse + scatter * rng.normal()
                    cell = {PRED_TYPE: name, WIDTH: width, EPOCHS: epochs}
                    summary = {"core_seconds": spent}
                    trials.append(trial_of(cell, seed, error_of(level), summary=summary))
    return sweep_of(trials)


def test_the_slope_is_that_of_the_front_with_its_interval_over_seeds() -> None:
    ranking = rank(sizes({"noise": (-1.0, -0.3), "velocity": (-1.2, -0.2)}))
    noise, velocity = sorted(laws(ranking, X0_MEASURES[0]), key=lambda law: law.name)
    for law, truth in ((noise, -0.3), (velocity, -0.2)):
        assert [one.cell[EPOCHS] for one in law.front] == [60, 60, 60]
        value, half = law.slope
        assert abs(value - truth) < half < 0.02
        assert (value, half) == pytest.approx(mean_interval(law.lines[:, 1].tolist()))
    assert [seconds_of(one) for one in noise.front] == [10, 100, 1000]


def test_lines_that_cross_are_said_to_where_intervals_show_both_ends() -> None:
    ranking = rank(sizes({"noise": (-0.8, -0.4), "velocity": (-1.2, -0.2)}))
    (said,) = crossings(laws(ranking, X0_MEASURES[0]))
    assert said.startswith("By mean log10 error velocity is better up to ")
    assert " and noise from " in said and "their lines cross at 95 s" in said  # the truth: 100 s
    sweep = sizes({"noise": (-0.8, -0.4), "velocity": (-1.2, -0.2)})
    axes = axes_of(sweep)
    blocks = list(scaled(sweep, ranking, axes))
    assert said in [block.words for block in blocks if isinstance(block, Text)]
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert {row[1] for row in table.rows} == {"noise", "velocity"}
    spec = charts.over_compute([laws(ranking, X0_MEASURES[0])], axes)
    altair.Chart.from_dict(spec)


def test_cells_that_samples_do_not_resolve_are_in_no_line_and_are_said_to_be_left_out() -> None:
    """The KID of the widest is below its error on one seed of two."""
    trials = []
    for width, kid in ((8, 1.0), (16, 0.5), (24, 0.25), (32, 0.01)):
        for seed in range(2):
            lost = width == 32 and seed == 1
            quality = quality_of(-kid if lost else kid, 20 * kid)
            summary = {"core_seconds": 10.0 * width}
            error = error_of(-1.0 - width / 100)
            trials.append(trial_of({WIDTH: width}, seed, error, summary=summary, quality=quality))
    sweep = sweep_of(trials)
    ranking = rank(sweep)
    (law,) = laws(ranking, "kid")
    assert [one.cell[WIDTH] for one in law.front] == [8, 16, 24]
    assert law.slope[0] == pytest.approx(np.polyfit(law.compute, np.log10([1.0, 0.5, 0.25]), 1)[0])
    assert [one.cell[WIDTH] for one in laws(ranking, "fid")[0].front] == [8, 16, 24, 32]
    said = [
        block.words for block in scaled(sweep, ranking, axes_of(sweep)) if isinstance(block, Text)
    ]
    assert [
        words for words in said if words.startswith("Left out of the lines of KID: 1 of 4 cells")
    ]
    assert not [words for words in said if words.startswith("Left out of the lines of FID")]


def test_nothing_is_said_that_intervals_do_not_show() -> None:
    wide = rank(sizes({"noise": (-0.99, -0.31), "velocity": (-1.01, -0.3)}, 3, scatter=0.1))
    assert crossings(laws(wide, X0_MEASURES[0])) == []
    one_seed = rank(sizes({"noise": (-0.8, -0.4), "velocity": (-1.2, -0.2)}, seeds=1))
    found = laws(one_seed, X0_MEASURES[0])
    assert crossings(found) == [] and np.isnan(found[0].slope[1])
    apart = rank(sizes({"noise": (-0.8, -0.3), "velocity": (-1.2, -0.3)}))
    (said,) = crossings(laws(apart, X0_MEASURES[0]))
    assert "velocity is below noise from 10 s to 17 min of compute" in said
