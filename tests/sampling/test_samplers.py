"""Samplers against closed forms: single steps, moments of Gaussian data, orders; and their loop."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import PRED_TYPES, convert_prediction, q_posterior, target_for
from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule
from ddpm.sampling.samplers import SAMPLERS, Move, ddim_step, sample, sample_steps
from ddpm.sampling.spacing import SPACINGS, Level, walk_levels
from tests.support.diffusion_cases import (
    SHAPE,
    SIGMA_DATA,
    affine_network,
    all_pairs,
    constant,
    corners,
    every_pred_type,
    every_schedule,
    ideal_network,
    state_given,
)
from tests.support.sampler_cases import (
    VARIANCE,
    believe,
    carried,
    every_sampler,
    flowed,
    level_of,
    moments,
    zero_terminal,
)

CONTINUOUS = ("logsnr", "karras", "flow")
ETAS = (0.0, 0.2, 0.5, 1.0)


def never() -> Tensor:
    raise AssertionError("noise was drawn")


def at(schedule: NoiseSchedule, t: Tensor) -> Level:
    """Timesteps of a batch as one level."""
    return replace(level_of(*schedule.alpha_sigma_at(t)), logsnr=schedule.logsnr_at(t))


def step(
    sampler: str, now: Level, then: Level, x_t: Tensor, noise: Tensor, **extra: object
) -> Tensor:
    move = Move(
        estimate=believe(x_t, now), now=now, then=then, draw=lambda: noise, denoise=believe, **extra
    )
    return SAMPLERS[sampler].step(move)


# A single step of DDIM


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ddim_eta_one_is_the_ddpm_posterior_for_any_pair(
    name: str, zero_terminal_snr: bool
) -> None:
    schedule = NoiseSchedule(name, 40, zero_terminal_snr=zero_terminal_snr)
    t, s = all_pairs(40)
    x_t, x0_hat, zero, one = (constant(value, t) for value in (0.7, -0.4, 0.0, 1.0))
    posterior = q_posterior(schedule, x_t, x0_hat, t, s)
    mean = ddim_step(schedule, x_t, x0_hat, t, s, 1.0, zero)
    std = ddim_step(schedule, x_t, x0_hat, t, s, 1.0, one) - mean
    assert_close(mean, posterior.mean, rtol=0, atol=1e-13)
    assert_close(std**2, posterior.variance, rtol=1e-9, atol=1e-14)


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_any_eta_keeps_the_marginal_of_the_forward_process(
    name: str, zero_terminal_snr: bool
) -> None:
    """Mean alpha_s x0, and direction^2 + step_std^2 = sigma_s^2. v3 took eta, not eta^2, off."""
    schedule = NoiseSchedule(name, 40, zero_terminal_snr=zero_terminal_snr)
    t, s = all_pairs(40)
    x0, zero, one = constant(0.6, t), constant(0.0, t), constant(1.0, t)
    alpha_t, sigma_t = schedule.alpha_sigma_at(t)
    alpha_s, sigma_s = schedule.alpha_sigma_at(s)
    # Song et al. 2021, Eq. 16, at eta 1
    abar_t, abar_s = schedule.alphas_cumprod[t], schedule.alphas_cumprod[s]
    expected = ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)).sqrt()
    for eta in ETAS:
        mean = ddim_step(schedule, alpha_t * x0, x0, t, s, eta, zero)
        assert_close(mean, alpha_s * x0, rtol=0, atol=1e-13)
        # x_t = sigma_t is the noise 1 on the image 0
        direction = ddim_step(schedule, sigma_t, zero, t, s, eta, zero)
        std = ddim_step(schedule, sigma_t, zero, t, s, eta, one) - direction
        assert_close(direction**2 + std**2, sigma_s**2, rtol=1e-12, atol=1e-15)
        assert_close(std, eta * expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("eta", ETAS)
def test_a_step_of_a_batch_is_the_steps_of_its_samples_and_the_last_is_the_estimate(
    eta: float,
) -> None:
    schedule, ids = NoiseSchedule("cos6", 40), torch.arange(4)
    x_t, x0_hat, noise = (normal(k, Stream.EVAL, ids, SHAPE).double() for k in range(3))
    t, s = torch.tensor([40, 17, 5, 1]), torch.tensor([39, 0, 2, 0])
    together = ddim_step(schedule, x_t, x0_hat, t, s, eta, noise)
    for i in range(4):
        part = slice(i, i + 1)
        alone = ddim_step(schedule, x_t[part], x0_hat[part], int(t[i]), int(s[i]), eta, noise[part])
        assert torch.equal(alone[0], together[i])
    assert torch.equal(together[[1, 3]], x0_hat[[1, 3]])
    assert torch.equal(ddim_step(schedule, x_t, x0_hat, 20, 0, eta), x0_hat)


def test_noise_is_asked_for_exactly_when_it_is_used() -> None:
    schedule = NoiseSchedule("linear", 10)
    x = normal(0, Stream.EVAL, torch.arange(3), SHAPE)
    assert torch.equal(
        ddim_step(schedule, x, x, 5, 3, 0.0), ddim_step(schedule, x, x, 5, 3, 0.0, 9 * x)
    )
    with pytest.raises(ValueError, match="eta is 0.5 and s is not 0, so the step needs noise"):
        ddim_step(schedule, x, x, 5, 3, 0.5)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"eta is .*; give one from 0 \(DDIM\) to 1 \(DDPM\)"):
            ddim_step(schedule, x, x, 5, 3, eta, x)
    with pytest.raises(ValueError, match="a reverse step goes from t to an earlier s"):
        ddim_step(schedule, x, x, 3, 3, 0.0)


# A single step of the others


@every_sampler
def test_the_last_step_returns_the_estimate_and_draws_nothing(sampler: str) -> None:
    *_, before, now, then = walk_levels(NoiseSchedule("cosine", 40), num_steps=5)
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64).view(7, 1)
    move = Move(
        estimate=believe(x_t, now),
        now=now,
        then=then,
        draw=never,
        denoise=believe,
        before=(before, believe(3 * x_t, before)),
        eta=1.0 if sampler == "ddim" else 0.0,
    )
    assert torch.equal(SAMPLERS[sampler].step(move), believe(x_t, now).x0_hat)


@every_schedule
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde"])
def test_the_first_step_of_an_ancestral_sampler_is_the_posterior_for_any_pair(
    sampler: str, name: str
) -> None:
    schedule = zero_terminal(name, 40)
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
    now, then, later = walk_levels(zero_terminal(name, 40), spacing="logsnr", num_steps=9)[:3]
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
    for path in (
        walk_levels(schedule, num_steps=20),
        walk_levels(schedule, spacing="karras", num_steps=20),
    ):
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
    now, then = walk_levels(NoiseSchedule(name, 40), num_steps=5)[1:3]
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
    before, now, then = walk_levels(NoiseSchedule(name, 40), num_steps=5)[1:4]
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


# Variance drawn for data N(1/2, 1/4), T = 1000: by ddim with eta 0, 1/2, 1, and by heun.
VARIANCES = {
    ("linear", 1): (0.24849, 0.24797, 0.24611, 0.24990),
    ("linear", 50): (0.18594, 0.17940, 0.15328, 0.23022),
    ("cosine", 1): (0.24930, 0.24900, 0.24807, 0.25006),
    ("cosine", 50): (0.21470, 0.20925, 0.18732, 0.24898),
    ("cos6", 1): (0.24890, 0.24850, 0.24707, 0.25000),
    ("cos6", 50): (0.19999, 0.19340, 0.16739, 0.24138),
}


@pytest.mark.slow
@pytest.mark.parametrize("name, stride", VARIANCES)
def test_gaussian_data_is_drawn_with_the_known_variance(name: str, stride: int) -> None:
    path = walk_levels(NoiseSchedule(name, 1000), reverse_stride=stride)
    walks = (("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("heun", 0.0))
    found = [moments(sampler, path, eta)[1] for sampler, eta in walks]
    assert found == pytest.approx(VARIANCES[name, stride], abs=6e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "cosine", "cos6"])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
def test_second_order_reaches_the_limit_of_the_flow_in_few_steps(name: str, sampler: str) -> None:
    """The error left in the mean is the signal left in x_T, which noise has not."""
    schedule = NoiseSchedule(name, 200_000)
    drawn = moments(sampler, walk_levels(schedule, spacing="karras", num_steps=400))
    first = walk_levels(schedule, num_steps=1)[0]
    alpha, v = float(first.alpha), float(first.alpha**2 * VARIANCE + first.sigma**2)
    exact = (0.5 - math.sqrt(VARIANCE) * alpha * 0.5 / math.sqrt(v), VARIANCE / v)
    assert drawn == pytest.approx(exact, abs=1.2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "cosine", "shifted_cosine"])
@pytest.mark.parametrize("sampler, order", [("ddpm", 1), ("dpmpp_2m_sde", 2)])
def test_orders_of_the_variance_of_noisy_samplers(name: str, sampler: str, order: int) -> None:
    schedule = zero_terminal(name, 200_000)
    coarse, fine = (
        abs(moments(sampler, walk_levels(schedule, spacing="logsnr", num_steps=n))[1] - 0.25)
        for n in (200, 400)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.slow
@every_schedule
@every_sampler
def test_zero_terminal_snr_draws_the_right_mean(name: str, sampler: str) -> None:
    for spacing in ("trailing", *CONTINUOUS):
        path = walk_levels(zero_terminal(name, 100), spacing=spacing, num_steps=20)
        mean, variance = moments(sampler, path)
        assert mean == pytest.approx(0.5, abs=1e-9) and 0 < variance < 1


@pytest.mark.slow
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize(
    "sampler, order, within, num_steps",
    [("ddim", 1, 0.05, 40), ("heun", 2, 0.1, 80), ("dpmpp_2m", 2, 0.25, 160)],
)
def test_orders_of_convergence_to_the_flow_from_T_to_one(
    sampler: str, order: int, within: float, num_steps: int, zero_terminal_snr: bool
) -> None:
    """Evenly in log SNR, all schedules at once but for heun, which decides by a single level."""
    groups = [[name] for name in SCHEDULES] if sampler == "heun" else [list(SCHEDULES)]
    x_T = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    for names in groups:
        schedules = [NoiseSchedule(n, 1000, zero_terminal_snr=zero_terminal_snr) for n in names]
        errors = []
        for count in (num_steps, 2 * num_steps):
            coefficients = []
            for schedule in schedules:
                ends = schedule.logsnr_at(torch.tensor([1000 - zero_terminal_snr, 1])).tolist()
                logsnr = torch.linspace(*ends, count + 1, dtype=torch.float64)
                coefficients.append(torch.stack(schedule.at_logsnr(logsnr)[1:]))
            path = [level_of(*pair) for pair in torch.stack(coefficients, dim=2).unbind(1)]
            reached = carried(sampler, path, x_T.repeat(len(names), 1), lambda k: never())
            exact = flowed(x_T.repeat(len(names), 1), path[0], path[-1])
            errors.append((reached - exact).abs().amax(1))
        orders = torch.log2(errors[0] / errors[1])
        assert_close(orders, torch.full_like(orders, order), rtol=0, atol=within)


@pytest.mark.parametrize("num_steps, std", [(10, 0.885917), (100, 0.988008)])
@every_pred_type
def test_unit_gaussian_data_shrinks_by_a_power_of_a_cosine(
    num_steps: int, std: float, pred_type: str
) -> None:
    """x0_hat = alpha x_t makes each DDIM step a factor cos(89 degrees / S)."""
    schedule = NoiseSchedule("cosine", 1000, sigma_data=SIGMA_DATA)
    ids = torch.arange(3)
    assert math.cos(math.radians(89) / num_steps) ** num_steps == pytest.approx(std, abs=6e-7)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time[0].double())
        x_t = state_given(x_t, alpha, sigma, pred_type)
        x0_hat, noise_hat = alpha * x_t, sigma * x_t
        return target_for(pred_type, x0_hat, noise_hat, alpha, sigma, SIGMA_DATA).float()

    drawn = sample(network, schedule, ids, SHAPE, pred_type=pred_type, num_steps=num_steps)
    # float32: an image or noise prediction is divided once by a small coefficient.
    assert_close(drawn, normal(0, Stream.X_T, ids, SHAPE) * std, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_ddim_over_flow_spacing_is_eulers_method_for_the_flow(name: str) -> None:
    """z <- z - F(z, time) / n on the straight path (Liu et al. 2022), at whatever the schedule."""
    schedule, ids = NoiseSchedule(name, 1000, time_input="flow"), torch.arange(3)

    def network(z: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return torch.tanh(3 * z) - time.view(-1, 1, 1, 1)

    options = {"pred_type": "flow", "spacing": "flow", "num_steps": 7}
    drawn = sample(network, schedule, ids, SHAPE, **options)
    alpha, sigma = (float(one) for one in schedule.alpha_sigma_at(torch.tensor(1000)))
    z = normal(0, Stream.X_T, ids, SHAPE).double() / (alpha + sigma)
    first = sigma / (alpha + sigma)
    for step in range(7):
        time = torch.full((3,), first * (1 - step / 7), dtype=torch.float64)
        z = z - first / 7 * network(z, time, None)
    assert_close(drawn.double(), z, rtol=0, atol=1e-5)


# The loop


def network_of(schedule: NoiseSchedule, pred_type: str, calls: list[float] | None = None):
    """The ideal denoiser of the Gaussian data as a network."""

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        if calls is not None:
            calls.append(float(time[0]))
        alpha, sigma = schedule.alpha_sigma(time[0].double())
        x_t = state_given(x_t, alpha, sigma, pred_type)
        x0_hat = believe(x_t, level_of(alpha, sigma)).x0_hat
        return convert_prediction(x0_hat, x_t, alpha, sigma, "image", pred_type, SIGMA_DATA).float()

    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosine", "iddpm_cosine"])
@every_sampler
def test_the_loop_takes_the_steps_of_the_sampler(name: str, sampler: str) -> None:
    schedule, ids = NoiseSchedule(name, 100, sigma_data=SIGMA_DATA), torch.arange(3)
    for pred_type, spacing in product(PRED_TYPES, ("trailing", "karras")):
        path = walk_levels(schedule, spacing=spacing, num_steps=8)
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

        def noise(k: int, path: list[Level] = path) -> Tensor:
            return normal(5, Stream.STEP_NOISE, ids, SHAPE, step=path[k + 1].key).double()

        expected = carried(sampler, path, normal(5, Stream.X_T, ids, SHAPE).double(), noise)
        # float32 predictions of noise are magnified by up to 1 / alpha_T at the first step.
        gain = float(1 / path[0].alpha)
        assert_close(drawn.double(), expected, rtol=0, atol=1e-5 + 256 * 2.0**-24 * gain)


def test_the_loop_yields_every_step() -> None:
    schedule, ids = NoiseSchedule("linear", 20), torch.arange(4)
    x_t = normal(7, Stream.X_T, ids, SHAPE)
    arguments = {"pred_type": "image", "ddim_eta": 0.3, "seed": 7, "reverse_stride": 6}
    states = list(sample_steps(affine_network, schedule, ids, SHAPE, **arguments))
    assert [(state.t, state.s) for state in states] == [(20, 14), (14, 8), (8, 2), (2, 0)]
    for state in states:
        x0_hat = affine_network(x_t, torch.full((4,), state.t / 20), None)
        noise = normal(7, Stream.STEP_NOISE, ids, SHAPE, step=state.s)
        x_t = ddim_step(schedule, x_t, x0_hat, state.t, state.s, 0.3, noise)
        assert_close(state.x0_hat, x0_hat, rtol=0, atol=0)
        assert_close(state.x_t, x_t, rtol=1e-5, atol=1e-6)
    assert torch.equal(states[-1].x_t, states[-1].x0_hat)
    assert torch.equal(states[-1].x_t, sample(affine_network, schedule, ids, SHAPE, **arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [
        *((name, "logsnr") for name in SAMPLERS),
        *(("ddim", name) for name in SPACINGS if name != "logsnr"),
    ],
)
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
            ddim_eta=0.5 if sampler == "ddim" else 0.0,
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


def test_seeds_and_labels_matter_and_are_all_that_matters() -> None:
    schedule = NoiseSchedule("linear", 20)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return affine_network(x_t, time, None) + labels.view(-1, 1, 1, 1)

    def draw(seed: int, labels: list[int]) -> Tensor:
        given = {"labels": torch.tensor(labels), "seed": seed, "ddim_eta": 0.5}
        return sample(network, schedule, torch.arange(2), SHAPE, pred_type="velocity", **given)

    base, other = draw(0, [0, 1]), draw(0, [0, 2])
    assert torch.equal(base, draw(0, [0, 1])) and not torch.equal(base, draw(1, [0, 1]))
    assert torch.equal(other[0], base[0]) and not torch.equal(other[1], base[1])


def test_grids_of_other_lengths_start_from_the_same_noise() -> None:
    seen = []

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append((x_t.clone(), time.clone()))
        return 0 * x_t

    for num_timesteps in (10, 1000):
        schedule = NoiseSchedule("cosine", num_timesteps)
        sample(network, schedule, torch.arange(3), SHAPE, pred_type="image", num_steps=2)
    assert torch.equal(seen[0][0], normal(0, Stream.X_T, torch.arange(3), SHAPE))
    assert torch.equal(seen[0][0], seen[2][0])
    assert [time.tolist() for _, time in seen] == [[1.0] * 3, [0.5] * 3] * 2
    assert seen[0][1].dtype == torch.float32


@pytest.mark.slow
@every_pred_type
def test_arithmetic_is_the_samplers_own(pred_type: str) -> None:
    """float32 whatever the network returns, without gradients, whatever autocast says around it."""
    schedule = NoiseSchedule("cosine", 10, sigma_data=SIGMA_DATA)
    ids = torch.arange(3)
    weight = torch.tensor(1.0, requires_grad=True)
    arguments = {"pred_type": pred_type, "ddim_eta": 0.5}

    for dtype in (torch.bfloat16, torch.float64):

        def network(x_t: Tensor, time: Tensor, labels: Tensor | None, dtype=dtype) -> Tensor:
            assert x_t.dtype == time.dtype == torch.float32
            return (weight * affine_network(x_t, time, labels)).to(dtype)

        for state in sample_steps(network, schedule, ids, SHAPE, **arguments):
            assert state.x_t.dtype == state.x0_hat.dtype == torch.float32
            assert not state.x_t.requires_grad and torch.is_grad_enabled()
    plain = sample(affine_network, schedule, ids, SHAPE, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(affine_network, schedule, ids, SHAPE, **arguments), plain)


@every_sampler
def test_heun_calls_the_network_twice_a_step_but_the_last_and_others_once(sampler: str) -> None:
    schedule, calls = NoiseSchedule("cosine", 100), []
    network, arguments = network_of(schedule, "velocity", calls), {"pred_type": "velocity"}
    sample(network, schedule, torch.arange(2), SHAPE, num_steps=4, sampler=sampler, **arguments)
    twice = [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert calls == (twice if sampler == "heun" else [1.0, 0.75, 0.5, 0.25])


@pytest.mark.slow
@every_sampler
@pytest.mark.parametrize("name", ["cosine", "iddpm_cosine"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_ideal_denoiser_draws_the_data_whatever_it_predicts(
    sampler: str, name: str, zero_terminal_snr: bool
) -> None:
    schedule = NoiseSchedule(name, 1000, zero_terminal_snr=zero_terminal_snr, sigma_data=SIGMA_DATA)
    data, images = corners().float(), []
    for pred_type in PRED_TYPES[zero_terminal_snr:]:  # noise is refused there
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
        images.append(nearest)
    # Of images on the border of two the last bits decide.
    assert all((one == images[0]).float().mean() > 0.97 for one in images)


@pytest.mark.parametrize("name", ["linear", "cosine", "laplace"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_prediction_type_does_not_matter_to_an_ideal_network(name: str, eta: float) -> None:
    schedule, data = NoiseSchedule(name, 24, sigma_data=SIGMA_DATA), corners().float()
    drawn = [
        sample(
            ideal_network(schedule, data, pred_type),
            schedule,
            torch.arange(9),
            (1, 2, 2),
            pred_type=pred_type,
            reverse_stride=7,
            ddim_eta=eta,
        )
        for pred_type in PRED_TYPES
    ]
    gain = float(1 / schedule.alpha_sigma_at(torch.tensor(24))[0])
    for other in drawn[1:]:
        assert_close(other, drawn[0], rtol=0, atol=1e-4 + 64 * 2.0**-24 * gain)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "euler"}, "sampler is 'euler'; give one of ddim, ddpm"),
        ({"sampler": "heun", "ddim_eta": 0.5}, "eta belongs to ddim"),
        ({"resamples": 16}, "resamples is 16; give one from 0 to 15"),
        ({"spacing": "logsnr"}, "spacing is logsnr; give num_steps with it"),
        ({"num_steps": 5, "reverse_stride": 2}, "both num_steps and reverse_stride are given"),
        ({"num_steps": 31}, "num_steps is 31; give one from 1 to 30"),
        ({"reverse_stride": 31}, "stride is 31; give one from 1 to 30"),
        ({"ddim_eta": 1.5}, "eta is 1.5"),
        ({"pred_type": "eps"}, "pred_type is 'eps'; give one of noise, image, velocity"),
        ({"labels": torch.tensor([1])}, r"labels is \(1,\); give one for each of 2 ids"),
        ({"guidance": 2.0, "null_label": 3}, "guidance is 2.0 but labels is missing"),
        ({"guidance": 2.0, "labels": torch.tensor([1, 2])}, "but null_label is missing"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict, words: str) -> None:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError("the network was called before the arguments were checked")

    arguments = {"pred_type": "image"} | arguments
    with pytest.raises(ValueError, match=words):
        sample(network, NoiseSchedule("linear", 30), torch.arange(2), SHAPE, **arguments)


def test_noise_prediction_and_other_shapes_are_refused() -> None:
    ids, schedule = torch.arange(2), zero_terminal("cosine", 30)
    with pytest.raises(ValueError, match="ends at zero SNR.* predict image or velocity"):
        sample(affine_network, schedule, ids, SHAPE, pred_type="noise")
    with pytest.raises(ValueError, match=r"returned \(2, 1, 3, 3\) for \(2, 2, 3, 3\)"):
        sample(lambda x_t, time, labels: x_t[:, :1], schedule, ids, SHAPE, pred_type="image")
