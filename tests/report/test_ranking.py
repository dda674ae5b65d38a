"""ddpm.report.ranking: the numbers that are compared, their intervals, and the cell to take."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ddpm.config import X0_MEASURES
from ddpm.errors import InputError
from ddpm.metrics.quality import Quality
from ddpm.report.charts import known_costs
from ddpm.report.effects import analyse
from ddpm.report.ranking import (
    OF_SAMPLES,
    Number,
    Ranking,
    Standing,
    against,
    agreement,
    rank,
    window_of,
    with_baseline,
)
from ddpm.report.reading import Lines, SweepResults, TrialResult
from tests.support.known_sweeps import (
    FIRST,
    GRID_9,
    SCHEDULER,
    cells_of,
    error_of,
    error_over,
    known_ranking,
    known_sweep,
    quality_of,
    sampled_sweep,
    sweep_of,
    trial_of,
)

FOUR = [{SCHEDULER: name} for name in ("linear", "cosine", "cos6", "sigmoid")]
KID, FID = OF_SAMPLES
LONG, SHORT = range(-8, 10), range(-8, 6)


def of(ranking: Ranking, name: str) -> Standing:
    return next(one for one in ranking.standings if one.label == name)


# The window: what else was trained changes no number.


def trials_over(levels: range, name: str, number: float, seeds: int = 3) -> list[TrialResult]:
    """Errors that fall with log SNR, by more the higher the number."""
    rng = np.random.default_rng(int(100 * number))
    bend = np.array(levels) * (0.1 + 0.01 * number)
    return [
        trial_of(
            {SCHEDULER: name},
            seed,
            error_over(levels, number - bend + 0.01 * rng.normal(size=len(levels))),
        )
        for seed in range(seeds)
    ]


THREE = [
    *trials_over(LONG, "linear", 0.1),
    *trials_over(LONG, "cosine", 0.15),
    *trials_over(LONG, "cos6", 0.3),
]


def numbers_of(ranking: Ranking) -> dict[str, object]:
    """Every number that is compared, by cell, in order."""
    return {one.label: {m: dict(one.numbers[m]) for m in X0_MEASURES} for one in ranking.standings}


def test_another_cell_changes_no_order_and_no_number_of_the_others() -> None:
    more = [*THREE, *trials_over(SHORT, "sigmoid", 0.2)]
    before, after = (rank(sweep_of(trials, window=(-7, 5))) for trials in (THREE, more))
    assert before.is_window and before.levels == after.levels == tuple(range(-7, 6))
    left = numbers_of(after)
    assert list(left) == ["linear", "cosine", "sigmoid", "cos6"] and left.pop("sigmoid")
    assert left == numbers_of(before) and list(left) == list(numbers_of(before))
    # Without a window they run over what all share, and do change.
    before, after = (rank(sweep_of(trials)) for trials in (THREE, more))
    assert before.levels == tuple(LONG) and after.levels == tuple(SHORT)
    assert of(before, "cos6").value(FIRST) != of(after, "cos6").value(FIRST)


def test_a_cell_that_does_not_reach_the_window_is_excluded_and_shrinks_nothing() -> None:
    short = trials_over(range(-8, 4), "sigmoid", 0.05)
    before = rank(sweep_of(THREE, window=(-7, 5)))
    after = rank(sweep_of([*THREE, *short], window=(-7, 5)))
    reason = "does not reach log SNR 4 to 5, a part of the data's window"
    assert after.excluded == (("sigmoid", reason),) and after.levels == before.levels
    assert numbers_of(after) == numbers_of(before)


def lines(levels: range, gaussian: np.ndarray) -> Lines:
    return Lines(
        levels=tuple(levels),
        gaussian=tuple(gaussian.tolist()),
        memorisation=None,
        num_train=9,
        samples=None,
    )


def test_an_old_sweep_has_its_window_from_the_gaussian_line() -> None:
    """Of unit variance sigmoid(-l) is left: 98.2 % at -4, 99.3 % at -5, and the same at the end."""
    line = lines(LONG, 1 / (1 + np.exp(np.arange(-8.0, 10))))
    assert window_of(sweep_of(THREE, references=line)) == tuple(range(-4, 5))
    assert window_of(sweep_of(THREE, references=line, window=(-2, 1))) == (-2, -1, 0, 1)
    assert window_of(sweep_of(THREE)) == ()


def learned(**numbers: float) -> SweepResults:
    """Cells so much above the Gaussian fit, log10."""
    line = np.linspace(0, -2, len(SHORT))
    trials = [
        trial_of({SCHEDULER: name}, seed, error_over(SHORT, line + number + 0.001 * seed * place))
        for place, (name, number) in enumerate(numbers.items())
        for seed in range(3)
    ]
    return sweep_of(trials, window=(-7, 5), references=lines(SHORT, 10**line))


def test_a_cell_that_has_not_learned_is_set_apart_and_in_no_average() -> None:
    ranking, without = rank(learned(a=-0.2, b=-0.1, c=0.3)), rank(learned(a=-0.2, b=-0.1))
    assert [one.label for one in ranking.standings] == ["a", "b"] and not ranking.too_few_learned
    ((failed, above),) = ranking.failed
    assert failed.label == "c" and above == pytest.approx(0.3, abs=0.003)
    assert numbers_of(ranking) == numbers_of(without)
    assert analyse(ranking, FIRST).effect(SCHEDULER).levels == ("a", "b")
    one, other = (r.gap(of(r, "b"), of(r, "a"), FIRST) for r in (ranking, without))
    assert one == other


def test_where_none_has_learned_all_stay_and_that_is_known() -> None:
    ranking = rank(learned(a=0.2, b=0.1))
    assert ranking.too_few_learned and len(ranking.standings) == len(ranking.failed) == 2


# What is compared.


def samples(seeds: int, *kids: float) -> SweepResults:
    """Cells with log10 KID so high and FID a tenth above, scattered over seeds."""
    scatter = 0.01 * np.random.default_rng(0).normal(size=(2, len(kids), seeds))
    kid, fid = np.array(kids)[:, None] + scatter
    return sampled_sweep(kid, fid + 0.1, FOUR[: len(kids)])


def test_samples_over_seeds_are_compared_pair_by_pair() -> None:
    sweep = samples(3, -1.0, -0.8)
    ranking = rank(sweep)
    assert ranking.measures == OF_SAMPLES and ranking.of_samples and ranking.num_samples == 4096
    for measure in OF_SAMPLES:
        points = [t.quality.points[0].interval(measure) for t in sweep.trials if t.quality]
        values = np.log10([one.value for one in points if one]).reshape(3, 2).T
        expected = stats.ttest_rel(values[1], values[0]).confidence_interval(0.975)
        found = ranking.gap(of(ranking, "cosine"), of(ranking, "linear"), measure)
        assert found.basis == "paired"
        assert found.mean == pytest.approx((expected.high + expected.low) / 2)
        assert found.half_width == pytest.approx((expected.high - expected.low) / 2, rel=1e-4)


def test_samples_of_one_seed_are_compared_by_their_own_errors() -> None:
    ranking = rank(samples(1, -1.0, -0.9, -0.8))
    found = ranking.gap(of(ranking, "cosine"), of(ranking, "linear"), KID)
    # Two errors of 2 %, Tukey's quantile of three cells, half of 5 % for each of two measures.
    quantile = stats.studentized_range.ppf(0.975, 3, np.inf) / np.sqrt(2)
    error = 0.02 / np.log(10) * np.sqrt(2)
    assert found.basis == "evaluation"
    assert found.half_width == pytest.approx(quantile * error, rel=2e-3)


def test_the_samples_compared_are_of_the_most_calls_that_all_cells_made() -> None:
    calls = {"linear": (10, 25, 50), "cosine": (25, 10), "cos6": (25, 10, 100)}
    trials = [
        trial_of({SCHEDULER: name}, 0, error_of(-1.0), quality=quality_of(0.1, 2.0, calls=some))
        for name, some in calls.items()
    ]
    ranking = rank(sweep_of(trials))
    assert ranking.point is not None and ranking.point.evaluations == 25
    assert of(ranking, "linear").value(KID) == pytest.approx(0.01)
    assert {one.calls for one in ranking.standings} == {25.0}
    none = trial_of({SCHEDULER: "sigmoid"}, 0, error_of(-2.0))
    with_one = rank(sweep_of([*trials, none]))
    assert with_one.excluded == (("sigmoid", "has no samples in 25 network calls"),)
    assert with_one.measures == OF_SAMPLES and len(with_one.standings) == 3
    assert trials[2].quality is not None
    unlike = replace(trials[2], quality=replace(trials[2].quality, protocol="others"))
    for some in ([*trials[:2], unlike], [trials[0], none]):
        assert rank(sweep_of(some)).measures == X0_MEASURES


def lengths_of(*kids: float | None) -> Quality:
    """Samples by an average of each length 0.05, 0.1, ...; None: it was left out."""
    points = [
        replace(quality_of(kid, 20 * kid).points[0], ema_length=length)
        for kid, length in zip(kids, (0.05, 0.1), strict=False)
        if kid is not None
    ]
    asked = {"EMA_LENGTHS": [0.05, 0.1][: len(kids)]}
    return replace(quality_of(1.0, 1.0), points=tuple(points), identity=asked)


def test_samples_are_compared_by_one_length_of_the_average() -> None:
    """The first that all cells have; each was far better by the longer one."""
    found = {"linear": lengths_of(1.0, 0.1), "cosine": lengths_of(2.0, 0.2)}

    def numbers() -> dict[str, float]:
        trials = [trial_of({SCHEDULER: k}, 0, error_of(-1.0), quality=q) for k, q in found.items()]
        return {one.cell[SCHEDULER]: one.value(KID) for one in rank(sweep_of(trials)).standings}

    assert numbers() == {"linear": 1.0, "cosine": 2.0}
    found["cosine"] = lengths_of(None, 0.2)
    assert numbers() == {"linear": 0.1, "cosine": 0.2}
    # chosen within each cell
    found["cosine"] = replace(lengths_of(None, 0.2), identity={"EMA_LENGTHS": [0.1]})
    found["linear"] = lengths_of(1.0)
    assert numbers() == {"linear": 1.0, "cosine": 0.2}


def test_a_cell_of_which_a_seed_has_no_samples_is_not_compared() -> None:
    """The worst end of a training must not improve its cell."""
    has = {"linear": (0,), "cosine": (1,), "cos6": (0, 1), "sigmoid": (0,)}
    trials = [
        trial_of(
            {SCHEDULER: name},
            seed,
            error_of(-1.0),
            quality=quality_of(0.1, 2.0) if seed in seeds else None,
        )
        for name, seeds in has.items()
        for seed in ((0,) if name in ("cos6", "sigmoid") else (0, 1))
    ]
    ranking = rank(sweep_of(trials))
    assert [one.label for one in ranking.standings] == ["cos6", "sigmoid"]
    assert {label for label, _ in ranking.excluded} == {"linear", "cosine"}


def test_numbers_that_their_samples_do_not_resolve_are_not_told_apart() -> None:
    """They count as their evaluation errors, whose ratio says nothing of the cells."""
    trials = [
        trial_of({SCHEDULER: name}, seed, error_of(-1.0), quality=quality_of(kid, 2.0, error))
        for name, kid, error in (("linear", 1e-5, 10.0), ("cosine", 1e-5, 13.0), ("cos6", 1, 0.01))
        for seed in range(3)
    ]
    ranking = rank(sweep_of(trials))
    a, b, c = (of(ranking, name) for name in ("linear", "cosine", "cos6"))
    assert ranking.gap(b, a, KID).sign == 0 and ranking.gap(c, a, KID).sign == 1


def test_a_missing_bad_seed_improves_no_cell() -> None:
    """d lacks seed 0, which was bad for all; by least squares it is the worst, not the best."""
    values = np.array([[1.18, 0.52, -0.14], [1.17, 0.49, -0.21], [1.21, 0.51, -0.22],
                       [np.nan, 0.68, -0.02]])  # fmt: skip
    cells = [{SCHEDULER: name} for name in "abcd"]
    ranking = rank(known_sweep(values, cells))
    assert ranking.standings[-1].label == "d"
    assert ranking.recommended is not None and ranking.recommended.label != "d"


@pytest.mark.parametrize("value", [-0.004, 0.0, 0.0004, 0.001])
def test_what_its_samples_do_not_resolve_counts_as_its_error(value: float) -> None:
    found = Number(value=value, error=0.001)
    assert found.log10 == pytest.approx(-3) and found.log10_error == pytest.approx(1 / np.log(10))
    assert Number(value=0.01, error=0.001).log10 == pytest.approx(-2)
    assert Number(value=-0.4, error=0.1, is_log10=True).log10 == -0.4


def test_a_negative_kid_is_ranked_as_its_own_error() -> None:
    """An unbiased estimate of nearly nothing may lie below it; it has no logarithm of its own."""
    trials = [
        trial_of(cell, 0, error_of(-1.0), quality=quality_of(kid, 2.0))
        for cell, kid in zip(FOUR, (0.1, -0.001, 0.2), strict=False)
    ]
    ranking = rank(sweep_of(trials))
    first = ranking.lowest(KID)
    assert first.label == "cosine" and first.value(KID) == -0.001
    assert first.log10(KID) == pytest.approx(np.log10(0.02 * 0.001))  # an error of 2 %


@pytest.mark.parametrize(
    ("key", "values"),
    [("TRAINING.INPUT_IMAGE_SIZE", (8, 16)), ("DATASET.PREPROCESSING.CROP_SIZE", (None, 8))],
)
def test_errors_of_different_images_are_not_ranked(key: str, values: tuple[object, ...]) -> None:
    trials = [trial_of({key: value}, 0, error_of(-1.0)) for value in values]
    ranking = rank(sweep_of(trials))
    assert not ranking.standings and ranking.recommended is None
    assert f"different images ({key} is " in (ranking.problem or "")
    earlier = replace(trials[1], config={})  # of a version without the key
    assert rank(sweep_of([trials[0], earlier])).problem is None


def test_an_error_of_zero_is_not_ranked() -> None:
    broken = error_of(0.1)
    object.__setattr__(broken, "mse", broken.mse * 0)
    ranking = rank(known_sweep(np.zeros((3, 1)), FOUR))
    trials = [trial for one in ranking.standings for trial in one.trials.values()]
    ranking = rank(sweep_of([*trials[:2], replace(trials[2], error=broken)]))
    assert ranking.excluded[0][0] == "cos6" and "error of zero" in ranking.excluded[0][1]


# Intervals: 95 % for all pairs and both measures, so 97.5 % for each measure.


def groups_of(sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Of one scatter exactly: where cells may scatter unequally, intervals are not Tukey's."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=size) for size in sizes]
    return [0.02 * place + 0.01 * one / one.std(ddof=1) for place, one in enumerate(drawn)]


def ranking_of(groups: list[np.ndarray]) -> Ranking:
    """Cells whose seeds are their own, as scipy's tests take samples to be."""
    values = np.full((len(groups), sum(map(len, groups))), np.nan)
    start = 0
    for place, group in enumerate(groups):
        values[place, start : start + len(group)] = group
        start += len(group)
    return known_ranking(values, FOUR[: len(groups)])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (3, 5, 2, 4)])
