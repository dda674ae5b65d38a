"""Noise levels that are walked: their ends, their evenness, their coefficients and their keys."""

import math
from itertools import pairwise

import pytest
import torch

from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.spacing import (
    SPACINGS,
    Level,
    below,
    linspace_timesteps,
    reverse_timesteps,
    trailing_timesteps,
    walk_levels,
)
from tests.support.diffusion_cases import every_schedule

CONTINUOUS = ("logsnr", "karras", "flow")
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)
continuous = pytest.mark.parametrize("spacing", CONTINUOUS)
T = 40


def sigma_over_alpha(level: Level) -> float:
    return float(level.sigma / level.alpha)


def precision(name: str) -> float:
    """Of a level whose time is float64: laplace ends within 1e-13 of time 1."""
    return 1e-3 if name == "laplace" else 1e-6


@pytest.mark.slow
@every_schedule
@every_spacing
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_any_number_of_steps_falls_from_one_to_zero(
    name: str, spacing: str, zero_terminal_snr: bool
) -> None:
    schedule = NoiseSchedule(name, T, zero_terminal_snr=zero_terminal_snr)
    for num_steps in (1, 2, 3, 9, T, *((150,) if spacing in CONTINUOUS else ())):
        path = walk_levels(schedule, spacing=spacing, num_steps=num_steps)
        assert len(path) == num_steps + 1
        assert (path[0].time, path[0].t, path[-1].time, path[-1].t) == (1.0, T, 0.0, 0)
        for now, then in pairwise(path):
            assert now.time > then.time and now.logsnr < then.logsnr
            assert now.alpha < then.alpha and now.sigma > then.sigma
        assert [level.is_clean for level in path] == [False] * num_steps + [True]


@pytest.mark.slow
@every_schedule
@every_spacing
def test_a_level_lies_on_the_schedule(name: str, spacing: str) -> None:
    schedule = NoiseSchedule(name, T)
    for level in walk_levels(schedule, spacing=spacing, num_steps=17)[:-1]:
        alpha, sigma = schedule.alpha_sigma(level.time)
        assert float(level.alpha) == pytest.approx(float(alpha), rel=1e-9)
        assert float(level.sigma) == pytest.approx(float(sigma), rel=1e-9)
        assert float(level.alpha**2 + level.sigma**2) == pytest.approx(1, abs=1e-14)
        assert float(level.logsnr) == pytest.approx(2 * math.log(float(alpha / sigma)), abs=1e-9)
        assert level.t == pytest.approx(T * level.time, abs=1e-9)


