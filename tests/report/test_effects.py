"""ddpm.report.effects: textbook sums, missing trials, one seed, and its sentences."""

import numpy as np
import pytest
from scipy import stats

from ddpm.report.effects import Analysis, Term, analyse
from ddpm.report.labels import probability
from ddpm.report.verdict import sentences
from tests.support.known_sweeps import (
    FIRST,
    GRID_9,
    GRID_27,
    PRED_TYPE,
    SCHEDULER,
    SECOND,
    TIMESTEPS,
    cells_of,
    known_ranking,
)


def draw(grid: dict, seeds: int, number: int = 0) -> np.ndarray:
    """(cells, seeds) of noise, with what a seed does to all."""
    rng = np.random.default_rng(number)
    count = len(cells_of(grid))
    return 0.01 * (rng.normal(size=(count, seeds)) + rng.normal(size=seeds))


def analysis_of(values: np.ndarray, grid: dict, measure: str = FIRST) -> Analysis:
    return analyse(known_ranking(values, cells_of(grid)), measure)


def term(found: Analysis, *keys: str) -> Term:
    return next(one for one in found.terms if set(one.keys) == set(keys))


def test_a_complete_grid_has_the_classical_sums() -> None:
    values = draw(GRID_9, 4)
    found, y = analysis_of(values, GRID_9), values.reshape(3, 3, 4)
    rows, columns, grand = y.mean(axis=(1, 2)), y.mean(axis=(0, 2)), y.mean()
    cells = y.mean(axis=2) - rows[:, None] - columns + grand
    assert found.is_complete and found.seeds is not None and found.error is not None
    assert term(found, SCHEDULER).squares == pytest.approx(12 * np.square(rows - grand).sum())
    assert term(found, PRED_TYPE).squares == pytest.approx(12 * np.square(columns - grand).sum())
    assert term(found, SCHEDULER, PRED_TYPE).squares == pytest.approx(4 * np.square(cells).sum())
    seeds = 9 * np.square(y.mean(axis=(0, 1)) - grand).sum()
    assert found.seeds.squares == pytest.approx(seeds) and found.seeds.dof == 3
    parts = [*found.terms, found.seeds, found.error]
    assert sum(one.squares for one in parts) == pytest.approx(np.square(y - grand).sum())
    assert sum(one.dof for one in parts) == 35


def test_a_main_effect_is_tested_by_its_own_changes_over_seeds() -> None:
    """As means over the other factor would be: a design of one factor in blocks of seeds."""
    values = draw(GRID_9, 5)
    found = term(analysis_of(values, GRID_9), SCHEDULER)
    means = values.reshape(3, 3, 5).mean(axis=1)
    left = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    between = 5 * np.square(means.mean(axis=1) - means.mean()).sum() / 2
    f = between / (np.square(left).sum() / 8)
    assert found.f == pytest.approx(f) and found.over == 8
    assert found.p == pytest.approx(stats.f.sf(f, 2, 8))


def test_two_levels_are_scipys_paired_test_of_the_means() -> None:
    grid = {SCHEDULER: ["linear", "cosine"], PRED_TYPE: ["noise", "image", "velocity"]}
    values = draw(grid, 5)
    found = analysis_of(values, grid)
    means = values.reshape(2, 3, 5).mean(axis=1)
    expected = stats.ttest_rel(means[0], means[1])
    assert term(found, SCHEDULER).p == pytest.approx(expected.pvalue)
    effect = found.effect(SCHEDULER)
    low, high = expected.confidence_interval(1 - 0.05 / 2)  # two factors hold together
    a, b = (effect.levels.index(one) for one in grid[SCHEDULER])
    assert effect.differences[a, b] == pytest.approx((low + high) / 2)
    assert effect.widths[a, b] == pytest.approx((high - low) / 2, rel=1e-4)


@pytest.mark.slow
def test_without_shared_seeds_one_factor_is_scipys_analysis_and_tukeys_test() -> None:
    values = np.full((3, 12), np.nan)
    for cell in range(3):
        own = draw(
            {SCHEDULER: [1]}, 4, number=cell
        )  # all of one scatter, so that none is set apart
        values[cell, 4 * cell : 4 * cell + 4] = 0.01 * (own / own.std() + cell)
    grid = {SCHEDULER: ["linear", "cosine", "cos6"]}
    found = analysis_of(values, grid)
    groups = [row[np.isfinite(row)] for row in values]
    assert term(found, SCHEDULER).p == pytest.approx(stats.f_oneway(*groups).pvalue)
    effect, tukey = found.effect(SCHEDULER), stats.tukey_hsd(*groups).confidence_interval()
    order = [effect.levels.index(one) for one in grid[SCHEDULER]]
    widths = (tukey.high - tukey.low) / 2
    np.testing.assert_allclose(effect.widths[np.ix_(order, order)][0, 1:], widths[0, 1:], rtol=1e-4)


