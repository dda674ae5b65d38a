"""Every cell against one of them: against the lowest, and against a baseline named beforehand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import nan
from typing import Literal

from ddpm.errors import InputError
from ddpm.measures import MEASURES
from ddpm.report.gaps import Family, Gap, gap
from ddpm.report.labels import listed, text
from ddpm.report.ranking import Ranking, Standing


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell minus the one it is compared with, by both measures.

    ratios: paired over unpaired variance from the seeds the two share, NaN where they share none.
    """

    standing: Standing
    gaps: Mapping[str, Gap]
    ratios: Mapping[str, float]

    @property
    def outcome(self) -> Literal["higher", "lower", "mixed", "level"]:
        """higher or lower: by both measures, beyond their intervals; level: by neither.

        mixed: by one of them, or one way by one and the other way by the other.
        """
        signs = {(g.mean > 0) - (g.mean < 0) if g.is_told_apart else 0 for g in self.gaps.values()}
        if signs == {0}:
            return "level"
        return "higher" if signs == {1} else "lower" if signs == {-1} else "mixed"


def against(ranking: Ranking, reference: Standing, family: Family) -> tuple[Comparison, ...]:
    """All other cells minus the reference, in the order of the ranking."""
    return tuple(
        Comparison(
            standing=one,
            gaps={m: gap(ranking, one, reference, m, family=family) for m in MEASURES},
            ratios={m: _ratio(ranking, one, reference, m) for m in MEASURES},
        )
        for one in ranking.standings
        if one is not reference
    )


def _ratio(ranking: Ranking, a: Standing, b: Standing, measure: str) -> float:
    found = ranking.spread(measure)
    return nan if found is None else found.ratio_of(ranking.place(a), ranking.place(b))


def against_baseline(ranking: Ranking) -> str:
    """What the comparison with the baseline comes to, in a sentence; "" without a baseline."""
    if ranking.baseline is None or len(ranking.standings) < 2:
        return ""
    reference = ranking.standings[ranking.baseline]
    found = against(ranking, reference, "baseline")
    parts = []
    for outcome, words in (
        ("lower", "lower by both measures"),
        ("higher", "higher by both"),
        ("mixed", "told apart by one measure only"),
        ("level", "not to be told apart from it"),
    ):
        names = [one.standing.label for one in found if one.outcome == outcome]
        if names:
            parts.append(f"{words}: {listed(names)}")
    where = "" if ranking.spread(MEASURES[0]) is not None else ", in this run"
    return f"Against the baseline {reference.label}{where}: {'; '.join(parts)}."


def with_baseline(ranking: Ranking, wish: str) -> Ranking:
    """The ranking with a baseline: the one cell that has every KEY=value of a wish.

    wish: `SCHEDULER=linear,PRED_TYPE=noise`; a key may be its last part, and case does not matter.
    """
    if ranking.problem or not ranking.standings:
        return ranking  # nothing is ranked, and the report says why
    wanted = [part.partition("=") for part in re.split(r",(?![^\[]*\])", wish)]
    places = [
        place
        for place, standing in enumerate(ranking.standings)
        if all(_has(standing, key.strip(), value.strip()) for key, _, value in wanted)
    ]
    if len(places) != 1:
        matching = [ranking.standings[p].label for p in places] or [
            s.label for s in ranking.standings
        ]
        example = ",".join(
            f"{key.rsplit('.', 1)[-1]}={text(value)}"
            for key, value in ranking.standings[0].cell.items()
        )
        raise InputError(
            f"--baseline {wish} names {len(places) or 'none'} of the ranked cells "
            f"({'; '.join(matching[:12])}); give keys and values of exactly one, such as {example}"
        )
    return replace(ranking, baseline=places[0])


def _has(standing: Standing, key: str, value: str) -> bool:
    return any(
        own.upper() == key.upper() or own.upper().endswith("." + key.upper())
        for own, has in standing.cell.items()
        if text(has).upper() == value.upper()
    )