@every_schedule
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_whole_timesteps_have_the_coefficients_of_the_table_and_their_own_keys(
    name: str, spacing: str
) -> None:
    schedule = NoiseSchedule(name, T)
    timesteps = trailing_timesteps if spacing == "trailing" else linspace_timesteps
    for num_steps in (1, 7, T):
        path = walk_levels(schedule, spacing=spacing, num_steps=num_steps)
        assert [level.t for level in path] == timesteps(T, num_steps)
        for level in path:
            t = torch.tensor(level.key)
            assert level.t == level.key and isinstance(level.t, int) and level.time == level.t / T
            assert (level.alpha, level.sigma) == schedule.alpha_sigma_at(t)
            assert level.logsnr == schedule.logsnr_at(t)


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50])
def test_any_stride_goes_from_T_to_zero(num_timesteps: int) -> None:
    for stride in range(1, num_timesteps + 1):
        path = reverse_timesteps(num_timesteps, stride)
        steps = [t - s for t, s in pairwise(path)]
        assert path[0] == num_timesteps and path[-1] == 0
        assert all(step == stride for step in steps[:-1]) and 1 <= steps[-1] <= stride
    assert reverse_timesteps(1000, 50) == [*range(1000, 0, -50), 0]  # v3's
    path = walk_levels(NoiseSchedule("cosine", T), reverse_stride=7)
    assert [level.t for level in path] == reverse_timesteps(T, 7) == [40, 33, 26, 19, 12, 5, 0]


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50])
def test_any_number_of_steps_is_spread_evenly(num_timesteps: int) -> None:
    for num_steps in range(1, num_timesteps + 1):
        path = trailing_timesteps(num_timesteps, num_steps)
        assert len(path) == num_steps + 1 and path[0] == num_timesteps and path[-1] == 0
        assert all(t > s for t, s in pairwise(path))
        for i, t in enumerate(path):
            assert abs(t - num_timesteps * (num_steps - i) / num_steps) <= 0.5
        if num_timesteps % num_steps == 0:
            assert path == reverse_timesteps(num_timesteps, num_timesteps // num_steps)


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50, 1000])
def test_linspace_is_even_from_T_to_one(num_timesteps: int) -> None:
    """Lin et al. 2023, Table 2: both ends of 1 ... T, then the image."""
    for num_steps in range(2, min(num_timesteps, 60) + 1):
        path = linspace_timesteps(num_timesteps, num_steps)
        assert path[0] == num_timesteps and path[-2:] == [1, 0] and len(path) == num_steps + 1
        assert all(t > s for t, s in pairwise(path))
        for i, t in enumerate(path[:-1]):
            even = 1 + (num_timesteps - 1) * (num_steps - 1 - i) / (num_steps - 1)
            assert abs(t - even) <= 0.5
    assert linspace_timesteps(num_timesteps, 1) == [num_timesteps, 0]
    everything = linspace_timesteps(num_timesteps, num_timesteps)
    assert everything == reverse_timesteps(num_timesteps, 1)


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_logsnr_is_even_in_logsnr(name: str, zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule(name, T, zero_terminal_snr=zero_terminal_snr)
    path = walk_levels(schedule, spacing="logsnr", num_steps=25)[int(zero_terminal_snr) : -1]
    steps = [float(then.logsnr - now.logsnr) for now, then in pairwise(path)]
    assert steps == pytest.approx([steps[-1]] * len(steps), rel=precision(name))


@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_karras_is_even_in_the_seventh_root_of_sigma_over_alpha(
    name: str, zero_terminal_snr: bool
) -> None:
    """(max^(1/7) + i / (n - 1) (min^(1/7) - max^(1/7)))^7                  Karras et al., Eq. 5"""
    schedule = NoiseSchedule(name, T, zero_terminal_snr=zero_terminal_snr)
    path = walk_levels(schedule, spacing="karras", num_steps=25)[int(zero_terminal_snr) : -1]
    largest, smallest = sigma_over_alpha(path[0]), sigma_over_alpha(path[-1])
    for i, level in enumerate(path):
        share = i / (len(path) - 1)
        root = largest ** (1 / 7) + share * (smallest ** (1 / 7) - largest ** (1 / 7))
        assert sigma_over_alpha(level) == pytest.approx(root**7, rel=precision(name))


def flow_time(level: Level) -> float:
    return float(level.sigma / (level.alpha + level.sigma))


@pytest.mark.slow
@every_schedule
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_flow_is_even_in_the_time_of_the_straight_path_down_to_the_image(
    name: str, zero_terminal_snr: bool
) -> None:
    schedule = NoiseSchedule(name, T, zero_terminal_snr=zero_terminal_snr)
    lowest = 1 / (1 + math.exp(0.5 * schedule.logsnr_range[1]))
    for num_steps in (4, 9, 200):
        path = walk_levels(schedule, spacing="flow", num_steps=num_steps)[int(zero_terminal_snr) :]
        times = [flow_time(level) for level in path]
        steps = [now - then for now, then in pairwise(times)]
        # the last step is one of the others unless a network was never trained so near to the image
        even = steps if times[0] / (len(path) - 1) > lowest else steps[:-1]
        assert even == pytest.approx([even[0]] * len(even), rel=precision(name))
        if even is not steps:
            assert path[-2].t == 1


@every_schedule
@continuous
def test_other_times_begin_at_the_first_timestep_and_end_at_the_last_exactly(
    name: str, spacing: str
) -> None:
    schedule = NoiseSchedule(name, T)
    path = walk_levels(schedule, spacing=spacing, num_steps=9)
    ends = [(path[0], T), (path[-2], 1), (path[-1], 0)]
    for level, t in ends[:: 2 if spacing == "flow" else 1]:
        assert level.t == t and isinstance(level.t, int)
        assert (level.alpha, level.sigma) == schedule.alpha_sigma_at(torch.tensor(t))


@every_schedule
@continuous
def test_zero_terminal_snr_is_a_step_of_its_own(name: str, spacing: str) -> None:
    schedule = NoiseSchedule(name, T, zero_terminal_snr=True)
    path = walk_levels(schedule, spacing=spacing, num_steps=9)
    assert path[0].logsnr == -math.inf and path[0].alpha == 0
    assert [path[i].t for i in (0, 1, -1)] == [T, T - 1, 0]
    assert spacing == "flow" or path[-2].t == 1
    assert [level.t for level in walk_levels(schedule, spacing=spacing, num_steps=1)] == [T, 0]
    assert [level.t for level in walk_levels(schedule, spacing=spacing, num_steps=2)] == [
        T,
        T - 1,
        0,
    ]


@pytest.mark.slow
@every_schedule
@continuous
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_between_two_logsnrs_every_schedule_walks_the_same_levels(
    name: str, spacing: str, zero_terminal_snr: bool
) -> None:
    for num_timesteps in (40, 1000):
        schedule = NoiseSchedule(name, num_timesteps, zero_terminal_snr=zero_terminal_snr)
        path = walk_levels(schedule, spacing=spacing, num_steps=6, between=(-6.0, 1.0))
        found = [float(level.logsnr) for level in path[:-1]]
        cosine = walk_levels(
            NoiseSchedule("cosine", 60), spacing=spacing, num_steps=6, between=(-6, 1)
        )
        assert found == pytest.approx([float(level.logsnr) for level in cosine[:-1]], abs=1e-3)
        assert (found[0], found[-1]) == pytest.approx((-6.0, 1.0), abs=1e-3)
        assert [level.key for level in path] == [6, 5, 4, 3, 2, 1, 0] and path[-1].is_clean
        for level in path[:-1]:
            assert float(schedule.logsnr(level.time)) == pytest.approx(float(level.logsnr))
    (only, clean) = walk_levels(schedule, spacing=spacing, num_steps=1, between=(-6.0, 1.0))
    assert float(only.logsnr) == pytest.approx(-6.0, abs=1e-3) and clean.is_clean


@every_spacing
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_no_key_is_used_twice_in_a_walk(spacing: str, zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule("cosine", T, zero_terminal_snr=zero_terminal_snr)
    for num_steps in (1, 2, 3, 13, T, *((3 * T,) if spacing in CONTINUOUS else ())):
        keys = [level.key for level in walk_levels(schedule, spacing=spacing, num_steps=num_steps)]
        assert len(set(keys)) == len(keys) and keys[-1] == 0
        if spacing in CONTINUOUS:
            assert keys == list(range(num_steps, -1, -1))


def test_a_walk_may_begin_lower() -> None:
    path = walk_levels(NoiseSchedule("cosine", 10), num_steps=5)
    assert [level.t for level in below(path, 1.0)] == [10, 8, 6, 4, 2, 0]
    assert [level.t for level in below(path, 0.6)] == [6, 4, 2, 0]
    assert [level.t for level in below(path, 0.79)] == [6, 4, 2, 0]
    assert [level.t for level in below(path, 0.2)] == [2, 0]
    for time in (0.19, 0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"start is at time {time}; give one from 0.2 to 1"):
            below(path, time)


@pytest.mark.parametrize(
    ("schedule", "arguments", "words"),
    [
        (("linear", 30), {"spacing": "even", "num_steps": 3}, "spacing is 'even'; give one of"),
        (("linear", 30), {"spacing": "karras"}, "spacing is karras; give num_steps with it"),
        (("linear", 30), {"spacing": "linspace", "reverse_stride": 2}, "give num_steps with it"),
        (("linear", 30), {"spacing": "linspace", "num_steps": 31}, "give one from 1 to 30"),
        (("linear", 30), {"spacing": "trailing", "num_steps": 31}, "give one from 1 to 30"),
        (("linear", 30), {"num_steps": 3, "between": (-4, 1)}, "trailing, of whole timesteps"),
        (
            ("linear", 30),
            {"spacing": "logsnr", "num_steps": 3, "between": (-11, 1)},
            "logsnr is -11.0, but linear with 30 timesteps goes from",
        ),
        (
            ("linear", 30),
            {"spacing": "logsnr", "num_steps": 3, "between": (1, -4)},
            "lower logsnr first",
        ),
        (("linear", 30), {"spacing": "logsnr", "num_steps": 0}, "num_steps is 0; give one from 1"),
        (("linear", 30), {"spacing": "logsnr", "num_steps": 2**20}, "give one from 1 to 1048575"),
        (
            ("linear", 1),
            {"spacing": "logsnr", "num_steps": 2},
            "have a single level.* num_steps 1,",
        ),
    ],
)
def test_impossible_walks_are_refused(
    schedule: tuple[str, int], arguments: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        walk_levels(NoiseSchedule(*schedule), **arguments)
