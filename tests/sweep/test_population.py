"""ddpm.sweep.population: who takes over whose weights, and what becomes of the values."""

import pytest

from ddpm.sweep.population import exploits, explored
from ddpm.sweep.spec import Range

SPACE = {
    "rate": Range(low=1e-4, high=1e-2, is_log=True, is_integer=False),
    "drop": Range(low=0.0, high=1.0, is_log=False, is_integer=False),
}
VALUES = {"rate": 1e-3, "drop": 0.5}


def population(size: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    return {f"m{n}": float(n) for n in range(size)}, {f"m{n}": VALUES for n in range(size)}


@pytest.mark.parametrize(("size", "count"), [(2, 1), (4, 1), (8, 2), (12, 3)])
def test_the_worst_quarter_takes_over_from_the_best(size: int, count: int) -> None:
    costs, values = population(size)
    found = exploits(1, costs, values, SPACE)
    assert {one.member for one in found} == {f"m{n}" for n in range(size - count, size)}
    assert {one.donor for one in found} <= {f"m{n}" for n in range(count)}


def test_a_lone_member_goes_on() -> None:
    assert exploits(1, *population(1), SPACE) == []


def test_a_network_that_diverged_is_the_worst() -> None:
    costs, values = population(4)
    (one,) = exploits(1, costs | {"m0": float("inf")}, values, SPACE)
    assert (one.member, one.donor) == ("m0", "m1")


def test_choices_are_functions_of_boundary_and_member() -> None:
    costs, values = population(16)
    assert exploits(3, costs, values, SPACE) == exploits(3, costs, values, SPACE)
    assert exploits(3, costs, values, SPACE) != exploits(4, costs, values, SPACE)


def test_values_move_a_tenth_of_their_range_or_are_drawn_anew() -> None:
    """A tenth of two decades is a factor of 10^0.2; a quarter of the draws is new."""
    found = [explored(str(number), VALUES, SPACE) for number in range(400)]
    near = {round(1e-3 * 10**0.2, 6), round(1e-3 / 10**0.2, 7)}
    moved = [one for one in found if one["rate"] in near]
    assert 0.75 - 0.09 < len(moved) / 400 < 0.75 + 0.09
    assert {one["rate"] for one in moved} == near
    assert {0.4, 0.6} <= {one["drop"] for one in found}
    for one in found:
        assert 1e-4 <= one["rate"] <= 1e-2 and 0 <= one["drop"] <= 1


def test_a_value_at_the_end_of_its_range_stays_inside() -> None:
    ends = {"rate": 1e-2, "drop": 0.0}
    for number in range(50):
        one = explored(str(number), ends, SPACE)
        assert one["rate"] <= 1e-2 and one["drop"] >= 0
