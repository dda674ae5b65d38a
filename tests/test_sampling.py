"""Laws of the reverse process: closed forms, invariances, limits.

Samplers are linear in x_t when the denoiser is, so for Gaussian data the mean and the variance of
what they draw follow from each step's coefficients, without sampling anything.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion import PRED_TYPES, convert, diffuse, q_posterior, q_sample
from ddpm.noise import Stream, normal
from ddpm.sampling import (
    SampleState,
    ddim_step,
    from_uint8,
    reverse_timesteps,
    sample,
    sample_steps,
    to_uint8,
    trailing_timesteps,
)
from ddpm.schedule import SCHEDULES, NoiseSchedule

ETAS = [0.0, 0.2, 0.5, 0.8, 1.0]
SHAPE = (2, 3, 3)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_pred_type = pytest.mark.parametrize("pred_type", PRED_TYPES)
every_eta = pytest.mark.parametrize("eta", ETAS)


def pairs_of(path: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(path[:-1]), torch.tensor(path[1:])


def all_pairs(num_timesteps: int) -> tuple[Tensor, Tensor]:
    t, s = torch.tril_indices(num_timesteps + 1, num_timesteps + 1, offset=-1)
    return t, s


def constant(value: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), value, dtype=torch.float64)


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


def ideal_network(schedule: NoiseSchedule, data: Tensor, pred_type: str) -> Callable:
    """The optimal prediction for a finite data set: a softmax over its images (M, C, H, W)."""
    points = data.double().flatten(1)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time)
        x = x_t.double().flatten(1)
        distances = ((x[:, None] - alpha[:, None, None] * points) ** 2).sum(2)  # (N, M)
        weights = torch.softmax(-distances / (2 * sigma[:, None] ** 2), dim=1)
        x0_hat = (weights @ points).view_as(x_t)
        return convert(x0_hat, x_t.double(), alpha, sigma, "image", pred_type).float()

    return network


def affine_network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    """Exact operations on single elements: its bits cannot depend on the batch."""
    return 0.25 * x_t + time.view(-1, 1, 1, 1)


# --- which timesteps


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50, 1000])
def test_any_stride_goes_from_T_to_zero(num_timesteps: int) -> None:
    for stride in range(1, num_timesteps + 1):
        path = reverse_timesteps(num_timesteps, stride)
        steps = [t - s for t, s in zip(path, path[1:], strict=False)]
        assert path[0] == num_timesteps and path[-1] == 0
        assert all(step == stride for step in steps[:-1]) and 1 <= steps[-1] <= stride


def test_strides_of_v3_give_its_timesteps() -> None:
    assert reverse_timesteps(1000, 50) == [*range(1000, 0, -50), 0]
    assert reverse_timesteps(10, 4) == [10, 6, 2, 0]


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50, 250])
def test_any_number_of_steps_is_spread_evenly(num_timesteps: int) -> None:
    for num_steps in range(1, num_timesteps + 1):
        path = trailing_timesteps(num_timesteps, num_steps)
        assert len(path) == num_steps + 1 and path[0] == num_timesteps and path[-1] == 0
        assert all(t > s for t, s in zip(path, path[1:], strict=False))
        for i, t in enumerate(path):
            assert abs(t - num_timesteps * (num_steps - i) / num_steps) <= 0.5
        if num_timesteps % num_steps == 0:
            assert path == reverse_timesteps(num_timesteps, num_timesteps // num_steps)


@pytest.mark.parametrize("bad", [0, -1, 11])
def test_impossible_timesteps_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=f"stride is {bad}; give one from 1 to 10"):
        reverse_timesteps(10, bad)
    with pytest.raises(ValueError, match=f"num_steps is {bad}; give one from 1 to 10"):
        trailing_timesteps(10, bad)


# --- one step


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
@every_eta
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_any_eta_keeps_the_marginal_variance(
    name: str, eta: float, zero_terminal_snr: bool
) -> None:
    """direction^2 + step_std^2 = sigma_s^2. v3 took eta, not eta^2, off the direction."""
    schedule = NoiseSchedule(name, 40, zero_terminal_snr=zero_terminal_snr)
    t, s = all_pairs(40)
    zero, one = constant(0.0, t), constant(1.0, t)
    _, sigma_t = schedule.alpha_sigma_at(t)
    alpha_s, sigma_s = schedule.alpha_sigma_at(s)
    # x_t = sigma_t is the noise 1 on the image 0.
    direction = ddim_step(schedule, sigma_t, zero, t, s, eta, zero)
    std = ddim_step(schedule, sigma_t, zero, t, s, eta, one) - direction
    assert_close(direction**2 + std**2, sigma_s**2, rtol=1e-12, atol=1e-15)
    assert_close(ddim_step(schedule, zero, zero, t, s, eta, one), std, rtol=0, atol=1e-12)
    # Song et al. 2021, Eq. 16.
    abar_t, abar_s = schedule.alphas_cumprod[t], schedule.alphas_cumprod[s]
    expected = eta * ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)).sqrt()
    assert_close(std, expected, rtol=1e-7, atol=1e-12)


def test_the_eta_of_v3_would_lose_variance() -> None:
    """What the test above guards against: at eta 1/2 the worst step kept 0.81 of the variance."""
    schedule = NoiseSchedule("cosine", 1000)
    t, s = pairs_of(reverse_timesteps(1000, 1))
    variance = q_posterior(schedule, constant(0, t), constant(0, t), t, s).variance[:-1]
    sigma_s = schedule.alpha_sigma_at(s)[1][:-1]
    kept = (sigma_s**2 - 0.5 * variance + 0.25 * variance) / sigma_s**2
    assert float(kept.min()) == pytest.approx(0.81, abs=0.01)


@every_eta
def test_a_step_of_a_batch_is_the_steps_of_its_samples(eta: float) -> None:
    schedule = NoiseSchedule("cos6", 40)
    ids = torch.arange(4)
    x_t, x0_hat, noise = (normal(k, Stream.EVAL, ids, SHAPE).double() for k in range(3))
    t, s = torch.tensor([40, 17, 5, 1]), torch.tensor([39, 0, 2, 0])
    together = ddim_step(schedule, x_t, x0_hat, t, s, eta, noise)
    for i in range(4):
        part = slice(i, i + 1)
        alone = ddim_step(schedule, x_t[part], x0_hat[part], int(t[i]), int(s[i]), eta, noise[part])
        assert torch.equal(alone[0], together[i])
    assert torch.equal(together[[1, 3]], x0_hat[[1, 3]])


@every_schedule
@every_eta
def test_the_last_step_returns_the_estimate(name: str, eta: float) -> None:
    schedule = NoiseSchedule(name, 40)
    x_t, x0_hat = (normal(k, Stream.EVAL, torch.arange(3), SHAPE) for k in range(2))
    for t in (1, 20, 40):
        assert torch.equal(ddim_step(schedule, x_t, x0_hat, t, 0, eta), x0_hat)
        assert torch.equal(ddim_step(schedule, x_t, x0_hat, t, 0, eta, x_t), x0_hat)


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


@every_schedule
@every_eta
def test_a_step_with_the_true_image_keeps_the_forward_law(name: str, eta: float) -> None:
    """From x_t ~ q(x_t | x0) to x_s ~ q(x_s | x0): mean alpha_s x0, for every pair."""
    schedule = NoiseSchedule(name, 40)
    t, s = all_pairs(40)
    x0, zero = constant(0.6, t), constant(0.0, t)
    alpha_t, _ = schedule.alpha_sigma_at(t)
    alpha_s, _ = schedule.alpha_sigma_at(s)
    assert_close(
        ddim_step(schedule, alpha_t * x0, x0, t, s, eta, zero), alpha_s * x0, rtol=0, atol=1e-13
    )


# --- Gaussian data: exact moments of what is drawn

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


# --- finite data


def corners() -> Tensor:
    """Five images of 1 x 2 x 2 far from each other."""
    return torch.tensor(
        [[1, 1, 1, 1], [-1, -1, 1, 1], [1, -1, -1, 1], [-1, 1, -1, -1], [0, 0, 0, 0]]
    ).view(5, 1, 2, 2)


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


# --- invariance


@every_pred_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stride", [1, 5])
def test_an_image_is_bitwise_the_same_in_any_batch_and_order(
    pred_type: str, eta: float, stride: int
) -> None:
    schedule = NoiseSchedule("cos6", 12)

    def draw(ids: Tensor) -> Tensor:
        return sample(
            affine_network,
            schedule,
            ids,
            SHAPE,
            pred_type=pred_type,
            ddim_eta=eta,
            reverse_stride=stride,
            clip_denoise=True,
            seed=4,
        )

    ids = torch.tensor([3, 0, 2**40, 17, 8, 5, 1000])
    together = draw(ids)
    assert together.dtype == torch.float32 and together.shape == (7, *SHAPE)
    assert torch.equal(draw(ids.flip(0)), together.flip(0))
    for i in (0, 2, 6):
        assert torch.equal(draw(ids[i : i + 1])[0], together[i])
    assert len(torch.unique(together.flatten(1), dim=0)) == 7


def test_seeds_and_labels_matter_and_are_all_that_matters() -> None:
    schedule = NoiseSchedule("linear", 20)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return affine_network(x_t, time, None) + labels.view(-1, 1, 1, 1)

    def draw(seed: int, labels: list[int]) -> Tensor:
        return sample(
            network,
            schedule,
            torch.arange(2),
            SHAPE,
            pred_type="velocity",
            labels=torch.tensor(labels),
            seed=seed,
            ddim_eta=0.5,
        )

    base = draw(0, [0, 1])
    assert torch.equal(base, draw(0, [0, 1]))
    assert not torch.equal(base, draw(1, [0, 1]))
    other = draw(0, [0, 2])
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


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_step_adds_the_keyed_noise_of_its_timestep(eta: float) -> None:
    schedule, ids = NoiseSchedule("linear", 20), torch.arange(4)
    x_t = normal(7, Stream.X_T, ids, SHAPE)
    arguments = {"pred_type": "image", "ddim_eta": eta, "seed": 7, "reverse_stride": 6}
    states = list(sample_steps(affine_network, schedule, ids, SHAPE, **arguments))
    assert [(state.t, state.s) for state in states] == [(20, 14), (14, 8), (8, 2), (2, 0)]
    for state in states:
        x0_hat = affine_network(x_t, torch.full((4,), state.t / 20), None)
        noise = normal(7, Stream.STEP_NOISE, ids, SHAPE, step=state.s)
        x_t = ddim_step(schedule, x_t, x0_hat, state.t, state.s, eta, noise)
        assert_close(state.x0_hat, x0_hat, rtol=0, atol=0)
        assert_close(state.x_t, x_t, rtol=1e-5, atol=1e-6)
    assert torch.equal(states[-1].x_t, states[-1].x0_hat)
    assert torch.equal(states[-1].x_t, sample(affine_network, schedule, ids, SHAPE, **arguments))


def test_sampling_neither_tracks_gradients_nor_changes_the_callers_mode() -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    schedule, ids = NoiseSchedule("linear", 4), torch.arange(2)
    states = sample_steps(
        lambda x_t, time, labels: weight * x_t, schedule, ids, SHAPE, pred_type="velocity"
    )
    for state in states:
        assert not state.x_t.requires_grad and torch.is_grad_enabled()


def test_autocast_around_the_sampler_changes_nothing_but_the_network() -> None:
    schedule, ids = NoiseSchedule("cosine", 10), torch.arange(3)

    def draw() -> Tensor:
        return sample(affine_network, schedule, ids, SHAPE, pred_type="noise", ddim_eta=0.5)

    plain = draw()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw(), plain)


@every_pred_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_state_is_float32_whatever_the_network_returns(
    pred_type: str, dtype: torch.dtype
) -> None:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert x_t.dtype == time.dtype == torch.float32
        return affine_network(x_t, time, labels).to(dtype)

    schedule, ids = NoiseSchedule("cosine", 10), torch.arange(3)
    for state in sample_steps(network, schedule, ids, SHAPE, pred_type=pred_type, ddim_eta=0.5):
        assert state.x_t.dtype == state.x0_hat.dtype == torch.float32


# --- options


@every_pred_type
def test_clipping_bounds_the_estimate_and_the_images(pred_type: str) -> None:
    schedule, ids = NoiseSchedule("cosine", 20), torch.arange(8)
    states = list(
        sample_steps(
            lambda x_t, time, labels: 3 * x_t,
            schedule,
            ids,
            SHAPE,
            pred_type=pred_type,
            clip_denoise=True,
        )
    )
    assert all(state.x0_hat.abs().max() <= 1 for state in states)
    assert max(state.x0_hat.abs().max() for state in states) == 1
    assert torch.equal(states[-1].x_t, states[-1].x0_hat)


@every_pred_type
@pytest.mark.parametrize("recompute", [True, False])
def test_after_clipping_noise_fits_the_image_if_asked(pred_type: str, recompute: bool) -> None:
    """v3 kept the noise of the unclipped image; Ho et al. 2020 use the one of the clipped."""
    schedule, ids = NoiseSchedule("cosine", 20), torch.arange(8)
    x_t = normal(0, Stream.X_T, ids, SHAPE)
    pred = 2 * x_t
    state = next(
        sample_steps(
            lambda x_t, time, labels: pred,
            schedule,
            ids,
            SHAPE,
            pred_type=pred_type,
            reverse_stride=5,
            clip_denoise=True,
            recompute_noise_after_clip=recompute,
        )
    )
    pair = schedule.alpha_sigma_at(torch.tensor(20))
    x0_hat = convert(pred, x_t, *pair, pred_type, "image").clamp(-1, 1)
    noise_hat = convert(pred, x_t, *pair, pred_type, "noise")
    assert_close(state.x0_hat, x0_hat, rtol=0, atol=0)
    consistent = ddim_step(schedule, x_t, x0_hat, 20, 15, 0.0)
    kept = diffuse(x0_hat, noise_hat, *schedule.alpha_sigma_at(torch.tensor(15)))
    assert (consistent - kept).abs().max() > 1e-2
    assert_close(state.x_t, consistent if recompute else kept, rtol=1e-5, atol=1e-5)


def test_clipping_leaves_unclipped_pixels_alone() -> None:
    schedule, ids = NoiseSchedule("cosine", 1000), torch.arange(3)
    arguments = {"pred_type": "velocity", "num_steps": 10}

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time[0])
        return ((alpha * x_t - 0.9 * torch.tanh(x_t)) / sigma).float()

    plain = sample(network, schedule, ids, SHAPE, **arguments)
    assert torch.equal(sample(network, schedule, ids, SHAPE, clip_denoise=True, **arguments), plain)


def labelled_network(calls: list[list[int]]) -> Callable:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        calls.append(labels.tolist())
        return 0.1 * x_t + labels.view(-1, 1, 1, 1) * 0.01

    return network


def test_guidance_one_calls_the_network_once_a_step_with_the_labels() -> None:
    calls: list[list[int]] = []
    arguments = {"pred_type": "velocity", "num_steps": 3, "labels": torch.tensor([4, 2])}
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(2)
    sample(labelled_network(calls), schedule, ids, SHAPE, guidance=1.0, null_label=9, **arguments)
    assert calls == [[4, 2]] * 3


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_from_the_null_label(guidance: float) -> None:
    calls: list[list[int]] = []
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(2)
    labels = torch.tensor([4, 2])
    arguments = {"pred_type": "velocity", "num_steps": 3}
    guided = sample(
        labelled_network(calls),
        schedule,
        ids,
        SHAPE,
        labels=labels,
        guidance=guidance,
        null_label=9,
        **arguments,
    )
    assert sorted(calls) == sorted([[4, 2], [9, 9]] * 3)
    mixed = 9 + guidance * (labels - 9)  # the network is linear in its label
    expected = sample(labelled_network([]), schedule, ids, SHAPE, labels=mixed, **arguments)
    assert_close(guided, expected, rtol=1e-5, atol=1e-5)


@every_schedule
def test_guidance_does_not_depend_on_the_prediction_type(name: str) -> None:
    """It is linear, and so is every conversion."""
    schedule, ids = NoiseSchedule(name, 50), torch.arange(4)
    images = corners().float()

    def network_of(pred_type: str) -> Callable:
        of_class = [ideal_network(schedule, images[k : k + 2], pred_type) for k in (0, 2)]
        of_all = ideal_network(schedule, images, pred_type)

        def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            chosen = of_all if int(labels[0]) == 2 else of_class[int(labels[0])]
            return chosen(x_t, time, None)

        return network

    drawn = [
        sample(
            network_of(pred_type),
            schedule,
            ids,
            (1, 2, 2),
            pred_type=pred_type,
            num_steps=10,
            labels=torch.ones(4, dtype=torch.int64),
            guidance=2.0,
            null_label=2,
        )
        for pred_type in PRED_TYPES
    ]
    gain = float(1 / schedule.alpha_sigma_at(torch.tensor(50))[0])
    for other in drawn[1:]:
        assert_close(other, drawn[0], rtol=0, atol=1e-4 + 256 * 2.0**-24 * gain)


def test_a_constraint_is_applied_to_every_state_the_network_sees_and_to_the_image() -> None:
    """A known channel, noised to each level with fixed noise; v3 put the clean one there."""
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(3)
    known, fixed = torch.full((3, 1, 3, 3), 0.4), normal(0, Stream.EVAL, ids, (1, 3, 3))
    seen: list[Tensor] = []
    levels: list[int] = []

    def constrain(x_s: Tensor, s: int, of: Tensor) -> Tensor:
        assert torch.equal(of, ids)
        levels.append(s)
        level = torch.full((3,), s)
        return torch.cat([q_sample(schedule, known, level, fixed), x_s[:, 1:]], dim=1)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(x_t)
        return 0 * x_t

    arguments = {"pred_type": "velocity", "reverse_stride": 10, "constrain": constrain}
    states = list(sample_steps(network, schedule, ids, SHAPE, **arguments))
    assert levels == [30, 20, 10, 0]
    for x_t, t in zip([*seen, states[-1].x_t], levels, strict=True):
        assert torch.equal(x_t[:, :1], q_sample(schedule, known, torch.full((3,), t), fixed))
    assert torch.equal(states[-1].x_t[:, :1], known)
    free = sample(network, schedule, ids, SHAPE, pred_type="velocity", reverse_stride=10)
    assert torch.equal(states[-1].x_t[:, 1:], free[:, 1:])


@every_schedule
@every_pred_type
def test_zero_terminal_snr_is_sampled_where_it_is_defined(name: str, pred_type: str) -> None:
    schedule, data = NoiseSchedule(name, 50, zero_terminal_snr=True), corners().float()
    network = ideal_network(schedule, data, pred_type)
    arguments = {"pred_type": pred_type, "num_steps": 25, "ddim_eta": 0.5}
    if pred_type == "noise":
        with pytest.raises(ValueError, match="ends at zero SNR.* predict image or velocity"):
            sample(network, schedule, torch.arange(9), (1, 2, 2), **arguments)
    else:
        drawn = sample(network, schedule, torch.arange(9), (1, 2, 2), **arguments)
        assert drawn.isfinite().all() and drawn.abs().max() < 1.1


@pytest.mark.parametrize(
    "arguments, message",
    [
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
def test_impossible_arguments_are_refused(arguments: dict, message: str) -> None:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError("the network was called before the arguments were checked")

    arguments = {"pred_type": "image"} | arguments
    with pytest.raises(ValueError, match=message):
        sample(network, NoiseSchedule("linear", 30), torch.arange(2), SHAPE, **arguments)


def test_a_network_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"returned \(2, 1, 3, 3\) for \(2, 2, 3, 3\)"):
        sample(
            lambda x_t, time, labels: x_t[:, :1],
            NoiseSchedule("linear", 30),
            torch.arange(2),
            SHAPE,
            pred_type="image",
        )


def test_states_are_keyword_only_records() -> None:
    x = torch.zeros(1)
    state = SampleState(x_t=x, x0_hat=x, t=1, s=0)
    with pytest.raises(AttributeError):
        state.t = 2


# --- bytes


def test_bytes_survive_the_round_trip_and_are_rounded_not_cut() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    x = from_uint8(every_byte)
    assert x.shape == (1, 1, 16, 16) and x.dtype == torch.float32
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(to_uint8(x), every_byte)
    assert torch.equal(to_uint8(x + 0.49 / 127.5), every_byte)
    assert torch.equal(to_uint8(x - 0.49 / 127.5), every_byte)
    assert torch.equal(to_uint8(x.double()), every_byte)


def test_bytes_are_channels_last_and_clamped() -> None:
    x = torch.tensor([-1.7, 0.2, math.inf]).view(1, 3, 1, 1).expand(1, 3, 2, 4)
    images = to_uint8(x)
    assert images.shape == (1, 2, 4, 3) and images[0, 0, 0].tolist() == [0, 153, 255]
    assert torch.equal(from_uint8(images)[0, :, 1, 3], from_uint8(images)[0, :, 0, 0])
    with pytest.raises(ValueError, match="images contain NaN"):
        to_uint8(torch.full((1, 1, 1, 1), math.nan))
