"""Cells against the lowest and against a baseline: against scipy, and what a baseline may be."""

import numpy as np
import pytest
from scipy import stats

from ddpm.errors import InputError
from ddpm.metrics.x0_error import MEASURES
from ddpm.report.effects import against, against_baseline, gap, level_gaps, with_baseline
from ddpm.report.ranking import Ranking, rank
from ddpm.report.verdict import judge
from tests.support.known_sweeps import (
    FIRST,
    GRID_9,
    PRED_TYPE,
    SCHEDULER,
    cells_of,
    known_ranking,
    known_sweep,
)

FOUR = [{SCHEDULER: name} for name in ("linear", "cosine", "cos6", "sigmoid")]


def groups_of(number: int = 0, *, sizes: tuple[int, ...] = (4, 4, 4, 4)) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [0.02 * place + 0.01 * rng.normal(size=size) for place, size in enumerate(sizes)]


def ranking_of(groups: list[np.ndarray]) -> Ranking:
    """Cells whose seeds are their own, as scipy's tests take samples to be."""
    values = np.full((len(groups), sum(map(len, groups))), np.nan)
    start = 0
    for place, group in enumerate(groups):
        values[place, start : start + len(group)] = group
        start += len(group)
    return known_ranking(values, FOUR[: len(groups)])


def test_differences_of_all_pairs_are_scipys_tukey_test() -> None:
    for sizes in ((4, 4, 4, 4), (3, 5, 2, 4)):
        groups = groups_of(sizes=sizes)
        ranking, tukey = ranking_of(groups), stats.tukey_hsd(*groups)
        limits = tukey.confidence_interval()
        for a, cell in enumerate(ranking.standings):
            for b, other in enumerate(ranking.standings):
                i, j = FOUR.index(dict(cell.cell)), FOUR.index(dict(other.cell))
                if a != b:
                    found = gap(ranking, cell, other, FIRST)
                    assert found.mean == pytest.approx(tukey.statistic[i, j])
                    half = (limits.high[i, j] - limits.low[i, j]) / 2
                    assert found.half_width == pytest.approx(half, rel=1e-3)
                    assert found.basis == "unpaired"


def test_differences_from_a_baseline_are_scipys_dunnett_test() -> None:
    groups = groups_of(sizes=(5, 3, 4, 4))
    ranking = with_baseline(ranking_of(groups), "SCHEDULER=linear")
    expected = stats.dunnett(*groups[1:], control=groups[0], random_state=1)
    limits = expected.confidence_interval()
    assert ranking.baseline is not None
    base = ranking.standings[ranking.baseline]
    for one in against(ranking, base, "baseline"):
        place = FOUR.index(dict(one.standing.cell)) - 1
        half = (limits.high[place] - limits.low[place]) / 2
        assert one.gaps[FIRST].half_width == pytest.approx(half, rel=5e-3)
        assert one.gaps[FIRST].mean == pytest.approx(
            (limits.high + limits.low)[place] / 2, rel=1e-3
        )


def test_a_baseline_named_beforehand_has_narrower_intervals_than_the_lowest() -> None:
    ranking = ranking_of(groups_of())
    base, other = ranking.standings[0], ranking.standings[2]
    widths = [gap(ranking, other, base, FIRST, family=f).half_width for f in ("baseline", "pairs")]
    assert widths[0] < widths[1]


def test_outcomes_are_by_both_measures() -> None:
    rng = np.random.default_rng(0)
    values, slopes = 1e-4 * rng.normal(size=(4, 3)), 1e-4 * rng.normal(size=(4, 3))
    values[1], values[2], slopes[2] = values[1] + 0.1, values[2] + 0.1, slopes[2] - 0.5
    ranking = rank(known_sweep(values, FOUR, clean=slopes))
    base = next(one for one in ranking.standings if one.cell == FOUR[0])
    outcomes = {
        one.standing.cell[SCHEDULER]: one.outcome for one in against(ranking, base, "pairs")
    }
    assert outcomes == {"cosine": "higher", "cos6": "mixed", "sigmoid": "level"}


def grid_ranking(seeds: int = 3) -> Ranking:
    rng = np.random.default_rng(1)
    values = 0.001 * rng.normal(size=(9, seeds))
    values[4:] += 0.2
    return known_ranking(values, cells_of(GRID_9))


def test_the_baseline_is_in_the_answer() -> None:
    ranking = with_baseline(grid_ranking(), "scheduler=Cosine, TRAINING.PRED_TYPE=image")
    assert ranking.baseline is not None
    assert ranking.standings[ranking.baseline].label == "cosine \u00b7 image"
    text = against_baseline(ranking)
    assert text.startswith("Against the baseline cosine \u00b7 image: lower by both measures: ")
    assert "linear \u00b7 noise" in text and "not to be told apart from it: " in text
    sweep = known_sweep(np.zeros((9, 3)), cells_of(GRID_9))
    assert judge(sweep, ranking).sentences[-1] == text
    assert against_baseline(grid_ranking()) == ""


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("PRED_TYPE=noise", "names 3 of the ranked cells (cosine \u00b7 noise; linear"),
        ("SCHEDULER=square", "names none of the ranked cells ("),
        ("SPEED=9", "give keys and values of exactly one, such as SCHEDULER=linear,PRED_TYPE="),
    ],
)
def test_a_baseline_is_exactly_one_cell(wish: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        with_baseline(grid_ranking(), wish)
    assert said in str(caught.value)


def test_levels_are_held_together_with_the_pairs() -> None:
    ranking = grid_ranking()
    one, other = ranking.standings[0], ranking.standings[-1]
    each = level_gaps(ranking, one, other)
    assert len(each) == 3 and all(found.is_told_apart for found in each)
    single = gap(ranking, one, other, FIRST).half_width
    # The curves are shifted whole, so that a level scatters as the mean does.
    assert all(found.half_width > single for found in each)


def test_one_seed_is_compared_by_evaluation_error_in_both_families() -> None:
    rng = np.random.default_rng(2)
    ranking = grid_ranking(1)
    pairs = rng.gamma(9, 1 / 9, size=(3, 50))
    for standing in ranking.standings:
        error = standing.trials[0].error
        assert error is not None
        own = pairs * rng.normal(1, 0.02, pairs.shape)
        object.__setattr__(error, "mse", error.mse[:, :1] * own)
        object.__setattr__(error, "ids", np.arange(50))
    for family in ("pairs", "baseline"):
        found = gap(
            ranking, ranking.standings[-1], ranking.standings[0], MEASURES[1], family=family
        )
        assert found.basis == "evaluation" and 0 < found.half_width < 0.1
    assert PRED_TYPE in ranking.factors
