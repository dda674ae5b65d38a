"""Claims of a verdict read back from its words, and held against the intervals of its ranking."""

import re
from collections.abc import Iterator, Sequence

from ddpm.config import X0_MEASURES
from ddpm.report.labels import TITLES, part, spoken, varied
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.verdict import Conclusion, uninformative

_END = r"(\u2212?[\d.]+)"
_ABOVE = re.compile(rf"[\d.]+( % higher| % lower| times as high) \({_END} to {_END}(?: %)?\)")
_UNDERSTOOD = ("Over seeds, ", "Intervals are over ", "One training seed: ", "By log SNR ")


def faults(ranking: Ranking, verdict: Conclusion) -> list[str]:
    """Every claim that does not follow from the ranking, or contradicts another."""
    cells = {standing.label: standing for standing in ranking.standings}
    lead = next(one for one in ranking.standings if one is ranking.recommended)
    found = [] if len(cells) == len(ranking.standings) else ["two cells have one name"]
    for sentence in verdict.sentences:
        by = [m for m in ranking.measures if sentence.startswith(f"By {TITLES[m]}")]
        if by:
            found += _by_measure(ranking, cells, lead, by[0], sentence)
        elif sentence.startswith("Recommended: "):
            found += _recommended(ranking, lead, sentence)
        elif " held-out real images: " in sentence:
            found += _of_real(ranking, cells, sentence)
        elif not sentence.startswith(_UNDERSTOOD) and "over seeds far more" not in sentence:
            found.append("not understood")
    if len([s for s in verdict.sentences if s.startswith("By ")]) < len(ranking.measures):
        found.append("a measure without a sentence")
    found += _headline(ranking, cells, lead, verdict)
    return [f"{fault}: {verdict.headline} {verdict.sentences}" for fault in found]


def _informative(ranking: Ranking) -> list[str]:
    """The measures by which one network at least is above its evaluation error."""
    return [
        measure
        for measure in ranking.measures
        if measure in X0_MEASURES
        or any(n.value > n.error for s in ranking.standings for n in s.numbers[measure].values())
    ]


def sign(ranking: Ranking, a: Standing, b: Standing, measure: str) -> int:
    """1 where a's number is told to be above b's, -1 below, 0 where the interval holds zero."""
    gap = ranking.gap(a, b, measure)
    return int(gap.mean - gap.half_width > 0) - int(gap.mean + gap.half_width < 0)


def _by_measure(
    ranking: Ranking, cells: dict[str, Standing], lead: Standing, measure: str, sentence: str
) -> Iterator[str]:
    where = "" if ranking.spread(measure) is not None else ", in this run,"
    if measure not in _informative(ranking):
        if sentence != uninformative(measure):
            yield "a measure that tells nothing"
        return
    start = f"By {TITLES[measure]}{where} {lead.label} "
    if not sentence.startswith(start):
        yield "a sentence on another cell"
        return
    lowest = min(ranking.standings, key=lambda one: ranking.estimate(one, measure))
    if ("is lowest; it " in sentence) != (lowest is lead):
        yield "the lowest"
    if "is lowest; it is beaten" in sentence:
        yield "the lowest is beaten"
    words = sentence.removeprefix(start).removeprefix("is lowest; it ").removesuffix(".")
    signs = {k: sign(ranking, one, lead, measure) for k, one in cells.items() if one is not lead}
    for clause in re.split(r", and (?=beats |cannot be )", words):
        if clause.startswith("cannot be told apart from "):
            wanted, names = 0, _named(ranking, cells, clause)
            if clause.endswith(" any other cell"):
                names = list(signs)
        elif clause.startswith("beats "):
            wanted, names = 1, _listed(cells, clause)
            if many := re.match(r"beats the (\d+) ", clause):
                names = names[:1] + [""] * (int(many[1]) - 1)
            own = [k for k, one in signs.items() if one == 1]
            gaps = {k: ranking.gap(cells[k], lead, measure).mean for k in own}
            near = min(gaps, key=lambda k: gaps[k], default="")
            if names[0] != near:
                yield "the nearest"
        elif clause.startswith("is beaten by "):
            wanted, names = -1, _listed(cells, clause)
        else:
            yield f"a clause that is not understood ({clause})"
            continue
        if len(names) != sum(one == wanted for one in signs.values()):
            yield f"{len(names)} cells in '{clause}'"
        if any(signs.get(name, wanted) != wanted for name in names):
            yield f"an interval against '{clause}'"
        ends = _ABOVE.findall(clause)
        if wanted and not ends:
            yield f"no interval in '{clause}'"
        for kind, low, _ in ends:
            # a ratio that is rounded to 1.0 may be above it
            if (
                "\u2212" in low
                or float(low) < ("times" in kind)
                or (kind[3] == "l") == (wanted > 0)
            ):
                yield f"an interval that holds zero in '{clause}'"
    said = {0: "cannot be told", 1: "beats", -1: "is beaten"}
    for one, verb in said.items():
        if (verb in words) != (one in signs.values()):
            yield f"'{verb}' left out or in"


