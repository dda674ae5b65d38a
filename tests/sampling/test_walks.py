"""Starts of a walk, and steps taken again."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import diffuse, q_sample
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.request import INPAINTING_RESAMPLES
from ddpm.sampling.samplers import SampleState, WalkStart, renoised, sample, sample_steps
from ddpm.sampling.spacing import Level, walk_levels
from ddpm.sampling.tasks import keep_known
from tests.sampling.test_samplers import network_of
from tests.support.diffusion_cases import SHAPE, affine_network, every_schedule, images
from tests.support.sampler_cases import every_sampler

IDS = torch.arange(3)
X0 = images(3).float()


class Seen:
    """A network that keeps what it is asked: states and times."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.times: list[float] = []

    def __call__(self, x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        self.states.append(x_t.clone())
        self.times.append(float(time[0]))
        return affine_network(x_t, time, labels)


def walk(network, schedule: NoiseSchedule, **options: object) -> list[SampleState]:
    arguments = {"pred_type": "velocity", "num_steps": 5, "seed": 7, **options}
    return list(sample_steps(network, schedule, IDS, SHAPE, **arguments))


# Where it begins


@pytest.mark.parametrize("name", ["linear", "cosine", "laplace"])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("time", [0.35, 0.8, 1.0])
def test_a_walk_begins_at_images_noised_to_its_first_level(
    name: str, spacing: str, time: float
) -> None:
    schedule, network = NoiseSchedule(name, 25), Seen()
    path = walk_levels(schedule, spacing=spacing, num_steps=5)
    first = next(level for level in path if level.time <= time)
    states = walk(network, schedule, spacing=spacing, start=WalkStart(time=time, x0=X0))
    noise = normal(7, Stream.X_T, IDS, SHAPE)
    assert torch.equal(network.states[0], diffuse(X0, noise, first.alpha, first.sigma))
    assert states[0].t == first.t and [a.s for a in states] == [
        level.t for level in path if level.time < first.time
    ]


def test_a_lower_start_leaves_more_of_the_images() -> None:
    schedule = NoiseSchedule("cosine", 100)
    network = network_of(schedule, "velocity")
    apart = [
        float((sample(
            network, schedule, IDS, SHAPE, pred_type="velocity", num_steps=100,
            start=WalkStart(time=time, x0=X0),
        ) - X0).square().mean())
        for time in (0.01, 0.2, 0.5, 0.9)
    ]  # fmt: skip
    assert apart == sorted(apart) and apart[0] < 1e-3 < 0.1 < apart[-1]


@every_sampler
def test_a_start_at_zero_snr_is_pure_noise(sampler: str) -> None:
    schedule = NoiseSchedule("cosine", 25, zero_terminal_snr=True)
    options = {"sampler": sampler}
    plain = walk(affine_network, schedule, **options)[-1]
    started = walk(affine_network, schedule, start=WalkStart(x0=X0), **options)[-1]
    assert torch.equal(started.x_t, plain.x_t)


def test_a_start_at_time_one_is_pure_noise_up_to_the_signal_left_there() -> None:
    schedule, network = NoiseSchedule("cos6_85", 10), Seen()
    walk(network, schedule, start=WalkStart(x0=X0))
    left = float(schedule.alpha_sigma_at(torch.tensor(10))[0])
    assert (network.states[0] - normal(7, Stream.X_T, IDS, SHAPE)).abs().max() <= 1.01 * left
    assert left < 1e-3


def test_a_constraint_is_applied_to_every_state_the_network_sees_and_to_the_image() -> None:
    """A known channel, noised to each level with fixed noise; v3 put the clean one there."""
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(3)
    known, fixed = torch.full((3, 1, 3, 3), 0.4), normal(0, Stream.EVAL, ids, (1, 3, 3))
    seen: list[Tensor] = []
    walked: list[int] = []

    def constrain(x_s: Tensor, level: Level, of: Tensor) -> Tensor:
        assert torch.equal(of, ids)
        walked.append(round(30 * level.time))
        alpha, sigma = schedule.alpha_sigma_at(torch.tensor(walked[-1]))
        assert (level.alpha, level.sigma) == (alpha, sigma)
        assert level.logsnr == schedule.logsnr_at(torch.tensor(walked[-1]))
        return torch.cat([diffuse(known, fixed, level.alpha, level.sigma), x_s[:, 1:]], dim=1)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(x_t)
        return 0 * x_t

    arguments = {"pred_type": "velocity", "reverse_stride": 10, "constrain": constrain}
    states = list(sample_steps(network, schedule, ids, SHAPE, **arguments))
    assert walked == [30, 20, 10, 0]
    for x_t, t in zip([*seen, states[-1].x_t], walked, strict=True):
        assert torch.equal(x_t[:, :1], q_sample(schedule, known, torch.full((3,), t), fixed))
    assert torch.equal(states[-1].x_t[:, :1], known)
    free = sample(network, schedule, ids, SHAPE, pred_type="velocity", reverse_stride=10)
    assert torch.equal(states[-1].x_t[:, 1:], free[:, 1:])


def test_a_constraint_holds_from_the_start() -> None:
    seen, network = [], Seen()

    def constrain(x_s: Tensor, level: Level, ids: Tensor) -> Tensor:
        seen.append(level.t)
        return torch.zeros_like(x_s)

    start = WalkStart(time=0.6, x0=X0)
    walk(network, NoiseSchedule("cosine", 10), start=start, constrain=constrain)
    assert seen == [6, 4, 2, 0] and all(not state.any() for state in network.states)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: WalkStart(time=0.5),
            "the start is at time 0.5 without x0; give images, or time 1",
        ),
        (lambda: WalkStart(time=0.1, x0=X0), "the start is at time 0.1; give one from 0.2 to 1"),
        (lambda: WalkStart(time=1.5, x0=X0), "the start is at time 1.5; give one from 0.2 to 1"),
        (lambda: WalkStart(x0=X0[:2]), r"the start is \(2, 2, 3, 3\); give an image for every id"),
        (lambda: WalkStart(x0=X0[:, :1]), r"the start is \(3, 1, 3, 3\)"),
    ],
)
def test_impossible_starts_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        walk(affine_network, NoiseSchedule("cosine", 10), start=make())


