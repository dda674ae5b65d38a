"""Intervals hold as often as they say, and what is one and the same is not told apart.

The short form runs in seconds; `make test-statistics` draws a thousand sweeps of every kind.
"""

from dataclasses import astuple, fields, replace

import pytest

from tests.support.known_sweeps import GRID_9, GRID_27
from tests.support.simulated_sweeps import NAMES, Claims, Coverage, World, claims, coverage

NINE, MANY = World(grid=GRID_9), World(grid=GRID_27)


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        replace(NINE, of_seeds=1.0, of_cells=3.0),
        replace(NINE, of_seeds=1.0, of_factors=1.0),
        replace(NINE, own_seeds=True),
    ],
    ids=["seeds and cells", "seeds that favour levels", "seeds of their own"],
)
def test_intervals_hold_as_often_as_they_say(world: World) -> None:
    found = coverage(world, 100)
    for name in ("one", "cell", "effect"):
        assert 0.92 < getattr(found, name) < 0.98, name
    for name in ("pairs", "baseline", "levels"):
        assert getattr(found, name) > 0.88, name


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3])
def test_one_configuration_under_nine_names_is_not_told_apart(seeds: int) -> None:
    found = claims(World(grid=NAMES, seeds=seeds, of_seeds=1.0), 150)
    assert found.answer <= 0.06 and found.table <= 0.06 and found.factors <= 0.08


WORLDS = {
    f"{cells} cells, {seeds} seeds, {what}": replace(base, seeds=seeds, **facts)
    for cells, base in ((9, NINE), (27, MANY))
    for seeds in (2, 3, 5)
    for what, facts in {
        "nothing shared": {},
        "cells differ": {"of_cells": 3.0},
        "seeds shared": {"of_seeds": 1.0},
        "seeds shared, cells differ": {"of_seeds": 1.0, "of_cells": 3.0},
        "seeds favour levels": {"of_seeds": 1.0, "of_factors": 1.0, "of_cells": 3.0},
        "seeds of their own": {"own_seeds": True, "of_cells": 3.0},
    }.items()
    if seeds == 3 or (cells == 9 and "cells differ" not in what and what.startswith("seeds"))
}


def _row(title: str, found: Coverage | Claims) -> str:
    return f"| {title} | " + " | ".join(f"{100 * one:.1f}" for one in astuple(found)) + " |"


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_coverage_over_a_thousand_sweeps_of_every_kind() -> None:
    """Of 1,000 sweeps of each kind: single intervals within 93 to 97 %, families above 92 %.

    With two seeds a family may fall to 90 %: too little is known of how cells scatter.
    """
    print("\n| sweeps | " + " | ".join(field.name for field in fields(Coverage)) + " |")
    wrong = []
    for number, (title, world) in enumerate(WORLDS.items()):
        found = coverage(world, 1000, seed=number)
        print(_row(title, found), flush=True)
        single = (found.one, found.cell, found.effect)
        families = (found.pairs, found.baseline, found.levels)
        least = 0.92 if world.seeds > 2 else 0.90
        if not all(0.93 <= one <= 0.97 for one in single) or min(families) < least:
            wrong.append(title)
    assert not wrong


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_equal_cells_of_500_sweeps_cannot_be_told_apart() -> None:
    """A/A: the answer says so in at least 94 % of 500 sweeps of every kind.

    Sentences on factors are two families, of levels and of interactions, with 5 % each.
    """
    print("\n| sweeps | " + " | ".join(field.name for field in fields(Claims)) + " |")
    wrong = []
    for seeds in (2, 3, 5):
        for title, world in {
            "nine names, seeds shared": World(grid=NAMES, of_seeds=1.0),
            "nine names, nothing shared": World(grid=NAMES),
            "nine names, seeds of their own": World(grid=NAMES, own_seeds=True),
            "3 x 3 grid, seeds shared": World(grid=GRID_9, of_seeds=1.0),
            "3 x 3 grid, seeds favour levels": World(grid=GRID_9, of_seeds=1.0, of_factors=1.0),
        }.items():
            found = claims(replace(world, seeds=seeds), 500, seed=seeds)
            print(_row(f"{title}, {seeds} seeds", found), flush=True)
            if found.answer > 0.06 or found.factors > 0.11:
                wrong.append((title, seeds))
    assert not wrong
