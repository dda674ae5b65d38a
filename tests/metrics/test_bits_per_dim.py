"""The bound on bits/dim equals its closed forms where the data are Gaussian, term by term."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.data.dataset import Batch, Dataset
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from ddpm.diffusion.process import convert_prediction
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.metrics.bits_per_dim import (
    BYTES,
    Bound,
    Grid,
    bound_timesteps,
    decoder_std,
    grid_log_mass,
    variational_bound,
)
from ddpm.metrics.validation import evaluate_run
from ddpm.sampling.spacing import trailing_timesteps, whole_levels
from tests.support.small_run import make_run

V3 = ("linear", "cosine", "cos6")
VARIANCE = 0.25
# The grid of bytes gone on for ever: Gaussian data lie beyond -1 and 1 too.
ENDLESS = Grid(lowest=-math.inf, highest=math.inf)
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def gaussian_batch(count: int = 64, side: int = 16) -> Batch:
    """N(0, VARIANCE) rounded to the endless grid."""
    ids = torch.arange(count) * 3
    draws = philox.normal(5, Stream.INIT, ids, (1, side, side)).double() * math.sqrt(VARIANCE)
    images = ((draws + 1) / ENDLESS.quantum).round() * ENDLESS.quantum - 1
    return Batch(images.float(), None, ids, None)


def byte_batch(count: int = 12, side: int = 4) -> Batch:
    ids = torch.arange(count)
    pixels = (philox.uniform(2, Stream.INIT, ids, (1, side, side)) * 255).round()
    return Batch(pixels / 127.5 - 1, None, ids, None)


def ideal(schedule: NoiseSchedule, pred_type: str) -> Network:
    """E[x0 | x_t] of N(0, VARIANCE), each value on its own, in the terms of pred_type."""

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        t = (time.double() * schedule.num_timesteps).round().long()
        alpha, sigma = schedule.alpha_sigma_at(t)
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        x0_hat = gain.reshape(-1, 1, 1, 1) * x_t.double()
        return convert_prediction(x0_hat, x_t.double(), alpha, sigma, "image", pred_type)

    return network


def bound_of(
    schedule: NoiseSchedule,
    timesteps: list[int],
    batch: Batch,
    *,
    network: Network | None = None,
    pred_type: str = "velocity",
    batch_size: int = 256,
    seed: int = 0,
    grid: Grid = ENDLESS,
) -> Bound:
    return variational_bound(
        network or ideal(schedule, pred_type),
        schedule,
        batch,
        pred_type=pred_type,
        timesteps=timesteps,
        seed=seed,
        batch_size=batch_size,
        grid=grid,
    )


def closed_form(schedule: NoiseSchedule, timesteps: list[int]) -> np.ndarray:
    """The terms of the ideal denoiser but the decoder's, bits a dimension; rounding included."""
    variance = VARIANCE + ENDLESS.quantum**2 / 12
    alpha, sigma = schedule.alpha_sigma_at(torch.tensor(timesteps[:-1]))
    snr = torch.exp(schedule.logsnr_at(torch.tensor(timesteps[:-1])))
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    mse = (gain * alpha - 1) ** 2 * variance + gain**2 * sigma**2
    prior = 0.5 * (alpha[0] ** 2 * variance + sigma[0] ** 2 - 1 - 2 * torch.log(sigma[0]))
    steps = 0.5 * (snr[1:] - snr[:-1]) * mse[:-1]
    return (torch.cat([prior[None], steps]) / math.log(2)).numpy()


@pytest.mark.parametrize("name", V3)
@pytest.mark.parametrize("steps", [6, 50])
def test_every_term_of_the_ideal_denoiser_has_its_closed_form(name: str, steps: int) -> None:
    schedule = NoiseSchedule(name, 50)
    walk = trailing_timesteps(50, steps)
    bound = bound_of(schedule, walk, gaussian_batch())
    expected = closed_form(schedule, walk)
    difference = np.abs(bound.terms[:-1] - expected)
    assert (difference < 5 * bound.term_errors[:-1] + 1e-12).all()
    assert (bound.term_errors[:-1] < 0.03 * expected + 1e-6).all()
    assert bound.total == pytest.approx(bound.terms.sum(), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("linear", 8.79), ("cosine", 10.44)])
