"""Laws of the noise schedules, over every schedule, shift and rescaling."""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule

VARIANTS = [{}, {"logsnr_shift": -1.3}, {"zero_terminal_snr": True}]
BETAS = {name: family for name, family in SCHEDULES.items() if callable(family)}
CONTINUOUS = SCHEDULES.keys() - BETAS.keys()
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
LENGTHS = (21, 50, 1000, 4000)


def grid(num_timesteps: int) -> torch.Tensor:
    return torch.arange(num_timesteps + 1)


def variants(name: str, lengths: Sequence[int] = LENGTHS) -> Iterator[NoiseSchedule]:
    """The schedule of this name plain, shifted and rescaled, at each length; the last one that
    pytest prints is the one that fails.
    """
    for variant, length in product(VARIANTS, lengths):
        schedule = NoiseSchedule(name, length, **variant)
        print(schedule)
        yield schedule


@every_schedule
def test_tables_fall_from_one_by_betas_between_zero_and_one(name: str) -> None:
    for schedule in variants(name):
        abar = schedule.alphas_cumprod
        assert abar.dtype == torch.float64 and abar.shape == (schedule.num_timesteps + 1,)
        assert abar[0] == 1
        betas = 1 - abar[1:] / abar[:-1]
        assert (betas > 0).all()
        assert (betas[:-1] < 1).all()
        assert (betas[-1] == 1) if schedule.zero_terminal_snr else (betas[-1] < 1)


@every_schedule
def test_alpha_and_sigma_lie_on_the_unit_circle(name: str) -> None:
    for schedule in variants(name):
        alpha, sigma = schedule.alpha_sigma_at(grid(schedule.num_timesteps))
        assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=7e-16)
        assert_close(alpha**2, schedule.alphas_cumprod, rtol=0, atol=0)
        logsnr = schedule.logsnr_at(grid(schedule.num_timesteps))
        assert_close(logsnr[1:-1], 2 * (alpha / sigma).log()[1:-1], rtol=0, atol=1e-12)
        assert sigma[0] == 0 and logsnr[0] == math.inf


