"""TUNE.WITHIN: the numbers of SPACE are chosen within each cell, then the cells are compared."""

from pathlib import Path

import pytest

from ddpm.errors import InputError
from ddpm.sweep.plan import Sweep, load_sweep, tuned_trial
from tests.support.tree import ROOT

EPOCHS, RATE = (f"TRAINING.HYPER_PARAMETERS.{name}" for name in ("EPOCHS", "LEARNING_RATE"))
PRED_TYPE = "TRAINING.PRED_TYPE"
TEXT = f"""
BASE: {ROOT / "configs" / "digits.yaml"}
GRID: {{{PRED_TYPE}: [noise, velocity]}}
SPACE: {{{RATE}: {{loguniform: [1.0e-3, 1.0e-2]}}}}
SEEDS: [0, 1]
TUNE: {{WITHIN: cell, TRIALS: 3, TUNING_SEEDS: [7, 8]}}
"""


def loaded(folder: Path, text: str = TEXT, *overrides: str) -> Sweep:
    path = folder / "within.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


def test_every_cell_is_tuned_by_the_same_draws_at_a_third_of_the_length(tmp_path: Path) -> None:
    trials = loaded(tmp_path).trials
    assert len(trials) == 2 * 3 * 2 and all(trial.is_tuning for trial in trials)
    assert {trial.seed for trial in trials} == {7, 8}
    assert {trial.config.TRAINING.HYPER_PARAMETERS.EPOCHS for trial in trials} == {20}
    rates = {
        name: [t.cell[RATE] for t in trials if t.cell[PRED_TYPE] == name]
        for name in ("noise", "velocity")
    }
    assert rates["noise"] == rates["velocity"] and len(set(rates["noise"])) == 3
    assert all(EPOCHS not in trial.cell for trial in trials)


def test_the_comparison_is_of_the_grid_alone_at_full_length_with_what_was_chosen(
    tmp_path: Path,
) -> None:
    sweep = loaded(tmp_path)
    assert sweep.base.TRAINING.HYPER_PARAMETERS.EPOCHS == 60
    trial = tuned_trial(sweep, {PRED_TYPE: "noise"}, {RATE: 0.005}, 1)
    hyper = trial.config.TRAINING.HYPER_PARAMETERS
    assert (hyper.EPOCHS, hyper.LEARNING_RATE, trial.config.TRAINING.SEED) == (60, 0.005, 1)
    assert dict(trial.cell) == {PRED_TYPE: "noise"} and not trial.is_tuning


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("TUNE.TUNING_SEEDS=[1, 2]", "TUNE.TUNING_SEEDS and SEEDS share 1;"),
        ("TUNE.SEARCH=bayes", "TUNE.SEARCH is bayes; every draw is trained alike: use grid"),
        ("SEEDS=auto", "SEEDS is auto; give a list of SEEDS"),
        (f"SPACE.{EPOCHS}={{uniform: [30, 60]}}", f"SPACE has {EPOCHS}"),
    ],
)
def test_what_cannot_be_tuned_within_cells_is_refused(
    tmp_path: Path, override: str, said: str
) -> None:
    with pytest.raises(InputError, match="within.yaml: ") as caught:
        loaded(tmp_path, TEXT, override)
    assert any(said in problem for problem in caught.value.problems)


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    text = "\n".join(line for line in TEXT.splitlines() if not line.startswith("SPACE"))
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, text)
    assert any("TUNE.WITHIN is cell but SPACE is empty" in one for one in caught.value.problems)


def test_a_cell_that_no_draw_can_train_is_skipped_once(tmp_path: Path) -> None:
    grid = f"{PRED_TYPE}: [noise, velocity]"
    zero = "TRAINING.NETWORK.ZERO_TERMINAL_SNR: [false, true]"
    sweep = loaded(tmp_path, TEXT.replace(grid, f"{grid}, {zero}"))
    (skipped,) = sweep.skipped
    assert RATE not in skipped.cell and skipped.cell[PRED_TYPE] == "noise"


def test_a_chosen_length_of_the_average_is_the_only_one_that_is_drawn_by(tmp_path: Path) -> None:
    lengths = ("TRAINING.EMA_POWER=[0.05,0.1]", "EVALUATION.EMA_LENGTHS=[0.05,0.1]")
    sweep = loaded(tmp_path, TEXT, *lengths)
    assert sweep.trials[0].config.EVALUATION.EMA_LENGTHS == (0.05, 0.1)
    chosen = {RATE: 0.005, "EVALUATION.EMA_LENGTHS": [0.1]}
    trial = tuned_trial(sweep, {PRED_TYPE: "noise"}, chosen, 1)
    assert trial.config.EVALUATION.EMA_LENGTHS == (0.1,)
    alone = "\n".join(line for line in TEXT.splitlines() if not line.startswith("SPACE"))
    assert len(loaded(tmp_path, alone, *lengths).trials) == 2 * 2  # cells and seeds
