"""The answer of a sweep in words that claim what its intervals show, no more and no less.

    winner     no cell beats it by any measure of the headline, and it beats every other by one
    tied       the cells that no measure tells from its lowest; the others are beaten by one
    disagree   one measure tells A from B, another tells B from A
    undecided  one cell alone is tied with the lowest by all measures, but does not beat the rest

One error of 5 % is shared by all pairs of cells and all measures (Tukey; Bonferroni over measures),
and the sentences repeat the very intervals that the verdict rests on.

A factor's levels are compared averaged over the others where no interaction with it was found, else
at every value of the factors it interacts with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite, nan
from pathlib import Path

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.report.best_samples import along
from ddpm.report.costs import ALIKE
from ddpm.report.effects import Analysis, Effect
from ddpm.report.labels import (
    TITLES,
    above,
    capital,
    interval_text,
    listed,
    part,
    probability,
    ranges,
    signed,
    signed_digits,
    spoken,
    varied,
    with_error,
)
from ddpm.report.race import RACE_FILE, decided_for
from ddpm.report.ranking import Ranking, Standing, against
from ddpm.report.reading import SweepResults, Value, mapping, number, sequence
from ddpm.report.scatter import CHOICE_DOF, Spread
from ddpm.runs import read_facts
from ddpm.sweep import cell_name

_SIGNIFICANT = 0.05  # of an interaction
_NAMED = 3  # cells that are worse and are named
_FEW = 4  # places that are spoken of one by one


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The words of the first screen."""

    kind: str = "none"  # winner | tied | disagree | undecided | none
    headline: str
    sentences: tuple[str, ...]


def judge(sweep: SweepResults, ranking: Ranking) -> Conclusion:
    """The verdict on a sweep's ranking."""
    standings = ranking.standings
    if ranking.problem:
        return Conclusion(headline="No comparison.", sentences=(ranking.problem,))
    if not standings:
        return _nothing(sweep)
    if not sweep.is_sweep:
        return _of_a_run(ranking)
    learned = _learned(ranking)
    if len(standings) == 1:
        headline = (
            f"Only {standings[0].label} can be compared; there is nothing to compare it with."
        )
        return Conclusion(headline=headline, sentences=(*learned, scope(sweep, ranking)))
    if ranking.too_few_learned and len(ranking.failed) == len(standings):
        headline = "No answer: no network has learned more than the data's mean and covariance."
        said = (*learned, against_baseline(ranking), scope(sweep, ranking))
        return Conclusion(headline=headline, sentences=tuple(filter(None, said)))
    kind, headline = _verdict(ranking)
    lead = ranking.recommended
    assert lead is not None
    sentences = [*learned, *_real(ranking)]
    sentences += [by_measure(ranking, lead, measure) for measure in ranking.measures]
    if kind == "disagree" and not ranking.of_samples:
        sentences.append(_by_level(ranking, *(ranking.lowest(m) for m in ranking.measures)))
    sentences += [
        "" if kind == "winner" else _recommendation(ranking, lead),
        _why_no_samples(sweep, ranking),
        unequal(ranking),
        against_baseline(ranking),
        *(words for found in along(sweep, ranking) for words in found.sentences()),
        scope(sweep, ranking),
    ]
    return Conclusion(kind=kind, headline=headline, sentences=tuple(filter(None, sentences)))