# Steps taken again


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_the_way_back_up_is_the_forward_process(name: str, zero_terminal_snr: bool) -> None:
    """q(x_t | x_s): it carries one marginal into the other, for any pair."""
    schedule = NoiseSchedule(name, 40, zero_terminal_snr=zero_terminal_snr)
    path, one = walk_levels(schedule, num_steps=10), torch.ones(1, dtype=torch.float64)
    for now, then in pairwise(path[:-1]):
        mean = renoised(then.alpha * 0.6 * one, then, now, 0 * one)
        assert_close(mean, now.alpha * 0.6 * one, rtol=0, atol=1e-14)
        ratio = renoised(one, then, now, 0 * one)
        std = renoised(0 * one, then, now, one)
        assert_close(ratio**2 * then.sigma**2 + std**2, now.sigma**2 * one, rtol=0, atol=1e-14)
        expected = (now.sigma**2 - (now.alpha / then.alpha) ** 2 * then.sigma**2).clamp(min=0)
        assert_close(std**2, expected * one, rtol=1e-6, atol=1e-12)


def test_every_step_but_the_last_is_taken_again_with_noise_of_its_own() -> None:
    schedule, network, resamples = NoiseSchedule("cosine", 10), Seen(), 2
    states = walk(network, schedule, sampler="ddpm", resamples=resamples)
    path = walk_levels(schedule, num_steps=5)
    assert [(a.t, a.s) for a in states] == [
        *((now.t, then.t) for now, then in pairwise(path[:-1]) for _ in range(3)),
        (2, 0),
    ]
    by_level = {level.t: level for level in path}
    keys = []
    for k, state in enumerate(states[:-1]):
        visit, now, then = k % 3, by_level[int(state.t)], by_level[int(state.s)]
        key = then.key + (visit << 20)
        keys.append(key)
        if visit > 0:
            z = normal(7, Stream.RESAMPLE, IDS, SHAPE, step=key)
            back = renoised(states[k - 1].x_t, then, now, z)
            assert_close(network.states[k], back, rtol=0, atol=1e-6)
        # x_s = posterior mean + std z, so z can be told from the states
        noise_hat = (network.states[k] - now.alpha.float() * state.x0_hat) / now.sigma.float()
        rho = torch.exp(now.logsnr - then.logsnr)
        mean = then.alpha * state.x0_hat.double() + then.sigma * rho.sqrt() * noise_hat.double()
        z = (state.x_t.double() - mean) / (then.sigma * (1 - rho).sqrt())
        expected = normal(7, Stream.STEP_NOISE, IDS, SHAPE, step=key).double()
        assert_close(z, expected, rtol=0, atol=1e-4)
    assert len(set(keys)) == len(keys) and max(keys) < 2**24


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_a_step_taken_again_forgets_what_was_estimated_on_another_way(sampler: str) -> None:
    schedule, network = NoiseSchedule("cosine", 10), Seen()
    states = walk(network, schedule, sampler=sampler, resamples=1)
    path = walk_levels(schedule, num_steps=5)
    for k, (now, then) in enumerate(pairwise(path[:-1])):
        again = states[2 * k + 1]
        x_t = network.states[2 * k + 1].double()
        noise_hat = (x_t - now.alpha * again.x0_hat.double()) / now.sigma
        eta = float(sampler == "dpmpp_2m_sde")
        rho = torch.exp(now.logsnr - then.logsnr)
        z = normal(7, Stream.STEP_NOISE, IDS, SHAPE, step=then.key + (1 << 20)).double()
        first_order = (
            then.alpha * again.x0_hat.double()
            + then.sigma * torch.sqrt(1 - eta + eta * rho) * noise_hat
            + eta * then.sigma * torch.sqrt(1 - rho) * z
        )
        assert_close(again.x_t.double(), first_order, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_resampling_gives_the_drawn_channel_its_dependence_on_the_known_one() -> None:
    """Two normal channels of correlation 0.8: the table of docs/sampling.md."""
    schedule, ids = NoiseSchedule("cosine", 1000), torch.arange(1000)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64) / 4
    clean = normal(9, Stream.EVAL, ids, (2, 1, 1)) / 2
    known = torch.tensor([True, False]).view(1, 2, 1, 1)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time[0].double())
        seen = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        gain = alpha * covariance @ torch.linalg.inv(seen)
        return (x_t.flatten(1).double() @ gain.T).float().view_as(x_t)

    def slope(resamples: int) -> float:
        drawn = sample(
            network,
            schedule,
            ids,
            (2, 1, 1),
            pred_type="image",
            num_steps=50,
            ddim_eta=1.0,
            resamples=resamples,
            constrain=keep_known(clean, known, 0, "fixed"),
        )
        first, second = drawn.flatten(1).double().T
        return float(first @ second / (first @ first))

    assert slope(0) == pytest.approx(0.48, abs=0.04)
    assert slope(INPAINTING_RESAMPLES) == pytest.approx(0.745, abs=0.04)
