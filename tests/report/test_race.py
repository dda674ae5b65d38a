"""ddpm.report.race: a race of seeds keeps its error level, finds a winner, and saves seeds."""

from pathlib import Path

import numpy as np
import pytest

from ddpm.errors import InputError
from ddpm.report.race import candidates, confidence, decided_for, left_in_race
from ddpm.sweep.plan import load_sweep
from ddpm.sweep.spec import Race
from tests.support.race_simulation import draws, run
from tests.support.tree import ROOT

RACE = Race(START=3, MAX=12)
HEAD = (
    f"BASE: {ROOT / 'configs' / 'digits.yaml'}\nGRID: {{TRAINING.PRED_TYPE: [noise, velocity]}}\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spread", [[1, 1], [1, 1, 1, 1], [3, 0.5, 0.5]], ids=["two", "four", "unequal"]
)
def test_equal_cells_seldom_have_a_winner(spread: list[float]) -> None:
    """A/A: at most 6 % of 500 races name one, whatever the cells' spreads."""
    random = np.random.default_rng(0)
    ended = [run(draws(random, [0] * len(spread), RACE.MAX, spread), RACE) for _ in range(500)]
    assert np.mean([one.winner is not None for one in ended]) <= 0.06


def test_looking_each_time_at_the_full_level_would_name_too_many() -> None:
    """The same races without sharing the error over the looks: the correction is needed."""
    random = np.random.default_rng(0)
    false = 0
    for _ in range(300):
        values = draws(random, [0, 0], RACE.MAX, [1, 1])[..., 0]
        numbers = [
            {str(cell): dict(enumerate(values[cell, :count].tolist())) for cell in (0, 1)}
            for count in RACE.looks
        ]
        false += any(len(candidates(one, 0.95)) == 1 for one in numbers)
    assert false / 300 > 0.08


@pytest.mark.slow
def test_of_two_that_are_best_alike_neither_is_named() -> None:
    """Others far behind do not help: the false winner must beat the other best one."""
    random = np.random.default_rng(1)
    ended = [run(draws(random, [0, 0, 5, 5], RACE.MAX, [1] * 4), RACE) for _ in range(300)]
    assert np.mean([one.winner is not None for one in ended]) <= 0.06
    assert np.mean([one.seeds for one in ended]) < 0.75 * 4 * RACE.MAX


def test_a_clear_winner_is_found_with_few_seeds_and_never_a_wrong_one() -> None:
    random = np.random.default_rng(2)
    means = [4, 0, 4, 4, 4, 4, 4, 4, 4]
    ended = [run(draws(random, means, RACE.MAX, [1] * 9), RACE) for _ in range(60)]
    assert {one.winner for one in ended} == {"1"}
    assert np.mean([one.seeds for one in ended]) < 0.5 * 9 * RACE.MAX


def test_what_a_seed_does_to_all_cells_does_not_count() -> None:
    """Differences are paired: adding anything by seed changes no decision."""
    values = np.random.default_rng(3).normal(0, 0.1, (3, 5)) + np.array([[0.0], [0.05], [2.0]])
    shifted = values + np.array([0, 50.0, -20, 7, 3])
    found = [
        candidates({str(row): dict(enumerate(cell.tolist())) for row, cell in enumerate(v)}, 0.99)
        for v in (values, shifted)
    ]
    assert found[0] == found[1] and "2" not in found[0]


def test_a_cell_without_shared_seeds_stays_in_the_race() -> None:
    assert set(candidates({"a": {0: 1.0, 1: 1.1}, "b": {2: 9.0, 3: 9.1}}, 0.95)) == {"a", "b"}
    # Nothing was measured of b: one cell alone is not told to be the best.
    assert candidates({"a": {0: 1.0, 1: 1.1}, "b": {}}, 0.95) == ("a", "b")


def test_the_looks_spend_the_error_once() -> None:
    """Half of 1 - confidence is one-sided; over looks, cells and measures it comes to 5 %."""
    for cells, looks, measures in ((2, 1, 1), (9, 4, 2)):
        levels = [confidence(number, looks, cells, measures) for number in range(1, looks + 1)]
        assert sum((1 - one) / 2 for one in levels) * cells * measures == pytest.approx(0.05)


def test_looks_grow_from_start_to_max() -> None:
    assert Race(START=3, MAX=12).looks == (3, 5, 8, 12)
    assert Race(START=4, MAX=4).looks == (4,)
    assert Race(START=2, MAX=3).looks == (2, 3)


def test_a_race_is_decided_for_the_one_cell_that_every_measure_leaves() -> None:
    """One measure may leave others that the second has told to be worse."""
    early = {"x": ["a", "b"], "y": ["b", "a"]}
    for last in ({"x": ["a"], "y": ["a"]}, {"x": ["b", "a"], "y": ["a", "c"]}):
        assert left_in_race(last) == ("a",)
        assert decided_for([{"candidates": early}, {"candidates": last}]) == "a"
    for other in ({"x": ["a"], "y": ["b"]}, early, {}):
        assert decided_for([{"candidates": other}]) is None
    assert decided_for([]) is None


@pytest.mark.parametrize(
    ("seeds", "race"),
    [
        ("auto", Race(START=3, MAX=12)),
        ("{auto: {start: 2, max: 4}}", Race(START=2, MAX=4)),
        ("{auto: null}", Race(START=3, MAX=12)),
    ],
)
def test_seeds_auto_is_read(tmp_path: Path, seeds: str, race: Race) -> None:
    path = tmp_path / "test.yaml"
    path.write_text(HEAD + f"SEEDS: {seeds}\n")
    loaded = load_sweep(path)
    assert loaded.race == race and loaded.seeds == tuple(range(race.MAX))
    assert load_sweep(path, ["SEEDS=[4]"]).race is None


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ("{auto: {start: 1}}", "AUTO.START is 1; allowed"),
        ("{auto: {start: 5, max: 4}}", "SEEDS.AUTO.MAX is 4 but START is 5"),
        ("{auto: {begin: 3}}", "AUTO.BEGIN is no key"),
        ("{aut: {start: 3}}", "did you mean AUTO"),
        ("automatic", "SEEDS is automatic; allowed: a non-empty list"),
    ],
)
def test_a_mistake_in_seeds_auto_is_named(tmp_path: Path, seeds: str, words: str) -> None:
    path = tmp_path / "test.yaml"
    path.write_text(HEAD + f"SEEDS: {seeds}\n")
    with pytest.raises(InputError) as caught:
        load_sweep(path)
    assert any(words in line for line in caught.value.problems), caught.value.problems
