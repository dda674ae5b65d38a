"""Densities of log SNR against their closed forms, and the levels a training draws from them."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from ddpm.diffusion.density import (
    DENSITIES,
    FEWEST_DRAWS,
    NUM_LEVELS,
    UNIFORM_SHARE,
    AdaptiveDensity,
    LogSnrDensity,
)
from ddpm.diffusion.process import uniform_timesteps
from ddpm.diffusion.schedule import NoiseSchedule
from tests.support.diffusion_cases import every_schedule

# in scipy's words, by the formulas of the papers
CLOSED = {
    LogSnrDensity("uniform", (-7.0, 9.0)): stats.uniform(-7, 16),
    LogSnrDensity("uniform"): stats.uniform(-10, 20),
    LogSnrDensity("logit_normal"): stats.norm(0, 2),
    LogSnrDensity("logit_normal", (0.5, 0.8)): stats.norm(-1, 1.6),
    LogSnrDensity("edm"): stats.norm(2.4, 2.4),
    LogSnrDensity("edm", (1.0, 4.0)): stats.norm(-2, 8),  # much of it is cut off
    LogSnrDensity("laplace"): stats.laplace(0, 0.5),
    LogSnrDensity("laplace", (-1.0, 12.0)): stats.laplace(-1, 12),
}
every_density = pytest.mark.parametrize("density", CLOSED, ids=lambda d: f"{d.name}-{d.parameters}")


@pytest.mark.slow
@every_density
def test_quantiles_are_those_of_the_truncated_density(density: LogSnrDensity) -> None:
    closed = CLOSED[density]
    below, above = closed.cdf([-20, 20])
    share = torch.linspace(0, 1, 203, dtype=torch.float64)[1:-1]
    expected = closed.ppf(below + share.numpy() * (above - below))
    assert_close(density.quantile(share), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    inside = (closed.cdf(3) - closed.cdf(-2)) / (above - below)
    assert density.mass(-2, 3) == pytest.approx(inside, rel=1e-12)
    assert density.mass(-math.inf, math.inf) == pytest.approx(1)
    assert density.mass(21, 30) == 0


@pytest.mark.slow
@every_density
def test_losses_weighed_as_a_density_have_its_mean(density: LogSnrDensity) -> None:
    """E_p[(q / p) f] = E_q[f], f a logistic curve, over a schedule and over another density."""
    closed = CLOSED[density]
    for levels in (NoiseSchedule("cosine", 4000), LogSnrDensity("uniform", (-8.0, 8.0))):
        logsnr = levels.logsnr_at(torch.arange(1, levels.num_timesteps + 1))
        weights = density.weights_of(logsnr)
        assert float(weights.mean()) == pytest.approx(1, rel=1e-12) and (weights >= 0).all()
        low, high = max(float(logsnr[-1]), closed.support()[0]), min(float(logsnr[0]), 20)
        mean = closed.expect(lambda x: 1 / (1 + np.exp(-x)), lb=low, ub=high, conditional=True)
        assert float((weights * logsnr.sigmoid()).mean()) == pytest.approx(mean, abs=0.01)


def test_weights_where_a_density_has_nothing_are_refused() -> None:
    far = NoiseSchedule("cosine", 100).logsnr_at(torch.arange(1, 11)) + 12
    with pytest.raises(ValueError, match="laplace has nothing between the log SNRs"):
        LogSnrDensity("laplace", (-15.0, 0.01)).weights_of(far)
    assert LogSnrDensity("laplace").weights_of(far[:1]).tolist() == [1.0]


@pytest.mark.slow
@every_density
def test_levels_have_the_moments_of_the_density_and_fall(density: LogSnrDensity) -> None:
    logsnr = density.logsnr_at(torch.arange(1, NUM_LEVELS + 1))
    closed, ends = CLOSED[density], (-20, 20)
    low, high = (max(-20, closed.support()[0]), min(20, closed.support()[1]))
    mean = closed.expect(lambda x: x, lb=low, ub=high, conditional=True)
    variance = closed.expect(lambda x: (x - mean) ** 2, lb=low, ub=high, conditional=True)
    assert float(logsnr.mean()) == pytest.approx(mean, abs=1e-3)
    assert float(logsnr.var()) == pytest.approx(variance, rel=1e-3)
    assert (logsnr.diff() < 0).all()
    assert ends[0] <= logsnr.min() and logsnr.max() <= ends[1]


def test_edm_and_logit_normal_are_what_their_papers_draw() -> None:
    """ln sigma ~ N(-1.2, 1.2^2) of x0 + sigma noise; flow time sigmoid(z) of (1 - t) x0 + t z."""
    z = np.random.default_rng(0).standard_normal(100_000)
    sigma, time = np.exp(-1.2 + 1.2 * z), 1 / (1 + np.exp(-z))
    for name, snr in (("edm", 1 / sigma**2), ("logit_normal", ((1 - time) / time) ** 2)):
        share = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
        drawn = np.quantile(np.log(snr), share.numpy())
        assert_close(
            LogSnrDensity(name).quantile(share), torch.from_numpy(drawn), rtol=0, atol=0.05
        )


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_follow_the_density_and_their_pair_is_that_of_log_snr(name: str) -> None:
    density = LogSnrDensity(name)
    t = uniform_timesteps(7, torch.arange(20_000), density.num_timesteps)
    logsnr, (alpha, sigma) = density.logsnr_at(t), density.alpha_sigma_at(t)
    assert stats.kstest(logsnr.numpy(), CLOSED[density].cdf).pvalue > 1e-3
    assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0)
    assert_close(2 * torch.log(alpha / sigma), logsnr, rtol=1e-12, atol=1e-12)
    assert torch.equal(density.logsnr_at(t[3:5]), logsnr[3:5])


@pytest.mark.parametrize(
    "name, parameters, words",
    [
        ("edn", None, "density is 'edn'; give one of uniform, logit_normal, edm, laplace"),
        ("uniform", (2.0, 2.0), "uniform is from 2.0 to 2.0; give the lower end first"),
        ("edm", (0.0, -1.0), "edm has the width -1.0; give a positive number"),
        ("edm", (-20.0, 0.1), "no log SNR from -20 to 20"),
    ],
)
def test_impossible_densities_are_refused(
    name: str, parameters: tuple[float, float] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        LogSnrDensity(name, parameters)


def test_a_network_that_sees_log_snr_sees_the_same_under_every_schedule() -> None:
    linear, cosine = (
        NoiseSchedule(name, 100, time_input="logsnr") for name in ("linear", "cosine")
    )
    logsnr = torch.linspace(-7, 4, 12, dtype=torch.float64)
    for one in (0, 1):
        pair = [schedule.at_logsnr(logsnr)[1 + one] for schedule in (linear, cosine)]
        assert torch.equal(*pair)
    seen = [s.network_time(s.at_logsnr(logsnr)[0], logsnr) for s in (linear, cosine)]
    assert torch.equal(*seen) and torch.equal(seen[0], (20 - logsnr) / 40)
    ends = torch.tensor([-math.inf, -25.0, 25.0, math.inf], dtype=torch.float64)
    assert linear.network_time(ends, ends).tolist() == [1, 1, 0, 0]
    plain = NoiseSchedule("cosine", 100)
    time = plain.time_from_logsnr(logsnr)
    assert plain.network_time(time, logsnr) is time
    with pytest.raises(
        ValueError, match="time_input is 'sigma'; give one of time, logsnr, timestep"
    ):
        NoiseSchedule("cosine", 100, time_input="sigma")


# Adaptive


EDGES = (-6.0, -3.0, 0.0, 3.0, 6.0)


def adapted(schedule: NoiseSchedule, squares: list[float]) -> AdaptiveDensity:
    """After a step in which every bin was drawn 100 times with these mean squares."""
    density = AdaptiveDensity(schedule, EDGES)
    density.update([100 * one for one in squares], [100.0] * 6)
    return density


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("squares", [None, [1e4, 1, 1, 0, 4, 100]])
def test_weights_times_densities_are_uniform_timesteps(name: str, squares: list | None) -> None:
    schedule = NoiseSchedule(name, 70)
    density = adapted(schedule, squares) if squares else AdaptiveDensity(schedule, EDGES)
    count = 1 << 20
    places = (torch.arange(count) * 2 + 1) * (density.num_places // count // 2)
    t, weight = density.timesteps(places)
    assert (t.diff() >= 0).all() and t[0] == 1 and t[-1] == 70
    mass = torch.zeros(71, dtype=torch.float64).index_add(0, t, weight) / count
    torch.testing.assert_close(mass[1:], torch.full((70,), 1 / 70).double(), rtol=0.01, atol=0)
    assert squares or (weight == 1).all()
    assert weight.max() <= 1 / UNIFORM_SHARE * (1 + 1e-12)


def test_shares_are_those_of_least_variance() -> None:
    schedule = NoiseSchedule("linear", 1000)
    squares = torch.tensor([1e4, 1, 1, 0.25, 4, 100], dtype=torch.float64)
    logsnr = schedule.logsnr_at(torch.arange(1, 1001))
    uniform = torch.histc((logsnr + 6) / 3, 6, -1, 5).double() / 1000
    uniform[0], uniform[5] = (logsnr <= -6).double().mean(), (logsnr > 6).double().mean()
    wanted = uniform * squares.sqrt()
    expected = UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * wanted / wanted.sum()
    torch.testing.assert_close(adapted(schedule, squares.tolist()).shares, expected)


def test_the_mean_of_squares_is_over_the_last_draws_and_kept_exactly() -> None:
    schedule = NoiseSchedule("linear", 1000)
    density = AdaptiveDensity(schedule, EDGES)
    density.update([30.0] * 6, [FEWEST_DRAWS - 1.0] * 6)
    uniform = AdaptiveDensity(schedule, EDGES).shares
    assert torch.equal(density.shares, uniform)  # too few yet
    density.update([0.0] * 6, [1.0] * 5 + [0.0])
    assert torch.equal(density.shares, uniform)  # one bin still
    density.update([0.0] * 5 + [3.0], [1.0] * 6)
    assert density.state()["squares"] == pytest.approx([30 / 11] * 5 + [3.3])
    for _ in range(20):  # 5,000 draws of one bin forget what was before
        density.update([250.0, *[0.0] * 5], [250.0, *[0.0] * 5])
    assert density.state()["squares"][0] == pytest.approx(1, rel=0.01)
    again = AdaptiveDensity(schedule, EDGES, json.loads(json.dumps(density.state())))
    assert again.state() == density.state() and torch.equal(again.shares, density.shares)
    density.update([9e9, *[0.0] * 5], [2.0, *[0.0] * 5])  # of so many draws a step, all are new
    density.update([4000.0, *[0.0] * 5], [2000.0, *[0.0] * 5])
    assert density.state()["squares"][0] == 2