def test_differences_of_all_pairs_are_scipys_tukey_test(sizes: tuple[int, ...]) -> None:
    groups = groups_of(sizes)
    ranking, tukey = ranking_of(groups), stats.tukey_hsd(*groups)
    limits = tukey.confidence_interval(0.975)
    for cell, other in combinations(ranking.standings, 2):
        i, j = FOUR.index(dict(cell.cell)), FOUR.index(dict(other.cell))
        found = ranking.gap(cell, other, FIRST)
        assert found.mean == pytest.approx(tukey.statistic[i, j]) and found.basis == "unpaired"
        assert found.half_width == pytest.approx((limits.high - limits.low)[i, j] / 2, rel=1e-3)


def test_differences_from_a_baseline_are_scipys_dunnett_test() -> None:
    groups = groups_of((5, 3, 4, 4))
    ranking = with_baseline(ranking_of(groups), "SCHEDULER=linear")
    expected = stats.dunnett(*groups[1:], control=groups[0], random_state=1)
    limits = expected.confidence_interval(0.975)
    assert ranking.baseline is not None
    for one in against(ranking, ranking.standings[ranking.baseline], "baseline"):
        place, found = FOUR.index(dict(one.standing.cell)) - 1, one.gaps[FIRST]
        half = (limits.high[place] - limits.low[place]) / 2
        assert found.half_width == pytest.approx(half, rel=5e-3)
        assert found.mean == pytest.approx((limits.high + limits.low)[place] / 2, rel=1e-3)
        assert found.half_width < ranking.gap(one.standing, of(ranking, "linear"), FIRST).half_width


