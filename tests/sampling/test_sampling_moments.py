"""What is drawn from data with a closed form: Gaussians, and finite sets of images.

Samplers are linear in x_t when the denoiser is, so for Gaussian data the mean and the variance of
what they draw follow from each step's coefficients, without sampling anything.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import PRED_TYPES, q_posterior
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.samplers import ddim_step, sample
from ddpm.sampling.spacing import reverse_timesteps, trailing_timesteps
from tests.support.diffusion_cases import (
    SHAPE,
    constant,
    corners,
    every_eta,
    every_pred_type,
    every_schedule,
    ideal_network,
    pairs_of,
)


def gaussian_denoiser(
    schedule: NoiseSchedule, mean: float, variance: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x0 | x_t] of data N(mean, variance), as a function of (x_t, t)."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma_at(t)
        return (alpha * variance * x_t + sigma**2 * mean) / (alpha**2 * variance + sigma**2)

    return denoise


def moments(
    schedule: NoiseSchedule, path: list[int], eta: float, mean: float, variance: float
) -> tuple[float, float]:
    """Mean and variance of the images the sampler draws for data N(mean, variance), exactly."""
    t, s = pairs_of(path)
    zero, one = constant(0.0, t), constant(1.0, t)
    denoise = gaussian_denoiser(schedule, mean, variance)

    def step(x_t: Tensor, noise: Tensor) -> Tensor:
        return ddim_step(schedule, x_t, denoise(x_t, t), t, s, eta, noise)

    offset = step(zero, zero)
    slope, std = step(one, zero) - offset, step(zero, one) - offset
    drawn_mean, drawn_variance = 0.0, 1.0
    for a, b, c in zip(slope.tolist(), offset.tolist(), std.tolist(), strict=True):
        drawn_mean, drawn_variance = a * drawn_mean + b, a * a * drawn_variance + c * c
    return drawn_mean, drawn_variance


# Variance drawn at eta 0, 1/2, 1 for data N(1/2, 1/4), T = 1000.
VARIANCES = {
    ("linear", 1): (0.24849, 0.24797, 0.24611),
    ("linear", 50): (0.18594, 0.17940, 0.15328),
    ("cosine", 1): (0.24930, 0.24900, 0.24807),
    ("cosine", 50): (0.21470, 0.20925, 0.18732),
    ("cos6", 1): (0.24890, 0.24850, 0.24707),
    ("cos6", 50): (0.19999, 0.19340, 0.16739),
}


@pytest.mark.parametrize("name, stride", VARIANCES)
def test_gaussian_data_is_drawn_with_the_known_variance(name: str, stride: int) -> None:
    schedule, path = NoiseSchedule(name, 1000), reverse_timesteps(1000, stride)
    for eta, expected in zip((0.0, 0.5, 1.0), VARIANCES[name, stride], strict=True):
        assert moments(schedule, path, eta, 0.5, 0.25)[1] == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(
    "name, mean, variance",
    [("linear", 0.49836, 0.25001), ("cosine", 0.49564, 0.25006), ("cos6", 0.49869, 0.25001)],
)
def test_many_small_steps_reach_the_limit_of_the_flow(
    name: str, mean: float, variance: float
) -> None:
    """What remains of the error in the mean is the signal left in x_T, which noise has not."""
    schedule = NoiseSchedule(name, 200_000)
    drawn = moments(schedule, reverse_timesteps(200_000, 1), 0.0, 0.5, 0.25)
    assert drawn == pytest.approx((mean, variance), abs=2e-5)
    alpha, sigma = (float(x) for x in schedule.alpha_sigma_at(torch.tensor(200_000)))
    marginal = alpha**2 * 0.25 + sigma**2
    exact = (0.5 - 0.5 * alpha * 0.5 / math.sqrt(marginal), 0.25 / marginal)
    assert drawn == pytest.approx(exact, abs=1e-5)


@every_schedule
@every_eta
def test_the_error_of_the_variance_falls_with_the_number_of_steps(name: str, eta: float) -> None:
    schedule = NoiseSchedule(name, 4000)
    errors = [
        abs(moments(schedule, trailing_timesteps(4000, n), eta, 0.5, 0.25)[1] - 0.25)
        for n in (10, 100, 1000)
    ]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("name", ["linear", "cos6"])
def test_ddim_is_of_first_order(name: str) -> None:
    schedule = NoiseSchedule(name, 6400)
    limit = moments(NoiseSchedule(name, 400_000), reverse_timesteps(400_000, 1), 0.0, 0.5, 0.25)[1]
    errors = [
        limit - moments(schedule, trailing_timesteps(6400, n), 0.0, 0.5, 0.25)[1]
        for n in (400, 800, 1600)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


@every_schedule
def test_zero_terminal_snr_draws_the_right_mean(name: str) -> None:
    schedule = NoiseSchedule(name, 4000, zero_terminal_snr=True)
    mean, _ = moments(schedule, reverse_timesteps(4000, 1), 0.0, 0.5, 0.25)
    assert mean == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine", "cos6"])
@pytest.mark.parametrize("stride", [1, 50])
def test_the_optimal_ancestral_variance_is_exact_at_any_stride(name: str, stride: int) -> None:
    """Adding c0^2 Var(x0 | x_t) to the posterior's variance (Bao et al. 2022, Analytic-DPM)."""
    schedule = NoiseSchedule(name, 1000)
    t, s = pairs_of(reverse_timesteps(1000, stride))
    zero, one = constant(0.0, t), constant(1.0, t)
    denoise = gaussian_denoiser(schedule, 0.5, 0.25)
    offset = q_posterior(schedule, zero, denoise(zero, t), t, s).mean
    slope = q_posterior(schedule, one, denoise(one, t), t, s).mean - offset
    from_x0 = q_posterior(schedule, zero, one, t, s)
    alpha, sigma = schedule.alpha_sigma_at(t)
    unknown = 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)
    added = from_x0.variance + from_x0.mean**2 * unknown
    variance = 1.0
    for a, v in zip(slope.tolist(), added.tolist(), strict=True):
        variance = a * a * variance + v
    assert variance == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize(
    "num_steps, std", [(10, 0.885917), (20, 0.941404), (100, 0.988008), (1000, 0.998794)]
)
@every_pred_type
def test_unit_gaussian_data_shrinks_by_a_power_of_a_cosine(
    num_steps: int, std: float, pred_type: str
) -> None:
    """x0_hat = alpha x_t makes each DDIM step a factor cos(89 degrees / S)."""
    schedule = NoiseSchedule("cosine", 1000)
    closed_form = math.cos(math.radians(89) / num_steps) ** num_steps
    assert closed_form == pytest.approx(std, abs=6e-7)
    path = trailing_timesteps(1000, num_steps)
    drawn_std = math.sqrt(moments(schedule, path, 0.0, 0.0, 1.0)[1])
    assert drawn_std == pytest.approx(closed_form, rel=1e-11)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time[0].double())
        return {"noise": sigma * x_t, "image": alpha * x_t, "velocity": 0 * x_t}[pred_type]

    ids = torch.arange(3)
    drawn = sample(network, schedule, ids, SHAPE, pred_type=pred_type, num_steps=num_steps)
    start = normal(0, Stream.X_T, ids, SHAPE)
    # float32: an image or noise prediction is divided once by a small coefficient.
    assert_close(drawn, start * std, rtol=3e-5, atol=3e-5)