def test_the_bound_of_the_ideal_denoiser_is_what_is_known_of_it(name: str, bits: float) -> None:
    entropy = 0.5 * math.log2(2 * math.pi * math.e * VARIANCE) - math.log2(ENDLESS.quantum)
    assert round(entropy, 2) == 8.04
    schedule = NoiseSchedule(name, 1000)
    # The terms but the last are known; that one is measured on many more values.
    known = closed_form(schedule, list(range(1000, -1, -1))).sum()
    batch = gaussian_batch(count=64, side=64)
    alone = bound_of(schedule, [1000, 2, 1, 0], batch)
    bound = known + alone.terms[-1]
    assert bound == pytest.approx(bits, abs=0.02) and bound > entropy
    assert alone.term_errors[-1] < 0.005


def test_the_prior_of_the_v3_schedules_is_next_to_nothing() -> None:
    # what a bound pays for ending at noise that is not quite pure, bits a dimension
    for name, expected in {"linear": 7.7e-6, "cosine": 5.5e-5, "cos6": 4.9e-6}.items():
        schedule = NoiseSchedule(name, 1000)
        ones, x0 = torch.ones(2, 1, 2, 2), 191 / 127.5 - 1
        batch = Batch(ones * x0, None, torch.arange(2), None)
        bound = bound_of(schedule, [1000, 0], batch)
        alpha, sigma = (float(one) for one in schedule.alpha_sigma_at(torch.tensor(1000)))
        kl = 0.5 * (alpha**2 * x0**2 + sigma**2 - 1 - 2 * math.log(sigma))
        assert bound.terms[0] == pytest.approx(kl / math.log(2), rel=1e-6)
        assert bound.terms[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("std", [1e-4, 0.002, 0.05, 1.0, 30.0])
def test_the_decoder_sums_to_one_over_the_grey_values(std: float) -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-3.0, -1.0, -0.3, 0.0, 0.9999, 1.5):
        log_mass = grid_log_mass(values, torch.tensor(mean).double(), torch.tensor(std).double())
        assert float(log_mass.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        assert (log_mass <= 1e-12).all()


def test_the_decoder_has_a_number_for_what_is_all_but_impossible() -> None:
    x0, std = torch.tensor([-1.0, 0.0, 1.0]).double(), torch.tensor(0.002).double()
    log_mass = grid_log_mass(x0, torch.tensor([1.0, 0.9, -1.0]).double(), std)
    # log of the tail beyond z is about -z^2 / 2
    expected = -0.5 * ((torch.tensor([2.0, 0.9, 2.0]) - 1 / 255) / 0.002).double() ** 2
    torch.testing.assert_close(log_mass, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["linear", "cosine", "laplace", "iddpm_cosine"])
@pytest.mark.parametrize("pred_type", ["noise", "velocity"])
def test_what_is_predicted_does_not_change_the_bound(name: str, pred_type: str) -> None:
    schedule, batch = NoiseSchedule(name, 40), byte_batch()
    walk = trailing_timesteps(40, 8)
    bits = bound_of(schedule, walk, batch, pred_type=pred_type, grid=BYTES).bits
    np.testing.assert_allclose(
        bits, bound_of(schedule, walk, batch, pred_type="image", grid=BYTES).bits, rtol=1e-3
    )
    assert np.isfinite(bits).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", V3)
def test_a_walk_of_fewer_timesteps_is_a_looser_bound(name: str) -> None:
    schedule, batch = NoiseSchedule(name, 200), gaussian_batch(16)
    totals = [
        bound_of(schedule, bound_timesteps(schedule, steps), batch).total
        for steps in (4, 16, 64, 200)
    ]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1] + 0.5


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("name", V3)
def test_walks_fall_from_the_last_timestep_over_the_first_to_the_data(
    name: str, zero_terminal: bool
) -> None:
    schedule = NoiseSchedule(name, 1000, zero_terminal_snr=zero_terminal)
    for steps in (1, 2, 7, 32, 64, 1000, 5000):
        walk = bound_timesteps(schedule, steps)
        assert walk[0] == 1000 and walk[-1] == 0 and len(walk) <= min(steps, 1000) + 1
        assert walk == sorted(set(walk), reverse=True)
        assert steps == 1 or walk[-2] == 1
        assert len(walk) > 0.7 * min(steps, 1000)