def test_outcomes_are_by_both_measures() -> None:
    """Higher by one and tied by the other is higher; one way and the other is mixed."""
    rng = np.random.default_rng(0)
    values, slopes = 1e-4 * rng.normal(size=(2, 4, 3))
    values[1:3] += 0.1
    slopes[2] -= 0.5
    ranking = rank(known_sweep(values, FOUR, clean=slopes))
    found = against(ranking, of(ranking, "linear"), "pairs")
    outcomes = {one.standing.label: one.outcome for one in found}
    assert outcomes == {"cosine": "higher", "cos6": "mixed", "sigmoid": "tied"}


def test_levels_are_held_together_with_the_pairs() -> None:
    values = 0.001 * np.random.default_rng(1).normal(size=(9, 3))
    values[4:] += 0.2
    ranking = known_ranking(values, cells_of(GRID_9))
    one, other = ranking.standings[0], ranking.standings[-1]
    each = [ranking.level_gap(one, other, level) for level in ranking.levels]
    assert len(each) == 3 and all(found.sign for found in each)
    # The curves are shifted whole, so that a level scatters as the mean does: 5 % over 3, not 2.
    single = ranking.gap(one, other, FIRST)
    assert all(found.half_width > single.half_width for found in each)


@pytest.mark.slow
def test_one_seed_is_compared_over_pairs_in_both_families() -> None:
    rng = np.random.default_rng(2)
    pairs = rng.gamma(9, 1 / 9, size=(3, 50))
    trials = [
        trial_of(cell, 0, error_of(0.01 * k, pairs=pairs * rng.normal(1, 0.02, pairs.shape)))
        for k, cell in enumerate(FOUR)
    ]
    ranking = rank(sweep_of(trials))
    logs = [np.log10(t.error.mse.mean(axis=1)).mean() for t in trials if t.error]
    parts = [  # each pair's part in the mean of logarithms, to first order
        (t.error.mse / t.error.mse.mean(axis=1, keepdims=True)).mean(axis=0) / np.log(10)
        for t in trials
        if t.error
    ]
    error = (parts[3] - parts[0]).std(ddof=1) / np.sqrt(50)
    found = ranking.gap(of(ranking, "sigmoid"), of(ranking, "linear"), FIRST)
    quantile = stats.studentized_range.ppf(0.975, 4, 49) / np.sqrt(2)
    assert found.basis == "evaluation" and found.mean == pytest.approx(logs[3] - logs[0])
    assert found.half_width == pytest.approx(quantile * error, rel=1e-3)
    narrow = ranking.gap(of(ranking, "sigmoid"), of(ranking, "linear"), FIRST, "baseline")
    assert 0 < narrow.half_width < found.half_width


