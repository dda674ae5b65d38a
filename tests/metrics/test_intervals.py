"""Intervals: closed forms, invariances and limits, coverage of the truth by simulation."""

import numpy as np
import pytest

from ddpm.metrics import intervals
from ddpm.metrics.intervals import Interval, jackknife, product_interval, t_quantile


def jackknifed_square(x: np.ndarray, groups: int = 16) -> Interval:
    """The squared length of a mean of vectors (n, D), which n overestimate by tr S / n."""
    parts = [x[k::groups] for k in range(groups)]

    def length(kept: list[np.ndarray]) -> float:
        return float(np.square(np.concatenate(kept).mean(axis=0)).sum())

    without = [length(parts[:k] + parts[k + 1 :]) for k in range(groups)]
    return jackknife(length(parts), without, len(x), corrected=True)


def test_the_jackknife_of_a_mean_is_the_standard_error_of_the_mean() -> None:
    x = np.random.default_rng(0).normal(3, 2, 16)
    without = [np.delete(x, k).mean() for k in range(16)]
    by_groups = jackknife(float(x.mean()), without, 16, corrected=True)
    by_mean = intervals.mean(x, 16)
    assert by_groups.value == pytest.approx(by_mean.value)
    assert (by_groups.low, by_groups.high) == pytest.approx((by_mean.low, by_mean.high))


@pytest.mark.slow
def test_the_jackknife_takes_the_bias_out_of_a_square() -> None:
    rng = np.random.default_rng(1)
    values = [jackknifed_square(rng.normal(0.2, 1, (64, 8))).value for _ in range(1000)]
    assert abs(np.mean(values) - 8 * 0.04) < 4 * np.std(values) / np.sqrt(1000)
    assert abs(np.mean(values) - 8 * 0.04) < 0.25 * 8 / 64  # the plain square is 8/64 too large


@pytest.mark.slow
def test_the_jackknife_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    hits = [jackknifed_square(rng.normal(0.5, 1, (160, 8))).covers(2.0) for _ in range(1000)]
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.slow
def test_where_all_is_of_second_order_the_interval_is_too_wide_rather_than_too_narrow() -> None:
    rng = np.random.default_rng(2)
    hits = [jackknifed_square(rng.normal(0.0, 1, (160, 40))).covers(0.0) for _ in range(500)]
    assert 0.95 <= np.mean(hits)


def test_a_plain_jackknife_keeps_the_value_of_n_images() -> None:
    estimate = jackknife(5.0, [4.0, 6.0, 5.0], 30, corrected=False)
    assert (estimate.value, estimate.n, estimate.unbiased) == (5.0, 30, False)


def test_shares_have_wilsons_interval() -> None:
    from scipy.stats import binomtest

    for hits, n in [(0, 50), (3, 50), (50, 50), (700, 1000)]:
        found, wanted = (
            intervals.proportion(hits, n),
            binomtest(hits, n).proportion_ci(method="wilson"),
        )
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_shares_cover_the_truth_as_often_as_they_say() -> None:
    hits = np.random.default_rng(3).binomial(400, 0.9, 2000)
    assert 0.93 <= np.mean([intervals.proportion(int(h), 400).covers(0.9) for h in hits]) <= 0.97


def test_order_is_the_mann_whitney_statistic() -> None:
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(4)
    first, second = rng.integers(0, 9, 70).astype(float), rng.integers(2, 12, 90).astype(float)
    wanted = mannwhitneyu(second, first).statistic / (70 * 90)
    assert intervals.order(first, second).value == pytest.approx(wanted)


def test_order_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    from scipy.stats import norm

    wanted = norm.cdf(0.8 / np.sqrt(2))
    found = [
        intervals.order(rng.normal(0, 1, 150), rng.normal(0.8, 1, 200)).covers(wanted)
        for _ in range(1000)
    ]
    assert 0.93 <= np.mean(found) <= 0.97


def test_sets_that_do_not_overlap_have_an_interval_all_the_same() -> None:
    estimate = intervals.order(np.zeros(100), np.ones(100))
    assert estimate.value == 1.0 and 0.9 < estimate.low < 1.0 and estimate.high == 1.0


def test_no_estimate_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Interval(value=float("nan"), low=0, high=1, n=3)


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
@pytest.mark.slow
@pytest.mark.parametrize("errors", [0.0, 2.0, 20.0])
@pytest.mark.parametrize("dimension", [3, 300])
def test_it_holds_the_truth_as_often_as_it_says(errors: float, dimension: int) -> None:
    rng = np.random.default_rng(0)
    theta = errors * np.sqrt(2 * dimension) / K
    found = [products(theta, np.ones(dimension), rng) for _ in range(200)]
    ends = [product_interval(value_of(one), one) for one in found]
    # of 200 that hold it in 95 %, 180 to 199 do, but for one time in 800
    assert 180 <= sum(low <= theta <= high for low, high in ends) <= 199