@every_schedule
@every_pred_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_ideal_denoiser_draws_the_data(name: str, pred_type: str, eta: float) -> None:
    schedule, data = NoiseSchedule(name, 1000), corners().float()
    # Laplace has few timesteps far from logsnr 0: a coarse walk makes both its end steps too long.
    num_steps = 500 if name == "laplace" else 20
    drawn = sample(
        ideal_network(schedule, data, pred_type),
        schedule,
        torch.arange(200),
        (1, 2, 2),
        pred_type=pred_type,
        num_steps=num_steps,
        ddim_eta=eta,
    )
    distance, nearest = (drawn[:, None] - data).flatten(2).norm(dim=2).min(1)
    assert distance.quantile(0.98) < 0.05
    counts = torch.bincount(nearest, minlength=5)
    assert (counts > 10).all() and (counts < 80).all(), counts


@every_schedule
@pytest.mark.parametrize("stride", [1, 7, 24])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_prediction_type_does_not_matter_to_an_ideal_network(
    name: str, stride: int, eta: float
) -> None:
    schedule, data = NoiseSchedule(name, 24), corners().float()
    drawn = [
        sample(
            ideal_network(schedule, data, pred_type),
            schedule,
            torch.arange(9),
            (1, 2, 2),
            pred_type=pred_type,
            reverse_stride=stride,
            ddim_eta=eta,
        )
        for pred_type in PRED_TYPES
    ]
    # float32 noise predictions are magnified by up to 1 / alpha_T at the first step.
    gain = float(1 / schedule.alpha_sigma_at(torch.tensor(24))[0])
    for other in drawn[1:]:
        assert_close(other, drawn[0], rtol=0, atol=1e-4 + 64 * 2.0**-24 * gain)