def test_cells_without_a_seed_in_common_are_never_told_apart() -> None:
    trials = [trial_of(cell, k, error_of(float(k))) for k, cell in enumerate(FOUR[:2])]
    ranking = rank(sweep_of(trials))
    a, b = ranking.standings
    gaps = [ranking.level_gap(a, b, level) for level in ranking.levels]
    assert not any(gap.sign for gap in [*gaps, ranking.gap(a, b, FIRST)])
    assert ranking.winner is None and len(ranking.tied) == 2


# The cell to take.


def level_cells(**facts: tuple[float | None, float, float, int]) -> Ranking:
    """Cells of a scatter that hides what they differ by: core-seconds, log10 KID and FID, calls."""
    scatter = np.array([[0.0, 1, -1], [1, -1, 0], [-1, 0, 1], [1, 0, -1]])
    trials = [
        trial_of(
            {SCHEDULER: name},
            seed,
            error_of(-1.0),
            summary={} if seconds is None else {"core_seconds": seconds},
            quality=quality_of(10 ** (kid + rest[seed]), 10 ** (fid + rest[seed])),
        )
        for (name, (seconds, kid, fid, _)), rest in zip(facts.items(), scatter, strict=False)
        for seed in range(3)
    ]
    ranking = rank(sweep_of(trials))
    calls = {name: of_one[3] for name, of_one in facts.items()}
    standings = tuple(replace(one, calls=float(calls[one.label])) for one in ranking.standings)
    return replace(ranking, standings=standings)


