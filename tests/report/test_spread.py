"""Scatter over seeds, paired and not: against scipy, and least squares written out."""

import numpy as np
import pytest
from scipy import stats

from ddpm.report.scatter import CHOICE_DOF, spread


def draw(cells: int, seeds: int, *, of_seeds: float = 1.0, number: int = 0) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.normal(size=(cells, seeds)) + of_seeds * rng.normal(size=seeds)


def least_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Cells and seeds as columns of zeros and ones: means, covariance, squares left, dof."""
    cells, seeds = values.shape
    rows, columns = np.nonzero(np.isfinite(values))
    x = np.hstack([np.eye(cells)[rows], np.eye(seeds)[columns]])
    y = values[rows, columns]
    inverse = np.linalg.pinv(x.T @ x)
    beta = inverse @ x.T @ y
    left = float(np.square(y - x @ beta).sum())
    return beta[:cells], inverse[:cells, :cells], left, len(y) - np.linalg.matrix_rank(x)


def test_two_cells_are_scipys_paired_test() -> None:
    values = draw(2, 5)
    found = spread(values)
    assert found is not None and found.is_paired
    difference = found.difference(0, 1)
    expected = stats.ttest_rel(values[0], values[1])
    assert difference.mean / difference.error == pytest.approx(expected.statistic)
    assert difference.dof == expected.df == 4


def test_unpaired_it_is_scipys_test_of_equal_variances() -> None:
    values = draw(2, 5)
    found = spread(values, is_paired=False)
    assert found is not None
    difference = found.difference(0, 1)
    expected = stats.ttest_ind(values[0], values[1])
    assert difference.mean / difference.error == pytest.approx(expected.statistic)
    assert difference.dof == expected.df == 8


def test_the_pooled_ratio_is_that_of_the_mean_squares() -> None:
    values = draw(6, 4)
    found = spread(values)
    assert found is not None
    residuals = values - values.mean(axis=1, keepdims=True)
    unpaired = np.square(residuals).sum() / (6 * 3)
    paired = np.square(residuals - residuals.mean(axis=0)).sum() / (5 * 3)
    assert found.ratio == pytest.approx(paired / unpaired)
    pairs = [(a, b) for a in range(6) for b in range(a)]
    of_pairs = [(values[a] - values[b]).var(ddof=1) for a, b in pairs]
    assert np.mean(of_pairs) == pytest.approx(2 * paired)
    assert found.ratio_of(0, 1) == pytest.approx(
        (values[0] - values[1]).var(ddof=1) / values[:2].var(axis=1, ddof=1).sum()
    )


def test_shared_seeds_make_the_ratio_small_and_opposed_ones_make_it_large() -> None:
    small, large = spread(draw(9, 3, of_seeds=10.0)), np.array([[0.0, 1, 2], [2.1, 1, 0]])
    opposed = spread(large)
    assert small is not None and small.ratio < 0.1
    assert opposed is not None and 1.9 < opposed.ratio <= 2


def test_missing_trials_are_least_squares() -> None:
    values = draw(5, 4, number=3)
    values[[0, 1, 4], [1, 3, 1]] = np.nan
    found = spread(values, is_paired=True)
    means, covariance, left, dof = least_squares(values)
    assert found is not None and (found.paired_dof, found.dof) == (dof, dof)
    assert found.paired == pytest.approx(left / dof)
    for a in range(5):
        for b in range(a):
            difference = found.difference(a, b)
            variance = covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]
            assert difference.mean == pytest.approx(means[a] - means[b])
            assert difference.error == pytest.approx(np.sqrt(left / dof * variance))


def test_cells_that_no_chain_of_seeds_links_have_no_paired_difference() -> None:
    nan = np.nan
    values = np.array(
        [[0.0, 1, nan, nan], [0.3, 1.1, nan, nan], [nan, nan, 5, 5], [nan, nan, 6, 7]]
    )
    found = spread(values)
    assert found is not None and found.is_paired and found.paired_dof == 2
    assert np.isfinite(found.difference(0, 1).error) and np.isfinite(found.difference(2, 3).error)
    assert found.difference(0, 2).error == np.inf and found.difference(0, 2).mean == -4.5


def test_cells_with_seeds_of_their_own_are_not_paired() -> None:
    values = np.full((3, 9), np.nan)
    for cell in range(3):
        values[cell, 3 * cell : 3 * cell + 3] = np.random.default_rng(cell).normal(size=3)
    found = spread(values)
    assert found is not None and not found.is_paired and np.isnan(found.ratio)
    assert found.dof == found.unpaired_dof == 6 and np.isnan(found.ratio_of(0, 1))


def test_one_seed_scatters_nowhere() -> None:
    assert spread(np.zeros((4, 1))) is None
    assert spread(np.array([[1.0, np.nan], [np.nan, 2.0]])) is None


def test_the_narrower_interval_is_chosen_only_where_choosing_is_harmless() -> None:
    few = np.array([[0.0, 1, 2], [2.0, 1, 0]])  # pairing doubles the variance
    assert spread(few).is_paired  # type: ignore[union-attr]
    for number in range(20):
        many = draw(27, 3, of_seeds=0.0, number=number)
        found = spread(many)
        assert found is not None and found.paired_dof >= CHOICE_DOF
        widths = [
            stats.t.ppf(0.975, dof) * np.sqrt(square)
            for square, dof in ((found.paired, 52), (found.unpaired, 54))
        ]
        assert found.is_paired == (widths[0] <= widths[1])
    shared = spread(draw(27, 3, of_seeds=3.0))
    assert shared is not None and shared.is_paired


def test_a_cell_that_scatters_far_more_is_set_apart_and_spoils_no_other() -> None:
    values = draw(9, 5, number=2)
    wild = values.copy()
    wild[4] += 40 * np.random.default_rng(9).normal(size=5)
    calm, found = spread(values), spread(wild)
    assert calm is not None and found is not None
    assert calm.apart == () and found.apart == (4,)
    assert found.difference(0, 1).error < 1.5 * calm.difference(0, 1).error
    own = found.difference(4, 0)
    expected = stats.ttest_rel(wild[4], wild[0])
    assert own.is_own and own.mean / own.error == pytest.approx(expected.statistic)
    assert own.dof == 4


def test_set_apart_and_unpaired_it_is_welchs_test() -> None:
    values = draw(9, 5, number=2)
    values[4] += 40 * np.random.default_rng(9).normal(size=5)
    found = spread(values, is_paired=False)
    assert found is not None and found.apart == (4,)
    own = found.difference(4, 0)
    expected = stats.ttest_ind(values[4], values[0], equal_var=False)
    assert own.mean / own.error == pytest.approx(expected.statistic)
    assert own.dof == pytest.approx(expected.df)


def test_cells_alike_are_rarely_set_apart() -> None:
    found = [spread(draw(9, 3, number=number)) for number in range(400)]
    assert sum(bool(one.apart) for one in found if one is not None) <= 0.04 * 400
