"""The two numbers, their errors, and the quantiles that intervals are made of."""

import numpy as np
import pytest

from ddpm.config import X0_MEASURES
from ddpm.metrics.intervals import mean_interval, t_quantile
from ddpm.metrics.x0_error import X0Error, common_levels, continuous_bound, x0_influence, x0_summary


def error_of(mse: np.ndarray, first_level: int = -1) -> X0Error:
    levels = np.arange(first_level, first_level + len(mse))
    return X0Error(levels=levels, mse=mse, ids=np.arange(mse.shape[1]))


def test_the_two_numbers_by_hand() -> None:
    error = error_of(np.array([[0.1, 0.3], [0.01, 0.01], [1.0, 1.0]]))
    numbers = x0_summary(error, (-1, 0))
    assert numbers["mean_log10_mse"][0] == pytest.approx((np.log10(0.2) + np.log10(0.01)) / 2)
    assert numbers["snr_weighted_mse"][0] == pytest.approx((np.exp(-1) * 0.2 + 0.01) / 2)


def test_the_snr_weighted_number_is_the_error_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    levels, x0, noise = np.arange(-3, 4), rng.normal(size=50), rng.normal(size=50)
    rows, noise_errors = [], []
    for level in levels:
        alpha, sigma = (1 + np.exp(-level)) ** -0.5, (1 + np.exp(level)) ** -0.5
        estimate = 0.7 * x0 + 0.1
        rows.append((estimate - x0) ** 2)
        noise_hat = (alpha * x0 + sigma * noise - alpha * estimate) / sigma
        noise_errors.append(np.mean((noise_hat - noise) ** 2))
    numbers = x0_summary(error_of(np.array(rows), -3), tuple(levels))
    assert numbers["snr_weighted_mse"][0] == pytest.approx(np.mean(noise_errors))


def test_only_the_levels_asked_for_count() -> None:
    mse = np.random.default_rng(0).uniform(0.1, 1, (5, 9))
    changed = mse.copy()
    changed[4] *= 100
    levels = (-1, 0, 1, 2)
    assert x0_summary(error_of(mse), levels) == x0_summary(error_of(changed), levels)
    with pytest.raises(ValueError, match=r"\[7\] were not evaluated"):
        x0_summary(error_of(mse), (0, 7))


def test_the_evaluation_errors_are_the_spread_over_fresh_pairs() -> None:
    rng = np.random.default_rng(1)
    scale = np.array([1.0, 0.1, 0.02])[:, None]

    def draw() -> X0Error:
        return error_of(scale * rng.gamma(3, 1 / 3, (1, 200)) ** np.array([[1], [1.5], [0.5]]))

    numbers = [x0_summary(draw(), (-1, 0, 1)) for _ in range(400)]
    for measure in X0_MEASURES:
        spread = np.std([one[measure][0] for one in numbers], ddof=1)
        said = np.mean([one[measure][1] for one in numbers])
        assert said == pytest.approx(spread, rel=0.12)


def test_pairing_takes_out_what_two_trials_share() -> None:
    rng = np.random.default_rng(2)
    shared = rng.gamma(1, 1, (3, 300))
    first, second = error_of(shared), error_of(shared * 1.1)
    difference = x0_influence(first, (-1, 0, 1)) - x0_influence(second, (-1, 0, 1))
    assert difference[0].std() < 1e-12  # equal ratios leave no spread in the logarithm


def test_one_pair_has_no_evaluation_error() -> None:
    numbers = x0_summary(error_of(np.array([[0.5]])), (-1,))
    assert np.isnan(numbers["mean_log10_mse"][1])


def test_common_levels_are_the_intersection() -> None:
    assert common_levels([(-2, -1, 0, 1), (-1, 0, 1, 2), range(-9, 1)]) == (-1, 0)
    assert common_levels([(0, 1), (2, 3)]) == ()
    assert common_levels([]) == ()


@pytest.mark.parametrize(("dof", "quantile"), [(1, 12.7062), (4, 2.77645), (1000, 1.96234)])
def test_students_quantiles_are_those_of_the_tables(dof: int, quantile: float) -> None:
    assert t_quantile(0.95, dof) == pytest.approx(quantile, rel=1e-5)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        mean, half = mean_interval(list(rng.normal(4.0, 2.0, 3)))
        hits += abs(mean - 4.0) < half
    assert 0.935 < hits / 2000 < 0.965
    assert np.isnan(mean_interval([1.0])[1])


@pytest.mark.parametrize(("confidence", "dof"), [(0.0, 3), (1.0, 3), (0.95, 0)])
def test_impossible_quantiles_are_refused(confidence: float, dof: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        t_quantile(confidence, dof)


@pytest.mark.parametrize("variance", [0.05, 0.25, 1.0])
@pytest.mark.parametrize(("low", "high"), [(-8, 5), (-8, 3), (-3, 3), (0, 12)])
def test_the_bound_of_an_ideal_denoiser_of_gaussian_data(
    variance: float, low: int, high: int
) -> None:
    """mse = v / (1 + v snr), so the integral is 1/2 log((1 + v snr_high) / (1 + v snr_low))."""
    snr = np.exp(np.arange(low, high + 1.0))[:, None]
    scale = np.array([[0.5, 1.5, 1.0]])
    error = error_of(variance / (1 + variance * snr) * scale, low)
    bound, evaluation_error = continuous_bound(error, range(low, high + 1))
    exact = 0.5 * np.log2((1 + variance * np.exp(high)) / (1 + variance * np.exp(low)))
    assert bound == pytest.approx(exact, abs=3e-3)
    # pairs share their noise at every level, so what is above the mean is so everywhere
    assert evaluation_error == pytest.approx(exact * 0.5 / np.sqrt(3), rel=0.02)


def test_two_parts_of_the_bound_make_the_whole() -> None:
    mse = np.random.default_rng(4).gamma(3, 0.1, (9, 40)) * np.exp(-np.arange(-4.0, 5.0))[:, None]
    error = error_of(mse, -4)
    few = [continuous_bound(error, levels)[0] for levels in ((-1, 0), (0, 1), (-1, 0, 1))]
    assert few[0] + few[1] == pytest.approx(few[2])
    for levels in ((-1,), (-1, 1), ()):
        with pytest.raises(ValueError, match="two consecutive integers of log SNR or more"):
            continuous_bound(error, levels)