def least(y: np.ndarray, parts: list[np.ndarray]) -> float:
    x = np.hstack(parts)
    return float(np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum())


def test_missing_trials_give_type_two_sums() -> None:
    """Against least squares on columns of zeros and ones, one model with a term and one without."""
    values = draw(GRID_9, 3, number=4)
    values[2, 1], values[5, 0], values[7] = np.nan, np.nan, np.nan
    cells = [cell for place, cell in enumerate(cells_of(GRID_9)) if place != 7]
    kept = values[np.arange(9) != 7]
    found = analyse(known_ranking(kept, cells), FIRST)
    rows, columns = np.nonzero(np.isfinite(kept))
    y = kept[rows, columns]

    def dummies(*keys: str) -> np.ndarray:
        names = [str([cells[row][key] for key in keys]) for row in rows]
        return np.array([[name == other for other in sorted(set(names))] for name in names], float)

    seeds = np.eye(3)[columns]
    a, b, ab = dummies(SCHEDULER), dummies(PRED_TYPE), dummies(SCHEDULER, PRED_TYPE)
    both = least(y, [seeds, a, b])
    assert not found.is_complete
    assert term(found, SCHEDULER).squares == pytest.approx(least(y, [seeds, b]) - both)
    assert term(found, PRED_TYPE).squares == pytest.approx(least(y, [seeds, a]) - both)
    mixed = term(found, SCHEDULER, PRED_TYPE)
    assert mixed.squares == pytest.approx(both - least(y, [seeds, ab])) and mixed.dof == 3


def test_missing_seeds_leave_effects_of_unweighted_means_of_cells() -> None:
    grid = {SCHEDULER: ["linear", "cosine"], PRED_TYPE: ["noise", "image", "velocity"]}
    values = draw(grid, 4)
    truth = 10.0 * np.arange(6)[:, None] ** 2  # far from additive
    values[[0, 3, 5], [2, 1, 3]] = np.nan
    ranking = known_ranking((values + truth) / 1000, cells_of(grid))
    effect = analyse(ranking, FIRST).effect(PRED_TYPE)
    means = (truth / 1000).reshape(2, 3).mean(axis=0)
    order = [effect.levels.index(one) for one in grid[PRED_TYPE]]
    np.testing.assert_allclose(effect.means[order], means - means.mean(), atol=2e-5)


def test_effects_are_of_all_cells_where_one_is_set_apart_and_levels_scatter_by_chance() -> None:
    values = 1e-5 * np.array(  # one of 500 drawn sweeps whose cells are equal
        [[-1001, 1336], [217, -649], [316, -650], [684, -1162], [1211, -324], [718, -241],
         [201, -765], [518, 292], [1362, -202]]
    )  # fmt: skip
    ranking = known_ranking(values, cells_of(GRID_9))
    spread = ranking.spread(FIRST)
    assert spread is not None and spread.apart and spread.groups is None
    assert all(np.isfinite(analyse(ranking, FIRST).effect(key).widths).all() for key in GRID_9)


def test_a_level_that_nothing_links_has_no_interval() -> None:
    grid = {SCHEDULER: ["linear", "cosine"], PRED_TYPE: ["noise", "image"]}
    found = analysis_of(draw(grid, 3), grid)
    assert np.isfinite(found.effect(PRED_TYPE, {SCHEDULER: "linear"}, 2).widths).all()
    cells = cells_of(grid)[:3]
    found = analyse(known_ranking(draw(grid, 3)[:3], cells), FIRST)
    held = found.effect(PRED_TYPE, {SCHEDULER: "cosine"}, 2)
    assert np.isinf(held.widths[0, 1]) and held.sign(0, 1) == 0


