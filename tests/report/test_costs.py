"""Cost of trials: what they were predicted to take beside what they took, and the Pareto front."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddpm.report.costs import cheapest, front
from ddpm.report.prediction import PREDICTION_FILE, predicted_cost
from ddpm.report.reading import SweepResults, command, read_results
from tests.support.known_sweeps import PRED_TYPE
from tests.support.synthetic_sweep import make_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("out"), {PRED_TYPE: ["noise", "image"]}, (0,), rows=4)


def measured(folder: Path, facts: dict, **summary: float) -> SweepResults:
    """The sweep with a prediction, its trials having taken so much."""
    (folder / PREDICTION_FILE).write_text(json.dumps(facts))
    found = read_results(folder)
    trials = [
        replace(one, summary=one.summary | summary, provenance={"attempts": [{}]})
        for one in found.trials
    ]
    return replace(found, trials=tuple(trials))


def one(gpu_seconds: float = 0.0) -> dict[str, float]:
    return {
        **{"seconds": 10.0, "core_seconds": 9.0, "gpu_seconds": gpu_seconds},
        "memory_bytes": 2.0**29,
    }


@pytest.mark.slow
def test_core_seconds_memory_and_wall_time_are_compared(folder: Path) -> None:
    facts = {"load": 1.5, "wall_seconds": 20.0, "measured_wall_seconds": 25.0}
    facts |= {"trials": {name: one() for name in ("00000000", "00000001")}}
    sweep = measured(
        folder, facts, trial_core_seconds=10.8, trial_seconds=50, peak_memory_bytes=2**28
    )
    found = predicted_cost(sweep)
    assert found is not None and found.unit == "core-seconds" and found.trials == 2
    assert found.seconds == pytest.approx((18.0, 21.6))
    assert found.memory_bytes == (2.0**29, 2.0**28)
    assert found.wall_seconds == (20.0, 25.0)
    assert "core-seconds 18 predicted, 22 measured (+20 %)" in str(found)
    assert "(+25 %)" in str(found) and "Load when probed: 1.5." in str(found)


def test_gpu_seconds_are_the_share_held_times_the_wall(folder: Path) -> None:
    facts = {"wall_seconds": 20.0, "trials": {"00000000": one(gpu_seconds=5.0)}}
    found = predicted_cost(
        measured(folder, facts, trial_core_seconds=1, trial_seconds=12, peak_memory_bytes=1)
    )
    assert found is not None and found.unit == "GPU-seconds"
    assert found.seconds == pytest.approx((5.0, 6.0)) and found.wall_seconds is None


def test_a_trial_that_was_interrupted_is_not_compared(folder: Path) -> None:
    facts = {"wall_seconds": 20.0, "trials": {"00000000": one()}}
    sweep = measured(folder, facts, trial_core_seconds=1, trial_seconds=1, peak_memory_bytes=1)
    twice = tuple(replace(t, provenance={"attempts": [{}, {}]}) for t in sweep.trials)
    assert predicted_cost(replace(sweep, trials=twice)) is None


def test_without_a_prediction_there_is_no_comparison(folder: Path) -> None:
    sweep = measured(folder, {}, trial_core_seconds=1)
    assert predicted_cost(sweep) is None


def test_a_front_holds_what_nothing_is_cheaper_and_better_than() -> None:
    draws = np.random.default_rng(0)
    costs, values = draws.integers(0, 30, (2, 200)).astype(float)
    found = front(costs, values)
    at_least = [(costs <= c) & (values <= v) for c, v in zip(costs, values, strict=True)]
    strictly = [(costs < c) | (values < v) for c, v in zip(costs, values, strict=True)]
    beaten = np.array([(a & b).any() for a, b in zip(at_least, strictly, strict=True)])
    assert not beaten[found].any()
    points = {(costs[k], values[k]) for k in found}
    assert points == {(costs[k], values[k]) for k in np.flatnonzero(~beaten)}
    assert [costs[k] for k in found] == sorted(costs[k] for k in found)


@pytest.mark.parametrize(
    ("costs", "found"),
    [
        ([[100.0], [154.0], [250.0]], [0, 1]),  # one seed: less than two times may be the load
        ([[100.0, 101, 99], [130.0, 131, 129]], [0]),  # three that agree
        ([[100.0, 101, 99], [108.0, 109, 107]], [0, 1]),  # surely dearer, and by less than 10 %
        ([[100.0, 160, 120], [130.0, 180, 210]], [0, 1]),  # a load that changes
        ([[100.0, 160, 120], [400.0, 500, 610], [110.0]], [0, 2]),
    ],
)
def test_a_cell_is_dearer_where_it_costs_more_than_scatter_explains(
    costs: list[list[float]], found: list[int]
) -> None:
    assert cheapest(costs, 0.95) == found


def test_cells_of_one_cost_are_seldom_told_apart() -> None:
    draws = np.exp(np.random.default_rng(0).normal(0, 0.2, (500, 4, 3)))
    wrong = sum(len(cheapest(one.tolist(), 0.95)) < 4 for one in draws)
    assert wrong < 0.05 * 500


def test_a_command_is_shown_as_it_is_typed() -> None:
    assert command(["ddpm", "sweep", "a b.yaml"]) == "ddpm sweep 'a b.yaml'"
    assert command(["launch/sweep.py", "x.yaml"]) == "python launch/sweep.py x.yaml"
    assert command(["/a/experiments/__main__.py", "x"]) == "python -m experiments x"
    assert command("typed") == "typed" and command(None) == ""
