"""Laws of the forward process, the conversions, the posterior, the losses and the timesteps."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from ddpm.diffusion import (
    LOSS_FNS,
    LOSS_WEIGHTINGS,
    PRED_TYPES,
    convert,
    diffuse,
    elementwise_loss,
    loss_weight,
    noise_from_pred,
    noise_from_x0,
    q_posterior,
    q_sample,
    stratified_timesteps,
    target_for,
    timesteps,
    velocity_from_pred,
    x0_from_pred,
)
from ddpm.noise import Stream, normal, uniform, words
from ddpm.schedule import SCHEDULES, NoiseSchedule

T = 100
SHAPE = (3, 4, 5)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_pred_type = pytest.mark.parametrize("pred_type", PRED_TYPES)
every_space = pytest.mark.parametrize("loss_space", PRED_TYPES)


def images(n: int, seed: int = 0) -> torch.Tensor:
    """Uniform in [-1, 1], float64 (n, 3, 4, 5)."""
    return 2 * uniform(seed, Stream.EVAL, torch.arange(n), SHAPE) - 1


def noises(n: int, seed: int = 0) -> torch.Tensor:
    return normal(seed, Stream.NOISE, torch.arange(n), SHAPE).double()


def every_t(schedule: NoiseSchedule) -> torch.Tensor:
    return torch.arange(1, schedule.num_timesteps + 1)


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


@every_schedule
@pytest.mark.parametrize("source", PRED_TYPES)
@pytest.mark.parametrize("target", PRED_TYPES)
def test_conversions_recover_the_truth_in_float64(name: str, source: str, target: str) -> None:
    schedule = NoiseSchedule(name, T)
    t = every_t(schedule)
    x0, noise = images(T), noises(T)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x_t = diffuse(x0, noise, alpha, sigma)
    pred = target_for(source, x0, noise, alpha, sigma)
    expected = target_for(target, x0, noise, alpha, sigma)
    error = (convert(pred, x_t, alpha, sigma, source, target) - expected).abs()
    # A division magnifies the rounding of its numerator: 1 / alpha from noise, 1 / sigma from x0.
    gain = torch.ones_like(alpha)
    if source != target and source != "velocity":
        gain = 1 / alpha if source == "noise" else 1 / sigma
    assert (error.flatten(1).amax(1) < 1e-14 * gain).all()


@every_schedule
@pytest.mark.parametrize("source", PRED_TYPES)
@pytest.mark.parametrize("target", PRED_TYPES)
def test_conversions_in_float32_lose_no_more_than_their_gain(
    name: str, source: str, target: str
) -> None:
    schedule = NoiseSchedule(name, T)
    x0, noise = images(T).float(), noises(T).float()
    alpha, sigma = schedule.alpha_sigma_at(every_t(schedule))
    x_t = diffuse(x0, noise, alpha, sigma)
    pred = target_for(source, x0, noise, alpha, sigma)
    expected = target_for(target, x0, noise, alpha, sigma)
    converted = convert(pred, x_t, alpha, sigma, source, target)
    assert converted.dtype == torch.float32
    gain = torch.ones_like(alpha)
    if source != target and source != "velocity":
        gain = 1 / alpha if source == "noise" else 1 / sigma
    assert ((converted - expected).abs().flatten(1).amax(1) < 16 * 2.0**-24 * gain).all()


def test_equal_types_convert_to_themselves() -> None:
    pred = noises(2)
    one = torch.ones(2, dtype=torch.float64)
    for pred_type in PRED_TYPES:
        assert convert(pred, pred, one, one, pred_type, pred_type) is pred


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
                convert(pred, x_t, *pair, source, target),
                convert(pred, x_t, *pairs, source, target),
            )


@every_pred_type
def test_half_precision_predictions_are_converted_in_float32(pred_type: str) -> None:
    schedule = NoiseSchedule("cosine", T)
    pair = schedule.alpha_sigma_at(torch.tensor([1, 50, 100]))
    x_t, pred = noises(3).float(), noises(3, seed=1).bfloat16()
    for target in PRED_TYPES:
        if target != pred_type:
            converted = convert(pred, x_t, *pair, pred_type, target)
            assert torch.equal(converted, convert(pred.float(), x_t, *pair, pred_type, target))


def test_unknown_names_are_refused_with_the_valid_ones() -> None:
    x = noises(1)
    one = torch.ones(1, dtype=torch.float64)
    message = "is 'eps'; give one of noise, image, velocity"
    for call in (
        lambda: x0_from_pred(x, x, one, one, "eps"),
        lambda: noise_from_pred(x, x, one, one, "eps"),
        lambda: velocity_from_pred(x, x, one, one, "eps"),
        lambda: target_for("eps", x, x, one, one),
        lambda: convert(x, x, one, one, "eps", "image"),
        lambda: convert(x, x, one, one, "image", "eps"),
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


# --- posterior


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


# --- losses


@every_space
@every_schedule
def test_losses_in_every_space_are_one_loss_times_a_known_factor(
    name: str, loss_space: str
) -> None:
    """mse(noise) = snr mse(image), mse(velocity) = (snr + 1) mse(image), for any x0_hat."""
    schedule = NoiseSchedule(name, T)
    t = every_t(schedule)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x0, noise, x0_hat = images(T), noises(T), images(T, seed=5)
    x_t = diffuse(x0, noise, alpha, sigma)
    pred = convert(x0_hat, x_t, alpha, sigma, "image", loss_space)
    loss = elementwise_loss(pred, target_for(loss_space, x0, noise, alpha, sigma), "MSE")
    snr = schedule.logsnr_at(t).exp()
    factor = {"noise": snr, "image": torch.ones_like(snr), "velocity": snr + 1}[loss_space]
    assert_close(loss, factor * elementwise_loss(x0_hat, x0, "MSE"), rtol=1e-9, atol=0)


@every_schedule
@every_pred_type
@pytest.mark.parametrize("weighting", [w for w in LOSS_WEIGHTINGS if w != "uniform"])
def test_a_weighting_gives_one_loss_and_one_gradient_through_every_space(
    name: str, pred_type: str, weighting: str
) -> None:
    schedule = NoiseSchedule(name, T)
    t = every_t(schedule)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x0, noise = images(T), noises(T)
    x_t = diffuse(x0, noise, alpha, sigma)
    truth = target_for(pred_type, x0, noise, alpha, sigma)
    # An error of the size x0 would see, so that no space's rounding dominates.
    x0_hat = x0 + 0.1 * noises(T, seed=3)
    output = convert(x0_hat, x_t, alpha, sigma, "image", pred_type)
    results = []
    for space in PRED_TYPES:
        pred = output.clone().requires_grad_()
        converted = convert(pred, x_t, alpha, sigma, pred_type, space)
        target = target_for(space, x0, noise, alpha, sigma)
        loss = elementwise_loss(converted, target, "MSE")
        loss = loss * loss_weight(schedule.logsnr_at(t), space, weighting)
        (gradient,) = torch.autograd.grad(loss.sum(), pred)
        results.append((loss.detach(), gradient))
    assert (output - truth).abs().max() > 0
    for loss, gradient in results[1:]:
        assert_close(loss, results[0][0], rtol=1e-8, atol=0)
        assert_close(gradient, results[0][1], rtol=1e-7, atol=1e-16)


@every_space
def test_weights_are_the_papers_over_the_space(loss_space: str) -> None:
    logsnr = torch.linspace(-12, 12, 97, dtype=torch.float64)
    snr = logsnr.exp()
    divisor = {"noise": snr, "image": torch.ones_like(snr), "velocity": snr + 1}[loss_space]
    papers = {
        "snr": snr,
        "truncated_snr": snr.clamp(min=1),
        "min_snr": snr.clamp(max=5),
        "p2": snr / (1 + snr),
    }
    for weighting, weight in papers.items():
        assert_close(
            loss_weight(logsnr, loss_space, weighting), weight / divisor, rtol=1e-12, atol=0
        )
    assert torch.equal(loss_weight(logsnr, loss_space, "uniform"), torch.ones_like(snr))


@every_space
def test_gamma_moves_min_snr_alone(loss_space: str) -> None:
    logsnr = torch.linspace(-12, 12, 97, dtype=torch.float64)
    for weighting in LOSS_WEIGHTINGS:
        five, one = (loss_weight(logsnr, loss_space, weighting, gamma=g) for g in (5.0, 1.0))
        assert torch.equal(five, one) == (weighting != "min_snr")
    unlimited = loss_weight(logsnr, loss_space, "min_snr", gamma=math.inf)
    assert torch.equal(unlimited, loss_weight(logsnr, loss_space, "snr"))
    for gamma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="gamma is .*; give a positive number"):
            loss_weight(logsnr, loss_space, "min_snr", gamma=gamma)


def test_weights_at_zero_and_infinite_snr_are_the_limits() -> None:
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    inf = math.inf
    expected = {
        ("noise", "uniform"): (1, 1),
        ("image", "uniform"): (1, 1),
        ("velocity", "uniform"): (1, 1),
        ("noise", "snr"): (1, 1),
        ("image", "snr"): (0, inf),
        ("velocity", "snr"): (0, 1),
        ("noise", "truncated_snr"): (inf, 1),
        ("image", "truncated_snr"): (1, inf),
        ("velocity", "truncated_snr"): (1, 1),
        ("noise", "min_snr"): (1, 0),
        ("image", "min_snr"): (0, 5),
        ("velocity", "min_snr"): (0, 0),
        ("noise", "p2"): (1, 0),
        ("image", "p2"): (0, 1),
        ("velocity", "p2"): (0, 0),
    }
    assert len(expected) == len(PRED_TYPES) * len(LOSS_WEIGHTINGS)
    for (space, weighting), limits in expected.items():
        assert tuple(loss_weight(ends, space, weighting).tolist()) == limits, (space, weighting)
    unlimited = {space: loss_weight(ends, space, "min_snr", gamma=inf) for space in PRED_TYPES}
    assert unlimited["velocity"].tolist() == [0, 1] and unlimited["noise"].tolist() == [1, 1]


def test_losses_are_means_over_a_sample() -> None:
    pred = torch.tensor([[[[0.0, 3.0]]], [[[-0.5, 0.5]]]], dtype=torch.float64)
    target = torch.zeros_like(pred)
    expected = {"MSE": [4.5, 0.25], "MAE": [1.5, 0.5], "HUBER": [1.25, 0.125]}
    assert set(expected) == set(LOSS_FNS)
    for loss_fn, values in expected.items():
        assert elementwise_loss(pred, target, loss_fn).tolist() == values
        assert elementwise_loss(target, pred, loss_fn).tolist() == values
    with pytest.raises(ValueError, match=r"pred is \(2, 1, 1, 2\) but target is \(2, 1, 2, 1\)"):
        elementwise_loss(pred, pred.mT, "MSE")


@pytest.mark.parametrize("loss_fn", LOSS_FNS)
def test_losses_are_summed_in_no_less_than_float32(loss_fn: str) -> None:
    pred, target = noises(2).half(), images(2).half()
    loss = elementwise_loss(pred, target, loss_fn)
    assert loss.dtype == torch.float32
    assert_close(
        loss.double(), elementwise_loss(pred.double(), target.double(), loss_fn), rtol=2e-3, atol=0
    )


@every_pred_type
def test_nothing_is_clipped_on_the_way_to_the_loss(pred_type: str) -> None:
    """v3 clipped x0_hat inside train_step: no gradient wherever |x0_hat| > 1."""
    schedule = NoiseSchedule("cosine", T)
    alpha, sigma = schedule.alpha_sigma_at(torch.tensor([50, 60]))
    x0, noise = images(2), noises(2)
    x_t = diffuse(x0, noise, alpha, sigma)
    pred = (target_for(pred_type, x0, noise, alpha, sigma) + 10).requires_grad_()
    for space in PRED_TYPES:
        converted = convert(pred, x_t, alpha, sigma, pred_type, space)
        target = target_for(space, x0, noise, alpha, sigma)
        (gradient,) = torch.autograd.grad(
            elementwise_loss(converted, target, "MSE").sum(), pred, retain_graph=True
        )
        assert (gradient != 0).all()


@every_pred_type
def test_a_network_that_returns_zero_has_the_known_loss(pred_type: str) -> None:
    """E noise^2 = 1, E x0^2, and abar + (1 - abar) E x0^2: the first number a run logs."""
    schedule = NoiseSchedule("cos6", T)
    n = 20_000
    t = timesteps(0, torch.arange(n), T)
    alpha, sigma = schedule.alpha_sigma_at(t)
    target = target_for(pred_type, images(n), noises(n), alpha, sigma)
    mean_square = 1 / 3
    expected = {
        "noise": torch.ones_like(alpha),
        "image": torch.full_like(alpha, mean_square),
        "velocity": alpha**2 + sigma**2 * mean_square,
    }[pred_type]
    loss = elementwise_loss(torch.zeros_like(target), target, "MSE")
    assert abs((loss - expected).mean()) < 5 * (loss - expected).std() / math.sqrt(n)


# --- timesteps


@pytest.mark.parametrize("num_timesteps", [1, 7, 1000])
def test_timesteps_are_uniform_and_keyed_by_position(num_timesteps: int) -> None:
    positions = torch.arange(50_000)
    t = timesteps(3, positions, num_timesteps)
    counts = torch.bincount(t, minlength=num_timesteps + 1)
    assert counts[0] == 0 and len(counts) == num_timesteps + 1
    if num_timesteps > 1:
        assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
        assert not torch.equal(t, timesteps(4, positions, num_timesteps))
    r = words(3, Stream.TIME, positions, 1)[:, 0]
    assert torch.equal(t, 1 + (r * num_timesteps) // 2**32)
    assert torch.equal(timesteps(3, positions[100:200], num_timesteps), t[100:200])


@pytest.mark.parametrize(
    "batch_size, num_timesteps", [(1, 1000), (16, 1000), (128, 1000), (50, 50), (64, 50), (7, 3)]
)
def test_stratified_timesteps_visit_every_stratum_once(batch_size: int, num_timesteps: int) -> None:
    """Sorted, the k-th of B timesteps lies in the k-th of B equal parts of (0, T]."""
    slots = torch.arange(batch_size)
    for step in range(20):
        t = stratified_timesteps(0, step, slots, batch_size, num_timesteps).sort().values
        low = slots * num_timesteps // batch_size
        high = -(-(slots + 1) * num_timesteps // batch_size)
        assert ((low < t) & (t <= high)).all()


def test_stratified_timesteps_leave_every_slot_uniform() -> None:
    """Unbiased: over steps each slot alone is uniform, and so is the whole."""
    batch_size, num_timesteps, steps = 4, 10, 1000
    slots = torch.arange(batch_size)
    t = torch.stack(
        [stratified_timesteps(1, k, slots, batch_size, num_timesteps) for k in range(steps)]
    )
    for slot in range(batch_size):
        counts = torch.bincount(t[:, slot], minlength=num_timesteps + 1)[1:]
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3, slot
    means = t.double().mean(1)
    assert means.var() < 0.2 * (num_timesteps**2 - 1) / 12 / batch_size


def test_a_share_of_a_stratified_batch_does_not_depend_on_the_others() -> None:
    slots = torch.arange(12)
    whole = stratified_timesteps(5, 9, slots, 12, 1000)
    for part in (slots[:5], slots[5:], slots.flip(0)):
        assert torch.equal(stratified_timesteps(5, 9, part, 12, 1000), whole[part])
    assert not torch.equal(stratified_timesteps(5, 10, slots, 12, 1000), whole)
    assert not torch.equal(stratified_timesteps(6, 9, slots, 12, 1000), whole)
    for slot in (-1, 12):
        with pytest.raises(ValueError, match="of 12 places"):
            stratified_timesteps(5, 9, torch.tensor([slot]), 12, 1000)