@every_schedule
def test_the_table_is_the_function_read_at_t_over_T(name: str) -> None:
    for schedule in variants(name):
        t = grid(schedule.num_timesteps)
        alpha, sigma = schedule.alpha_sigma(t.double() / schedule.num_timesteps)
        table_alpha, table_sigma = schedule.alpha_sigma_at(t)
        assert_close(alpha, table_alpha, rtol=1e-9, atol=1e-15)
        assert_close(sigma, table_sigma, rtol=1e-9, atol=0)
        time = torch.tensor([[0.0, 0.25], [0.5, 1.0]], dtype=torch.float64)
        assert_close(schedule.alpha_bar(time), schedule.alpha_sigma(time)[0] ** 2, rtol=0, atol=0)
        assert schedule.logsnr(time).shape == (2, 2) and schedule.logsnr(time)[0, 0] == math.inf


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_continuous_schedules_do_not_depend_on_the_number_of_timesteps(name: str) -> None:
    coarse, fine = NoiseSchedule(name, 50), NoiseSchedule(name, 1000)
    assert not coarse.is_beta_defined
    assert_close(coarse.alphas_cumprod, fine.alphas_cumprod[::20], rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", sorted(BETAS))
def test_schedules_of_betas_say_that_they_depend_on_the_number_of_timesteps(name: str) -> None:
    coarse, fine = NoiseSchedule(name, 50), NoiseSchedule(name, 1000)
    assert coarse.is_beta_defined
    assert abs(coarse.alphas_cumprod[-1] / fine.alphas_cumprod[-1] - 1) > 0.1
    assert NoiseSchedule("linear", 50, zero_terminal_snr=True).is_beta_defined


@every_schedule
def test_logsnr_falls_over_all_of_time(name: str) -> None:
    for schedule in variants(name, (100,)):
        logsnr = schedule.logsnr(torch.linspace(0, 1, 4001, dtype=torch.float64))
        assert (logsnr.diff() < 0).all()


@every_schedule
def test_time_from_logsnr_inverts_logsnr(name: str) -> None:
    for schedule in variants(name):
        time = torch.linspace(1 / schedule.num_timesteps, 1, 3000, dtype=torch.float64).view(3, -1)
        assert_close(schedule.time_from_logsnr(schedule.logsnr(time)), time, rtol=0, atol=1e-12)
        low, high = schedule.logsnr_range
        levels = torch.linspace(max(low, -8.0), high, 500, dtype=torch.float64)
        assert_close(schedule.logsnr(schedule.time_from_logsnr(levels)), levels, rtol=0, atol=1e-8)
        assert float(schedule.time_from_logsnr(high)) == pytest.approx(
            1 / schedule.num_timesteps, abs=1e-12
        )
        assert float(schedule.time_from_logsnr(low)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", sorted(BETAS))
def test_tables_are_interpolated_in_logsnr_and_at_infinite_ends_in_what_vanishes(
    name: str,
) -> None:
    schedule = NoiseSchedule(name, 50, zero_terminal_snr=True)
    fraction = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma_at(torch.tensor([1, 49]))
    first_alpha, first_sigma = schedule.alpha_sigma(fraction / 50)
    assert_close(first_sigma / first_alpha, fraction * sigma[0] / alpha[0], rtol=1e-9, atol=0)
    last_alpha, last_sigma = schedule.alpha_sigma((49 + fraction) / 50)
    assert_close(
        last_alpha / last_sigma, (1 - fraction) * alpha[1] / sigma[1], rtol=1e-9, atol=1e-15
    )
    before, after = schedule.logsnr_at(torch.tensor([20, 21]))
    assert_close(
        schedule.logsnr((20 + fraction) / 50),
        before + fraction * (after - before),
        rtol=1e-12,
        atol=0,
    )


def test_python_numbers_keep_their_digits() -> None:
    schedule = NoiseSchedule("linear", 1000)
    assert float(schedule.alpha_bar(0.1)) == pytest.approx(math.exp(-0.1095), rel=1e-15)


# At T = 1000: abar_T, logsnr at t = 1 and T, the time where abar = 1/2, the gain
# sqrt(1/abar_T - 1), the largest beta, the share of t with |logsnr| < 2.5.
FACTS = {
    "linear": (4.319e-5, 9.12, -10.05, 0.259, 152, 0.0198, 0.42),
    "cosine": (3.046e-4, 12.93, -8.10, 0.506, 57.3, 0.157, 0.65),
    "cos6": (2.742e-5, 12.05, -10.50, 0.338, 191, 0.0462, 0.50),
    "cos6_85": (4.383e-7, 11.93, -14.64, 0.318, 1510, 0.096, 0.47),
    "iddpm_linear": (4.036e-5, 9.21, -10.12, 0.259, 157, 0.02, 0.42),
    "iddpm_cosine": (2.429e-9, 10.09, -19.84, 0.496, 20291, 0.999, 0.65),
    "sigmoid": (3.0e-7, 8.11, -15.02, 0.500, 1825, 0.999, 0.68),
}


@pytest.mark.parametrize("name", FACTS)
def test_schedules_have_their_known_figures(name: str) -> None:
    last, logsnr_first, logsnr_last, half, gain, max_beta, share = FACTS[name]
    schedule = NoiseSchedule(name, 1000)
    abar, logsnr = schedule.alphas_cumprod, schedule.logsnr_at(grid(1000))
    assert float(abar[-1]) == pytest.approx(last, rel=2e-3)
    assert schedule.logsnr_range == pytest.approx((logsnr_last, logsnr_first), abs=6e-3)
    assert float(schedule.time_from_logsnr(0.0)) == pytest.approx(half, abs=6e-4)
    assert math.sqrt(1 / abar[-1] - 1) == pytest.approx(gain, rel=4e-3)
    assert float((1 - abar[1:] / abar[:-1]).max()) == pytest.approx(max_beta, rel=6e-3)
    assert float((logsnr[1:].abs() < 2.5).double().mean()) == pytest.approx(share, abs=6e-3)


@pytest.mark.parametrize(
    "name, num_timesteps, last",
    [
        ("iddpm_linear", 50, 7.7e-6),
        ("iddpm_linear", 250, 3.26e-5),
        ("iddpm_linear", 4000, 4.25e-5),
        ("iddpm_cosine", 50, 9.7e-7),
        ("iddpm_cosine", 250, 3.9e-8),
        ("iddpm_cosine", 4000, 1.5e-10),
    ],
)
def test_terminal_abar_of_betas_depends_on_T_as_known(
    name: str, num_timesteps: int, last: float
) -> None:
    assert float(NoiseSchedule(name, num_timesteps).alphas_cumprod[-1]) == pytest.approx(
        last, rel=0.02
    )


@pytest.mark.parametrize(
    "name, first_sigma",
    [("linear", 0.0105), ("cosine", 0.0016), ("cos6", 0.0024), ("iddpm_cosine", 0.0064)],
)
def test_first_sigma_is_as_known(name: str, first_sigma: float) -> None:
    sigma = NoiseSchedule(name, 1000).alpha_sigma_at(torch.tensor(1))[1]
    assert float(sigma) == pytest.approx(first_sigma, abs=6e-5)


@pytest.mark.parametrize(
    "name, formula",
    [
        ("linear", lambda u: math.exp(-(0.1 * u + 0.5 * (20 - 0.1) * u * u))),
        ("cosine", lambda u: math.cos(u * math.radians(89)) ** 2),
        ("cos6", lambda u: math.cos(u * math.radians(80)) ** 6),
        ("cos6_85", lambda u: math.cos(u * math.radians(85)) ** 6),
    ],
)
def test_the_schedules_of_v3_are_its_formulas(name: str, formula: object) -> None:
    schedule = NoiseSchedule(name, 1000)
    expected = torch.tensor([formula(t / 1000) for t in range(1001)], dtype=torch.float64)
    assert_close(schedule.alphas_cumprod, expected, rtol=2e-14, atol=0)


def reference_betas(name: str, num_timesteps: int) -> list[float]:
    """The formulas as their papers' codes evaluate them, one timestep at a time."""
    if name == "iddpm_linear":
        first, last = 1e-4 * 1000 / num_timesteps, 0.02 * 1000 / num_timesteps
        return [first + (last - first) * i / (num_timesteps - 1) for i in range(num_timesteps)]

    def abar(u: float) -> float:
        if name == "iddpm_cosine":
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return 1 / (1 + math.exp(-3)) - 1 / (1 + math.exp(3 - 6 * u))

    return [
        min(1 - abar((i + 1) / num_timesteps) / abar(i / num_timesteps), 0.999)
        for i in range(num_timesteps)
    ]


@pytest.mark.parametrize("name", sorted(BETAS))
def test_schedules_of_betas_are_their_formulas(name: str) -> None:
    for length in LENGTHS:
        betas = torch.tensor(reference_betas(name, length), dtype=torch.float64)
        assert_close(BETAS[name](length), betas, rtol=1e-9, atol=0)
        expected = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])
        # The last factor of the clipped ones is the difference of two nearly equal numbers.
        assert_close(NoiseSchedule(name, length).alphas_cumprod, expected, rtol=1e-9, atol=0)


