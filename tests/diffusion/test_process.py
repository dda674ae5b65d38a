"""Laws of the forward process, the predictions and the posterior."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from ddpm.diffusion.process import (
    PRED_TYPES,
    convert_prediction,
    diffuse,
    elementwise_loss,
    input_scale,
    loss_weight,
    network_input,
    noise_from_pred,
    noise_from_x0,
    q_posterior,
    q_sample,
    target_for,
    x0_from_pred,
    x0_gain,
)
from ddpm.diffusion.schedule import NoiseSchedule
from tests.support.diffusion_cases import (
    SIGMA_DATA,
    T,
    every_pred_type,
    every_schedule,
    every_t,
    images,
    noises,
)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Every (t, s) with s < t on a coarse grid with both ends."""
    t, s = torch.meshgrid(
        torch.tensor([1, 2, 13, 50, 87, 99, 100]),
        torch.tensor([0, 1, 12, 49, 86, 99]),
        indexing="ij",
    )
    return t[s < t], s[s < t]


@every_schedule
def test_q_sample_is_the_equation(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    t = torch.arange(T + 1)
    x0, noise = images(T + 1), noises(T + 1)
    abar = schedule.alphas_cumprod.view(-1, 1, 1, 1)
    expected = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    assert_close(q_sample(schedule, x0, t, noise), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(q_sample(schedule, x0, t, noise)[0], x0[0])


def test_q_sample_keeps_the_dtype_and_computes_in_no_less_than_float32() -> None:
    schedule = NoiseSchedule("cosine", T)
    x0, noise, t = images(5), noises(5), torch.tensor([1, 20, 50, 80, 100])
    exact = q_sample(schedule, x0, t, noise)
    assert q_sample(schedule, x0.float(), t, noise.float()).dtype == torch.float32
    half = q_sample(schedule, x0.bfloat16(), t, noise.bfloat16())
    assert half.dtype == torch.bfloat16
    rounded_inputs = q_sample(schedule, x0.bfloat16().double(), t, noise.bfloat16().double())
    assert_close(half.double(), rounded_inputs, rtol=2**-8, atol=1e-6)
    assert_close(half.double(), exact, rtol=0.03, atol=0.03)


def test_coefficients_follow_their_sample() -> None:
    schedule = NoiseSchedule("linear", T)
    x0, noise, t = images(4), noises(4), torch.tensor([100, 3, 50, 0])
    together = q_sample(schedule, x0, t, noise)
    for i in range(4):
        alone = q_sample(schedule, x0[i : i + 1], t[i : i + 1], noise[i : i + 1])
        assert torch.equal(alone[0], together[i])


def gain_of(source: str, target: str, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A division magnifies the rounding of its numerator: 1 / alpha from noise, 1 / sigma from x0.

    edm has a gain of its own, up to 1 / SIGMA_DATA into it or out of it.
    """
    scale = SIGMA_DATA ** -sum(one == "edm" for one in (source, target)) if source != target else 1
    if source == target or source not in ("noise", "image"):
        return torch.full_like(alpha, scale)
    return scale / (alpha if source == "noise" else sigma)


@every_schedule
def test_conversions_recover_the_truth_in_float64(name: str) -> None:
    """And in float32 they lose no more than their gain."""
    schedule = NoiseSchedule(name, T)
    alpha, sigma = schedule.alpha_sigma_at(every_t(schedule))
    for dtype, rounding in ((torch.float64, 1e-14), (torch.float32, 16 * 2.0**-24)):
        x0, noise = images(T).to(dtype), noises(T).to(dtype)
        x_t = diffuse(x0, noise, alpha, sigma)
        for source, target in product(PRED_TYPES, PRED_TYPES):
            pred = target_for(source, x0, noise, alpha, sigma, SIGMA_DATA)
            expected = target_for(target, x0, noise, alpha, sigma, SIGMA_DATA)
            converted = convert_prediction(pred, x_t, alpha, sigma, source, target, SIGMA_DATA)
            error = (converted - expected).abs().flatten(1).amax(1)
            assert converted.dtype == dtype, (source, target)
            assert (error < rounding * gain_of(source, target, alpha, sigma)).all(), (
                source,
                target,
            )


def test_equal_types_convert_to_themselves() -> None:
    pred = noises(2)
    one = torch.ones(2, dtype=torch.float64)
    for pred_type in PRED_TYPES:
        assert convert_prediction(pred, pred, one, one, pred_type, pred_type) is pred


@every_schedule
def test_velocity_is_a_rotation(name: str) -> None:
    """(x_t, v) has the length of (x0, noise); v is the noise at t = 0 and -x0 at zero SNR."""
    schedule = NoiseSchedule(name, T, zero_terminal_snr=True)
    t = torch.arange(T + 1)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x0, noise = images(T + 1), noises(T + 1)
    x_t = diffuse(x0, noise, alpha, sigma)
    velocity = target_for("velocity", x0, noise, alpha, sigma)
    assert_close(x_t**2 + velocity**2, x0**2 + noise**2, rtol=1e-12, atol=1e-13)
    assert torch.equal(velocity[0], noise[0])
    assert torch.equal(velocity[-1], -x0[-1])
    # No division: also at both ends, where alpha or sigma is zero.
    assert_close(x0_from_pred(velocity, x_t, alpha, sigma, "velocity"), x0, rtol=0, atol=2e-15)
    assert_close(
        noise_from_pred(velocity, x_t, alpha, sigma, "velocity"), noise, rtol=0, atol=3e-15
    )


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_edm_is_the_preconditioning_of_its_table(name: str, zero_terminal_snr: bool) -> None:
    """Karras et al. 2022, Table 1, in their s = sigma / alpha and x = x_t / alpha."""
    schedule = NoiseSchedule(name, T, zero_terminal_snr=zero_terminal_snr)
    t = torch.arange(T + 1)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x_t, pred = noises(T + 1), noises(T + 1, seed=1)
    x0_hat = x0_from_pred(pred, x_t, alpha, sigma, "edm", SIGMA_DATA)
    given = network_input(x_t, alpha, sigma, "edm", SIGMA_DATA)
    inside = alpha > 0
    s, x = (sigma / alpha)[inside].view(-1, 1, 1, 1), (x_t / alpha.view(-1, 1, 1, 1))[inside]
    norm = torch.sqrt(s**2 + SIGMA_DATA**2)
    c_skip, c_out, c_in = (SIGMA_DATA / norm) ** 2, s * SIGMA_DATA / norm, 1 / norm
    assert_close(x0_hat[inside], c_skip * x + c_out * pred[inside], rtol=1e-12, atol=1e-13)
    assert_close(given[inside], c_in * x, rtol=1e-12, atol=0)
    gain = x0_gain("edm", alpha, sigma, SIGMA_DATA)[inside]
    assert_close(gain, c_out.flatten(), rtol=1e-12, atol=0)
    # at the ends: the image itself without noise, and all of it the network's without signal
    assert torch.equal(x0_hat[0], x_t[0])
    if zero_terminal_snr:
        assert_close(x0_hat[-1], SIGMA_DATA * pred[-1], rtol=1e-15, atol=0)


@every_schedule
def test_edm_of_data_of_deviation_1_is_the_velocity_with_the_sign_turned(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    alpha, sigma = schedule.alpha_sigma_at(torch.arange(T + 1))
    x0, noise, x_t = images(T + 1), noises(T + 1), noises(T + 1, seed=2)
    close = {"rtol": 1e-14, "atol": 1e-15}
    turned = target_for("edm", x0, noise, alpha, sigma, 1.0)
    assert_close(turned, -target_for("velocity", x0, noise, alpha, sigma), **close)
    assert_close(network_input(x_t, alpha, sigma, "edm", 1.0), x_t, **close)
    for read in (x0_from_pred, noise_from_pred):
        of_edm = read(-noise, x_t, alpha, sigma, "edm", 1.0)
        assert_close(of_edm, read(noise, x_t, alpha, sigma, "velocity"), rtol=1e-14, atol=1e-14)


@every_schedule
def test_flow_is_the_straight_path(name: str) -> None:
    """Its input is (1 - tau) x0 + tau noise; the output leads back to x0 and on to the noise."""
    schedule = NoiseSchedule(name, T, zero_terminal_snr=True)
    alpha, sigma = schedule.alpha_sigma_at(torch.arange(T + 1))
    tau = (sigma / (alpha + sigma)).view(-1, 1, 1, 1)
    x0, noise = images(T + 1), noises(T + 1)
    x_t = diffuse(x0, noise, alpha, sigma)
    point = network_input(x_t, alpha, sigma, "flow")
    assert_close(point, (1 - tau) * x0 + tau * noise, rtol=0, atol=1e-14)
    pred = noises(T + 1, seed=3)
    assert_close(x0_from_pred(pred, x_t, alpha, sigma, "flow"), point - tau * pred)
    assert_close(noise_from_pred(pred, x_t, alpha, sigma, "flow"), point + (1 - tau) * pred)
    assert torch.equal(target_for("flow", x0, noise, alpha, sigma), noise - x0)


@every_pred_type
def test_gains_are_those_of_the_conversion_to_the_image(pred_type: str) -> None:
    schedule = NoiseSchedule("cosine", T)
    alpha, sigma = schedule.alpha_sigma_at(every_t(schedule))
    x_t, pred, error = noises(T), noises(T, seed=1), 0.01
    a, b = (x0_from_pred(p, x_t, alpha, sigma, pred_type, SIGMA_DATA) for p in (pred, pred + error))
    gain = x0_gain(pred_type, alpha, sigma, SIGMA_DATA)
    assert_close((b - a).abs().flatten(1).amax(1) / error, gain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [None, 0.0])
def test_edm_without_a_deviation_is_refused(sigma_data: float | None) -> None:
    x, one = noises(1), torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"sigma_data is {sigma_data} but edm needs it; give the"):
        x0_from_pred(x, x, one, one, "edm", sigma_data)


def test_noise_from_velocity_does_not_cancel_near_clean_data() -> None:
    """v3 computed (x_t - alpha x0_hat) / sigma, which at the first timestep leaves three digits."""
    schedule = NoiseSchedule("cosine", 1000)
    alpha, sigma = schedule.alpha_sigma_at(torch.ones(8, dtype=torch.int64))
    x0, noise = images(8).float(), noises(8).float()
    x_t = diffuse(x0, noise, alpha, sigma)
    velocity = target_for("velocity", x0, noise, alpha, sigma)
    by_rotation = noise_from_pred(velocity, x_t, alpha, sigma, "velocity")
    x0_hat = x0_from_pred(velocity, x_t, alpha, sigma, "velocity")
    by_division = noise_from_x0(x0_hat, x_t, alpha, sigma)
    assert (by_rotation - noise).abs().max() < 1e-6
    assert (by_division - noise).abs().max() > 1e-5


def test_conversions_take_a_single_coefficient_for_the_whole_batch() -> None:
    schedule = NoiseSchedule("cos6", T)
    pair = schedule.alpha_sigma_at(torch.tensor(30))
    pairs = schedule.alpha_sigma_at(torch.full((6,), 30))
    x_t, pred = noises(6), noises(6, seed=1)
    for source in PRED_TYPES:
        for target in PRED_TYPES:
            assert torch.equal(
                convert_prediction(pred, x_t, *pair, source, target, SIGMA_DATA),
                convert_prediction(pred, x_t, *pairs, source, target, SIGMA_DATA),
            )


@every_pred_type
def test_half_precision_predictions_are_converted_in_float32(pred_type: str) -> None:
    schedule = NoiseSchedule("cosine", T)
    pair = schedule.alpha_sigma_at(torch.tensor([1, 50, 100]))
    x_t, pred = noises(3).float(), noises(3, seed=1).bfloat16()
    for target in PRED_TYPES:
        if target != pred_type:
            converted, expected = (
                convert_prediction(one, x_t, *pair, pred_type, target, SIGMA_DATA)
                for one in (pred, pred.float())
            )
            assert torch.equal(converted, expected)


def test_unknown_names_are_refused_with_the_valid_ones() -> None:
    x = noises(1)
    one = torch.ones(1, dtype=torch.float64)
    message = "is 'eps'; give one of noise, image, velocity, edm, flow"
    for call in (
        lambda: x0_from_pred(x, x, one, one, "eps"),
        lambda: noise_from_pred(x, x, one, one, "eps"),
        lambda: input_scale("eps", one, one),
        lambda: target_for("eps", x, x, one, one),
        lambda: convert_prediction(x, x, one, one, "eps", "image"),
        lambda: convert_prediction(x, x, one, one, "image", "eps"),
        lambda: loss_weight(one, "eps", "snr"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(
        ValueError, match="weighting is 'snr5'; give one of uniform, snr, truncated"
    ):
        loss_weight(one, "noise", "snr5")
    with pytest.raises(ValueError, match="loss_fn is 'L2'; give one of MSE, MAE, HUBER"):
        elementwise_loss(x, x, "L2")


@every_schedule
def test_posterior_coefficients_satisfy_their_identities(name: str) -> None:
    """The mean of x_s given x0 alone, and its variance, follow from averaging over x_t."""
    schedule = NoiseSchedule(name, T)
    t, s = pairs()
    one, zero = torch.ones(len(t), dtype=torch.float64), torch.zeros(len(t), dtype=torch.float64)
    from_x0 = q_posterior(schedule, zero, one, t, s).mean
    from_x_t = q_posterior(schedule, one, zero, t, s).mean
    variance = q_posterior(schedule, one, one, t, s).variance
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma_at(t), schedule.alpha_sigma_at(s)
    assert_close(from_x0 + from_x_t * alpha_t, alpha_s, rtol=0, atol=1e-13)
    assert_close(from_x_t**2 * sigma_t**2 + variance, sigma_s**2, rtol=1e-12, atol=1e-15)


@every_schedule
def test_posterior_is_the_papers_for_neighbours(name: str) -> None:
    """Ho et al. 2020, Eq. 6 and 7, from betas."""
    schedule = NoiseSchedule(name, T)
    t = every_t(schedule)
    abar_t, abar_s = schedule.alphas_cumprod[1:], schedule.alphas_cumprod[:-1]
    beta = 1 - abar_t / abar_s
    zero, one = torch.zeros(T, dtype=torch.float64), torch.ones(T, dtype=torch.float64)
    c0 = abar_s.sqrt() * beta / (1 - abar_t)
    ct = (1 - beta).sqrt() * (1 - abar_s) / (1 - abar_t)
    assert_close(q_posterior(schedule, zero, one, t, t - 1).mean, c0, rtol=1e-8, atol=1e-12)
    assert_close(q_posterior(schedule, one, zero, t, t - 1).mean, ct, rtol=1e-8, atol=1e-12)
    beta_tilde = (1 - abar_s) / (1 - abar_t) * beta
    variance = q_posterior(schedule, one, one, t, t - 1).variance
    assert_close(variance, beta_tilde, rtol=1e-8, atol=1e-15)


@every_schedule
def test_posterior_is_bayes_on_gaussians(name: str) -> None:
    """Condition the joint normal of (x_s, x_t) given x0, for any pair: precisions add."""
    schedule = NoiseSchedule(name, T)
    t, s = pairs()
    t, s = t[s > 0], s[s > 0]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma_at(t), schedule.alpha_sigma_at(s)
    x0, x_t = torch.tensor(0.3).double(), torch.tensor(-0.8).double()
    forward = alpha_t / alpha_s
    forward_variance = sigma_t**2 - forward**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + forward**2 / forward_variance)
    mean = variance * (alpha_s * x0 / sigma_s**2 + forward * x_t / forward_variance)
    posterior = q_posterior(schedule, x_t.expand(len(t)), x0.expand(len(t)), t, s)
    assert_close(posterior.variance, variance, rtol=1e-9, atol=0)
    assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_posterior_at_the_ends(name: str, zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule(name, T, zero_terminal_snr=zero_terminal_snr)
    x_t, x0 = noises(2), images(2)
    for t in (1, T):
        last = q_posterior(schedule, x_t, x0, t, 0)
        assert torch.equal(last.mean, x0) and (last.variance == 0).all()
    first = q_posterior(schedule, x_t, x0, T, T - 1)
    assert first.mean.isfinite().all() and first.variance.isfinite().all()
    if zero_terminal_snr:  # x_T says nothing
        alpha, sigma = schedule.alpha_sigma_at(torch.tensor(T - 1))
        assert_close(first.mean, alpha * x0)
        assert_close(first.variance.flatten()[0], sigma**2)


def test_posterior_shapes_and_guard() -> None:
    schedule = NoiseSchedule("linear", T)
    x = noises(3).float()
    by_ints = q_posterior(schedule, x, x, 9, 4)
    by_tensors = q_posterior(schedule, x, x, torch.full((3,), 9), torch.full((3,), 4))
    assert torch.equal(by_ints.mean, by_tensors.mean) and by_ints.mean.dtype == torch.float32
    assert by_tensors.variance.shape == (3, 1, 1, 1)
    for t, s in ((4, 4), (4, 5), (torch.tensor([5, 4, 9]), torch.tensor([4, 4, 4]))):
        with pytest.raises(ValueError, match="a reverse step goes from t to an earlier s"):
            q_posterior(schedule, x, x, t, s)
