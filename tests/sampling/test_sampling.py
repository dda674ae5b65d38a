"""Laws of a reverse step: which timesteps it takes, what it keeps, and the bytes of images."""

import math

import pytest
import torch
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import q_posterior
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.generation import to_uint8
from ddpm.sampling.samplers import ddim_step
from ddpm.sampling.spacing import reverse_timesteps, trailing_timesteps
from tests.support.diffusion_cases import (
    SHAPE,
    all_pairs,
    constant,
    every_eta,
    every_schedule,
    pairs_of,
)


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


def test_bytes_survive_the_round_trip_and_are_rounded_not_cut() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    x = every_byte.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(to_uint8(x), every_byte)
    assert torch.equal(to_uint8(x + 0.49 / 127.5), every_byte)
    assert torch.equal(to_uint8(x - 0.49 / 127.5), every_byte)
    assert torch.equal(to_uint8(x.double()), every_byte)


def test_bytes_are_channels_last_and_clamped() -> None:
    x = torch.tensor([-1.7, 0.2, math.inf]).view(1, 3, 1, 1).expand(1, 3, 2, 4)
    images = to_uint8(x)
    assert images.shape == (1, 2, 4, 3) and images[0, 0, 0].tolist() == [0, 153, 255]
    with pytest.raises(ValueError, match="images contain NaN"):
        to_uint8(torch.full((1, 1, 1, 1), math.nan))