def _verdict(ranking: Ranking) -> tuple[str, str]:
    each = [TITLES[measure] for measure in ranking.measures]
    names, both = " or ".join(each), " and ".join(each)
    where = "" if ranking.spread(ranking.measures[0]) is not None else " of this run"
    what = "draws the best samples" if ranking.of_samples else "has the lowest x0-error"
    if (best := ranking.winner) is not None:
        rows = [ranking.signs[measure][ranking.place(best)] for measure in ranking.measures]
        if all((row < 0).sum() == len(row) - 1 for row in rows):
            return "winner", f"{best.label} {what}{where}, by both {both}."
        return "winner", (
            f"{best.label} {what}{where}: no cell beats it by {names}, and it beats every other by "
            "one of them at least."
        )
    for one in ranking.measures:
        for other in ranking.measures:
            a, b = ranking.lowest(one), ranking.lowest(other)
            first = ranking.signs[one][ranking.place(a), ranking.place(b)]
            second = ranking.signs[other][ranking.place(b), ranking.place(a)]
            if first < 0 and second < 0:
                return "disagree", (
                    f"No single winner{where}: the measures disagree. {a.label} beats {b.label} by "
                    f"{TITLES[one]}, {b.label} beats {a.label} by {TITLES[other]}."
                )
    tied = ranking.tied
    if len(tied) == len(ranking.standings):
        return "tied", f"No winner{where}: no cell can be told apart from the lowest by {names}."
    if len(tied) > 1:
        rest = [one.label for one in ranking.standings if one not in tied]
        who = f", {listed(rest)}," if len(rest) <= _NAMED else ""
        return "tied", (
            f"No winner{where}: {_group(ranking, tied)} are tied, none told apart from the "
            f"lowest by {names}. The other {'cell' if len(rest) == 1 else len(rest)}{who} "
            f"{'is' if len(rest) == 1 else 'are'} worse by one of them at least."
        )
    (only,) = tied
    beaten = np.any([ranking.signs[m][ranking.place(only)] < 0 for m in ranking.measures], axis=0)
    left = [s.label for s, is_beaten in zip(ranking.standings, beaten, strict=True)
            if s is not only and not is_beaten]  # fmt: skip
    better = [s.label for s in ranking.standings
              if any(ranking.signs[m][ranking.place(s), ranking.place(only)] < 0
                     for m in ranking.measures)]  # fmt: skip
    why = f"does not itself beat {listed(left)}" if left else f"is beaten by {listed(better)}"
    return "undecided", (
        f"Undecided{where}: only {only.label} is tied with the lowest by both {both}, but it {why}."
    )


def _why_no_samples(sweep: SweepResults, ranking: Ranking) -> str:
    """The reason that samples are not the headline; "" where they are, or none were drawn."""
    points = [p for t in sweep.trials if t.quality is not None for p in t.quality.points]
    if ranking.of_samples or not points:
        return ""
    reasons = [p.reasons[name] for p in points for name in ("fid", "kid") if name in p.reasons]
    why = reasons[0] if reasons else "the cells were not all drawn and measured alike"
    return f"Samples were drawn but are not compared: {why.rstrip('.')}."


def _learned(ranking: Ranking) -> list[str]:
    """The cells that learned nothing: no better than the Gaussian fit."""
    if not ranking.failed:
        return []
    names = [f"{one.label} ({above(value)})" for one, value in ranking.failed]
    said = f"{listed(names)} failed to learn: the x0-error is no lower than the Gaussian fit's"
    failed = [one.label for one, _ in ranking.failed]
    learned = [one.label for one in ranking.standings if one.label not in failed]
    apart = "; set apart, in no ranking and no average"
    if ranking.too_few_learned:
        apart = f"; ranked all the same, for only {learned[0]} learned" if learned else ""
    return [f"{said}{apart}."]


def _real(ranking: Ranking) -> list[str]:
    """The numbers of real images, and the cells that a measure cannot tell from them."""
    known = [measure for measure in ranking.measures if measure in ranking.real]
    if not known:
        return []
    numbers = [f"{TITLES[m]} {interval_text(ranking.real[m])}" for m in known]
    count = max(ranking.real[measure].n for measure in known)
    parts = [f"{count:,} held-out real images: {' and '.join(numbers)}"]
    alike = {m: tuple(one.label for one in ranking.like_real(m)) for m in known}
    for names in filter(None, dict.fromkeys(alike.values())):
        by = [TITLES[m] for m in known if alike[m] == names]
        if len(names) == len(ranking.standings) > 2:
            parts.append(f"no cell can be told from them by {' or '.join(by)}")
        else:
            parts.append(f"by {listed(by)} {listed(names)} cannot be told from them")
    return [f"{'; '.join(parts)}."]


