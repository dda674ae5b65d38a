"""ddpm.report.cautions: what is missing or not alike is said, never guessed."""

from dataclasses import replace

import numpy as np
import pytest

from ddpm.report.cautions import differences, flags, is_confounded, mixed
from ddpm.report.reading import TrialResult
from tests.support.known_sweeps import (
    PRED_TYPE,
    SCHEDULER,
    error_of,
    known_sweep,
    sweep_of,
    trial_of,
)

CELLS = [{SCHEDULER: name} for name in ("linear", "cosine", "cos6")]
LOSS_SPACE = "TRAINING.LOSS_SPACE"
RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"


def said(trials: list[TrialResult]) -> str:
    return " ".join(mixed(sweep_of(trials)))


def whole(**facts: object) -> list[TrialResult]:
    return [trial_of(cell, 0, error_of(0.1), **facts) for cell in CELLS]


def test_nothing_is_said_where_all_is_alike_or_no_cell_shares_a_seed() -> None:
    assert list(mixed(known_sweep(np.zeros((3, 3)), CELLS))) == []
    own = np.arange(9).reshape(3, 3)
    assert list(mixed(known_sweep(np.zeros((3, 3)), CELLS, seeds=own))) == []


def test_missing_seeds_are_named_by_cell() -> None:
    numbers = np.zeros((3, 3))
    numbers[1, 2] = np.nan
    text = " ".join(flags(known_sweep(numbers, CELLS)))
    assert "Seeds are missing in cosine (seed 2)." in text and "least squares" in text


def test_trials_twice_there_and_trials_not_evaluated_are_named() -> None:
    twice = [*whole(), trial_of(CELLS[0], 0, error_of(0.3))]
    assert "Trained more than once: linear, seed 0." in said(twice)
    assert "1 finished trial has no evaluation" in said([*whole(), trial_of(CELLS[0], 1, None)])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"step": 600}, "after different numbers of optimizer steps: 100 and 600"),
        ({"weights": "model"}, "with different weights: ema and model"),
    ],
)
def test_unlike_evaluations_are_said(facts: dict, words: str) -> None:
    same = {"data_sha256": "d", "seed": 0, "step": 100, "weights": "ema"}
    trials = whole(evaluation=same)
    assert said(trials) == ""
    trials[0] = trial_of(CELLS[0], 0, error_of(0.1), evaluation=same | facts)
    assert words in said(trials)


def test_steps_that_are_varied_on_purpose_are_not_unlike() -> None:
    key = "TRAINING.HYPER_PARAMETERS.EPOCHS"
    trials = [trial_of({key: e}, 0, error_of(0.1), evaluation={"step": 10 * e}) for e in (1, 2)]
    assert "optimizer steps" not in said(trials)


def configured(*configs: dict) -> list[TrialResult]:
    return [
        trial_of(
            {PRED_TYPE: one["name"]}, 0, error_of(0.1), config={PRED_TYPE: one.pop("name"), **one}
        )
        for one in configs
    ]


def test_loss_space_that_follows_the_prediction_type_is_flagged() -> None:
    together = configured({"name": "noise", LOSS_SPACE: None}, {"name": "image", LOSS_SPACE: None})
    fixed = configured(
        {"name": "noise", LOSS_SPACE: "noise"}, {"name": "image", LOSS_SPACE: "noise"}
    )
    spaces = ("noise", "image")
    crossed = configured(*({"name": a, LOSS_SPACE: b} for a in spaces for b in spaces))
    assert is_confounded(together) and not is_confounded(fixed) and not is_confounded(crossed)
    assert any("loss space vary together" in one for one in flags(sweep_of(together)))
    assert not any("loss space" in one for one in flags(sweep_of(fixed)))


def test_one_learning_rate_is_said_and_several_are_not() -> None:
    one = configured({"name": "noise", RATE: 0.001}, {"name": "image", RATE: 0.001})
    two = configured({"name": "noise", RATE: 0.001}, {"name": "image", RATE: 0.002})
    assert any("One learning rate, 0.001" in text for text in flags(sweep_of(one)))
    assert not any("One learning rate" in text for text in flags(sweep_of(two)))
    assert any("also differ in" in text and RATE in text for text in flags(sweep_of(two)))
    assert differences(two)[RATE] == ("0.001", "0.002")


def test_mixed_code_beta_defined_and_packed_are_flagged() -> None:
    first, second = configured({"name": "noise"}, {"name": "image"})
    changed = {"git": {"commit": "a" * 40, "dirty": False}}
    other = {"git": {"commit": "b" * 40, "dirty": True}}
    marked = [
        replace(first, provenance=changed, summary={"packed": True}),
        replace(second, provenance=other, evaluation={"is_beta_defined": True}),
    ]
    text = " ".join(flags(sweep_of(marked)))
    assert "commits aaaaaaaa and bbbbbbbb+" in text
    assert "change with the number of timesteps: image" in text and "marked packed" in text
    assert flags(sweep_of([first])) == ()
    same = [replace(one, provenance=other) for one in (first, second)]
    assert any("uncommitted changes on top of bbbbbbbb" in one for one in flags(sweep_of(same)))
