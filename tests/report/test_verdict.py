"""ddpm.report.verdict: the answer claims what its intervals show, no more and no less."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddpm.metrics.intervals import Interval
from ddpm.metrics.x0_error import X0Error
from ddpm.report.charts import intervals
from ddpm.report.labels import axes_of
from ddpm.report.page import next_command
from ddpm.report.ranking import Ranking, rank, with_baseline
from ddpm.report.reading import Lines, SweepResults
from ddpm.report.sections import Table, Text, compared, factors, ranked
from ddpm.report.verdict import Conclusion, against_baseline, judge, pairing, scope, unequal
from tests.support.known_sweeps import (
    FIRST,
    GRID_9,
    PRED_TYPE,
    SCHEDULER,
    cells_of,
    error_of,
    error_over,
    known_sweep,
    quality_of,
    sampled_sweep,
    sweep_of,
    trial_of,
)
from tests.support.verdict_words import faults

THREE = [{SCHEDULER: name} for name in ("linear", "cosine", "cos6")]
# Rows and columns add up to nothing: half-widths of three cells are 0.0441 by either measure,
# studentized_range.ppf(0.975, 3, 4) / sqrt(2) = 4.41 standard errors of 0.01.
PATTERN = 0.01 * np.array([[1, -1, 0], [0, 1, -1], [-1, 0, 1]])


def sampled(kid: list[float], fid: list[float]) -> SweepResults:
    return sampled_sweep(np.array(kid)[:, None] + PATTERN, np.array(fid)[:, None] + PATTERN, THREE)


def judged(sweep: SweepResults) -> tuple[Ranking, Conclusion]:
    ranking = rank(sweep)
    verdict = judge(sweep, ranking)
    assert not faults(ranking, verdict)
    return ranking, verdict


@pytest.mark.parametrize(
    ("kid", "fid", "kind", "headline"),
    [
        (
            [-0.2, 0, 0],
            [0, 0.01, 0],
            "winner",
            "linear draws the best samples: no cell beats it by KID or FID\u221e, and it beats "
            "every other by one of them at least.",
        ),
        (
            [-0.2, 0, 0],
            [0, 0.1, 0.2],
            "winner",
            "linear draws the best samples, by both KID and FID\u221e.",
        ),
        (
            [0, 0.01, 0.3],
            [0.01, 0, 0],
            "tied",
            "No winner: linear and cosine are tied, none told apart from the lowest by KID or "
            "FID\u221e. The other cell, cos6, is worse by one of them at least.",
        ),
        (
            [0, 0.01, 0.02],
            [0.01, 0, 0],
            "tied",
            "No winner: no cell can be told apart from the lowest by KID or FID\u221e.",
        ),
        (
            [0, 0.3, 0.4],
            [0.3, 0, 0.4],
            "disagree",
            "No single winner: the measures disagree. linear beats cosine by KID, cosine beats "
            "linear by FID\u221e.",
        ),
        (
            [0, 0.03, 0.06],
            [0.5, 0, 0],
            "undecided",
            "Undecided: only cosine is tied with the lowest by both KID and FID\u221e, but it "
            "does not itself beat cos6.",
        ),
    ],
)
def test_the_verdict_is_that_of_the_numbers(
    kid: list[float], fid: list[float], kind: str, headline: str
) -> None:
    _, verdict = judged(sampled(kid, fid))
    assert (verdict.kind, verdict.headline) == (kind, headline)


def test_sentences_repeat_the_intervals_that_the_verdict_rests_on() -> None:
    _, verdict = judged(sampled([0, 0.1, 0.3], [0, 0.01, 0.3]))
    # 10^0.1 is 26 % more, 10^(0.1 - 0.0441) 14 % and 10^(0.1 + 0.0441) 39 %.
    assert verdict.sentences[:2] == (
        "By KID linear is lowest; it beats the 2 other cells, of which cosine is nearest, 26 % "
        "higher (14 to 39 %).",
        "By FID\u221e linear is lowest; it beats cos6, which is 100 % higher (80 to 121 %), "
        "and cannot be told apart from cosine.",
    )
    _, verdict = judged(sampled([0, 0.3, 0.4], [0.3, 0, 0.4]))
    assert verdict.sentences[1] == (
        "By FID\u221e linear is beaten by cosine, 50 % lower (45 to 55 %), and beats cos6, which "
        "is 26 % higher (14 to 39 %)."
    )


def test_a_measure_that_is_within_its_error_tells_nothing_and_orders_nothing() -> None:
    """KID whose unbiased estimate is below zero, with the smallest error where FID is worst."""
    cells = zip(THREE, (-0.003, -0.002, -0.001), (0, 0.1, 0.3), strict=True)
    sweep = sweep_of(
        [
            trial_of(cell, seed, error_of(-1.0), quality=quality_of(kid, 10 ** (fid + rest)))
            for place, (cell, kid, fid) in enumerate(cells)
            for seed, rest in enumerate(PATTERN[place])
        ]
    )
    ranking, verdict = judged(sweep)
    assert ranking.measures == ("fid", "kid") and ranking.informative == ("fid",)
    assert [one.label for one in ranking.standings] == ["linear", "cosine", "cos6"]
    assert verdict.kind == "winner" and verdict.sentences[1] == (
        "By KID nothing can be told: no cell's KID exceeds its own evaluation error."
    )
    axes = axes_of(sweep)
    (table, *_) = (block for block in ranked(sweep, ranking, axes) if isinstance(block, Table))
    assert [row[table.head.index("rank by KID")] for row in table.rows] == ["\u2013"] * 3
    (table, *_) = (block for block in compared(sweep, ranking, axes) if isinstance(block, Table))
    assert {tuple(row[3:5]) for row in table.rows[1:]} == {("\u2013", "\u2013")}
    assert any("By KID nothing can be told" in one.words for one in factors(sweep, ranking, axes)
               if isinstance(one, Text))  # fmt: skip


def test_a_sentence_that_claims_something_else_is_seen() -> None:
    """The reader of sentences finds each of these wrong."""
    ranking, verdict = judged(sampled([0, 0.1, 0.3], [0, 0.01, 0.3]))
    first, second, *rest = verdict.sentences
    wrong = [
        verdict.headline.replace("linear", "cosine"),
        "No winner: no cell can be told apart from the lowest by KID or FID\u221e.",
    ]
    assert faults(ranking, replace(verdict, headline=wrong[0]))
    assert faults(ranking, replace(verdict, kind="tied", headline=wrong[1]))
    for sentence in (
        "By KID linear is lowest; it cannot be told apart from any other cell.",
        first.replace("14 to", "\u22124 to"),
        first.replace("the 2 other", "the 3 other"),
        first.replace("cosine is nearest", "cos6 is nearest"),
        first.replace("is lowest; it ", ""),
        first[:-1] + ", and cannot be told apart from cosine.",
    ):
        assert sentence != first and faults(ranking, replace(verdict, sentences=(sentence, second)))
    assert faults(ranking, replace(verdict, sentences=(first, *rest)))


def test_cells_are_named_by_what_they_alone_have_in_common() -> None:
    """Image is a tenth lower by the mean, velocity by the clean end that the other weighs."""
    ends = {"noise": (0, 0), "image": (-0.1, 0), "velocity": (0, -0.3)}
    trials = [
        trial_of(cell, seed, error_of(number + noise, clean))
        for cell in cells_of(GRID_9)
        for number, clean in [ends[cell[PRED_TYPE]]]
        for seed, noise in enumerate((0, -0.001, 0.001))
    ]
    ranking = rank(sweep := sweep_of(trials))
    verdict = judge(sweep, ranking)
    assert verdict.kind == "disagree" and "the measures disagree" in verdict.headline
    values = np.where([c[PRED_TYPE] == "image" for c in cells_of(GRID_9)], 0.0, 0.3)[:, None]
    values = values + np.tile(0.01 * PATTERN, (3, 1))
    _, verdict = judged(known_sweep(values, cells_of(GRID_9)))
    assert verdict.headline.startswith("No winner: the 3 cells with prediction type image are tied")


def test_measures_that_disagree_give_the_noise_levels_of_each() -> None:
    levels = np.arange(-3, 4)
    rng = np.random.default_rng(0)
    pairs = rng.gamma(4, 1 / 4, (7, 100))
    bend = np.linspace(-0.3, 0.18, 7)  # half the error at the noisy end, half more at the clean one
    trials = [
        trial_of(
            {PRED_TYPE: name},
            0,
            X0Error(
                levels=levels,
                mse=10.0 ** (-0.04 * levels + rest)[:, None]
                * pairs
                * rng.normal(1, 0.02, pairs.shape),
                ids=np.arange(100),
            ),
        )
        for name, rest in (("image", bend), ("noise", np.zeros(7)))
    ]
    _, verdict = judged(sweep_of(trials))
    assert verdict.kind == "disagree" and verdict.headline.startswith(
        "No single winner of this run"
    )
    by_level = next(one for one in verdict.sentences if one.startswith("By log SNR"))
    assert "image is better at \u22123 to" in by_level and "noise is better at 1 to 3" in by_level


def test_what_is_recommended_says_how_far_it_is_from_the_lowest_and_what_it_saves() -> None:
    sweep = sampled([0.02, 0.0, 0.03], [0.01, 0.0, 0.0])
    spent = {"linear": 10.0, "cosine": 40.0, "cos6": 30.0}
    trials = [
        replace(t, summary={"core_seconds": spent[str(t.cell[SCHEDULER])]}) for t in sweep.trials
    ]
    said = judged(replace(sweep, trials=tuple(trials)))[1].sentences[2]
    # 10^0.02 is 4.7 % more.
    assert said == (
        "Recommended: linear, at most 4.7 % above the lowest by either measure as measured, at "
        "0.25 of the training cost of cosine. A choice, not a claim."
    )
    said = judged(sweep)[1].sentences[2]
    assert said == "Recommended: cosine, the lowest by every measure. A choice, not a claim."
    assert not any(
        "Recommended" in s for s in judged(sampled([-0.2, 0, 0], [0, 0, 0]))[1].sentences
    )


def of_learning(**numbers: float) -> Conclusion:
    levels = range(-3, 4)
    line = -0.1 * np.arange(-3.0, 4)
    trials = [
        trial_of({SCHEDULER: name}, seed, error_over(levels, line + number + 0.001 * seed))
        for name, number in numbers.items()
        for seed in range(3)
    ]
    fit = Lines(
        levels=tuple(levels),
        gaussian=tuple((10**line).tolist()),
        memorisation=None,
        num_train=9,
        samples=None,
    )
    sweep = sweep_of(trials, references=fit, window=(-3, 3))
    return judge(sweep, rank(sweep))


def test_cells_that_have_learned_nothing_are_named() -> None:
    verdict = of_learning(a=-0.2, b=-0.1, c=0.4)
    assert verdict.kind == "winner" and verdict.sentences[0] == (
        "c (2.5 times as high) failed to learn: the x0-error is no lower than the Gaussian fit's; "
        "set apart, in no ranking and no average."
    )
    verdict = of_learning(a=0.1, b=0.2)
    assert verdict.kind == "none" and verdict.headline.startswith(
        "No answer: no network has learned"
    )


def test_unequal_scatter_is_named_with_its_ratio() -> None:
    """Mean squares 6 (20 s)^2 / 4 and 12 s^2 / 10: the root of their ratio is 22.4."""
    wide = np.array([cell[PRED_TYPE] == "noise" for cell in cells_of(GRID_9)])
    values = np.empty((9, 3))
    values[wide], values[~wide] = 0.02 * PATTERN, np.tile(0.001 * PATTERN, (2, 1))
    ranking = rank(known_sweep(values, cells_of(GRID_9)))
    assert unequal(ranking) == (
        "Over seeds, mean log10 error of cells with prediction type noise scatters 22 times as "
        "much as with image and velocity, so each rests on a spread of its own; more seeds help "
        "the first most."
    )
    assert unequal(rank(known_sweep(np.tile(PATTERN, (3, 1)), cells_of(GRID_9)))) == ""


def test_a_cell_that_scatters_far_more_is_named() -> None:
    rng = np.random.default_rng(0)
    numbers = 0.001 * rng.normal(size=(9, 4))
    numbers[3] += 0.5 * rng.normal(size=4)
    said = unequal(rank(known_sweep(numbers, [{"NAME": f"s{number}"} for number in range(9)])))
    assert said.startswith("s3 scatters over seeds far more")


@pytest.mark.slow
def test_one_configuration_under_nine_names_cannot_be_told_apart_by_one_seed() -> None:
    """A/A, over pairs: at most 5 % of sweeps may tell any two of the equal cells apart."""
    rng = np.random.default_rng(1)
    false, sweeps = 0, 60
    for _ in range(sweeps):
        pairs = rng.gamma(4, 1 / 4, (3, 40))
        trials = [
            trial_of({"NAME": name}, 0, error_of(0, pairs=pairs * rng.normal(1, 0.05, pairs.shape)))
            for name in "abcdefghi"
        ]
        signs = rank(sweep_of(trials)).signs.values()
        false += any(bool(one.any()) for one in signs)
    assert false <= 0.08 * sweeps


def values(seeds: int = 3) -> np.ndarray:
    return 0.01 * np.random.default_rng(0).normal(size=(3, seeds)) + 0.1 * np.arange(3)[:, None]


def test_what_one_and_two_seeds_may_not_claim_is_said() -> None:
    texts = {}
    for seeds in (1, 2, 3):
        sweep = known_sweep(values(seeds), THREE)
        texts[seeds] = scope(sweep, rank(sweep))
    assert "claims nothing about the cells beyond this run" in texts[1]
    assert "Two seeds do not show whether all cells scatter alike" in texts[2]
    assert texts[3] == (
        "Intervals are over 3 training seeds, each measured on 2 validation images, and hold at "
        "95 % for all pairs of cells and both measures together."
    )
    numbers = values()
    numbers[1, 1:] = np.nan
    text = scope(sweep := known_sweep(numbers, THREE), rank(sweep))
    assert "1 to 3 training seeds" in text and "cosine has one seed only" in text
    text = scope(sweep := sampled([0, 0, 0], [0, 0, 0]), rank(sweep))
    assert "each measured on 4,096 samples (dpmpp_2m, 25 network calls an image)" in text


def test_the_ratio_of_pairing_is_said_whatever_it_is() -> None:
    helpful = rank(known_sweep(values() + np.array([0.0, 0.3, -0.2]), THREE))
    assert "vary 0.0" in pairing(helpful, FIRST)
    assert pairing(helpful, FIRST).endswith("intervals are paired.")
    opposed = np.array([[0.0, 0.01, 0.02], [0.03, 0.01, -0.01], [0.01, 0.01, 0.01]])
    useless = pairing(rank(known_sweep(opposed, THREE)), FIRST)
    assert "pairing gains nothing here" in useless and "too few to choose" in useless
    assert "With one seed" in pairing(rank(known_sweep(values(1), THREE)), FIRST)
    own = rank(known_sweep(values(), THREE, seeds=np.arange(9).reshape(3, 3)))
    assert "No two cells share seeds" in pairing(own, FIRST) and own.winner is not None


def test_the_baseline_is_in_the_answer() -> None:
    numbers = 0.001 * np.random.default_rng(1).normal(size=(9, 3))
    numbers[4:] += 0.2
    sweep = known_sweep(numbers, cells_of(GRID_9))
    ranking = with_baseline(rank(sweep), "SCHEDULER=cosine,PRED_TYPE=image")
    text = against_baseline(ranking)
    assert text.startswith("Against the baseline cosine \u00b7 image: better: ")
    assert "linear \u00b7 noise" in text and "not to be told apart from it: " in text
    assert text in judge(sweep, ranking).sentences and against_baseline(rank(sweep)) == ""


def test_without_anything_to_compare_there_is_no_answer() -> None:
    one = sweep_of([trial_of(THREE[0], 0, error_of(0.1))])
    assert "nothing to compare" in judge(one, rank(one)).headline
    none = sweep_of([trial_of(cell, 0, None, status="failed") for cell in THREE])
    verdict = judge(none, rank(none))
    assert verdict.headline == "No answer yet." and verdict.sentences == ("No trial has finished.",)
    for facts in ({"data_sha256": "e", "seed": 0}, {"data_sha256": "d", "seed": 1}):
        trials = [trial_of(cell, 0, error_of(0.1)) for cell in THREE[:2]]
        trials.append(trial_of(THREE[2], 0, error_of(0.1), evaluation=facts))
        sweep = sweep_of(trials)
        verdict = judge(sweep, rank(sweep))
        assert verdict.headline == "No comparison." and "cannot be ranked" in verdict.sentences[0]


LEVEL, LOW, HIGH = [0.0, 0, 0], [-0.5, 0, 0], [0.5, 0, 0]


@pytest.mark.parametrize(
    ("kid", "fid", "seeds", "done", "what", "command"),
    [
        (LEVEL, LEVEL, 1, 3, "More seeds, one seed says nothing of another", "SEEDS=[0,1,2]"),
        (LEVEL, LEVEL, 3, 9, "More seeds, to tell the cells apart", "SEEDS=[0,1,2,3,4,5]"),
        (LEVEL, LEVEL, 3, 10, "Unfinished: 1 of 10 trials are left. Continue with", "x.yaml"),
        (LOW, LOW, 3, 9, "Train the winner, linear, ten times as long", "EPOCHS=50"),
        (LOW, HIGH, 3, 9, "The measures disagree, which more seeds do not settle", "EPOCHS=50"),
    ],
)
def test_the_next_command_is_what_the_verdict_calls_for(
    kid: list[float],
    fid: list[float],
    seeds: int,
    done: int,
    what: str,
    command: str,
    tmp_path: Path,
) -> None:
    sweep = sampled(kid, fid)
    epochs = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 5}
    trials = [
        replace(one, config=epochs, run_dir=tmp_path) for one in sweep.trials if one.seed < seeds
    ]
    sweep = replace(sweep, trials=tuple(trials), planned=done, command="ddpm sweep x.yaml")
    ranking = rank(sweep)
    words, typed = next_command(sweep, ranking, judge(sweep, ranking))
    assert words.startswith(what) and typed.endswith(command)


def test_cells_as_near_as_real_images_are_named_by_the_measure_that_says_so() -> None:
    high = Interval(value=0.08, low=0.06, high=0.106, n=180)
    kid = np.log10([[0.10, 0.11], [0.2, 0.21]])
    sweep = sampled_sweep(kid, kid + 1, THREE[:2], real={"kid": high})
    ranking, verdict = judged(sweep)
    assert (
        "180 held-out real images: KID 0.080 [0.060, 0.106]; by KID linear cannot be told from "
        "them." in verdict.sentences
    )
    table, *_ = (one for one in ranked(sweep, ranking, axes_of(sweep)) if isinstance(one, Table))
    (real,) = (row for row in table.rows if row[1] == "real images")
    assert real[2:4] == ["0.080 \u00b1 0.023", "\u2013"] and len(real) == len(table.head)
    spec = intervals(ranking)
    assert spec["datasets"]["real kid"][0]["to"] == 0.106 and "real fid" not in spec["datasets"]


def test_names_that_cannot_be_told_apart_get_more_seeds() -> None:
    rng = np.random.default_rng(0)
    trials = [
        trial_of({"NAME": name}, seed + 2 * k, error_of(0.01 * rng.normal()))
        for k, name in enumerate("ab")
        for seed in range(2)
    ]
    sweep = replace(sweep_of(trials), seeds=(0, 1), command="ddpm sweep a_a.yaml")
    ranking = rank(sweep)
    what, command = next_command(sweep, ranking, judge(sweep, ranking))
    assert what == "More seeds, to tell the cells apart" and command.endswith("SEEDS=[0,1,2,3]")