def test_laplace_has_laplace_distributed_logsnr() -> None:
    schedule = NoiseSchedule("laplace", 1000)
    time = torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:-1]
    logsnr = schedule.logsnr(time)
    # Quantiles of Laplace(0, 1/2), from the noisy end.
    expected = torch.where(time > 0.5, 0.5 * torch.log(2 - 2 * time), -0.5 * torch.log(2 * time))
    assert_close(logsnr, expected, rtol=0, atol=1e-8)
    assert schedule.logsnr_range[0] == pytest.approx(-15, abs=1e-12)


def test_shifted_cosine_is_its_formula() -> None:
    schedule = NoiseSchedule("shifted_cosine", 1000)
    time = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    end = math.atan(math.exp(7.5))
    assert_close(
        schedule.logsnr(time), -2 * torch.tan(time * end).log() - 2 * math.log(2), rtol=0, atol=1e-9
    )


@every_schedule
def test_a_shift_adds_to_logsnr_everywhere(name: str) -> None:
    plain, moved = NoiseSchedule(name, 60), NoiseSchedule(name, 60, logsnr_shift=1.7)
    time = torch.linspace(0.001, 1, 500, dtype=torch.float64)
    assert_close(moved.logsnr(time), plain.logsnr(time) + 1.7, rtol=0, atol=1e-7)
    assert_close(moved.logsnr_at(grid(60))[1:], plain.logsnr_at(grid(60))[1:] + 1.7)


