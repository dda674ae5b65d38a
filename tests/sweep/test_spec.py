"""ddpm.sweep.spec: ranges in a sweep file, draws from them, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ddpm.errors import InputError
from ddpm.sweep.plan import Sweep, load_sweep
from ddpm.sweep.spec import Range, draw, is_inside, uniform_draw
from tests.support.tree import ROOT

RATE, DROP = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE", "TRAINING.LABEL_DROP"
HEAD = f"BASE: {ROOT / 'configs' / 'digits.yaml'}\n"
SPACE = f"SPACE:\n  {RATE}: {{loguniform: [1.0e-4, 1.0e-2]}}\n  {DROP}: {{uniform: [0, 0.3]}}\n"
GRID = "GRID: {TRAINING.PRED_TYPE: [noise, velocity]}\n"


def sweep(folder: Path, text: str, *overrides: str) -> Sweep:
    path = folder / "test.yaml"
    path.write_text(HEAD + text)
    return load_sweep(path, overrides)


def test_a_draw_lies_uniformly_by_ratio_or_by_difference() -> None:
    """1,000 draws: quarters of the (log) range hold a quarter each, within 4 standard errors."""
    space = {
        "a": Range(low=1e-4, high=1e-2, is_log=True, is_integer=False),
        "b": Range(low=-1.0, high=3.0, is_log=False, is_integer=False),
    }
    drawn = [draw(space, number) for number in range(1000)]
    places = {
        "a": (np.log10([one["a"] for one in drawn]) + 4) / 2,
        "b": (np.array([one["b"] for one in drawn]) + 1) / 4,
    }
    for place in places.values():
        counts = np.histogram(place, bins=4, range=(0, 1))[0]
        assert counts.sum() == 1000
        assert np.abs(counts - 250).max() < 4 * np.sqrt(1000 * 0.25 * 0.75)
    assert abs(np.corrcoef(places["a"], places["b"])[0, 1]) < 4 / np.sqrt(1000)


def test_of_every_eight_draws_one_lies_in_each_eighth() -> None:
    for first in (0, 8, 800):
        shares = [uniform_draw("a", number) for number in range(first, first + 8)]
        assert sorted(int(8 * one) for one in shares) == list(range(8))


def test_a_range_of_integers_gives_each_of_them() -> None:
    one = Range(low=1, high=3, is_log=False, is_integer=True)
    drawn = Counter(one.at(uniform_draw("key", number)) for number in range(400))
    assert set(drawn) == {1, 2, 3} and all(isinstance(value, int) for value in drawn)


def test_every_cell_and_seed_sees_the_same_draws_and_more_trials_add_to_them(
    tmp_path: Path,
) -> None:
    few = sweep(tmp_path, GRID + SPACE + "SEEDS: [0, 1]\nTUNE: {TRIALS: 3}\n")
    many = sweep(tmp_path, GRID + SPACE + "SEEDS: [0, 1]\nTUNE: {TRIALS: 5}\n")
    drawn = {}
    for trial in few.trials:
        key = (trial.cell["TRAINING.PRED_TYPE"], trial.seed)
        drawn.setdefault(key, []).append((trial.cell[RATE], trial.cell[DROP]))
        assert trial.config.TRAINING.HYPER_PARAMETERS.LEARNING_RATE == trial.cell[RATE]
    assert len(drawn) == 4 and len({tuple(values) for values in drawn.values()}) == 1
    ids = {one.identified("d").trial_id for one in many.trials}
    assert {one.identified("d").trial_id for one in few.trials} < ids and len(ids) == 20


def test_a_space_needs_no_grid(tmp_path: Path) -> None:
    assert len(sweep(tmp_path, SPACE).trials) == 8  # TUNE.TRIALS, by default


def test_bayes_begins_with_draws_of_grid_and_space(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, GRID + SPACE + "TUNE: {SEARCH: bayes, TRIALS: 30}\n")
    assert len(loaded.trials) == 10
    assert {trial.cell["TRAINING.PRED_TYPE"] for trial in loaded.trials} == {"noise", "velocity"}
    assert all(is_inside(loaded.space, trial.cell) for trial in loaded.trials)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"SPACE: {{{RATE}: {{normal: [0, 1]}}}}", "give {loguniform: [low, high]} or {uniform"),
        (f"SPACE: {{{RATE}: [0.1, 0.2]}}", "give {loguniform: [low, high]}"),
        (f"SPACE: {{{RATE}: {{uniform: [0.1]}}}}", "give {loguniform: [low, high]}"),
        (f"SPACE: {{{RATE}: {{uniform: [0.2, 0.1]}}}}", "give a lower end, then a higher one"),
        (f"SPACE: {{{DROP}: {{loguniform: [0, 0.1]}}}}", "give a lower end above 0"),
        (f"SPACE: {{{DROP}: {{uniform: [0, 2]}}}}", "LABEL_DROP is 2; allowed:"),
        ("SPACE: {TRAINING.LABEL_DORP: {uniform: [0, 1]}}", "did you mean TRAINING.LABEL_DROP?"),
        ("SPACE: {TRAINING.PRED_TYPE: {uniform: [noise, image]}}", "holds no numbers; give GRID"),
        ("SPACE: {TRAINING.SEED: {uniform: [0, 9]}}", "SEED cannot be varied: give SEEDS"),
        ("SPACE: {CLUSTER.NUM_WORKERS: {uniform: [1, 2]}}", "changes where a run is"),
        (f"GRID: {{{RATE}: [0.1]}}\n" + SPACE, "is both in GRID and in SPACE; keep one"),
        ("SPACE: [1]", "SPACE is [1]; give dotted keys with a range each"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_space_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        sweep(tmp_path, text + "\n")
    assert any(words in line and "test.yaml" in line for line in caught.value.problems), (
        caught.value.problems
    )


def test_sections_of_the_sweep_file_lie_over_those_of_its_base(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, GRID + "EVALUATION: {EVERY: 5}\n", "EVALUATION.NUM=32")
    assert (loaded.base.EVALUATION.EVERY, loaded.base.EVALUATION.NUM) == (5, 32)
    assert loaded.base.TRAINING.HYPER_PARAMETERS.BATCH_SIZE == 128  # the base's own