def by_measure(ranking: Ranking, lead: Standing, measure: str) -> str:
    """By one measure: the cells that `lead` beats, those tied with it, those that beat it."""
    if measure not in ranking.informative:
        return uninformative(measure)
    found = {one.label: ranking.gap(one, lead, measure) for one in ranking.standings}
    del found[lead.label]
    beaten = {label: gap for label, gap in found.items() if gap.sign > 0}
    tied = [label for label, gap in found.items() if gap.sign == 0]
    better = [
        f"{label}, {above(gap.mean, gap.half_width)}"
        for label, gap in found.items()
        if gap.sign < 0
    ]
    where = "" if ranking.spread(measure) is not None else ", in this run,"
    parts = []
    if better:
        parts.append(f"is beaten by {listed(better)}")
    if beaten:
        label = min(beaten, key=lambda name: beaten[name].mean)
        near = above(beaten[label].mean, beaten[label].half_width)
        if len(beaten) == 1:
            parts.append(f"beats {label}, which is {near}")
        else:
            others = "others" if tied or better else "other cells"
            parts.append(f"beats the {len(beaten)} {others}, of which {label} is nearest, {near}")
    if tied:
        names = _group(ranking, tied) if len(tied) < len(found) else "any other cell"
        parts.append(f"cannot be told apart from {names}")
    lowest = " is lowest;" if lead is ranking.lowest(measure) and parts else ""
    joined = ", and ".join(parts)
    return f"By {TITLES[measure]}{where} {lead.label}{f'{lowest} it' if lowest else ''} {joined}."


def uninformative(measure: str) -> str:
    """A measure that is not of Ranking.informative, in words."""
    title = TITLES[measure]
    return f"By {title} nothing can be told: no cell's {title} exceeds its own evaluation error."


def _group(ranking: Ranking, some: Sequence[Standing] | Sequence[str]) -> str:
    """Cells in words: what they, and no others, have in common, else their names."""
    labels = [one if isinstance(one, str) else one.label for one in some]
    if len(labels) > 2:
        members = [s for s in ranking.standings if s.label in labels]
        for key in varied([standing.cell for standing in ranking.standings]):
            alike = [s.label for s in ranking.standings if s.code(key) == members[0].code(key)]
            if set(alike) == set(labels):
                return (
                    f"the {len(labels)} cells with {spoken(key)} {part(key, members[0].cell[key])}"
                )
    return listed(labels)


def _recommendation(ranking: Ranking, lead: Standing) -> str:
    """Of the tied cells the cheapest, how far from the lowest, and what it saves."""
    much = 100 * (10 ** ranking.loss(lead) - 1)
    said, told = f"Recommended: {lead.label}", ranking.informative
    by = "every measure" if len(told) > 1 else "".join(TITLES[measure] for measure in told)
    if much > 0:
        by = by.replace("every", "either")
        said += f", at most {signed_digits(much)} % above the lowest by {by} as measured"
    else:
        said += f", the lowest by {by}" if told else ""
    rival = ranking.lowest(ranking.measures[0])
    if rival is not lead:
        if ranking.is_cheaper(lead, rival):
            share = (lead.seconds or nan) / (rival.seconds or nan)
            said += f", at {share:.2g} of the training cost of {rival.label}"
        elif ALIKE * lead.calls < rival.calls:
            share = lead.calls / rival.calls
            said += f", at {share:.2g} of the network calls an image of {rival.label}"
    return f"{said}. A choice, not a claim."


def unequal(ranking: Ranking) -> str:
    """Cells that scatter over seeds more than others; "" where all scatter alike."""
    for measure in ranking.measures:
        found = ranking.spread(measure)
        if found is None:
            continue
        if found.apart:
            names = [ranking.standings[place].label for place in found.apart]
            verb = "scatters" if len(names) == 1 else "scatter"
            return (
                f"{listed(names)} {verb} over seeds far more than the other cells (an F test at "
                "2 %), so comparisons with it rest on the spread of the two cells compared."
            )
        if found.groups is not None and found.groups.is_certain:
            key = ranking.factors[found.groups.factor]
            wide, quiet = found.groups.cells[0], found.groups.cells[-1]
            names = [
                listed(list(dict.fromkeys(part(key, ranking.standings[p].cell[key]) for p in some)))
                for some in (wide, quiet)
            ]
            times = found.groups.deviations[0] / max(found.groups.deviations[-1], 1e-300)
            return (
                f"Over seeds, {TITLES[measure]} of cells with {spoken(key)} {names[0]} scatters "
                f"{times:.2g} times as much as with {names[1]}, so each rests on a spread of its "
                "own; more seeds help the first most."
            )
    return ""


