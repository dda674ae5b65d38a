"""The answer of a sweep in words that claim no more than the numbers allow.

A winner is named where both rankings agree and every other cell can be told apart from it;
otherwise the sentences say which cells are level with it, or at which noise levels each of two is
better. Intervals hold for all pairs of cells together (Tukey), since the best one was picked among
them; those against a baseline that was named beforehand hold together too (Dunnett).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

from ddpm.measures import MEASURES
from ddpm.report.best_samples import best_samples
from ddpm.report.comparisons import against_baseline
from ddpm.report.data import Sweep
from ddpm.report.gaps import CONFIDENCE, Gap, gap, level_gaps
from ddpm.report.labels import listed, number_with_error, part, ranges, spoken, varied
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.scope import scope

NAMES = {MEASURES[0]: "mean log10 error", MEASURES[1]: "SNR-weighted error"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the first screen says."""

    kind: str  # winner | tie | split | none
    headline: str
    sentences: tuple[str, ...]


def judge(sweep: Sweep, ranking: Ranking) -> Verdict:
    """The verdict on a sweep's ranking."""
    standings = ranking.standings
    if ranking.problem:
        return Verdict(kind="none", headline="No comparison.", sentences=(ranking.problem,))
    if not standings:
        return _nothing(sweep)
    if not sweep.is_sweep:
        return _of_a_run(ranking)
    if len(standings) == 1:
        return Verdict(
            kind="none",
            headline=f"Only {standings[0].label} can be measured; there is nothing to compare.",
            sentences=(scope(sweep, ranking),),
        )
    first, second = (standings[ranking.order(measure)[0]] for measure in MEASURES)
    if first is second:
        verdict = _agreed(sweep, ranking, first)
    else:
        verdict = _split(sweep, ranking, first, second)
    more = tuple(filter(None, [best_samples(ranking), against_baseline(ranking)]))
    return replace(verdict, sentences=(*verdict.sentences, *more))


def _of_a_run(ranking: Ranking) -> Verdict:
    (standing,) = ranking.standings
    numbers = [
        f"{NAMES[m]} {value} \u00b1 {error}"
        for m in MEASURES
        for value, error in [number_with_error(standing.value(m), standing.error(m))]
    ]
    pairs = next(iter(standing.summaries.values())).num_pairs
    sentence = (
        f"Averaged over log SNR {ranges(ranking.levels)}, on {pairs} validation images (evaluation "
        "error). Runs compare by these only over the same levels: train them in one sweep."
    )
    headline = f"x0-error of this run: {numbers[0]}, {numbers[1]}."
    return Verdict(kind="none", headline=headline, sentences=(sentence,))


def _nothing(sweep: Sweep) -> Verdict:
    if not sweep.is_sweep:
        why = "It has no evaluation.npz; a run writes one when it ends."
        return Verdict(
            kind="none", headline="This run has not been evaluated yet.", sentences=(why,)
        )
    done = len(sweep.with_status("done"))
    why = "No trial has finished." if not done else "No finished trial has been evaluated."
    return Verdict(kind="none", headline="No answer yet.", sentences=(why,))


def _agreed(sweep: Sweep, ranking: Ranking, best: Standing) -> Verdict:
    others = [standing for standing in ranking.standings if standing is not best]
    level = [o.label for o in others if not _told_apart(ranking, o, best)]
    where = "" if ranking.spread(MEASURES[0]) is not None else " of this run"
    runner_up = others[0]
    margin = gap(ranking, runner_up, best, MEASURES[0])
    distance = f"Next is {runner_up.label}: {_distance(margin)}."
    if not level:
        headline = f"{best.label} has the lowest x0-error{where}, by both measures."
        sentences = (distance, scope(sweep, ranking))
        return Verdict(kind="winner", headline=headline, sentences=sentences)
    headline = (
        f"No clear winner: {best.label} is lowest by both measures, but cannot be told apart from "
        f"{_group(ranking, best, level)}."
    )
    return Verdict(kind="tie", headline=headline, sentences=(distance, scope(sweep, ranking)))


