"""Power-function averages have the profile they claim, and any other can be made of them later."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion import ema
from ddpm.diffusion.power_ema import (
    LONGEST,
    Snapshot,
    fit_profile,
    power_ema_beta,
    power_ema_gamma,
    power_ema_name,
    profile_product,
    sigma_rel_of,
)

Path = Callable[[int], dict[str, Tensor]]  # optimizer step, from 1 -> parameters


def tracked(
    path: Path, steps: int, sigma_rel: float, kept: Sequence[int] = ()
) -> tuple[dict[str, Tensor], list[Snapshot]]:
    """The average after `steps` steps and its snapshots after those of `kept`."""
    gamma, average = power_ema_gamma(sigma_rel), ema.init(path(0))
    snapshots = []
    for step in range(steps):
        ema.move(average, path(step + 1), power_ema_beta(gamma, step))
        if step + 1 in kept:
            copy = {name: tensor.clone() for name, tensor in average.items()}
            snapshots.append(Snapshot(step=step + 1, sigma_rel=sigma_rel, load=lambda c=copy: c))
    return average, snapshots


def one(value: float) -> dict[str, Tensor]:
    return {"w": torch.full((2, 3), value)}


def linear(step: int) -> dict[str, Tensor]:
    """Parameters under a constant gradient."""
    return one(0.25 * step)


def wandering(step: int) -> dict[str, Tensor]:
    """A smooth way that slows down, as trainings go, with a different course for every weight."""
    phase = torch.arange(50, dtype=torch.float64)
    value = torch.log1p(torch.tensor(step / 40.0)) * torch.cos(phase) + torch.sin(
        phase * 7 + step / 90
    ) / (1 + step / 200)
    return {"w": value.float()}


@pytest.mark.parametrize("sigma_rel", [0.001, 0.05, 0.1, 0.2, 0.28])
def test_the_exponent_has_the_relative_deviation_asked_for(sigma_rel: float) -> None:
    gamma = power_ema_gamma(sigma_rel)
    assert gamma > 0 and sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-9)


def test_the_exponents_of_the_paper() -> None:
    # the profiles that EDM2 tracks
    assert power_ema_gamma(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_ema_gamma(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.1, 0.25])
def test_the_weights_of_an_average_have_its_mean_and_deviation(sigma_rel: float) -> None:
    # Each step has its own place in the vector, so the average is the list of the weights.
    steps = 1000
    average, _ = tracked(lambda k: {"w": torch.eye(steps)[max(k, 1) - 1]}, steps, sigma_rel)
    weights = average["w"].double().numpy()
    p, k = power_ema_gamma(sigma_rel) + 1, np.arange(1, steps + 1)
    np.testing.assert_allclose(weights, (k**p - (k - 1.0) ** p) / steps**p, rtol=1e-4, atol=1e-9)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    mean = (weights * k).sum()
    deviation = np.sqrt((weights * (k - mean) ** 2).sum()) / steps
    assert deviation == pytest.approx(sigma_rel, rel=1e-2)
    assert mean / steps == pytest.approx(p / (p + 1), abs=2e-3)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1])
@pytest.mark.parametrize("steps", [1, 10, 400])
def test_a_constant_gradient_has_the_closed_form(sigma_rel: float, steps: int) -> None:
    p = power_ema_gamma(sigma_rel) + 1
    k = np.arange(1, steps + 1, dtype=np.float64)
    expected = 0.25 * (k * ((k / steps) ** p - ((k - 1) / steps) ** p)).sum()
    average, _ = tracked(linear, steps, sigma_rel)
    torch.testing.assert_close(average["w"], one(expected)["w"], rtol=1e-5, atol=0)


def test_the_first_step_forgets_the_initial_weights() -> None:
    average = ema.init(one(1e6))
    ema.move(average, one(0.1), power_ema_beta(power_ema_gamma(0.05), 0))
    assert torch.equal(average["w"], one(0.1)["w"])
    betas = [power_ema_beta(power_ema_gamma(0.05), step) for step in range(1000)]
    assert betas == sorted(betas) and betas[0] == 0 and betas[-1] < 1


def test_continuing_in_the_middle_is_bitwise_the_uninterrupted_average() -> None:
    gamma, half = power_ema_gamma(0.1), tracked(wandering, 17, 0.1)[0]
    again = {name: tensor.clone() for name, tensor in half.items()}
    for step in range(17, 40):
        ema.move(again, wandering(step + 1), power_ema_beta(gamma, step))
    assert torch.equal(again["w"], tracked(wandering, 40, 0.1)[0]["w"])


def test_bfloat16_parameters_are_averaged_in_float32() -> None:
    path: Path = lambda step: {"w": torch.full((8,), float(step > 900), dtype=torch.bfloat16)}  # noqa: E731
    average, _ = tracked(path, 1000, 0.1)
    assert average["w"].dtype == torch.float32
    expected = 1 - 0.9 ** (power_ema_gamma(0.1) + 1)
    torch.testing.assert_close(average["w"], torch.full((8,), expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("times", [(1.0, 1.0), (0.4, 1.0), (1.0, 0.4), (0.3, 0.3)])
def test_the_product_of_profiles_is_its_integral(times: tuple[float, float]) -> None:
    tau = (np.arange(200_000) + 0.5) / 200_000
    gammas = power_ema_gamma(0.05), power_ema_gamma(0.2)
    heights = [
        np.where(tau < t, (g + 1) * tau**g / t ** (g + 1), 0.0)
        for t, g in zip(times, gammas, strict=True)
    ]
    product = profile_product(times[0], gammas[0], times[1], gammas[1])
    assert float(product) == pytest.approx((heights[0] * heights[1]).mean(), rel=1e-4)


KEPT = range(100, 2001, 100)


@pytest.fixture(scope="module")
def snapshots() -> list[Snapshot]:
    return [
        each for length in (0.05, 0.1) for each in tracked(wandering, 2000, length, tuple(KEPT))[1]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("sigma_rel", "tolerance"), [(0.03, 0.03), (0.07, 1e-3), (0.15, 1e-3)])
@pytest.mark.parametrize("step", [2000, 1300])
def test_a_length_that_was_not_tracked_is_what_tracking_it_would_have_given(
    snapshots: list[Snapshot], sigma_rel: float, tolerance: float, step: int
) -> None:
    direct, _ = tracked(wandering, step, sigma_rel)
    made = ema.reconstruct_average([s for s in snapshots if s.step <= step], sigma_rel, step)
    assert made["w"].dtype == torch.float32
    # in units of how far the weights themselves lie from the average
    scale = (wandering(step)["w"] - direct["w"]).abs().max()
    assert (made["w"] - direct["w"]).abs().max() < tolerance * scale


@pytest.mark.slow
def test_a_tracked_length_is_its_own_last_snapshot(snapshots: list[Snapshot]) -> None:
    for sigma_rel in (0.05, 0.1):
        (last,) = (s for s in snapshots if (s.step, s.sigma_rel) == (2000, sigma_rel))
        made = ema.reconstruct_average(snapshots, sigma_rel)
        torch.testing.assert_close(made["w"], last.load()["w"], rtol=0, atol=1e-6)
        assert fit_profile(snapshots, sigma_rel, 2000).error < 1e-6


@pytest.mark.slow
def test_a_tracked_length_can_be_made_from_snapshots_of_the_others() -> None:
    others = [
        each for length in (0.05, 0.2) for each in tracked(wandering, 2000, length, tuple(KEPT))[1]
    ]
    direct, _ = tracked(wandering, 2000, 0.1)
    scale = (wandering(2000)["w"] - direct["w"]).abs().max()
    assert (ema.reconstruct_average(others, 0.1)["w"] - direct["w"]).abs().max() < 1e-3 * scale


@pytest.mark.parametrize("sigma_rel", [0.02, 0.07, 0.2])
def test_weights_that_stand_still_are_their_own_average_however_coarse_the_fit(
    sigma_rel: float,
) -> None:
    kept = [
        each for length in (0.05, 0.1) for each in tracked(lambda k: one(0.3), 40, length, (40,))[1]
    ]
    torch.testing.assert_close(
        ema.reconstruct_average(kept, sigma_rel)["w"], one(0.3)["w"], rtol=1e-6, atol=0
    )
    assert fit_profile(kept, sigma_rel, 40).coefficients.sum() == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("sigma_rel", [0.04, 0.07, 0.15])
def test_a_constant_gradient_is_reconstructed_in_closed_form(sigma_rel: float) -> None:
    kept = [each for s in (0.05, 0.1) for each in tracked(linear, 1000, s, range(50, 1001, 50))[1]]
    p = power_ema_gamma(sigma_rel) + 1
    # the mean of k under the profile, half a step beyond the continuous one
    expected = 0.25 * (1000 * p / (p + 1) + 0.5)
    torch.testing.assert_close(
        ema.reconstruct_average(kept, sigma_rel)["w"], one(expected)["w"], rtol=1e-4, atol=0
    )


def test_more_snapshots_are_a_better_fit_and_the_error_says_so() -> None:
    errors = []
    for every in (500, 250, 100, 50):
        kept = [
            Snapshot(step=step, sigma_rel=length, load=dict)
            for step in range(every, 1001, every)
            for length in (0.05, 0.1)
        ]
        errors.append(fit_profile(kept, 0.03, 1000).error)
    assert errors == sorted(errors, reverse=True) and errors[0] > 5 * errors[-1]
    coarse = [Snapshot(step=1000, sigma_rel=0.1, load=dict)]
    assert fit_profile(coarse, 0.02, 1000).error > 0.5


def test_many_snapshots_stay_well_conditioned() -> None:
    kept = [
        Snapshot(step=step, sigma_rel=length, load=dict)
        for step in range(1000, 200_001, 1000)
        for length in (0.05, 0.1)
    ]
    for sigma_rel in (0.04, 0.07, 0.2):
        found = fit_profile(kept, sigma_rel, 200_000)
        assert found.error < 1e-3 and np.abs(found.coefficients).max() < 10


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, LONGEST, 0.5, float("nan")])
def test_impossible_lengths_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match="give one above 0 and below 0.2887"):
        power_ema_gamma(sigma_rel)


def test_impossible_snapshots_are_refused() -> None:
    def made(step: int, tensors: Mapping[str, Tensor]) -> Snapshot:
        return Snapshot(step=step, sigma_rel=0.1, load=lambda: tensors)

    with pytest.raises(ValueError, match="no snapshots"):
        ema.reconstruct_average([], 0.1)
    with pytest.raises(ValueError, match="of step 20; give those of steps 1 to 10"):
        ema.reconstruct_average([made(20, one(1))], 0.1, 10)
    with pytest.raises(ValueError, match="snapshots differ in: v, w"):
        ema.reconstruct_average([made(10, one(1)), made(20, {"v": torch.ones(1)})], 0.1)


def test_names_tell_the_length() -> None:
    assert [power_ema_name(length) for length in (0.05, 0.1)] == ["power-0.05", "power-0.1"]