def scope(sweep: SweepResults, ranking: Ranking) -> str:
    """Over what the intervals are, and what one or two seeds may not claim."""
    count = len(ranking.standings)
    on = f"{ranking.standings[0].num_pairs} validation images"
    if ranking.point is not None:
        calls = f"{ranking.point.sampler}, {ranking.point.evaluations} network calls an image"
        on = f"{ranking.num_samples:,} samples ({calls})"
    most = max(len(standing.trials) for standing in ranking.standings)
    if most > 1 and (count > 1 or ranking.num_seeds > 1):
        fewer = f"{ranking.num_seeds} to " if ranking.num_seeds < most else ""
        return (
            f"Intervals are over {fewer}{most} training seeds, each measured on {on}, and hold at "
            f"95 % for all pairs of cells and both measures together.{_few(ranking)}"
        )
    what = "this one trained network" if count == 1 else f"these {count} trained networks"
    more = " Give SEEDS three or more values to learn about the cells." if sweep.is_sweep else ""
    return (
        f"One training seed: this speaks of {what} on {on} and claims nothing "
        f"about the cells beyond this run.{more}"
    )


def _few(ranking: Ranking) -> str:
    """Assumptions of the intervals where a cell has one or two seeds."""
    single = [one.label for one in ranking.standings if len(one.trials) == 1]
    if single:
        return (
            f" {listed(single)} {'has' if len(single) == 1 else 'have'} one seed only, so that "
            "it is taken for granted, not seen, that such cells scatter as the others do."
        )
    if ranking.num_seeds == 2:
        return (
            " Two seeds do not show whether all cells scatter alike, which these intervals take "
            "for granted; the interval of one cell by itself is very wide."
        )
    return ""


def pairing(ranking: Ranking, measure: str) -> str:
    """The ratio of paired to unpaired variance, and which interval is used for it."""
    found = ranking.spread(measure)
    if found is None:
        return "With one seed, what is paired over seeds cannot be said."
    if not isfinite(found.ratio):
        return (
            "No two cells share seeds enough to pair by them, so intervals are unpaired."
            if found.paired_dof < 1
            else "The cells do not scatter at all over seeds."
        )
    much = (
        "All trials of a seed share batches and noise. Over seeds, paired differences vary "
        f"{found.ratio:.2f} times as much as unpaired ones would"
    )
    return f"{much}; {_choice(found)}."


def _choice(found: Spread) -> str:
    if not found.is_paired:
        return "unpaired intervals are narrower here and are used"
    if found.ratio < 1:
        return "intervals are paired"
    return (
        "pairing gains nothing here. Intervals are paired all the same: fewer than "
        f"{CHOICE_DOF} degrees of freedom are too few to choose by the result"
        if found.paired_dof < CHOICE_DOF
        else "intervals are paired all the same, being narrower"
    )


def _of_a_run(ranking: Ranking) -> Conclusion:
    (standing,) = ranking.standings
    numbers = [
        f"{TITLES[m]} {with_error(standing.value(m), standing.error(m))}" for m in X0_MEASURES
    ]
    over = "the data's window of " if ranking.is_window else ""
    sentence = (
        f"Averaged over {over}log SNR {ranges(ranking.levels)}, on {standing.num_pairs} validation "
        "images (evaluation error). Runs compare by these only over the same levels: train them in "
        "one sweep."
    )
    headline = f"x0-error of this run: {numbers[0]}, {numbers[1]}."
    return Conclusion(headline=headline, sentences=(sentence, *_learned(ranking)))


def _nothing(sweep: SweepResults) -> Conclusion:
    headline = "No answer yet."
    if not sweep.is_sweep:
        headline = "This run has not been evaluated yet."
        why = "It has no evaluation.npz; a run writes one when it ends."
    elif sweep.planned_tuning and not sweep.trials:
        why = "The trainings that choose within each cell come first; none that compares has begun."
    elif not sweep.with_status("done"):
        why = "No trial has finished."
    else:
        why = "No finished trial has been evaluated."
    return Conclusion(headline=headline, sentences=(why,))


