"""What a sweep is predicted to take, kept, and compared with what it took."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ddpm import config as configuration
from ddpm.cluster import cost
from ddpm.cluster.cost import Speed, predict, wall_s
from ddpm.cluster.workers import Workers
from ddpm.report.costs import predicted_cost
from ddpm.report.reading import SweepResults, read
from tests.support.known_sweeps import PRED_TYPE
from tests.support.synthetic_sweep import make_sweep
from tests.support.tree import ROOT

CONFIG = configuration.load(
    ROOT / "configs" / "digits.yaml",
    [
        *("TRAINING.NETWORK.FIRST_CHANNEL=8", "TRAINING.NETWORK.NUM_RES_BLOCKS=1"),
        "TRAINING.HYPER_PARAMETERS.BATCH_SIZE=16",
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("out"), {PRED_TYPE: ["noise", "image"]}, (0,), rows=4)


def measured(folder: Path, facts: dict, **summary: float) -> SweepResults:
    """The sweep with a prediction, its trials having taken so much."""
    (folder / cost.FILE).write_text(json.dumps(facts))
    found = read(folder)
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


def test_core_seconds_are_those_of_busy_cores() -> None:
    """Twice as long because others took half of the core costs as much."""
    alone = predict(CONFIG, Speed(step_s=0.1, call_s=0.001, device="", cores=1.0))
    shared = predict(CONFIG, Speed(step_s=0.2, call_s=0.002, device="", cores=0.5))
    assert shared.seconds == pytest.approx(2 * alone.seconds)
    assert shared.core_seconds == pytest.approx(alone.core_seconds)


def test_workers_share_what_is_shared() -> None:
    """Each makes every step on its part of the batch; grids and the bound are one worker's."""
    speed = Speed(step_s=0.1, call_s=0.001, device="", cores=0.9)
    evaluated = replace(CONFIG, EVALUATION=replace(CONFIG.EVALUATION, EVERY=5))
    one, two = (predict(evaluated, speed, count) for count in (1, 2))
    assert 0 < two.shared < two.passes and two.passes == one.passes
    assert one.seconds - two.seconds == pytest.approx(two.shared / 2 * 0.001)
    assert two.core_seconds - one.core_seconds == pytest.approx(0.9 * 0.1 * one.steps)


def test_trainings_side_by_side_end_when_the_last_round_does() -> None:
    assert wall_s([10.0] * 9, 2) == 50.0  # not 45: one core has nothing to do in the fifth round
    assert wall_s([1.0, 5.0, 1.0, 1.0, 2.0], 2) == 5.0
    assert wall_s([7.0], 81) == 7.0


@pytest.mark.long
def test_a_prediction_is_made_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Trials of one cost share a probe; four times the steps is four times the training."""
    hyper = replace(CONFIG.TRAINING.HYPER_PARAMETERS, EPOCHS=240)
    long = replace(CONFIG, TRAINING=replace(CONFIG.TRAINING, HYPER_PARAMETERS=hyper))
    assert cost.same_cost(long) == cost.same_cost(CONFIG)
    workers = Workers(count=1, cpus=1, gpus=0)
    cost.keep_forecast(tmp_path, {"a": CONFIG, "b": long}, workers, 2, imports=("ray.tune",))
    facts = json.loads((tmp_path / cost.FILE).read_text())
    a, b = facts["trials"]["a"], facts["trials"]["b"]
    assert facts["wall_seconds"] == pytest.approx(b["seconds"])  # longer than half of both
    assert a["core_seconds"] / a["seconds"] == pytest.approx(b["core_seconds"] / b["seconds"])
    assert a["gpu_seconds"] == 0
    assert 430 * 2**20 < a["memory_bytes"] < 2**31  # 370 MiB without what is imported, then 500
    assert b["core_seconds"] > 2 * a["core_seconds"]
    cost.add_wall_seconds(tmp_path, 5.0)
    assert json.loads((tmp_path / cost.FILE).read_text())["measured_wall_seconds"] == 5.0
