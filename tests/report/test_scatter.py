"""ddpm.report.scatter against scipy, published tables, least squares written out and textbooks."""

from itertools import product

import numpy as np
import pytest
from scipy import special, stats

from ddpm.metrics.intervals import t_quantile
from ddpm.report.scatter import (
    CHOICE_DOF,
    dunnett_quantile,
    f_survival,
    rounded,
    split,
    spread,
    strata,
    tukey_quantile,
)

EQUAL = 0.5**0.5  # the load of comparisons between means of equally many values


@pytest.mark.slow
@pytest.mark.parametrize("means", [2, 3, 9, 27])
@pytest.mark.parametrize("dof", [2, 4, 16, 52])
def test_the_studentized_range_is_scipys(means: int, dof: int) -> None:
    for confidence in (0.8, 0.95, 1 - 0.05 / 9):
        width = tukey_quantile(confidence, means, dof)
        said = stats.studentized_range.cdf(np.sqrt(2) * width, means, dof)
        assert 1 - said == pytest.approx(1 - confidence, rel=2e-3)


# Two-sided, 5 %, for 2, 3, 4 and 5 treatments and a control (Dunnett 1964).
@pytest.mark.parametrize(
    ("dof", "table"),
    [
        (10, (2.57, 2.76, 2.89, 2.99)),
        (20, (2.38, 2.54, 2.65, 2.73)),
        (60, (2.27, 2.41, 2.51, 2.58)),
    ],
)
def test_dunnetts_quantiles_are_those_of_his_tables(dof: int, table: tuple[float, ...]) -> None:
    for comparisons, expected in zip((2, 3, 4, 5), table, strict=True):
        assert dunnett_quantile(0.95, (EQUAL,) * comparisons, dof) == pytest.approx(
            expected, abs=0.0101
        )


def test_one_comparison_is_students() -> None:
    for dof in (1, 3, 8, 30):
        expected = t_quantile(0.95, dof)
        assert tukey_quantile(0.95, 2, dof) == pytest.approx(expected, rel=1e-4)
        assert dunnett_quantile(0.95, (0.3,), dof) == pytest.approx(expected, rel=1e-4)


def test_without_correlations_and_with_endless_dof_it_is_sidaks() -> None:
    expected = special.ndtri((1 + 0.95 ** (1 / 8)) / 2)
    assert dunnett_quantile(0.95, (0.0,) * 8, np.inf) == pytest.approx(expected, rel=1e-6)
    correlated = dunnett_quantile(0.95, (EQUAL,) * 8, np.inf)
    assert correlated < expected < tukey_quantile(0.95, 9, np.inf)


def test_unequal_loads_hold_together_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    loads = np.array([0.3, 0.6, 0.9])
    common = rng.normal(size=(100_000, 1))
    z = loads * common + np.sqrt(1 - loads**2) * rng.normal(size=(100_000, 3))
    spread = np.sqrt(rng.chisquare(7, size=100_000) / 7)
    width = dunnett_quantile(0.95, tuple(loads), 7)
    assert np.mean(np.abs(z).max(axis=1) < width * spread) == pytest.approx(0.95, abs=0.003)


def test_fishers_probability_is_scipys() -> None:
    assert f_survival(3.4, 2, 16) == pytest.approx(stats.f.sf(3.4, 2, 16), rel=1e-12)


def test_fewer_degrees_of_freedom_are_never_rounded_up() -> None:
    for dof in (0.6, 1.0, 2.74, 19.99, 20.2, 87.9):
        assert rounded(dof) <= dof < rounded(dof) + 1
    assert rounded(0.2) == 0.5


@pytest.mark.parametrize(("confidence", "means", "dof"), [(1.0, 3, 4), (0.95, 1, 4), (0.95, 3, 0)])
def test_impossible_quantiles_are_refused(confidence: float, means: int, dof: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        tukey_quantile(confidence, means, dof)


# Scatter over seeds, paired and not.


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


# What each factor changes from seed to seed.

CODES = np.array(list(product(range(3), range(2), range(2))))


def draw_levels(number: int = 0, seeds: int = 4) -> np.ndarray:
    """(12, seeds) in which the first factor's effect changes from seed to seed."""
    rng = np.random.default_rng(number)
    values = rng.normal(size=(3, 2, 2, seeds)) + 3 * rng.normal(size=(3, 1, 1, seeds))
    return values.reshape(12, seeds)


def test_the_strata_split_all_contrasts_of_cells() -> None:
    parts = split(CODES)
    assert [one.factors for one in parts] == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), ()]
    assert [one.basis.shape[1] for one in parts] == [2, 1, 1, 2, 2, 1, 2]
    whole = np.hstack([np.full((12, 1), 12**-0.5), *(one.basis for one in parts)])
    np.testing.assert_allclose(whole.T @ whole, np.eye(12), atol=1e-12)