def _by_level(ranking: Ranking, first: Standing, second: Standing) -> str:
    levels = [one for one in ranking.levels if one in first.levels and one in second.levels]
    signs = {level: ranking.level_gap(first, second, level).sign for level in levels}
    parts = [
        f"{cell.label} is better at {ranges(better)}"
        for cell, sign in ((first, -1), (second, 1))
        if (better := [level for level, one in signs.items() if one == sign])
    ]
    if neither := [level for level, one in signs.items() if one == 0]:
        parts.append(f"they cannot be told apart at {ranges(neither)}")
    return "By log SNR (low is noisy, high nearly clean): " + "; ".join(parts) + "."


def against_baseline(ranking: Ranking) -> str:
    """The comparison with the baseline in a sentence; "" without a baseline."""
    if ranking.baseline is None or len(ranking.standings) < 2:
        return ""
    reference = ranking.standings[ranking.baseline]
    found = against(ranking, reference, "baseline")
    parts = []
    for outcome, words in (
        ("lower", "better"),
        ("higher", "worse"),
        ("mixed", "better by one measure and worse by the other"),
        ("tied", "not to be told apart from it"),
    ):
        names = [one.standing.label for one in found if one.outcome == outcome]
        if names:
            parts.append(f"{words}: {listed(names)}")
    where = "" if ranking.spread(ranking.measures[0]) is not None else ", in this run"
    return f"Against the baseline {reference.label}{where}: {'; '.join(parts)}."


def meaning_of_errors(standings: Sequence[Standing]) -> str:
    """Meaning of the errors in a table."""
    if all(len(standing.trials) > 1 for standing in standings):
        return "\u00b1 is the half-width of the 95 % interval over training seeds"
    if all(len(standing.trials) == 1 for standing in standings):
        return "\u00b1 is evaluation error, a standard error that does not speak of other seeds"
    return (
        "\u00b1 is the half-width of the 95 % interval over training seeds where a cell has two or "
        "more, else evaluation error (a standard error)"
    )


