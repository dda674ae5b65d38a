"""The answer of a sweep in words that claim no more than the numbers allow.

A winner is named where both rankings agree and every other cell can be told apart from it;
otherwise the sentences say which cells are level with it, or at which noise levels each of two is
better. Intervals hold for all pairs of cells together (Tukey), since the best one was picked among
them; those against a baseline that was named beforehand hold together too (Dunnett).

A factor's levels are compared averaged over the others where no interaction with it was found, else
at every value of the factors it interacts with. Flags are warnings found in the trials: facts that
are missing, or not the same for all, so that a comparison limps.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite
from pathlib import Path

import numpy as np

from ddpm.metrics import MEASURES
from ddpm.report.best_samples import best_samples
from ddpm.report.effects import (
    CONFIDENCE,
    Analysis,
    Effect,
    Gap,
    against_baseline,
    analyse,
    gap,
    level_gaps,
)
from ddpm.report.labels import (
    NAMES,
    PRED_TYPE,
    SCHEDULER,
    cell_label,
    listed,
    number_with_error,
    part,
    probability,
    ranges,
    signed,
    spoken,
    text,
    varied,
)
from ddpm.report.race import decided_for
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.reading import (
    SweepResults,
    TrialResult,
    Value,
    mapping,
    number,
    read_json,
    sequence,
)
from ddpm.report.scatter import CHOICE_DOF, Spread


def scope(sweep: SweepResults, ranking: Ranking) -> str:
    """Over what the intervals are, and what one or two seeds may not claim."""
    count = len(ranking.standings)
    pairs = next(iter(ranking.standings[0].summaries.values())).num_pairs
    most = max(len(standing.summaries) for standing in ranking.standings)
    if most > 1 and (count > 1 or ranking.num_seeds > 1):
        fewer = f"{ranking.num_seeds} to " if ranking.num_seeds < most else ""
        return (
            f"Intervals are over {fewer}{most} training seeds, each measured on {pairs} "
            f"validation images.{_few(ranking)}"
        )
    what = "this one trained network" if count == 1 else f"these {count} trained networks"
    more = " Give SEEDS three or more values to learn about the cells." if sweep.is_sweep else ""
    return (
        f"One training seed: this speaks of {what} on {pairs} validation images and claims nothing "
        f"about the cells beyond this run.{more}"
    )


def _few(ranking: Ranking) -> str:
    """What intervals take for granted where a cell has one or two seeds."""
    single = [one.label for one in ranking.standings if len(one.summaries) == 1]
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


def pairing(ranking: Ranking, measure: str = MEASURES[0]) -> str:
    """The ratio of paired to unpaired variance, and which interval is used for it."""
    found = ranking.spread(measure)
    if found is None:
        return (
            "With one seed, differences are paired by (validation image, noise) pair, and what is "
            "paired over seeds cannot be said."
        )
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


def apart(ranking: Ranking) -> str:
    """The cells that scatter too much for a common spread; "" without any."""
    places = {p for m in MEASURES if (s := ranking.spread(m)) is not None for p in s.apart}
    if not places:
        return ""
    names = [ranking.standings[place].label for place in sorted(places)]
    verb = "scatters" if len(names) == 1 else "scatter"
    return (
        f"{listed(names)} {verb} over seeds far more than the other cells (an F test at 2 %), so "
        "comparisons with it rest on the spread of the two cells compared."
    )


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What the first screen says."""

    kind: str  # winner | tie | split | none
    headline: str
    sentences: tuple[str, ...]