@pytest.mark.parametrize(
    ("facts", "best"),
    [
        ({"a": (10, 0.0, 0.0, 50), "b": (20, -0.1, -0.1, 5)}, "a"),  # the cheaper training
        ({"a": (10, 0.0, 0.0, 50), "b": (10.9, -0.1, -0.1, 25)}, "b"),  # within 10 %: fewer calls
        ({"a": (10, 0.0, 0.0, 25), "b": (10.9, -0.1, -0.1, 25)}, "b"),  # then the least loss
        ({"a": (10, -0.2, 0.1, 25), "b": (10, 0, 0, 25), "c": (10, 0.1, -0.2, 25)}, "b"),
        ({"a": (None, 0.0, 0.0, 25), "b": (20, -0.1, -0.1, 25)}, "b"),  # an unknown cost is none
        ({"a": (0.0, 0.0, 0.0, 25), "b": (20, -0.1, -0.1, 25)}, "b"),  # nor is one of nothing
    ],
)
def test_of_the_cells_that_are_level_the_cheapest_is_recommended(facts: dict, best: str) -> None:
    ranking = level_cells(**facts)
    assert len(ranking.tied) == len(facts) and ranking.recommended is not None
    assert ranking.recommended.label == best
    known = [name for name, (seconds, *_) in facts.items() if seconds]
    assert sorted(one.label for one in known_costs(ranking)[0]) == known