def _of_real(ranking: Ranking, cells: dict[str, Standing], sentence: str) -> Iterator[str]:
    for measure in ranking.real:
        others = "|".join(TITLES[other] for other in ranking.real if other != measure)
        both = rf"(?:(?:{others}) and )?{TITLES[measure]}(?: and (?:{others}))?"
        named = re.search(rf"by {both} (.+?) cannot be told from them", sentence)
        names = [] if named is None else _listed(cells, named[1])
        either = both.replace(" and ", " or ")
        if re.search(rf"no cell can be told from them by {either}", sentence):
            names = list(cells)
        high = ranking.real[measure].high
        if {*names} != {name for name, one in cells.items() if one.value(measure) <= high}:
            yield f"cells like real images by {TITLES[measure]}"


def _recommended(ranking: Ranking, lead: Standing, sentence: str) -> Iterator[str]:
    if not re.match(rf"Recommended: {re.escape(lead.label)}[,.] ", sentence):
        yield "another cell is recommended"
    known = _informative(ranking)
    least = [min(ranking.estimate(one, m) for one in ranking.standings) for m in known]
    above = [ranking.estimate(lead, m) - low for m, low in zip(known, least, strict=True)]
    percent = 100 * (10 ** max(above, default=0.0) - 1)
    names = " measure" if len(known) > 1 else TITLES[known[0]] if known else ""
    if not known:
        right = "lowest" not in sentence
    elif f"the lowest by {'every' * (len(known) > 1)}{names}." in sentence:
        right = max(above) == 0
    else:
        by = f"{'either' * (len(known) > 1)}{names}"
        said = re.search(rf"at most ([\d.]+) % above the lowest by {by} as measured", sentence)
        right = said is not None and abs(float(said[1]) - percent) <= 0.051 * percent
    if not right or not sentence.endswith("A choice, not a claim."):
        yield f"recommended at {percent:.3g} % above"


def _headline(
    ranking: Ranking, cells: dict[str, Standing], lead: Standing, verdict: Conclusion
) -> Iterator[str]:
    text, many = verdict.headline, len(cells)

    def signs(a: Standing, b: Standing) -> set[int]:
        return {sign(ranking, a, b, m) for m in ranking.measures}

    lowest = [
        min(ranking.standings, key=lambda one: ranking.estimate(one, m)) for m in ranking.measures
    ]
    level = {
        name
        for name, one in cells.items()
        if all(
            one is low or sign(ranking, one, low, m) == 0
            for m, low in zip(ranking.measures, lowest, strict=True)
        )
    }
    names = _listed(cells, text)
    others = [one for one in ranking.standings if one is not lead]
    if verdict.kind == "winner":
        if names[0] != lead.label or not all(max(signs(lead, one)) <= 0 for one in others):
            yield "a winner that is beaten"
        if not all(min(signs(lead, one)) < 0 for one in others):
            yield "a winner that does not beat all"
        if (", by both" in text) != all(signs(lead, one) == {-1} for one in others):
            yield "by both measures"
    elif verdict.kind == "disagree":
        claims = re.findall(rf"({'|'.join(_by_length(cells))}) beats (.+?) by ([^,.]+)", text)
        measures = {TITLES[m]: m for m in ranking.measures}
        if len(claims) != 2 or claims[0][:2] != claims[1][1::-1]:
            yield "a disagreement that is none"
        for a, b, name in claims:
            if sign(ranking, cells[a], cells[b], measures[name]) >= 0:
                yield "a disagreement without its intervals"
    elif verdict.kind == "tied":
        text, _, worse = text.partition("The other ")
        said = (
            set(cells) if "no cell can be told apart" in text else set(_named(ranking, cells, text))
        )
        if said - {""} != level and not ("" in said and said - {""} < level):
            yield "cells that are tied"
        rest = re.match(r"cell|\d+", worse)
        if (0 if rest is None else int(rest[0].replace("cell", "1"))) != many - len(level):
            yield "cells that are worse"
        if "," in worse and {*_listed(cells, worse)} != cells.keys() - level:
            yield "names of cells that are worse"
    elif verdict.kind == "undecided":
        if level != {lead.label} or names[0] != lead.label:
            yield "the one cell that is tied"
        if "does not itself beat" in text:
            beaten = [one for one in others if min(signs(lead, one)) < 0]
            if any(cells[name] in beaten for name in names[1:]):
                yield "a cell that is beaten all the same"
    else:
        yield f"kind {verdict.kind}"


def _by_length(cells: dict[str, Standing]) -> list[str]:
    return [re.escape(name) for name in sorted(cells, key=len, reverse=True)]


def _listed(cells: dict[str, Standing], text: str) -> list[str]:
    """The cells that are named, and an empty name for each that is only counted."""
    names = re.findall("|".join(_by_length(cells)), text)
    more = re.search(r" and (\d+) others", text)
    return names + [""] * (int(more[1]) if more else 0)


def _named(ranking: Ranking, cells: dict[str, Standing], text: str) -> Sequence[str]:
    """The cells of a list, or of `the 3 cells with schedule linear`."""
    for key in varied([one.cell for one in ranking.standings]):
        found = re.search(rf"the (\d+) cells with {re.escape(spoken(key))} (\S+)", text)
        if found is not None:
            value = found[2].rstrip(",.;")
            own = [name for name, one in cells.items() if part(key, one.cell[key]) == value]
            return own if len(own) == int(found[1]) else []
    return _listed(cells, text)