@every_schedule
def test_rescaling_reaches_zero_snr_and_keeps_the_first_timestep(name: str) -> None:
    for length in LENGTHS:
        plain, rescaled = (NoiseSchedule(name, length, zero_terminal_snr=z) for z in (False, True))
        alpha, sigma = rescaled.alpha_sigma_at(grid(length))
        old, _ = plain.alpha_sigma_at(grid(length))
        assert alpha[-1] == 0 and sigma[-1] == 1 and rescaled.logsnr_range[0] == -math.inf
        assert_close(alpha[1], old[1], rtol=1e-14, atol=0)
        expected = (old - old[-1]) * old[1] / (old[1] - old[-1])
        assert_close(alpha[1:], expected[1:], rtol=1e-14, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "cosine", "cos6", "cos6_85"])
def test_sigma_keeps_its_digits_near_clean_data(name: str) -> None:
    """At T = 10^6 the first 1 - abar is about 1e-12: a subtraction would leave four digits."""
    if name == "linear":
        exponent = 0.1e-6 + 9.95e-12
        variance = exponent - exponent**2 / 2 + exponent**3 / 6
    else:
        degrees = {"cosine": 89, "cos6": 80, "cos6_85": 85}[name]
        s2 = math.sin(math.radians(degrees) * 1e-6) ** 2
        variance = s2 if name == "cosine" else 3 * s2 - 3 * s2**2 + s2**3
    for schedule in variants(name, (10**6,)):
        sigma = float(schedule.alpha_sigma_at(torch.tensor(1))[1])
        odds = variance / (1 - variance) * math.exp(-schedule.logsnr_shift)
        assert sigma == pytest.approx(math.sqrt(odds / (1 + odds)), rel=1e-12, abs=0)


def test_timesteps_may_have_any_shape() -> None:
    schedule = NoiseSchedule("cosine", 10)
    t = torch.tensor([[0, 5], [10, 3]])
    alpha, sigma = schedule.alpha_sigma_at(t)
    assert alpha.shape == sigma.shape == schedule.logsnr_at(t).shape == (2, 2)
    assert alpha[0, 1] == schedule.alpha_sigma_at(torch.tensor(5))[0]


def test_schedules_compare_and_hash_by_their_definition_and_survive_pickling() -> None:
    one, same = NoiseSchedule("cos6", 10), NoiseSchedule("cos6", 10)
    assert one == same and hash(one) == hash(same)
    assert one != NoiseSchedule("cos6", 11) and one != NoiseSchedule("cos6", 10, logsnr_shift=1.0)
    again = pickle.loads(pickle.dumps(one))
    assert again == one and torch.equal(again.alphas_cumprod, one.alphas_cumprod)
    assert repr(one) == (
        "NoiseSchedule(name='cos6', num_timesteps=10, logsnr_shift=0.0, zero_terminal_snr=False, "
        "time_input='time', sigma_data=None)"
    )
    assert one != NoiseSchedule("cos6", 10, time_input="logsnr")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("cosin", 10), "schedule is 'cosin'; give one of linear, cosine, cos6, "),
        (("linear", 0), "num_timesteps is 0; give at least 1"),
        (("iddpm_linear", 20), "num_timesteps is 20 but iddpm_linear .* give at least 21"),
    ],
)
def test_impossible_schedules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(*arguments)


