"""Predicted cost of trials: of a probe's speed, of workers that share, of rounds side by side."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ddpm import config as configuration
from ddpm.cluster import cost
from ddpm.cluster.cost import Speed, predict, wall_s
from ddpm.cluster.workers import Workers
from tests.support.tree import ROOT

CONFIG = configuration.load(
    ROOT / "configs" / "digits.yaml",
    [
        *("TRAINING.NETWORK.FIRST_CHANNEL=8", "TRAINING.NETWORK.NUM_RES_BLOCKS=1"),
        "TRAINING.HYPER_PARAMETERS.BATCH_SIZE=16",
    ],
)


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
    facts = json.loads((tmp_path / cost.PREDICTION_FILE).read_text())
    a, b = facts["trials"]["a"], facts["trials"]["b"]
    assert facts["wall_seconds"] == pytest.approx(b["seconds"])  # longer than half of both
    assert a["core_seconds"] / a["seconds"] == pytest.approx(b["core_seconds"] / b["seconds"])
    assert a["gpu_seconds"] == 0
    assert 430 * 2**20 < a["memory_bytes"] < 2**31  # 370 MiB without what is imported, then 500
    assert b["core_seconds"] > 2 * a["core_seconds"]
    cost.add_wall_seconds(tmp_path, 5.0)
    assert json.loads((tmp_path / cost.PREDICTION_FILE).read_text())["measured_wall_seconds"] == 5.0