def test_zero_terminal_snr_has_no_prior_term() -> None:
    schedule = NoiseSchedule("cosine", 40, zero_terminal_snr=True)
    bound = bound_of(schedule, list(range(40, -1, -1)), byte_batch(), grid=BYTES)
    assert np.isfinite(bound.bits).all() and (bound.bits[0] == 0).all()


def test_the_decoder_is_as_wide_as_the_step_before_it() -> None:
    schedule = NoiseSchedule("linear", 1000)
    two, one = whole_levels(schedule, [2, 1])
    posterior = one.sigma**2 * (1 - torch.exp(two.logsnr - one.logsnr))
    assert float(decoder_std(one, two)) == pytest.approx(math.sqrt(float(posterior)), rel=1e-12)
    assert float(decoder_std(one, None)) == float(one.sigma)


def test_noise_is_keyed_by_the_sample_and_the_batch_size_changes_nothing() -> None:
    schedule, batch = NoiseSchedule("cosine", 40), byte_batch(7)
    walk = trailing_timesteps(40, 4)
    whole = bound_of(schedule, walk, batch, grid=BYTES)
    pieces = bound_of(schedule, walk, batch, batch_size=3, grid=BYTES)
    np.testing.assert_array_equal(whole.bits, pieces.bits)
    alone = bound_of(schedule, walk, batch.part(2, 3), grid=BYTES)
    np.testing.assert_array_equal(whole.bits[:, 2:3], alone.bits)
    assert math.isnan(alone.evaluation_error)
    other = bound_of(schedule, walk, batch, seed=1, grid=BYTES)
    assert (whole.bits[1:] != other.bits[1:]).all()


@pytest.mark.parametrize("walk", [[40], [40, 20], [39, 0], [40, 20, 20, 0], [40, 50, 0]])
def test_other_walks_are_refused(walk: list[int]) -> None:
    with pytest.raises(ValueError, match="give them falling from 40 to 0"):
        bound_of(NoiseSchedule("cosine", 40), walk, byte_batch(), grid=BYTES)


@pytest.mark.slow
def test_images_that_are_no_bytes_have_no_bound(tmp_path: Path) -> None:
    batch = byte_batch()
    assert BYTES.holds(batch.images)
    for images in (batch.images + 0.001, batch.images * 3):
        assert not BYTES.holds(images)
        with pytest.raises(ValueError, match="not bytes"):
            bound_of(
                NoiseSchedule("cosine", 40), [40, 0], batch._replace(images=images), grid=BYTES
            )
    run = make_run(tmp_path)
    images = philox.uniform(0, Stream.INIT, torch.arange(60), (8, 8, 3)).numpy()
    assert evaluate_run(run, Dataset.from_arrays(images, np.arange(60) % 3), (-4, 4))
    found = json.loads((run / "evaluation.json").read_text())["bits_per_dim"]
    assert found["value"] is None and "not bytes" in found["reason"]


@pytest.mark.slow
def test_a_run_has_its_bound_in_its_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    images = (philox.uniform(0, Stream.INIT, torch.arange(60), (8, 8, 3)) * 255).round()
    data = Dataset.from_arrays(images.to(torch.uint8).numpy(), np.arange(60) % 3)
    evaluate_run(run, data, (-4, 4))
    found = json.loads((run / "evaluation.json").read_text())["bits_per_dim"]
    assert found["timesteps"] == list(range(12, -1, -1))  # all there are
    assert len(found["terms"]) == len(found["term_errors"]) == 13
    assert found["value"] == pytest.approx(sum(found["terms"])) and found["value"] > 0
    assert found["evaluation_error"] > 0 and found["num_images"] == data.num_validation
