"""Draws of samplers for Gaussian data: known numbers, the flow's limit, and samples themselves."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.samplers import sample
from ddpm.sampling.spacing import walk_levels
from experiments.gaussian_walk import (
    GaussianDraws,
    GaussianFit,
    drawn,
    flow_limit,
    ideal_network,
    noised,
)


def one(mean: float, variance: float) -> GaussianFit:
    """Data of one value."""
    row = torch.ones(1, dtype=torch.float64)
    return GaussianFit(
        mean=mean * row,
        variance=variance * row,
        basis=torch.ones(1, 1).double(),
        pixel_mean=mean * row,
    )


def correlated(count: int = 4000, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64) / 3
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + 0.3


def test_the_standard_deviation_of_unit_data_is_a_power_of_a_cosine() -> None:
    """cos(89 degrees / S)^S for S steps of ddim on the cosine schedule."""
    for steps in (10, 20, 100):
        found = drawn(one(0.0, 1.0), walk_levels(NoiseSchedule("cosine", 1000), num_steps=steps))
        assert float(found.variance.sqrt()) == pytest.approx(
            math.cos(math.radians(89) / steps) ** steps, abs=1e-9
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, mean, variance",
    [("linear", 0.49836, 0.25001), ("cosine", 0.49564, 0.25006), ("cos6", 0.49869, 0.25001)],
)
def test_the_limit_of_the_flow_is_known_and_approached(
    name: str, mean: float, variance: float
) -> None:
    data, schedule = one(0.5, 0.25), NoiseSchedule(name, 1000)
    limit = flow_limit(data, walk_levels(schedule)[0])
    assert (float(limit.mean), float(limit.variance)) == pytest.approx((mean, variance), abs=6e-6)
    apart = [
        abs(float(drawn(data, walk_levels(schedule, num_steps=n)).variance) - variance)
        for n in (50, 200)
    ]
    assert apart[1] < apart[0] / 3


def test_a_walk_begun_in_noised_data_has_no_bias_of_the_mean() -> None:
    data, path = one(0.5, 0.25), walk_levels(NoiseSchedule("cosine", 1000), num_steps=50)
    found = drawn(data, path, begin=noised(data, path[0]))
    assert_close(found.mean, data.mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "sampler, eta", [("ddim", 0.0), ("ddim", 1.0), ("ddpm", 0.0), ("heun", 0.0)]
)
def test_samples_of_the_ideal_denoiser_have_the_moments_said(sampler: str, eta: float) -> None:
    count, fit = 20_000, GaussianFit.of(correlated())
    schedule = NoiseSchedule("cosine", 1000)
    told = drawn(
        fit, walk_levels(schedule, num_steps=6, spacing="karras"), sampler=sampler, eta=eta
    )
    images = sample(
        ideal_network(fit, schedule),
        schedule,
        torch.arange(count),
        (6, 1, 1),
        pred_type="image",
        num_steps=6,
        ddim_eta=eta,
        sampler=sampler,
        spacing="karras",
    )
    along = images.flatten(1).double() @ fit.basis
    error = (told.variance / count).sqrt()
    assert bool(((along.mean(dim=0) - told.mean).abs() < 5 * error).all())
    ratio = along.var(dim=0) / told.variance
    assert bool(((ratio - 1).abs() < 5 * math.sqrt(2 / count)).all())


def test_few_images_are_fitted_as_many_would_be() -> None:
    """Fewer images than values: the same variances, and the same estimate of an image."""
    few = correlated(5, 12)
    fit = GaussianFit.of(few)
    values = torch.linalg.eigvalsh(torch.cov(few.T, correction=0)).sort(descending=True).values
    assert_close(fit.variance.sort(descending=True).values, values[: len(fit.variance)])
    assert len(fit.variance) == 4  # five points span four dimensions
    schedule, time = NoiseSchedule("cosine", 100), torch.full((5,), 1e-3, dtype=torch.float64)
    nearly_clean = ideal_network(fit, schedule)(few.view(5, 12, 1, 1), time, None)
    assert_close(nearly_clean.flatten(1), few, atol=1e-4, rtol=0)


def test_the_distance_is_zero_for_the_data_alone() -> None:
    data = one(0.5, 0.25)
    assert GaussianDraws(mean=data.mean, variance=data.variance).distance(data) == 0
    moved = GaussianDraws(mean=data.mean + 3, variance=torch.full_like(data.variance, 4.5**2))
    assert moved.distance(data) == pytest.approx(5.0)


def test_a_sampler_with_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler is 'dpmpp_2m'; give one of ddim, ddpm, heun"):
        drawn(one(0, 1), walk_levels(NoiseSchedule("cosine", 10)), sampler="dpmpp_2m")