def after_race(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> Conclusion:
    """The verdict as far as a race of seeds allows it.

    Seeds that are added while looking find a winner too easily: after a race only the cell that its
    own intervals leave may be named.
    """
    race = looks(sweep.folder)
    if not race:
        return verdict
    left = decided_for(race)
    if verdict.kind == "winner":
        assert ranking.winner is not None
        if left is None:
            headline = "Undecided: the race of seeds names no winner."
            verdict = replace(verdict, kind="undecided", headline=headline)
        elif left != cell_name(ranking.winner.cell):
            headline = f"Undecided: the race of seeds leaves {left}, all seeds together another."
            verdict = replace(verdict, kind="undecided", headline=headline)
    return replace(verdict, sentences=(*verdict.sentences, race_in_words(race)))


def race_in_words(found: Sequence[Mapping[str, Value]]) -> str:
    """The decision of a race of seeds in a sentence."""
    last = found[-1]
    winner, seeds = decided_for(found), last.get("seeds")
    if winner is not None:
        how = f"{winner} is left after {seeds} seeds, every other told to be worse by a measure"
    elif last.get("is_decided"):
        how = f"no cell is tied with the lowest by every measure after {seeds} seeds"
    else:
        left = sequence(last.get("racing"))
        how = f"after {seeds} seeds {len(left)} cells cannot be told apart"
    return (
        f"Race of seeds: {how} (intervals corrected for the cells and for looking several times, "
        "at most 5 % false winners)."
    )


def looks(folder: Path) -> list[Mapping[str, Value]]:
    """The looks of a race of seeds, the first one first; none without a race."""
    facts = read_facts(folder / RACE_FILE)
    return [mapping(one) for one in sequence(facts.get("looks")) if number(facts.get("of", 0))]


def sentences(analysis: Analysis) -> tuple[str, ...]:
    """One or more sentences a factor; why there are none, otherwise."""
    if analysis.reason is not None:
        return (analysis.reason,)
    if analysis.error is None:
        return (
            "Nothing repeats, so that there is no error to hold an effect against, and no p: give "
            "SEEDS three or more values.",
        )
    said = [sentence for key in analysis.factors for sentence in _factor(analysis, key)]
    if analysis.is_one_seed:
        said.insert(
            0,
            f"With one seed nothing repeats, and {analysis.error.name} serves as error. This takes "
            "for granted that there is no such interaction, and speaks of this seed alone.",
        )
    return tuple(said)


def _factor(analysis: Analysis, key: str) -> list[str]:
    name = capital(spoken(key))
    found = [term for term in analysis.interactions(key) if term.p < _SIGNIFICANT]
    partners = [k for k in analysis.factors if any(k in term.keys for term in found) and k != key]
    if not partners:
        others = [spoken(one) for one in analysis.factors if one != key]
        over = f", averaged over {listed(others)}" if others else ""
        tested = [term.p for term in analysis.interactions(key) if isfinite(term.p)]
        none = f" (no interaction found, {probability(min(tested))})" if tested else ""
        return [f"{name}{over}{none}: {compared(analysis.effect(key))}."]
    p = probability(min(term.p for term in found))
    lead = f"What {spoken(key)} does depends on {listed([spoken(k) for k in partners])} ({p})"
    return [f"{lead}; {_where(analysis, key, partners)}."]


def _where(analysis: Analysis, key: str, partners: Sequence[str]) -> str:
    """The factor's levels compared at each value of its partners."""
    assert analysis.design is not None
    places = list(product(*(analysis.design.values[partner] for partner in partners)))
    effects = [
        analysis.effect(key, dict(zip(partners, values, strict=True)), len(places))
        for values in places
    ]
    if len(places) > _FEW:
        return _counted(effects)
    return "; ".join(
        f"at {_place(partners, values)}, {compared(effect)}"
        for values, effect in zip(places, effects, strict=True)
    )


def _place(partners: Sequence[str], values: Sequence[Value]) -> str:
    return " ".join(part(key, value) for key, value in zip(partners, values, strict=True))


def compared(effect: Effect) -> str:
    """`velocity beats noise by 0.012 +- 0.004; image and velocity cannot be told apart`."""
    names = [part(effect.key, value) for value in effect.levels]
    order = [int(place) for place in np.argsort(effect.means, kind="stable")]
    best, rest = order[0], order[1:]
    beaten = [other for other in rest if effect.sign(best, other) < 0]
    tied = [other for other in rest if other not in beaten]
    if not beaten:
        return _without_best(effect, names, order)
    said = f"{names[best]} beats {listed([_by(effect, names, best, o) for o in beaten])}"
    if tied:
        said += f"; {names[best]} cannot be told apart from {listed([names[o] for o in tied])}"
    return said


def _without_best(effect: Effect, names: Sequence[str], order: Sequence[int]) -> str:
    """A lowest level that beats none: other pairs may differ when cells are missing."""
    pairs = [(a, b) for a in order for b in order if effect.sign(a, b) < 0]
    if not pairs:
        return f"{listed([names[place] for place in order])} cannot be told apart"
    said = [f"{names[a]} beats {_by(effect, names, a, b)}" for a, b in pairs]
    return f"{listed(said)}; no other two can be told apart"


def _by(effect: Effect, names: Sequence[str], a: int, b: int) -> str:
    return f"{names[b]} by {with_error(effect.differences[b, a], effect.widths[a, b])}"


def _counted(effects: Sequence[Effect]) -> str:
    """The level that is lowest on average against each other, by how often either is lower."""
    names = [part(effects[0].key, value) for value in effects[0].levels]
    average = np.mean([effect.means for effect in effects], axis=0)
    order = [int(place) for place in np.argsort(average, kind="stable")]
    counts = "; ".join(_count(effects, names, order[0], other) for other in order[1:7])
    return f"of their {len(effects)} combinations, {counts}"


def _count(effects: Sequence[Effect], names: Sequence[str], a: int, b: int) -> str:
    signs = [effect.sign(a, b) for effect in effects]
    total, wins, losses = len(signs), signs.count(-1), signs.count(1)
    if wins == total:
        sizes = [float(effect.differences[b, a]) for effect in effects]
        low, high = signed(min(sizes), 3), signed(max(sizes), 3)
        return f"{names[a]} beats {names[b]} at each, by {low} to {high}"
    if not wins and not losses:
        return f"{names[a]} and {names[b]} cannot be told apart at any"
    parts = [f"{names[a]} beats {names[b]} at {wins}"] if wins else []
    parts += [f"{names[b]} beats {names[a]} at {losses}"] if losses else []
    left = total - wins - losses
    parts += [f"they cannot be told apart at {left}"] if left else []
    return ", ".join(parts)
