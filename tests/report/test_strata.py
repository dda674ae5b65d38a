"""What each factor changes from seed to seed: against designs that textbooks know."""

from itertools import product

import numpy as np
import pytest

from ddpm.report.scatter import split, spread, strata

CODES = np.array(list(product(range(3), range(2), range(2))))


def draw(number: int = 0, seeds: int = 4) -> np.ndarray:
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
    values = draw()
    found, pooled = strata(split(CODES), values), spread(values)
    assert found is not None and pooled is not None
    assert (found.squares * found.dofs).sum() == pytest.approx(pooled.paired * pooled.paired_dof)
    assert found.dofs.sum() == pooled.paired_dof


def test_a_main_effect_scatters_as_its_own_means_do() -> None:
    """Means over the other factors are a design of one factor in blocks, whose error this is."""
    values = draw()
    means = values.reshape(3, 4, 4).mean(axis=1)  # (levels, seeds)
    left = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    found = strata(split(CODES), values)
    assert found is not None
    assert found.squares[0] == pytest.approx(4 * np.square(left).sum() / (2 * 3))
    variance, dof = found.share(np.repeat([1.0, -1.0, 0.0], 4))
    assert variance == pytest.approx(found.squares[0]) and dof == pytest.approx(6)


def test_cells_that_share_a_level_are_held_against_less() -> None:
    found = spread(draw(), codes=CODES)
    assert found is not None and found.strata is not None
    near, far = found.difference(0, 1), found.difference(0, 11)
    assert near.error < 0.7 * far.error and far.dof < near.dof


def test_all_mean_squares_alike_give_back_the_pooled_one() -> None:
    found = strata(split(CODES), draw())
    assert found is not None
    equal = type(found)(strata=found.strata, squares=np.full(7, 2.5), dofs=found.dofs)
    contrast = np.zeros(12)
    contrast[[0, 7]] = 1, -1
    variance, dof = equal.share(contrast)
    assert variance == pytest.approx(2.5) and dof <= found.dofs.sum()


def test_missing_cells_and_trials_leave_strata_that_still_split_everything() -> None:
    codes = np.delete(CODES, [3, 8], axis=0)
    values = np.delete(draw(), [3, 8], axis=0)
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
