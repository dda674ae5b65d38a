"""The sentence of a report claims no more than its numbers allow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ddpm.metrics.x0_error import MEASURES, X0Error
from ddpm.report.effects import gap, level_gaps
from ddpm.report.ranking import rank
from ddpm.report.reading import SweepResults, TrialResult
from ddpm.report.verdict import Conclusion, differences, flags, is_confounded, judge
from tests.support import known_sweeps as known

LEVELS = np.arange(-3, 4)
PRED_TYPE, LOSS_SPACE = "TRAINING.PRED_TYPE", "TRAINING.LOSS_SPACE"
RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"


def curve(slope: float = 0.5, factor: float = 1.0, clean: float = 1.0) -> np.ndarray:
    """(L,) a falling error; `clean` multiplies its clean end and leaves its noisy end."""
    bend = clean ** ((LEVELS - LEVELS[0]) / (LEVELS[-1] - LEVELS[0]))
    return factor * np.exp(-slope * LEVELS) * bend


def pairs_of(rng: np.random.Generator, count: int = 100) -> np.ndarray:
    """(L, N) by how much each pair is harder than the mean: shared by all trials."""
    return rng.gamma(4, 1 / 4, (len(LEVELS), count))


def trial_of(name: str, seed: int, mse: np.ndarray, **config: object) -> TrialResult:
    return TrialResult(
        name=f"{name}-{seed}",
        cell={PRED_TYPE: name},
        seed=seed,
        status="done",
        reason=None,
        run_dir=None,
        summary={},
        config={PRED_TYPE: name, **config},
        provenance={},
        metrics={},
        evaluation={"data_sha256": "d", "seed": 0},
        error=X0Error(levels=LEVELS, mse=mse, ids=np.arange(mse.shape[1])),
        samples=None,
    )


def sweep_of(trials: Sequence[TrialResult]) -> SweepResults:
    return SweepResults(
        folder=Path("sweeps/x"),
        name="x",
        is_sweep=True,
        question="",
        command="",
        grid={},
        planned=len(trials),
        trials=tuple(trials),
        skipped=(),
        references=None,
    )


def verdict_of(curves: Mapping[str, Sequence[np.ndarray]], seed: int = 0) -> Conclusion:
    """The verdict on cells given by one mean curve a seed, measured on shared noisy pairs."""
    rng = np.random.default_rng(seed)
    pairs = pairs_of(rng)
    trials = []
    for name, means in curves.items():
        for number, mean in enumerate(means):
            own = rng.normal(1, 0.02, pairs.shape)
            trials.append(trial_of(name, number, mean[:, None] * pairs * own))
    sweep = sweep_of(trials)
    return judge(sweep, rank(sweep))


def test_a_cell_that_is_lower_by_both_measures_wins_this_run_only() -> None:
    verdict = verdict_of({"noise": [curve()], "image": [curve(factor=1.5)]})
    assert verdict.kind == "winner"
    assert verdict.headline == "noise has the lowest x0-error of this run, by both measures."
    assert (
        "Next is image" in verdict.sentences[0] and "evaluation error only" in verdict.sentences[0]
    )
    assert "claims nothing about the cells beyond this run" in verdict.sentences[1]


def test_with_seeds_the_interval_is_over_them() -> None:
    curves = {
        "noise": [curve(factor=f) for f in (1.0, 1.01, 0.99)],
        "image": [curve(factor=f) for f in (1.5, 1.52, 1.47)],
    }
    verdict = verdict_of(curves)
    assert verdict.headline == "noise has the lowest x0-error, by both measures."
    assert "over 3 seeds" in verdict.sentences[0] and "training seeds" in verdict.sentences[1]


def test_seeds_that_scatter_more_than_cells_differ_name_no_winner() -> None:
    curves = {
        "noise": [curve(factor=f) for f in (0.8, 1.2, 1.0)],
        "image": [curve(factor=f) for f in (1.3, 0.9, 1.05)],
    }
    verdict = verdict_of(curves)
    assert verdict.kind == "tie" and "cannot be told apart" in verdict.headline


def test_a_near_equal_runner_up_is_named() -> None:
    curves = {"noise": [curve()], "image": [curve(factor=1.0005)], "velocity": [curve(factor=2)]}
    verdict = verdict_of(curves)
    assert verdict.kind == "tie"
    assert "image" in verdict.headline and "velocity" not in verdict.headline


def test_measures_that_disagree_give_the_noise_levels_of_each() -> None:
    noisy_end = curve(slope=0.1, factor=0.5, clean=3.0)
    verdict = verdict_of({"image": [noisy_end], "noise": [curve(slope=0.1)]})
    assert verdict.kind == "split" and "the two measures disagree" in verdict.headline
    assert "image has the lowest mean log10 error, noise the lowest SNR" in verdict.headline
    first, second, by_level, _ = verdict.sentences
    assert first == (
        "By mean log10 error, in this run, image beats the other cell, whose error is 15 % larger."
    )
    assert second.startswith("By SNR-weighted error, in this run, noise beats the other cell")
    assert "image is better at \u22123 to" in by_level
    assert "noise is better at" in by_level and "to 3" in by_level


def test_cells_level_with_the_lowest_are_named_by_what_they_share() -> None:
    """Image is a tenth lower by the mean, velocity by the clean end that the other weighs."""
    ends = {"noise": (0, 0), "image": (-0.1, 0), "velocity": (0, -0.3)}
    trials = [
        known.trial_of(cell, seed, known.error_of(number + noise, clean))
        for cell in known.cells_of(known.GRID_9)
        for number, clean in [ends[cell[PRED_TYPE]]]
        for seed, noise in enumerate((0, -0.001, 0.001))
    ]
    verdict = judge(sweep := known.sweep_of(trials), rank(sweep))
    assert verdict.kind == "split"
    assert verdict.sentences[0].startswith("By mean log10 error linear \u00b7 image cannot be told")
    assert (
        "from the 2 other cells with prediction type image, and beats the 6 others, whose errors "
        "are 26 % larger." in verdict.sentences[0]
    )


def test_one_cell_is_not_compared() -> None:
    assert "nothing to compare" in verdict_of({"noise": [curve()]}).headline


def tells_any_of_nine_apart(verdict: Conclusion) -> bool:
    """Whether a verdict on nine cells fails to list every cell as level with the leaders."""
    if verdict.kind != "tie":
        return True
    if "lowest by both measures" in verdict.headline:
        return "3 others" not in verdict.headline  # five named, three not
    return "2 others" not in verdict.sentences[0]


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_one_configuration_under_nine_names_cannot_be_told_apart(num_seeds: int) -> None:
    """A/A: at most 5 % of sweeps may tell any of the equal cells from the best of them."""
    rng = np.random.default_rng(num_seeds)
    claims, sweeps = 0, 150
    for _ in range(sweeps):
        pairs = pairs_of(rng, 40)
        shift = rng.normal(0, 0.1, num_seeds)  # what the cells of one seed share
        trials = []
        for name in "abcdefghi":
            for seed in range(num_seeds):
                factor = np.exp(shift[seed] + (rng.normal(0, 0.03) if num_seeds > 1 else 0.0))
                own = rng.normal(1, 0.05, pairs.shape)
                trials.append(trial_of(name, seed, curve()[:, None] * pairs * own * factor))
        sweep = sweep_of(trials)
        claims += tells_any_of_nine_apart(judge(sweep, rank(sweep)))
    assert claims <= 0.06 * sweeps


def test_a_gap_covers_the_true_difference() -> None:
    rng = np.random.default_rng(7)
    truth, hits = np.log10(1.2), 0
    for _ in range(200):
        trials = []
        for name, factor in (("a", 1.0), ("b", 1.2), ("c", 1.5)):
            for seed in range(3):
                scatter = np.exp(rng.normal(0, 0.05))
                trials.append(
                    trial_of(name, seed, (factor * scatter * curve())[:, None].repeat(2, 1))
                )
        ranking = rank(sweep_of(trials))
        cells = {standing.label: standing for standing in ranking.standings}
        found = gap(ranking, cells["b"], cells["a"], MEASURES[0], 0.95)
        hits += abs(found.mean - truth) < found.half_width
    assert 0.92 <= hits / 200 <= 1.0


def test_cells_without_a_seed_in_common_are_never_told_apart() -> None:
    pairs = pairs_of(np.random.default_rng(0))
    trials = [
        trial_of("noise", 0, curve()[:, None] * pairs),
        trial_of("image", 1, curve(factor=3)[:, None] * pairs),
    ]
    sweep = sweep_of(trials)
    verdict = judge(sweep, rank(sweep))
    assert verdict.kind == "tie" and "no seed in common" in verdict.sentences[0]
    ranking = rank(sweep)
    assert not any(g.is_told_apart for g in level_gaps(ranking, *ranking.standings, 0.95))


def configured(*configs: dict) -> list[TrialResult]:
    mse = curve()[:, None].repeat(3, axis=1)
    return [trial_of(one.pop("name"), 0, mse, **one) for one in configs]


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
        TrialResult(**vars(first) | {"provenance": changed, "summary": {"packed": True}}),
        TrialResult(
            **vars(second) | {"provenance": other, "evaluation": {"is_beta_defined": True}}
        ),
    ]
    text = " ".join(flags(sweep_of(marked)))
    assert "commits aaaaaaaa and bbbbbbbb+" in text
    assert "change with the number of timesteps: image" in text and "marked packed" in text
    assert flags(sweep_of([first])) == ()


def test_uncommitted_changes_are_flagged_when_all_share_them() -> None:
    trials = [
        TrialResult(**vars(trial) | {"provenance": {"git": {"commit": "c" * 40, "dirty": True}}})
        for trial in configured({"name": "noise"}, {"name": "image"})
    ]
    assert any("uncommitted changes on top of cccccccc" in one for one in flags(sweep_of(trials)))