def _split(sweep: Sweep, ranking: Ranking, first: Standing, second: Standing) -> Verdict:
    # Either measure alone is enough for this claim, so each has half of the error allowed.
    each = (1 + CONFIDENCE) / 2
    differ = (
        gap(ranking, second, first, MEASURES[0], each).is_told_apart
        or gap(ranking, first, second, MEASURES[1], each).is_told_apart
    )
    lead = (
        f"{first.label} has the lowest {NAMES[MEASURES[0]]}, "
        f"{second.label} the lowest {NAMES[MEASURES[1]]}"
    )
    if differ:
        headline = f"No single winner: the two measures disagree. {lead}."
        lowest = zip((first, second), MEASURES, strict=True)
        apart = (_apart(ranking, cell, measure) for cell, measure in lowest)
        sentences = (*apart, _by_level(ranking, first, second), scope(sweep, ranking))
        return Verdict(kind="split", headline=headline, sentences=sentences)
    headline = f"No clear winner: {lead}, but the two cannot be told apart."
    level = [
        other.label
        for other in ranking.standings
        if other not in (first, second) and not _told_apart(ranking, other, first)
    ]
    also = (f"Neither can {listed(level)} from {first.label}.",) if level else ()
    return Verdict(kind="tie", headline=headline, sentences=(*also, scope(sweep, ranking)))


def _apart(ranking: Ranking, lowest: Standing, measure: str) -> str:
    """By one measure: the cells level with its lowest, and how far above it the others are."""
    gaps = {
        one.label: gap(ranking, one, lowest, measure)
        for one in ranking.standings
        if one is not lowest
    }
    level = [label for label, one in gaps.items() if not one.is_told_apart]
    above = sorted(100 * (10**one.mean - 1) for one in gaps.values() if one.is_told_apart)
    ends = list(dict.fromkeys(f"{end:.{int(end < 10)}f}" for end in (*above[:1], *above[-1:])))
    parts = []
    if level:
        parts.append(f"cannot be told apart from {_group(ranking, lowest, level)}")
    if len(above) == 1:
        other = "other" if level else "other cell"
        parts.append(f"beats the {other}, whose error is {ends[0]} % larger")
    elif above:
        others = f"{len(above)} {'others' if level else 'other cells'}"
        parts.append(f"beats the {others}, whose errors are {' to '.join(ends)} % larger")
    where = "" if ranking.spread(measure) is not None else ", in this run,"
    return f"By {NAMES[measure]}{where} {lowest.label} {', and '.join(parts)}."


def _group(ranking: Ranking, lowest: Standing, level: Sequence[str]) -> str:
    """Cells in words: what they and `lowest`, and no others, have in common, else their names."""
    for key in varied([standing.cell for standing in ranking.standings]):
        alike = [s.label for s in ranking.standings if s.code(key) == lowest.code(key)]
        if set(alike) == {lowest.label, *level} and len(level) > 1:
            value = part(key, lowest.cell[key])
            return f"the {len(level)} other cells with {spoken(key)} {value}"
    return listed(level)


def _by_level(ranking: Ranking, first: Standing, second: Standing) -> str:
    gaps = level_gaps(ranking, first, second)
    better = {
        label: [level for level, one in zip(ranking.levels, gaps, strict=True) if test(one)]
        for label, test in (
            ("first", lambda one: one.is_told_apart and one.mean < 0),
            ("second", lambda one: one.is_told_apart and one.mean > 0),
            ("neither", lambda one: not one.is_told_apart),
        )
    }
    parts = [
        f"{cell.label} is better at {ranges(better[place])}"
        for cell, place in ((first, "first"), (second, "second"))
        if better[place]
    ]
    if better["neither"]:
        parts.append(f"they cannot be told apart at {ranges(better['neither'])}")
    return "By log SNR (low is noisy, high nearly clean): " + "; ".join(parts) + "."


def _told_apart(ranking: Ranking, other: Standing, best: Standing) -> bool:
    gaps = [gap(ranking, other, best, measure) for measure in MEASURES]
    return all(one.is_told_apart and one.mean > 0 for one in gaps)


def _distance(margin: Gap) -> str:
    if not isfinite(margin.half_width):
        return "the two have no seed in common, so their distance has no interval"
    value, width = number_with_error(margin.mean, margin.half_width)
    percent = f"{100 * (10**margin.mean - 1):.1f} %"
    over = f"over {margin.num_seeds} seeds"
    if margin.basis == "evaluation":
        over = "evaluation error only"
    elif margin.num_seeds == 1:
        over = "over seeds"
    return (
        f"its {NAMES[MEASURES[0]]} is {value} \u00b1 {width} higher, a typical x0-error {percent} "
        f"larger (interval corrected for all comparisons, {over})"
    )


def spread(standings: Sequence[Standing]) -> str:
    """What the errors in a table mean."""
    if all(len(standing.summaries) > 1 for standing in standings):
        return "\u00b1 is the half-width of the 95 % interval over training seeds"
    if all(len(standing.summaries) == 1 for standing in standings):
        return (
            "\u00b1 is evaluation error: the standard error over validation pairs, not over seeds"
        )
    return (
        "\u00b1 is the half-width of the 95 % interval over training seeds where a cell has two or "
        "more, else evaluation error (standard error over validation pairs)"
    )
