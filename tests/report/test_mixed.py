"""What is missing or not alike is said, never guessed."""

import numpy as np
import pytest

from ddpm.report.ranking import rank
from ddpm.report.reading import TrialResult
from ddpm.report.verdict import apart, flags, judge, mixed, pairing, scope
from tests.support.known_sweeps import SCHEDULER, error_of, known_sweep, sweep_of, trial_of

CELLS = [{SCHEDULER: name} for name in ("linear", "cosine", "cos6")]


def values(seeds: int = 3, number: int = 0) -> np.ndarray:
    return (
        0.01 * np.random.default_rng(number).normal(size=(3, seeds)) + 0.1 * np.arange(3)[:, None]
    )


def said(trials: list[TrialResult]) -> str:
    return " ".join(mixed(sweep_of(trials)))


def whole(**facts: object) -> list[TrialResult]:
    return [trial_of(cell, 0, error_of(0.1), **facts) for cell in CELLS]


def test_nothing_is_said_where_all_is_alike() -> None:
    assert list(mixed(known_sweep(values(), CELLS))) == []


def test_missing_seeds_are_named_by_cell() -> None:
    numbers = values()
    numbers[1, 2] = np.nan
    text = " ".join(flags(known_sweep(numbers, CELLS)))
    assert "Seeds are missing in cosine (seed 2)." in text and "least squares" in text


def test_cells_with_seeds_of_their_own_lack_none() -> None:
    own = np.arange(9).reshape(3, 3)
    sweep = known_sweep(values(), CELLS, seeds=own)
    assert list(mixed(sweep)) == []
    ranking = rank(sweep)
    assert "No two cells share seeds" in pairing(ranking)
    assert judge(sweep, ranking).kind == "winner"


def test_a_cell_trained_twice_with_one_seed_is_named() -> None:
    trials = [*whole(), trial_of(CELLS[0], 0, error_of(0.3))]
    assert "Trained more than once: linear, seed 0." in said(trials)


def test_finished_trials_without_evaluation_are_counted() -> None:
    trials = [*whole(), trial_of(CELLS[0], 1, None)]
    assert "1 finished trial has no evaluation" in said(trials)


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


def test_two_data_sets_and_two_evaluations_are_not_compared() -> None:
    for facts in ({"data_sha256": "e", "seed": 0}, {"data_sha256": "d", "seed": 1}):
        trials = [*whole()[:2], trial_of(CELLS[2], 0, error_of(0.1), evaluation=facts)]
        sweep = sweep_of(trials)
        verdict = judge(sweep, rank(sweep))
        assert verdict.headline == "No comparison." and "cannot be ranked" in verdict.sentences[0]


def test_no_finished_trial_is_no_answer() -> None:
    sweep = sweep_of([trial_of(cell, 0, None, status="failed") for cell in CELLS])
    verdict = judge(sweep, rank(sweep))
    assert verdict.headline == "No answer yet." and verdict.sentences == ("No trial has finished.",)


def test_what_one_and_two_seeds_may_not_claim_is_said() -> None:
    texts = {}
    for seeds in (1, 2, 3):
        sweep = known_sweep(values(seeds), CELLS)
        texts[seeds] = scope(sweep, rank(sweep))
    assert "claims nothing about the cells beyond this run" in texts[1]
    assert "Two seeds do not show whether all cells scatter alike" in texts[2]
    assert texts[3] == "Intervals are over 3 training seeds, each measured on 2 validation images."


def test_a_cell_with_one_seed_among_others_is_said_to_be_taken_on_trust() -> None:
    numbers = values()
    numbers[1, 1:] = np.nan
    sweep = known_sweep(numbers, CELLS)
    text = scope(sweep, rank(sweep))
    assert "1 to 3 training seeds" in text and "cosine has one seed only" in text


def test_the_ratio_is_said_whatever_it_is() -> None:
    helpful = rank(known_sweep(values() + np.array([0.0, 0.3, -0.2]), CELLS))
    assert "vary 0.0" in pairing(helpful) and pairing(helpful).endswith("intervals are paired.")
    opposed = np.array([[0.0, 0.01, 0.02], [0.03, 0.01, -0.01], [0.01, 0.01, 0.01]])
    useless = pairing(rank(known_sweep(opposed, CELLS)))
    assert "pairing gains nothing here" in useless and "too few to choose" in useless
    assert "With one seed" in pairing(rank(known_sweep(values(1), CELLS)))


def test_a_cell_that_scatters_far_more_is_named() -> None:
    rng = np.random.default_rng(0)
    cells = [{SCHEDULER: f"s{number}"} for number in range(9)]
    numbers = 0.001 * rng.normal(size=(9, 4))
    numbers[3] += 0.5 * rng.normal(size=4)
    assert apart(rank(known_sweep(numbers, cells))).startswith("s3 scatters over seeds far more")


def test_an_error_of_zero_is_not_ranked() -> None:
    trials = whole()
    broken = error_of(0.1)
    object.__setattr__(broken, "mse", broken.mse * 0)
    ranking = rank(sweep_of([*trials[:2], trial_of(CELLS[2], 0, broken)]))
    assert ranking.excluded[0][0] == "cos6" and "error of zero" in ranking.excluded[0][1]