def test_with_one_seed_the_highest_interaction_is_the_error() -> None:
    values = draw(GRID_9, 1)
    found = analysis_of(values, GRID_9)
    y = values.reshape(3, 3)
    left = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    assert found.is_one_seed and found.error is not None and found.error.dof == 4
    assert found.error.squares == pytest.approx(np.square(left).sum())
    assert [one.keys for one in found.terms] == [(SCHEDULER,), (PRED_TYPE,)]
    assert "serves as error" in sentences(found)[0] and "this seed alone" in sentences(found)[0]
    three = analysis_of(draw(GRID_27, 1), GRID_27)
    assert three.error is not None and three.error.dof == 8 and len(three.terms) == 6


def test_with_one_factor_and_one_seed_there_is_no_p() -> None:
    grid = {SCHEDULER: ["linear", "cosine", "cos6"]}
    found = analysis_of(draw(grid, 1), grid)
    assert found.error is None and np.isnan(found.terms[0].p)
    assert "no p" in sentences(found)[0]


def test_scattered_points_are_no_grid() -> None:
    grid = {SCHEDULER: list("abcdef"), TIMESTEPS: list(range(6))}
    cells = [
        cell for cell in cells_of(grid) if list("abcdef").index(cell[SCHEDULER]) == cell[TIMESTEPS]
    ]
    found = analyse(known_ranking(draw(grid, 3)[:6], cells), FIRST)
    assert found.reason is not None and "too few" in found.reason
    assert sentences(found) == (found.reason,)


@pytest.mark.slow
def test_the_share_of_variance_is_near_zero_where_nothing_is_there() -> None:
    shares = [
        (one.squares - one.dof * one.squares / one.dof / one.f) / found.total
        for number in range(60)
        for found in [analysis_of(draw(GRID_9, 3, number), GRID_9)]
        for one in found.terms[:1]
    ]
    assert abs(np.mean(shares)) < 0.02


def effects(grid: dict, seeds: int = 3, **of: float) -> np.ndarray:
    """(cells, seeds) in which named levels are higher, `image_cosine` those of both."""
    values = 0.001 * draw(grid, seeds) / 0.01
    for place, cell in enumerate(cells_of(grid)):
        for names, size in of.items():
            if all(name in map(str, cell.values()) for name in names.split("_")):
                values[place] += size
    return values


def said(values: np.ndarray, grid: dict, measure: str = FIRST) -> str:
    return " ".join(sentences(analysis_of(values, grid, measure)))


def test_sentences_name_what_beats_what_and_what_is_level() -> None:
    text = said(effects(GRID_9, noise=0.1), GRID_9)
    assert "Schedule, averaged over prediction type (no interaction found, p = " in text
    assert "cannot be told apart." in text.split("Prediction type")[0]
    assert " beats noise by 0.1" in text and "\u00b1 0.00" in text
    assert "cannot be told apart from image" in text or "cannot be told apart from velocity" in text


def test_an_interaction_forbids_an_average() -> None:
    text = said(effects(GRID_9, noise=0.1, noise_cosine=0.3), GRID_9)
    assert "What prediction type does depends on schedule (p < 0.001); at " in text
    assert "averaged over schedule" not in text and "at cosine, " in text


def test_many_places_are_counted() -> None:
    grid = GRID_9 | {TIMESTEPS: [50, 100, 250, 500, 1000]}
    text = said(effects(grid, noise=0.1, noise_50=0.2), grid)
    assert "depends on timesteps" in text
    part = text[text.index("What prediction type does") :]
    assert "of their 5 combinations" in part and "beats noise at each, by 0." in part
    assert "cannot be told apart at any" in part


def test_both_measures_have_an_analysis_of_ratios() -> None:
    values = effects(GRID_9, noise=0.1)
    first, second = (analysis_of(values, GRID_9, measure) for measure in (FIRST, SECOND))
    # The curves have one shape, so that one measure is ten to the power of the other.
    assert second.total == pytest.approx(first.total)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0001, "p < 0.001"), (0.0123, "p = 0.012"), (0.6, "p = 0.60"), (np.nan, "not tested")],
)
def test_probabilities_are_written_short(p: float, text: str) -> None:
    assert probability(p) == text


def test_levels_are_in_order_of_their_numbers() -> None:
    found = analysis_of(draw(GRID_27, 2), GRID_27)
    assert found.effect(TIMESTEPS).levels == (50, 250, 1000)
    assert [one.keys for one in found.terms][-1] == (SCHEDULER, PRED_TYPE, TIMESTEPS)
