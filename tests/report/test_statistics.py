"""Intervals hold as often as they say, and what is one and the same is not told apart.

The short form runs in seconds; `make test-statistics` draws a thousand sweeps of every kind.
"""

from dataclasses import astuple, fields, replace

import numpy as np
import pytest

from tests.support.known_sweeps import GRID_9, GRID_27
from tests.support.simulated_sweeps import (
    NAMES,
    Claims,
    Coverage,
    Edge,
    OfPairs,
    Unequal,
    Verdicts,
    World,
    any_sweep,
    claims,
    coverage,
    coverage_by_scatter,
    verdicts,
)
from tests.support.verdict_words import faults

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


@pytest.mark.slow
def test_a_winner_by_one_measure_is_found_and_no_other_is_named() -> None:
    found = verdicts(Edge(kid=6), 40)
    assert found.found >= 0.7 and found.false == 0 and found.disagree <= 0.05
    assert verdicts(Edge(best=(4, 5), kid=6), 40).false <= 0.1


@pytest.mark.slow
def test_cells_that_scatter_more_do_not_widen_the_intervals_of_others() -> None:
    found = coverage_by_scatter(Unequal(times=20), 60)
    assert min(found.noisy, found.mixed, found.quiet) > 0.92 and found.all > 0.85
    assert found.wide <= 1.5 and found.seen > 0.95


@pytest.mark.slow
def test_no_sentence_of_a_verdict_contradicts_an_interval_or_another_sentence() -> None:
    rng = np.random.default_rng(0)
    found = [fault for _ in range(100) for fault in faults(*any_sweep(rng))]
    assert not found, "\n".join(found[:3])


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


def _head(kind: type) -> str:
    return "\n| sweeps | " + " | ".join(field.name for field in fields(kind)) + " |"


def _row(title: str, found: Coverage | Claims | OfPairs | Verdicts) -> str:
    return f"| {title} | " + " | ".join(f"{100 * one:.1f}" for one in astuple(found)) + " |"


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_coverage_over_a_thousand_sweeps_of_every_kind() -> None:
    """Of 1,000 sweeps of each kind: single intervals within 93 to 97 %, families above 92 %.

    With two seeds a family may fall to 90 %: too little is known of how cells scatter.
    """
    print(_head(Coverage))
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
    """A/A: the answer tells some apart in about 5 % of 500 sweeps of every kind.

    With two seeds in 6.5 % of 3,000: cells are grouped by how they scatter over the same seeds.
    More than 7.5 % would have another reason. Sentences on factors are two families, of levels and
    of interactions, with 5 % each.
    """
    print(_head(Claims))
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
            if found.answer > 0.075 or found.factors > 0.11:
                wrong.append((title, seeds))
    assert not wrong


EDGES = {
    "one best by 6 and 0": Edge(kid=6),
    "one best by 12 and 0": Edge(kid=12),
    "one best by 6 and \u22120.5": Edge(kid=6, fid=-0.5),
    "one best by 12 and \u22120.5": Edge(kid=12, fid=-0.5),
    "one best by 6 and 0, noise 5 times as wide": Edge(kid=6, noisy=5),
    "two best by 6 and 0": Edge(best=(4, 5), kid=6),
    "nine equal": Edge(),
}


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_winners_are_found_and_false_ones_are_rare() -> None:
    """Of 1,000 sweeps of samples, 9 cells with 3 seeds: at most 5 % false winners or disagreements,
    at least 80 % of winners found where they lead by six standard deviations by one measure.
    """
    print(_head(Verdicts))
    wrong = []
    for number, (title, edge) in enumerate(EDGES.items()):
        found = verdicts(edge, 1000, seed=number)
        print(_row(title, found), flush=True)
        is_missed = title == "one best by 6 and 0" and found.found < 0.8
        if max(found.false, found.disagree) > 0.05 or is_missed:
            wrong.append(title)
    assert not wrong


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_intervals_hold_where_one_level_scatters_more() -> None:
    """Of 1,000 sweeps, 3 seeds: 93 to 97 % of intervals with noisy cells hold, and those of quiet
    ones are at most 1.5 times as wide as if their scatter were known to be alone, for 5 and 20
    times the scatter.
    """
    print(_head(OfPairs))
    wrong = []
    worlds = {f"{k} times": Unequal(times=k) for k in (1, 2, 3, 5, 20)}
    worlds["20 times, seeds favour levels"] = Unequal(times=20, of_levels=1)
    worlds["5 times, 5 seeds"] = Unequal(times=5, seeds=5)
    worlds["5 times, 2 seeds"] = Unequal(times=5, seeds=2)
    for title, world in worlds.items():
        found = coverage_by_scatter(world, 1000)
        print(_row(title, found), flush=True)
        is_held = all(0.93 <= one <= 0.97 for one in (found.noisy, found.mixed))
        if title in ("5 times", "20 times") and not (is_held and found.wide <= 1.5):
            wrong.append(title)
    assert not wrong


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_no_sentence_contradicts_another_over_2000_sweeps() -> None:
    rng = np.random.default_rng(1)
    found = [fault for _ in range(2000) for fault in faults(*any_sweep(rng))]
    print(f"\n{len(found)} faults in 2,000 sweeps", *found[:20], sep="\n", flush=True)
    assert not found