def test_their_squares_add_up_to_the_scatter_that_is_paired() -> None:
    values = draw_levels()
    found, pooled = strata(split(CODES), values), spread(values)
    assert found is not None and pooled is not None
    assert (found.squares * found.dofs).sum() == pytest.approx(pooled.paired * pooled.paired_dof)
    assert found.dofs.sum() == pooled.paired_dof


def test_a_main_effect_scatters_as_its_own_means_do() -> None:
    """Means over the other factors are a design of one factor in blocks, whose error this is."""
    values = draw_levels()
    means = values.reshape(3, 4, 4).mean(axis=1)  # (levels, seeds)
    left = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    found = strata(split(CODES), values)
    assert found is not None
    assert found.squares[0] == pytest.approx(4 * np.square(left).sum() / (2 * 3))
    variance, dof = found.share(np.repeat([1.0, -1.0, 0.0], 4))
    assert variance == pytest.approx(found.squares[0]) and dof == pytest.approx(6)


def test_cells_that_share_a_level_are_held_against_less() -> None:
    found = spread(draw_levels(), codes=CODES)
    assert found is not None and found.strata is not None
    near, far = found.difference(0, 1), found.difference(0, 11)
    assert near.error < 0.7 * far.error and far.dof < near.dof


def test_all_mean_squares_alike_give_back_the_pooled_one() -> None:
    found = strata(split(CODES), draw_levels())
    assert found is not None
    equal = type(found)(strata=found.strata, squares=np.full(7, 2.5), dofs=found.dofs)
    contrast = np.zeros(12)
    contrast[[0, 7]] = 1, -1
    variance, dof = equal.share(contrast)
    assert variance == pytest.approx(2.5) and dof <= found.dofs.sum()


def test_missing_cells_and_trials_leave_strata_that_still_split_everything() -> None:
    codes = np.delete(CODES, [3, 8], axis=0)
    values = np.delete(draw_levels(), [3, 8], axis=0)
    values[0, 1] = np.nan
    parts = split(codes)
    assert sum(one.basis.shape[1] for one in parts) == 9
    found = strata(parts, values)
    assert found is not None and found.dofs.sum() == 9 * 2  # of the three seeds all cells have
    values[5, [0, 2]] = np.nan
    assert strata(parts, values) is None


def test_one_factor_is_one_stratum() -> None:
    parts = split(np.arange(5)[:, None])
    assert [one.factors for one in parts] == [(0,)] and parts[0].basis.shape == (5, 4)


def test_a_factor_that_changes_nothing_leaves_a_variance_of_zero_and_never_less() -> None:
    """Its cells are the same trainings; rounding alone must not make their variance negative."""
    codes = np.array(list(product(range(37), range(3), range(3))))
    once = np.random.default_rng(0).normal(size=(9, 3))
    found = strata(split(codes), np.tile(once, (37, 1)))
    assert found is not None
    variances, _ = found.of_pairs()
    assert variances.min() >= 0
    assert variances[0, 9] == pytest.approx(0, abs=1e-12)


# Levels of a factor that scatter unequally.


def unequal(times: float, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(9, 3) of a 3 x 3 grid whose first level of the second factor scatters so much more."""
    codes = np.array(list(product(range(3), range(3))))
    values = np.random.default_rng(number).normal(size=(9, 3))
    return np.where(codes[:, 1] == 0, times, 1.0)[:, None] * values, codes


def test_levels_that_scatter_far_more_are_a_group_with_its_own_deviation() -> None:
    values, codes = unequal(20)
    found = spread(values, codes=codes)
    assert found is not None and found.groups is not None and found.groups.is_certain
    wide, quiet = found.groups.cells
    assert found.groups.factor == 1 and wide.tolist() == [0, 3, 6] and len(quiet) == 6
    for cells, deviation in zip(found.groups.cells, found.groups.deviations, strict=True):
        _, _, left, dof = least_squares(values[cells])
        assert deviation == pytest.approx(np.sqrt(left / dof))
    # Two quiet cells are held against what quiet cells do, however wide the others are.
    wider = values.copy()
    wider[wide] *= 10
    again = spread(wider, codes=codes)
    assert again is not None
    assert again.difference(1, 2).error == pytest.approx(found.difference(1, 2).error)
    assert again.difference(0, 3).error == pytest.approx(10 * found.difference(0, 3).error)


def test_an_inequality_that_may_be_chance_narrows_no_interval() -> None:
    for number in range(20):
        values, codes = unequal(1.5, number)
        found = spread(values, codes=codes)
        assert found is not None
        if found.groups is None or found.groups.is_certain or found.strata is None:
            continue
        common = strata(split(codes), values)
        assert common is not None
        assert (found.strata.of_pairs()[0] >= common.of_pairs()[0] - 1e-12).all()


@pytest.mark.slow
def test_equal_levels_are_seldom_called_unequal() -> None:
    found = [spread(unequal(1, number)[0], codes=unequal(1)[1]) for number in range(200)]
    certain = [one for one in found if one and one.groups and one.groups.is_certain]
    assert len(certain) <= 0.08 * 200
