"""What the factors of a grid do, in sentences that claim no more than the intervals allow.

A factor's levels are compared averaged over the others where no interaction with it was found, else
where it stands: at every value of what it interacts with.
"""

from collections.abc import Sequence
from itertools import product
from math import isfinite

import numpy as np

from ddpm.measures import MEASURES
from ddpm.report.design import Effect
from ddpm.report.factors import Analysis, analyse
from ddpm.report.files import Value
from ddpm.report.labels import listed, number_with_error, part, signed, spoken
from ddpm.report.ranking import Ranking
from ddpm.report.verdict import NAMES

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


def probability(p: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    if not isfinite(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.095 else 3}f}"
