"""Laws of the losses, their weights in every space, and the timesteps they are drawn at."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, words
from ddpm.diffusion.process import (
    LOSS_FNS,
    LOSS_WEIGHTINGS,
    PRED_TYPES,
    convert_prediction,
    diffuse,
    elementwise_loss,
    loss_weight,
    stratified_timesteps,
    target_for,
    uniform_timesteps,
)
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.training.loss import Randomness, sample_losses, standard_loss
from tests.support.diffusion_cases import (
    SIGMA_DATA,
    T,
    every_pred_type,
    every_schedule,
    every_t,
    images,
    noises,
)
from tests.training.test_trainer import digits, settings


def factor(space: str, snr: torch.Tensor) -> torch.Tensor:
    """mse in this space over that of the image, for a given x0_hat."""
    return {
        "noise": snr,
        "image": torch.ones_like(snr),
        "velocity": snr + 1,
        "edm": snr + SIGMA_DATA**-2,  # the paper's 1 / c_out^2
        "flow": (snr.sqrt() + 1) ** 2,
    }[space]


every_space = pytest.mark.parametrize("loss_space", PRED_TYPES)


@pytest.mark.slow
@every_space
@every_schedule
def test_losses_in_every_space_are_one_loss_times_a_known_factor(
    name: str, loss_space: str
) -> None:
    """mse(noise) = snr mse(image), mse(velocity) = (snr + 1) mse(image), ..., for any x0_hat."""
    schedule = NoiseSchedule(name, T)
    t = every_t(schedule)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x0, noise, x0_hat = images(T), noises(T), images(T, seed=5)
    x_t = diffuse(x0, noise, alpha, sigma)
    pred = convert_prediction(x0_hat, x_t, alpha, sigma, "image", loss_space, SIGMA_DATA)
    target = target_for(loss_space, x0, noise, alpha, sigma, SIGMA_DATA)
    loss = elementwise_loss(pred, target, "MSE")
    expected = factor(loss_space, schedule.logsnr_at(t).exp())
    assert_close(loss, expected * elementwise_loss(x0_hat, x0, "MSE"), rtol=1e-9, atol=0)


@pytest.mark.slow
@every_schedule
@every_pred_type
def test_a_weighting_gives_one_loss_and_one_gradient_through_every_space(
    name: str, pred_type: str
) -> None:
    schedule = NoiseSchedule(name, T)
    logsnr = schedule.logsnr_at(every_t(schedule))
    alpha, sigma = schedule.alpha_sigma_at(every_t(schedule))
    x0, noise = images(T), noises(T)
    x_t = diffuse(x0, noise, alpha, sigma)
    # An error of the size x0 would see, so that no space's rounding dominates.
    x0_hat = x0 + 0.1 * noises(T, seed=3)
    output = convert_prediction(x0_hat, x_t, alpha, sigma, "image", pred_type, SIGMA_DATA)
    truth = target_for(pred_type, x0, noise, alpha, sigma, SIGMA_DATA)
    assert (output - truth).abs().max() > 0
    for weighting in (name for name in LOSS_WEIGHTINGS if name != "uniform"):
        print(weighting)  # pytest shows it where a test fails
        results = []
        for space in PRED_TYPES:
            pred = output.clone().requires_grad_()
            converted = convert_prediction(pred, x_t, alpha, sigma, pred_type, space, SIGMA_DATA)
            target = target_for(space, x0, noise, alpha, sigma, SIGMA_DATA)
            loss = elementwise_loss(converted, target, "MSE")
            loss = loss * loss_weight(logsnr, space, weighting, sigma_data=SIGMA_DATA)
            (gradient,) = torch.autograd.grad(loss.sum(), pred)
            results.append((loss.detach(), gradient))
        for loss, gradient in results[1:]:
            assert_close(loss, results[0][0], rtol=1e-8, atol=0)
            assert_close(gradient, results[0][1], rtol=1e-7, atol=1e-16)


@every_space
def test_weights_are_the_papers_over_the_space(loss_space: str) -> None:
    logsnr = torch.linspace(-12, 12, 97, dtype=torch.float64)
    snr = logsnr.exp()
    papers = {
        "snr": snr,
        "truncated_snr": snr.clamp(min=1),
        "min_snr": snr.clamp(max=5),
        "p2": snr / (1 + snr),
    }
    for weighting, weight in papers.items():
        given = loss_weight(logsnr, loss_space, weighting, sigma_data=SIGMA_DATA)
        assert_close(given, weight / factor(loss_space, snr), rtol=1e-12, atol=0)
    assert torch.equal(loss_weight(logsnr, loss_space, "uniform"), torch.ones_like(snr))


@every_space
def test_gamma_moves_min_snr_alone(loss_space: str) -> None:
    logsnr = torch.linspace(-12, 12, 97, dtype=torch.float64)
    for weighting in LOSS_WEIGHTINGS:
        five, one = (
            loss_weight(logsnr, loss_space, weighting, gamma=g, sigma_data=SIGMA_DATA)
            for g in (5.0, 1.0)
        )
        assert torch.equal(five, one) == (weighting != "min_snr")
    unlimited = loss_weight(logsnr, loss_space, "min_snr", gamma=math.inf, sigma_data=SIGMA_DATA)
    of_snr = loss_weight(logsnr, loss_space, "snr", sigma_data=SIGMA_DATA)
    assert torch.equal(unlimited, of_snr)
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
    # without signal 1 of edm is SIGMA_DATA of x0; without noise both are the noise with a sign
    for weighting in LOSS_WEIGHTINGS:
        (low, high), uniform = expected["velocity", weighting], weighting == "uniform"
        expected["edm", weighting] = (1 if uniform else low * SIGMA_DATA**2, high)
        expected["flow", weighting] = (low, high)
    assert len(expected) == len(PRED_TYPES) * len(LOSS_WEIGHTINGS)
    for (space, weighting), limits in expected.items():
        found = loss_weight(ends, space, weighting, sigma_data=SIGMA_DATA)
        assert found.tolist() == pytest.approx(limits, rel=1e-15), (space, weighting)
    unlimited = {
        space: loss_weight(ends, space, "min_snr", gamma=inf) for space in ("noise", "velocity")
    }
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
    pred = (target_for(pred_type, x0, noise, alpha, sigma, SIGMA_DATA) + 10).requires_grad_()
    for space in PRED_TYPES:
        converted = convert_prediction(pred, x_t, alpha, sigma, pred_type, space, SIGMA_DATA)
        target = target_for(space, x0, noise, alpha, sigma, SIGMA_DATA)
        (gradient,) = torch.autograd.grad(
            elementwise_loss(converted, target, "MSE").sum(), pred, retain_graph=True
        )
        assert (gradient != 0).all()


@every_pred_type
def test_a_network_that_returns_zero_has_the_known_loss(pred_type: str) -> None:
    """E noise^2 = 1, E x0^2, and abar + (1 - abar) E x0^2: the first number a run logs."""
    schedule = NoiseSchedule("cos6", T)
    n = 20_000
    t = uniform_timesteps(0, torch.arange(n), T)
    alpha, sigma = schedule.alpha_sigma_at(t)
    mean_square = 1 / 3
    # the paper's: preconditioned for the data, the target has variance 1 at every level
    own = mean_square**0.5
    target = target_for(pred_type, images(n), noises(n), alpha, sigma, own)
    expected = {
        "noise": torch.ones_like(alpha),
        "image": torch.full_like(alpha, mean_square),
        "velocity": alpha**2 + sigma**2 * mean_square,
        "edm": torch.ones_like(alpha),
        "flow": torch.full_like(alpha, 1 + mean_square),
    }[pred_type]
    loss = elementwise_loss(torch.zeros_like(target), target, "MSE")
    assert abs((loss - expected).mean()) < 5 * (loss - expected).std() / math.sqrt(n)


@pytest.mark.parametrize("num_timesteps", [1, 7, 1000])
def test_timesteps_are_uniform_and_keyed_by_position(num_timesteps: int) -> None:
    positions = torch.arange(50_000)
    t = uniform_timesteps(3, positions, num_timesteps)
    counts = torch.bincount(t, minlength=num_timesteps + 1)
    assert counts[0] == 0 and len(counts) == num_timesteps + 1
    if num_timesteps > 1:
        assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3
        assert not torch.equal(t, uniform_timesteps(4, positions, num_timesteps))
    r = words(3, Stream.TIME, positions, 1)[:, 0]
    assert torch.equal(t, 1 + (r * num_timesteps) // 2**32)
    assert torch.equal(uniform_timesteps(3, positions[100:200], num_timesteps), t[100:200])


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


@pytest.mark.slow
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


@pytest.mark.parametrize(("pred_type", "space"), [("image", "velocity"), ("image", "flow")])
def test_the_floor_bounds_what_a_conversion_multiplies_an_error_by(
    pred_type: str, space: str
) -> None:
    """JiT (Li & He 2025): the error of the image over max(denominator, 0.05), of the velocity."""
    schedule, batch = NoiseSchedule("linear", 1000), digits().read(torch.arange(40))
    t = torch.arange(1, 1001, 25)
    draws = Randomness(t=t, noise=torch.ones(40, 1, 8, 8), labels=None, dropout_key=None)
    alpha, sigma = schedule.alpha_sigma_at(t)
    denominator = sigma if space == "velocity" else sigma / (alpha + sigma)
    error = batch.images.double().square().flatten(1).mean(1)  # of a network that says zero

    def losses(floor: float | None) -> torch.Tensor:
        options = settings(PRED_TYPE=pred_type, LOSS_SPACE=space, LOSS_FLOOR=floor)
        found = sample_losses(
            options, lambda x, time, labels: 0 * x, schedule, batch, draws, standard_loss(options)
        )
        return found.loss.double()

    for floor in (None, 0.05, 0.5):
        most = denominator if floor is None else denominator.clamp(min=floor)
        assert_close(losses(floor), error / most**2, rtol=1e-4, atol=1e-6)
    assert (denominator < 0.05).any() and not torch.equal(losses(0.05), losses(None))