def judge(sweep: SweepResults, ranking: Ranking) -> Conclusion:
    """The verdict on a sweep's ranking."""
    standings = ranking.standings
    if ranking.problem:
        return Conclusion(kind="none", headline="No comparison.", sentences=(ranking.problem,))
    if not standings:
        return _nothing(sweep)
    if not sweep.is_sweep:
        return _of_a_run(ranking)
    if len(standings) == 1:
        return Conclusion(
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


def _of_a_run(ranking: Ranking) -> Conclusion:
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
    return Conclusion(kind="none", headline=headline, sentences=(sentence,))


def _nothing(sweep: SweepResults) -> Conclusion:
    if not sweep.is_sweep:
        why = "It has no evaluation.npz; a run writes one when it ends."
        return Conclusion(
            kind="none", headline="This run has not been evaluated yet.", sentences=(why,)
        )
    done = len(sweep.with_status("done"))
    why = "No trial has finished." if not done else "No finished trial has been evaluated."
    return Conclusion(kind="none", headline="No answer yet.", sentences=(why,))


def _agreed(sweep: SweepResults, ranking: Ranking, best: Standing) -> Conclusion:
    others = [standing for standing in ranking.standings if standing is not best]
    level = [o.label for o in others if not _told_apart(ranking, o, best)]
    where = "" if ranking.spread(MEASURES[0]) is not None else " of this run"
    runner_up = others[0]
    margin = gap(ranking, runner_up, best, MEASURES[0])
    distance = f"Next is {runner_up.label}: {_distance(margin)}."
    if not level:
        headline = f"{best.label} has the lowest x0-error{where}, by both measures."
        sentences = (distance, scope(sweep, ranking))
        return Conclusion(kind="winner", headline=headline, sentences=sentences)
    headline = (
        f"No clear winner: {best.label} is lowest by both measures, but cannot be told apart from "
        f"{_group(ranking, best, level)}."
    )
    return Conclusion(kind="tie", headline=headline, sentences=(distance, scope(sweep, ranking)))


def _split(sweep: SweepResults, ranking: Ranking, first: Standing, second: Standing) -> Conclusion:
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
        return Conclusion(kind="split", headline=headline, sentences=sentences)
    headline = f"No clear winner: {lead}, but the two cannot be told apart."
    level = [
        other.label
        for other in ranking.standings
        if other not in (first, second) and not _told_apart(ranking, other, first)
    ]
    also = (f"Neither can {listed(level)} from {first.label}.",) if level else ()
    return Conclusion(kind="tie", headline=headline, sentences=(*also, scope(sweep, ranking)))


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


def allowed(sweep: SweepResults, verdict: Conclusion) -> Conclusion:
    """The verdict as far as a race of seeds allows it.

    Seeds that are added while looking find a winner too easily: after a race only its own intervals
    may name one.
    """
    race = looks(sweep.folder)
    if not race:
        return verdict
    if verdict.kind == "winner" and decided_for(race) is None:
        headline = "No clear winner: the race of seeds is undecided."
        verdict = replace(verdict, kind="tie", headline=headline)
    return replace(verdict, sentences=(*verdict.sentences, race_in_words(race)))


def race_in_words(found: Sequence[Mapping[str, Value]]) -> str:
    """What the race of seeds has decided, in a sentence."""
    last = found[-1]
    winner, seeds = decided_for(found), last.get("seeds")
    if winner is not None:
        how = f"{winner} is told apart from all others by both measures after {seeds} seeds"
    elif last.get("is_decided"):
        how = f"each measure has a best cell of its own after {seeds} seeds"
    else:
        left = sequence(last.get("racing"))
        how = f"after {seeds} seeds {len(left)} cells cannot be told apart"
    return (
        f"Race of seeds: {how} (intervals corrected for the cells and for looking several times, "
        "at most 5 % false winners)."
    )


def looks(folder: Path) -> list[Mapping[str, Value]]:
    """The looks of a race of seeds, the first one first; none without a race."""
    facts = mapping(read_json(folder / "race.json"))
    return [mapping(one) for one in sequence(facts.get("looks")) if number(facts.get("of", 0))]


_LEVEL = 0.05
_FEW = 4  # places that are spoken of one by one


def by_measure(ranking: Ranking) -> dict[str, tuple[str, ...]]:
    """What the factors do, by the name of the measure; why that cannot be told is said once."""
    if len(ranking.standings) < 2:
        return {}
    found = {measure: analyse(ranking, measure) for measure in MEASURES}
    return {
        NAMES[measure]: sentences(one)
        for measure, one in found.items()
        if one.reason is None or measure == MEASURES[0]
    }


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
    name = spoken(key)[:1].upper() + spoken(key)[1:]
    found = [term for term in analysis.interactions(key) if term.p < _LEVEL]
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
    level = [other for other in rest if other not in beaten]
    if not beaten:
        return _without_best(effect, names, order)
    said = f"{names[best]} beats {listed([_by(effect, names, best, o) for o in beaten])}"
    if level:
        said += f"; {names[best]} cannot be told apart from {listed([names[o] for o in level])}"
    return said


def _without_best(effect: Effect, names: Sequence[str], order: Sequence[int]) -> str:
    """Where the lowest level beats none: other pairs may differ when cells are missing."""
    pairs = [(a, b) for a in order for b in order if effect.sign(a, b) < 0]
    if not pairs:
        return f"{listed([names[place] for place in order])} cannot be told apart"
    said = [f"{names[a]} beats {_by(effect, names, a, b)}" for a, b in pairs]
    return f"{listed(said)}; no other two can be told apart"


def _by(effect: Effect, names: Sequence[str], a: int, b: int) -> str:
    value, width = number_with_error(effect.differences[b, a], effect.widths[a, b])
    return f"{names[b]} by {value} \u00b1 {width}"


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


# Facts of an evaluation that are the same where trials were measured alike, unless varied.
_MEASURED = {"step": "after different numbers of optimizer steps", "weights": "different weights"}
_VARIES_STEPS = ("EPOCHS", "STEPS_PER_EPOCH", "BATCH_SIZE", "DATASET.")


def mixed(sweep: SweepResults) -> Iterator[str]:
    """Sentences, one a warning."""
    trials = [t for t in sweep.trials if t.status == "done" and t.error is not None]
    keys = varied(trial.cell for trial in sweep.trials)
    yield from _twice(trials, keys)
    yield from _seeds(trials, keys)
    yield from _not_evaluated(sweep)
    yield from _settings(trials, keys)


def _twice(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    counts = Counter((trial.key, trial.seed) for trial in trials)
    names = {
        f"{cell_label(trial.cell, keys)}, seed {trial.seed}"
        for trial in trials
        if counts[trial.key, trial.seed] > 1
    }
    if names:
        yield (
            f"Trained more than once: {listed(sorted(names))}. The last of them is ranked; the "
            "others are left out."
        )


def _seeds(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    """Seeds that some cells have and others lack; cells with seeds of their own lack none."""
    has: dict[str, set[int]] = {}
    names = {trial.key: cell_label(trial.cell, keys) for trial in trials}
    for trial in trials:
        has.setdefault(trial.key, set()).add(trial.seed)
    every = set().union(*has.values()) if has else set()
    shared = Counter(seed for seeds in has.values() for seed in seeds)
    if all(count == 1 for count in shared.values()):
        if len(has) > 1 and len({len(seeds) for seeds in has.values()}) > 1:
            yield "No two cells share a seed, and some have fewer than others."
        return
    lacking = [
        f"{names[key]} (seed {listed([str(one) for one in sorted(every - seeds)])})"
        for key, seeds in has.items()
        if every - seeds
    ]
    if lacking:
        yield (
            f"Seeds are missing in {listed(lacking)}. The numbers of such a cell are means over "
            "fewer seeds; differences allow for it by least squares."
        )


def _not_evaluated(sweep: SweepResults) -> Iterator[str]:
    count = sum(trial.status == "done" and trial.error is None for trial in sweep.trials)
    if count and sweep.is_sweep:
        yield (
            f"{count} finished {'trial has' if count == 1 else 'trials have'} no evaluation and "
            "cannot be ranked; nothing is put in their place."
        )


def _settings(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    for name, said in _MEASURED.items():
        values = {text(t.evaluation[name]) for t in trials if name in t.evaluation}
        if name == "step" and any(part in key for key in keys for part in _VARIES_STEPS):
            continue
        if name == "weights" and any("EMA" in key for key in keys):
            continue
        if len(values) > 1:
            what = said if name == "step" else f"with {said}"
            yield f"The trials were evaluated {what}: {listed(sorted(values))}."


LOSS_SPACE = "TRAINING.LOSS_SPACE"
LEARNING_RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
# Keys that differ between trials by construction or say where, not what.
_APART = ("TRAINING.SEED", "TRAINING.OUTPUT_DIR", "DATASET.PATH")


def flags(sweep: SweepResults) -> tuple[str, ...]:
    """Sentences, one a warning; empty where nothing needs saying."""
    trials = [trial for trial in sweep.trials if trial.config]
    found = [
        *sweep.problems,
        *mixed(sweep),
        _confounded(trials),
        _learning_rate(sweep, trials),
        _beta_defined(trials),
        _mixed_code(trials),
        _other_differences(trials),
        _packed(trials),
    ]
    return tuple(sentence for sentence in found if sentence)


def is_confounded(trials: Sequence[TrialResult]) -> bool:
    """Whether the loss space changes together with the prediction type, not across it."""
    pairs = {(t.config.get(PRED_TYPE), _loss_space(t)) for t in trials if t.config}
    types, spaces = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    return len(types) > 1 and len(spaces) > 1 and len(pairs) < len(types) * len(spaces)


def differences(trials: Sequence[TrialResult]) -> dict[str, tuple[str, ...]]:
    """Keys whose values differ between trials, with the values in order of appearance."""
    keys = dict.fromkeys(key for trial in trials for key in trial.config)
    found = {}
    for key in keys:
        values = dict.fromkeys(text(trial.config.get(key)) for trial in trials if trial.config)
        if len(values) > 1 and key not in _APART:
            found[key] = tuple(values)
    return found


def commit(trial: TrialResult) -> str | None:
    """The git commit a trial ran from, `+` behind it when files had been changed."""
    value = trial.provenance.get("git")
    if isinstance(value, str):
        return value
    facts: Mapping[str, Value] = mapping(value) or trial.provenance
    name = facts.get("commit", facts.get("git_commit"))
    if not isinstance(name, str) or not name:
        return None
    return name + ("+" if facts.get("dirty", facts.get("git_dirty")) else "")


def _loss_space(trial: TrialResult) -> Value:
    return trial.config.get(LOSS_SPACE) or trial.config.get(PRED_TYPE)


def _confounded(trials: Sequence[TrialResult]) -> str | None:
    if not is_confounded(trials):
        return None
    return (
        "Prediction type and loss space vary together: each network was trained on the error of "
        "what it predicts, so their effects cannot be separated here. Fix TRAINING.LOSS_SPACE to "
        "compare prediction types alone."
    )


def _learning_rate(sweep: SweepResults, trials: Sequence[TrialResult]) -> str | None:
    rates = {text(trial.config.get(LEARNING_RATE)) for trial in trials}
    cells = {trial.key for trial in trials}
    if len(cells) < 2 or len(rates) != 1 or LEARNING_RATE in sweep.grid:
        return None
    return f"One learning rate, {rates.pop()}, for all cells; it may suit some better than others."


def _beta_defined(trials: Sequence[TrialResult]) -> str | None:
    keys = varied(trial.cell for trial in trials)
    names = {
        part(SCHEDULER, t.config.get(SCHEDULER)) if SCHEDULER in keys else cell_label(t.cell, keys)
        for t in trials
        if t.evaluation.get("is_beta_defined") is True
    }
    if not names:
        return None
    return (
        f"Defined by their betas, so that they change with the number of timesteps: "
        f"{listed(sorted(names))}. Comparing such cells across T also compares noise levels."
    )


def _mixed_code(trials: Sequence[TrialResult]) -> str | None:
    commits = {name for name in map(commit, trials) if name}
    changed = sorted(name for name in commits if name.endswith("+"))
    if len(commits) > 1:
        short = listed(sorted(name[:8] + "+" * name.endswith("+") for name in commits))
        return f"Mixed code versions: the trials ran from commits {short}."
    if changed:
        return (
            f"The code had uncommitted changes on top of {changed[0][:8]}; the commit alone does "
            "not reproduce these trials."
        )
    return None


def _other_differences(trials: Sequence[TrialResult]) -> str | None:
    varied_on_purpose = {key for trial in trials for key in trial.cell}
    other = [key for key in differences(trials) if key not in varied_on_purpose]
    other = [key for key in other if not key.startswith(("CLUSTER.", "WANDB."))]
    if not other:
        return None
    return f"The configurations also differ in {listed(other)}, which the grid does not name."


def _packed(trials: Sequence[TrialResult]) -> str | None:
    if not any(trial.summary.get("packed") is True for trial in trials):
        return None
    return (
        "Trials ran side by side on this machine: their images/s are marked packed and are lower "
        "than a trial alone would reach; core- and GPU-seconds compare better."
    )