def test_the_shortest_schedules_are_accepted() -> None:
    for name in SCHEDULES:
        assert NoiseSchedule(name, 21 if name == "iddpm_linear" else 1).alphas_cumprod[0] == 1


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="logsnr_shift is nan; give a finite number"):
        NoiseSchedule("linear", 10, logsnr_shift=math.nan)
    with pytest.raises(ValueError, match="zero_terminal_snr needs num_timesteps of at least 2"):
        NoiseSchedule("linear", 1, zero_terminal_snr=True)


def test_places_outside_a_schedule_are_refused() -> None:
    schedule = NoiseSchedule("linear", 10)
    for time in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"time is .*; give \[0, 1\]"):
            schedule.alpha_bar(time)
    for t in (-1, 11):
        with pytest.raises(ValueError, match=rf"t is {t}; give \[0, 10\]"):
            schedule.alpha_sigma_at(torch.tensor([3, t]))
        with pytest.raises(ValueError, match=rf"t is {t}"):
            schedule.logsnr_at(torch.tensor([3, t]))
    with pytest.raises(ValueError, match="t is torch.float32; give int64"):
        schedule.alpha_sigma_at(torch.tensor([3.0]))
    low, high = schedule.logsnr_range
    for logsnr in (low - 1e-6, high + 1e-6, math.inf, math.nan):
        with pytest.raises(
            ValueError, match="logsnr is .*, but linear with 10 timesteps goes from"
        ):
            schedule.time_from_logsnr(torch.tensor([0.0, logsnr]))


@pytest.mark.parametrize("name", ["iddpm_linear", "iddpm_cosine", "cosine"])
def test_a_schedule_of_ones_own_betas_or_logsnr_is_the_same_schedule(name: str) -> None:
    known = NoiseSchedule(name, 50)
    betas = 1 - known.alphas_cumprod[1:] / known.alphas_cumprod[:-1]
    for own in (
        NoiseSchedule.from_betas(betas.tolist()),
        NoiseSchedule.from_logsnr(known.logsnr_at(torch.arange(1, 51))),
    ):
        assert own.num_timesteps == 50 and own.is_beta_defined
        assert_close(own.alphas_cumprod, known.alphas_cumprod, rtol=1e-9, atol=0)
        assert pickle.loads(pickle.dumps(own)) == own and hash(own) == hash(replace(own))
        assert own != known
        time = torch.tensor([0.3, 0.77], dtype=torch.float64)
        assert_close(own.time_from_logsnr(own.logsnr(time)), time, rtol=1e-9, atol=0)
    end = NoiseSchedule.from_betas([0.1, 0.5, 1.0])
    assert end.alphas_cumprod.tolist() == pytest.approx([1, 0.9, 0.45, 0])
    shifted = replace(own, logsnr_shift=1.0)
    assert_close(shifted.logsnr_at(torch.tensor([5])), own.logsnr_at(torch.tensor([5])) + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.from_betas([0.1, 0.0]), r"beta is 0.0; give \(0, 1\]"),
        (lambda: NoiseSchedule.from_betas([0.1, 1.0, 0.1]), "does not fall"),
        (lambda: NoiseSchedule.from_logsnr([3.0, 3.0]), "logsnr 3.0 does not fall"),
        (lambda: NoiseSchedule.from_logsnr([math.nan]), "logsnr nan does not fall"),
        (lambda: NoiseSchedule.from_logsnr([]), r"logsnr have shape \(0,\)"),
        (lambda: NoiseSchedule.from_betas(torch.ones(2, 2)), r"betas have shape \(2, 2\)"),
        (lambda: NoiseSchedule.from_betas("linear"), "betas are no numbers"),
        (lambda: replace(NoiseSchedule.from_logsnr([1.0]), num_timesteps=2), "given at 1"),
    ],
)
def test_impossible_numbers_make_no_schedule(
    make: Callable[[], NoiseSchedule], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
