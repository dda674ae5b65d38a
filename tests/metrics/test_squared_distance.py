"""The interval of a squared distance: its invariances, its limits, and how often it holds."""

import numpy as np
import pytest

from ddpm.metrics.intervals import product_interval, t_quantile

K = 16


def products(theta: float, scales: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Inner products of K draws around a vector of squared length theta, along the last axis."""
    draws = rng.normal(size=(K, len(scales))) * scales
    draws[:, -1] += np.sqrt(theta)
    return draws @ draws.T


def value_of(found: np.ndarray) -> float:
    return float(found[~np.eye(K, dtype=bool)].mean())


@pytest.mark.parametrize("theta", [0.0, 0.5, 50.0])
def test_units_the_order_of_draws_and_a_common_constant_do_not_matter(theta: float) -> None:
    found = products(theta, np.ones(8), np.random.default_rng(0))
    value, order = value_of(found), np.random.default_rng(1).permutation(K)
    plain = product_interval(value, found)
    assert plain[0] < value < plain[1]
    assert product_interval(1e-3 * value, 1e-3 * found) == pytest.approx(
        [1e-3 * end for end in plain]
    )
    assert product_interval(value, found[order][:, order]) == pytest.approx(plain)
    assert product_interval(value, found - 7.0) == pytest.approx(plain)


def test_far_away_it_is_students_interval_of_the_first_order() -> None:
    rng = np.random.default_rng(0)
    found = products(1e8, np.ones(8), rng)
    first_order = found.mean(axis=1)  # |mu|^2 and each draw's part along mu
    half = 2 * t_quantile(0.95, K - 1) * first_order.std(ddof=1) / np.sqrt(K)
    low, high = product_interval(value_of(found), found)
    assert (high - low) / 2 == pytest.approx(half, rel=0.01)


def test_draws_that_are_all_the_same_leave_no_doubt() -> None:
    assert product_interval(4.0, np.full((K, K), 4.0)) == (4.0, 4.0)


def test_a_remainder_makes_it_wider() -> None:
    found = products(0.0, np.ones(8), np.random.default_rng(0))
    plain, wide = (
        product_interval(value_of(found), found, has_remainder=has) for has in (False, True)
    )
    assert wide[0] < plain[0] and plain[1] < wide[1]


# In units of the error at zero: at zero, near it, and where both orders count.
@pytest.mark.parametrize("errors", [0.0, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("dimension", [3, 30, 300])
def test_it_holds_the_truth_as_often_as_it_says(errors: float, dimension: int) -> None:
    rng = np.random.default_rng(0)
    theta = errors * np.sqrt(2 * dimension) / K
    found = [products(theta, np.ones(dimension), rng) for _ in range(200)]
    ends = [product_interval(value_of(one), one) for one in found]
    # of 200 that hold it in 95 %, 180 to 199 do, but for one time in 800
    assert 180 <= sum(low <= theta <= high for low, high in ends) <= 199