def test_a_winner_is_recommended_whatever_it_costs() -> None:
    sweep = samples(3, -1.0, -0.5, -0.4)
    dear = [
        replace(t, summary={"core_seconds": 99.0 if t.cell == FOUR[0] else 1.0})
        for t in sweep.trials
    ]
    ranking = rank(replace(sweep, trials=tuple(dear)))
    assert ranking.winner is ranking.recommended is of(ranking, "linear")
    assert ranking.tied == (ranking.winner,) and ranking.loss(ranking.winner) == 0


@pytest.mark.parametrize("number", range(4))
def test_the_two_orders_agree_as_scipys_kendalls_tau(number: int) -> None:
    rng = np.random.default_rng(number)
    errors, fids = rng.normal(size=(2, 9))
    fids += (number - 1) * errors
    trials = [
        trial_of(cell, 0, error_of(-1 + 0.1 * x0), quality=quality_of(0.1, 10 ** (0.1 * fid)))
        for cell, x0, fid in zip(cells_of(GRID_9), errors, fids, strict=True)
    ]
    ranking = rank(sweep_of(trials))
    found = agreement(ranking)
    assert found is not None and found[3] == 9
    assert found[0] == pytest.approx(stats.kendalltau(errors, fids).statistic)
    # Fisher's z of tau has variance 0.437 / (n - 4).
    ends = np.arctanh(found[0]) + np.array([-1, 1]) * 1.96 * np.sqrt(0.437 / 5)
    assert found[1:3] == pytest.approx(tuple(np.tanh(ends)))
    assert agreement(known_ranking(np.zeros((4, 2)), FOUR)) is None


# A baseline that is named beforehand.


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("PRED_TYPE=noise", "names 3 of the ranked cells (linear \u00b7 noise; cosine"),
        ("SCHEDULER=square", "names none of the ranked cells ("),
        ("SPEED=9", "give keys and values of exactly one, such as SCHEDULER=linear,PRED_TYPE="),
    ],
)
def test_a_baseline_is_exactly_one_cell(named: str, said: str) -> None:
    ranking = known_ranking(0.1 * np.arange(9)[:, None] + np.zeros((9, 3)), cells_of(GRID_9))
    with pytest.raises(InputError) as caught:
        with_baseline(ranking, named)
    assert said in str(caught.value)
    found = with_baseline(ranking, "scheduler=Cosine, TRAINING.PRED_TYPE=image")
    assert found.baseline is not None
    assert found.standings[found.baseline].label == "cosine \u00b7 image"
