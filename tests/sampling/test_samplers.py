"""Samplers against closed forms: single steps, the moments of Gaussian data, and their orders."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import convert, q_posterior
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.denoise import Denoised
from ddpm.sampling.samplers import SAMPLERS, Move, sample
from ddpm.sampling.spacing import Level, levels
from tests.support.diffusion_cases import (
    SHAPE,
    affine_network,
    all_pairs,
    corners,
    every_pred_type,
    every_schedule,
    ideal_network,
)
from tests.support.sampler_cases import (
    VARIANCE,
    believe,
    carried,
    every_sampler,
    flowed,
    moments,
    zero_terminal,
)

CONTINUOUS = ("logsnr", "karras")


def never() -> Tensor:
    raise AssertionError("noise was drawn")


def at(schedule: NoiseSchedule, t: Tensor) -> Level:
    """Timesteps of a batch as one level."""
    alpha, sigma = schedule.alpha_sigma_at(t)
    return Level(time=0.5, t=0, alpha=alpha, sigma=sigma, logsnr=schedule.logsnr_at(t), key=0)


def step(
    sampler: str, now: Level, then: Level, x_t: Tensor, noise: Tensor, **extra: object
) -> Tensor:
    move = Move(
        estimate=believe(x_t, now), now=now, then=then, draw=lambda: noise, denoise=believe, **extra
    )
    return SAMPLERS[sampler](move)


# A single step


@every_sampler
@every_schedule
def test_the_last_step_returns_the_estimate_and_draws_nothing(sampler: str, name: str) -> None:
    *_, before, now, then = levels(NoiseSchedule(name, 40), num_steps=5)
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64).view(7, 1)
    move = Move(
        estimate=believe(x_t, now),
        now=now,
        then=then,
        draw=never,
        denoise=believe,
        before=(before, believe(3 * x_t, before)),
        eta=1.0,
    )
    assert torch.equal(SAMPLERS[sampler](move), believe(x_t, now).x0_hat)


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde"])
def test_the_first_step_of_an_ancestral_sampler_is_the_posterior_for_any_pair(
    sampler: str, name: str, zero_terminal_snr: bool
) -> None:
    schedule = NoiseSchedule(name, 40, zero_terminal_snr=zero_terminal_snr)
    t, s = all_pairs(40)
    now, then = at(schedule, t), at(schedule, s)
    x_t = torch.linspace(-2, 2, len(t), dtype=torch.float64)
    posterior = q_posterior(schedule, x_t, believe(x_t, now).x0_hat, t, s)
    mean = step(sampler, now, then, x_t, torch.zeros_like(x_t))
    std = step(sampler, now, then, x_t, torch.ones_like(x_t)) - mean
    assert_close(mean, posterior.mean, rtol=0, atol=1e-12)
    assert_close(std**2, posterior.variance, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
@every_schedule
def test_a_step_out_of_zero_snr_is_of_first_order(sampler: str, name: str) -> None:
    now, then, later = levels(zero_terminal(name, 40), spacing="logsnr", num_steps=9)[:3]
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)
    x_s = step(sampler, now, then, x_t, x_t)
    assert torch.equal(x_s, step("ddim", now, then, x_t, x_t))
    # and what was estimated there is no slope for the step after
    after = step("dpmpp_2m", then, later, x_s, x_s, before=(now, believe(9 * x_t, now)))
    assert torch.equal(after, step("ddim", then, later, x_s, x_s))


@pytest.mark.parametrize("name", ["iddpm_cosine", "sigmoid", "laplace", "shifted_cosine"])
def test_heun_does_not_magnify_errors_out_of_next_to_zero_snr(name: str) -> None:
    """sigma / alpha falls there from thousands to tens in one step; half of that is a factor."""
    schedule = NoiseSchedule(name, 1000)
    for path in (levels(schedule, num_steps=20), levels(schedule, spacing="karras", num_steps=20)):
        now, then = path[:2]
        weight = 0.5 * float(then.alpha * now.sigma / now.alpha - then.sigma)
        x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)
        is_first_order = torch.equal(
            step("heun", now, then, x_t, x_t), step("ddim", now, then, x_t, x_t)
        )
        assert is_first_order == (weight > 30) == (path[1].t == 950)


@every_schedule
def test_heun_averages_the_noise_in_sigma_over_alpha(name: str) -> None:
    """Karras et al. 2022, Algorithm 1, in y = x / alpha and its own words."""
    now, then = levels(NoiseSchedule(name, 40), num_steps=5)[1:3]
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)
    y, sigma, next_sigma = x_t / now.alpha, now.sigma / now.alpha, then.sigma / then.alpha
    slope = believe(x_t, now).noise_hat
    euler = y + (next_sigma - sigma) * slope
    corrected = believe(then.alpha * euler, then).noise_hat
    expected = then.alpha * (y + (next_sigma - sigma) * (slope + corrected) / 2)
    assert_close(step("heun", now, then, x_t, x_t), expected, rtol=1e-10, atol=1e-10)


@every_schedule
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_dpm_solver_is_as_published(sampler: str, name: str) -> None:
    """Lu et al. 2022b: Algorithm 2, and the SDE form of section 5, in the half-log-SNR lambda."""
    before, now, then = levels(NoiseSchedule(name, 40), num_steps=5)[1:4]
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)
    z, last = 0.3 * x_t + 0.1, believe(0.5 - x_t, before)
    h, h_before = (0.5 * (to.logsnr - of.logsnr) for of, to in ((now, then), (before, now)))
    r = h_before / h
    x0_hat = believe(x_t, now).x0_hat
    d = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * last.x0_hat
    if sampler == "dpmpp_2m":
        expected = then.sigma / now.sigma * x_t - then.alpha * torch.expm1(-h) * d
    else:
        decay = then.sigma / now.sigma * torch.exp(-h)
        std = then.sigma * torch.sqrt(-torch.expm1(-2 * h))
        expected = decay * x_t - then.alpha * torch.expm1(-2 * h) * d + std * z
    drawn = step(sampler, now, then, x_t, z, before=(before, last))
    assert_close(drawn, expected, rtol=1e-10, atol=1e-10)


# Gaussian data


# Variance drawn by heun for data N(1/2, 1/4), T = 1000.
HEUN = {
    ("linear", 1): 0.24990,
    ("linear", 50): 0.23022,
    ("cosine", 1): 0.25006,
    ("cosine", 50): 0.24898,
    ("cos6", 1): 0.25000,
    ("cos6", 50): 0.24138,
}


@pytest.mark.parametrize("name, stride", HEUN)
def test_heun_draws_gaussian_data_with_the_known_variance(name: str, stride: int) -> None:
    path = levels(NoiseSchedule(name, 1000), reverse_stride=stride)
    assert moments("heun", path)[1] == pytest.approx(HEUN[name, stride], abs=6e-6)


@pytest.mark.parametrize(
    "name, mean, variance",
    [("linear", 0.49836, 0.25001), ("cosine", 0.49564, 0.25006), ("cos6", 0.49869, 0.25001)],
)
@pytest.mark.parametrize("spacing", CONTINUOUS)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
def test_second_order_reaches_the_limit_of_the_flow_in_few_steps(
    name: str, mean: float, variance: float, spacing: str, sampler: str
) -> None:
    schedule = NoiseSchedule(name, 200_000)
    drawn = moments(sampler, levels(schedule, spacing=spacing, num_steps=400))
    assert drawn == pytest.approx((mean, variance), abs=1.2e-4)
    first = levels(schedule, num_steps=1)[0]
    v = float(first.alpha) ** 2 * VARIANCE + float(first.sigma) ** 2
    alpha = float(first.alpha)
    exact = (0.5 - math.sqrt(VARIANCE) * alpha * 0.5 / math.sqrt(v), VARIANCE / v)
    assert drawn == pytest.approx(exact, abs=1.2e-4)


@pytest.mark.parametrize("name", ["linear", "cosine", "cos6", "shifted_cosine"])
@pytest.mark.parametrize("sampler, order", [("ddpm", 1), ("dpmpp_2m_sde", 2)])
def test_orders_of_the_variance_of_noisy_samplers(name: str, sampler: str, order: int) -> None:
    schedule = zero_terminal(name, 200_000)
    errors = [
        abs(moments(sampler, levels(schedule, spacing="logsnr", num_steps=n))[1] - 0.25)
        for n in (100, 200, 400)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@every_schedule
@every_sampler
@pytest.mark.parametrize("spacing", ["trailing", *CONTINUOUS])
def test_zero_terminal_snr_draws_the_right_mean(name: str, sampler: str, spacing: str) -> None:
    mean, variance = moments(
        sampler, levels(zero_terminal(name, 100), spacing=spacing, num_steps=20)
    )
    assert mean == pytest.approx(0.5, abs=1e-9) and 0 < variance < 1


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize(
    "sampler, order, within", [("ddim", 1, 0.05), ("heun", 2, 0.1), ("dpmpp_2m", 2, 0.25)]
)
def test_orders_of_convergence_to_the_flow_from_T_to_one(
    name: str, zero_terminal_snr: bool, sampler: str, order: int, within: float
) -> None:
    schedule = NoiseSchedule(name, 1000, zero_terminal_snr=zero_terminal_snr)
    x_T = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).view(3, 1)
    errors = []
    for num_steps in (160, 320, 640) if sampler == "dpmpp_2m" else (80, 160, 320):
        path = levels(schedule, spacing="logsnr", num_steps=num_steps)[int(zero_terminal_snr) : -1]
        reached = carried(sampler, path, x_T, lambda k: never())
        errors.append(float((reached - flowed(x_T, path[0], path[-1])).abs().max()))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=within)


# The loop


def network_of(schedule: NoiseSchedule, pred_type: str, calls: list[float] | None = None):
    """The ideal denoiser of the Gaussian data as a network."""

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if calls is not None:
            calls.append(float(time[0]))
        alpha, sigma = schedule.alpha_sigma(time[0].double())
        level = Level(
            time=0.5, t=0, alpha=alpha, sigma=sigma, logsnr=2 * torch.log(alpha / sigma), key=0
        )
        estimate = believe(x_t.double(), level)
        return convert(estimate.x0_hat, x_t.double(), alpha, sigma, "image", pred_type).float()

    return network


@every_schedule
@every_pred_type
@every_sampler
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_the_loop_takes_the_steps_of_the_sampler(
    name: str, pred_type: str, sampler: str, spacing: str
) -> None:
    schedule, ids = NoiseSchedule(name, 100), torch.arange(3)
    path = levels(schedule, spacing=spacing, num_steps=8)
    drawn = sample(
        network_of(schedule, pred_type),
        schedule,
        ids,
        SHAPE,
        pred_type=pred_type,
        num_steps=8,
        seed=5,
        sampler=sampler,
        spacing=spacing,
    )

    def noise(k: int) -> Tensor:
        return normal(5, Stream.STEP_NOISE, ids, SHAPE, step=path[k + 1].key).double()

    expected = carried(sampler, path, normal(5, Stream.X_T, ids, SHAPE).double(), noise)
    # float32 predictions of noise are magnified by up to 1 / alpha_T at the first step.
    gain = float(1 / path[0].alpha)
    assert_close(drawn.double(), expected, rtol=0, atol=1e-5 + 256 * 2.0**-24 * gain)


@every_sampler
@pytest.mark.parametrize("spacing", ["linspace", *CONTINUOUS])
def test_an_image_is_bitwise_the_same_in_any_batch_and_order(sampler: str, spacing: str) -> None:
    schedule = NoiseSchedule("cos6", 12)

    def draw(ids: Tensor) -> Tensor:
        return sample(
            affine_network,
            schedule,
            ids,
            SHAPE,
            pred_type="velocity",
            num_steps=9,
            clip_denoise=True,
            seed=4,
            sampler=sampler,
            spacing=spacing,
            resamples=1,
        )

    ids = torch.tensor([3, 0, 2**40, 17])
    together = draw(ids)
    assert together.dtype == torch.float32 and together.isfinite().all()
    assert torch.equal(draw(ids.flip(0)), together.flip(0))
    for i in range(4):
        assert torch.equal(draw(ids[i : i + 1])[0], together[i])
    assert len(torch.unique(together.flatten(1), dim=0)) == 4


@every_sampler
def test_heun_calls_the_network_twice_a_step_but_the_last_and_others_once(sampler: str) -> None:
    schedule, calls = NoiseSchedule("cosine", 100), []
    sample(
        network_of(schedule, "velocity", calls),
        schedule,
        torch.arange(2),
        SHAPE,
        pred_type="velocity",
        num_steps=4,
        sampler=sampler,
    )
    twice = [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert calls == (twice if sampler == "heun" else [1.0, 0.75, 0.5, 0.25])


@every_sampler
@every_pred_type
@pytest.mark.parametrize("name", ["linear", "cosine", "cos6", "iddpm_cosine"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_ideal_denoiser_draws_the_data(
    sampler: str, pred_type: str, name: str, zero_terminal_snr: bool
) -> None:
    if zero_terminal_snr and pred_type == "noise":
        return  # refused: test_zero_terminal_snr_is_sampled_where_it_is_defined
    schedule = NoiseSchedule(name, 1000, zero_terminal_snr=zero_terminal_snr)
    data = corners().float()
    drawn = sample(
        ideal_network(schedule, data, pred_type),
        schedule,
        torch.arange(150),
        (1, 2, 2),
        pred_type=pred_type,
        num_steps=24,
        sampler=sampler,
        spacing="logsnr",
    )
    distance, nearest = (drawn[:, None] - data).flatten(2).norm(dim=2).min(1)
    assert distance.quantile(0.95) < 0.05
    counts = torch.bincount(nearest, minlength=5)
    assert (counts > 5).all() and (counts < 70).all(), counts


def test_estimates_are_of_images_and_noise_that_make_the_state() -> None:
    """What carried() relies on: x_t = alpha x0_hat + sigma noise_hat."""
    for level in levels(NoiseSchedule("cosine", 40), num_steps=5)[:-1]:
        x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)
        estimate: Denoised = believe(x_t, level)
        assert_close(level.alpha * estimate.x0_hat + level.sigma * estimate.noise_hat, x_t)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "euler"}, "sampler is 'euler'; give one of ddim, ddpm"),
        ({"sampler": "heun", "ddim_eta": 0.5}, "eta belongs to ddim"),
        ({"resamples": 16}, "resamples is 16; give one from 0 to 15"),
        ({"spacing": "logsnr"}, "spacing is logsnr; give num_steps with it"),
    ],
)
def test_impossible_options_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sample(
            affine_network,
            NoiseSchedule("linear", 30),
            torch.arange(2),
            SHAPE,
            pred_type="image",
            **arguments,
        )
