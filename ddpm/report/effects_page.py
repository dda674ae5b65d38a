"""Two sections of the page: differences between cells, and what each factor of the grid does."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ddpm.measures import MEASURES
from ddpm.report.comparisons import Comparison, against, against_baseline
from ddpm.report.factors import Analysis, Term, analyse
from ddpm.report.gaps import Gap
from ddpm.report.labels import number_with_error, part, signed, spoken
from ddpm.report.ranking import Ranking
from ddpm.report.scope import apart, pairing
from ddpm.report.sentences import probability, sentences
from ddpm.report.verdict import NAMES

_MANY = 60  # rows shown at once; the rest is folded
OUTCOMES = {
    "higher": "higher by both",
    "lower": "lower by both",
    "mixed": "by one measure only",
    "level": "cannot be told apart",
}


@dataclass(frozen=True, kw_only=True)
class Against:
    """All cells against one of them: a sentence before the table, and the table's caption."""

    lead: str
    caption: str
    found: tuple[Comparison, ...]


def differences(ranking: Ranking) -> str:
    """Every cell against the lowest, and against the baseline; "" where nothing is compared."""
    if len(ranking.standings) < 2:
        return ""
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in of_pairs(ranking))
    tables = "".join(map(_against, compared(ranking)))
    return told + tables + _note(ranking)


def of_pairs(ranking: Ranking) -> list[str]:
    """What pairing by seed does to the intervals, and which cells scatter more than the others."""
    return list(filter(None, [pairing(ranking), _second_ratio(ranking), apart(ranking)]))


def compared(ranking: Ranking) -> list[Against]:
    """Against the lowest, then against the baseline where one was named."""
    best = ranking.standings[0]
    found = [
        Against(
            lead="",
            caption=f"Against {best.label}, the lowest {NAMES[MEASURES[0]]}. Intervals hold at 95 "
            "% for all pairs of cells together (Tukey), as the data have picked the cell",
            found=against(ranking, best, "pairs"),
        )
    ]
    if ranking.baseline is not None:
        base = ranking.standings[ranking.baseline]
        caption = (
            f"Against {base.label}, the baseline that was named. Intervals hold at 95 % for all of "
            "its comparisons together (Dunnett)"
        )
        rows = against(ranking, base, "baseline")
        found.append(Against(lead=against_baseline(ranking), caption=caption, found=rows))
    return found


def _second_ratio(ranking: Ranking) -> str:
    found = ranking.spread(MEASURES[1])
    if found is None or not np.isfinite(found.ratio):
        return ""
    kind = "paired" if found.is_paired else "unpaired"
    return f"For the {NAMES[MEASURES[1]]} it is {found.ratio:.2f} times; intervals are {kind}."


def basis(ranking: Ranking) -> str:
    """What the numbers of a difference are."""
    one_seed = (
        "One seed: \u00b1 is evaluation error over validation pairs and speaks of these trained "
        "networks only. "
        if ranking.spread(MEASURES[0]) is None
        else ""
    )
    return f"{one_seed}Differences are of log10: 0.1 is an error 26 % larger."


def _note(ranking: Ranking) -> str:
    return (
        f"<p class='note'>{basis(ranking)} <em>Paired "
        "/ unpaired</em>: variance of the difference over the seeds both cells have, as a share of "
        "what it would be if the seeds had nothing in common; from few seeds it is rough.</p>"
    )


def _against(one: Against) -> str:
    with_ratio = any(np.isfinite(row.ratios[MEASURES[0]]) for row in one.found)
    rows = [_row(row, with_ratio) for row in one.found]
    ratio = "<th>paired /<br>unpaired</th>" if with_ratio else ""
    head = (
        f"<caption>{escape(one.caption)}</caption><thead><tr><th class='left'>cell</th>"
        f"<th>{NAMES[MEASURES[0]]}</th><th>x0-error</th><th>log10 of<br>{NAMES[MEASURES[1]]}</th>"
        f"{ratio}<th class='left'>difference</th></tr></thead>"
    )
    lead = f"<p>{escape(one.lead)}</p>" if one.lead else ""
    html = lead + _table(head, rows[:_MANY])
    if len(rows) > _MANY:
        rest = _table(head, rows[_MANY:])
        html += f"<details><summary>{len(rows) - _MANY} more cells</summary>{rest}</details>"
    return html


def _table(head: str, rows: Sequence[str]) -> str:
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f"<div class='scroll'><table class='ranking'>{head}{body}</table></div>"


def _row(one: Comparison, with_ratio: bool) -> str:
    first, second = (one.gaps[measure] for measure in MEASURES)
    ratio = f"<td>{_plain(one.ratios[MEASURES[0]], 2)}</td>" if with_ratio else ""
    return (
        f"<tr><th scope='row'>{escape(one.standing.label)}</th><td>{_difference(first)}</td>"
        f"<td>{ratio_text(10**first.mean)}</td><td>{_difference(second)}</td>"
        f"{ratio}<td class='left'>{OUTCOMES[one.outcome]}</td></tr>"
    )


def _difference(gap: Gap) -> str:
    value, width = number_with_error(gap.mean, gap.half_width)
    return f'{value} <span class="error">\u00b1 {width}</span>'


def ratio_text(ratio: float) -> str:
    """`+3.1 %`; from twice the error on, times how much it is."""
    if ratio >= 2:
        return f"\u00d7{ratio:,.1f}"
    percent = 100 * (ratio - 1)
    return f"{'+' if percent > 0 else ''}{signed(percent, 1)} %"


def _plain(value: float, digits: int) -> str:
    return signed(value, digits) if np.isfinite(value) else "\u2013"


def factors(ranking: Ranking) -> str:
    """What each factor does by both measures: sentences, table of variance, effects of levels."""
    if len(ranking.standings) < 2:
        return ""
    return "".join(_analysis(analyse(ranking, measure)) for measure in MEASURES)


def _analysis(found: Analysis) -> str:
    name = NAMES[found.measure]
    title = name[:1].upper() + name[1:] if found.measure == MEASURES[0] else f"log10 of {name}"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(found))
    if found.reason is not None:
        return said if found.measure == MEASURES[0] else ""
    return f"<h3>{escape(title)}</h3>{said}{_variance(found)}{_effects(found)}"


def _variance(found: Analysis) -> str:
    lines = [*((found.seeds,) if found.seeds else ()), *found.terms]
    rows = [_line(term) for term in lines]
    if found.error is not None:
        rows.append(_line(found.error, f"error: {found.error.name}"))
    sums = "" if found.is_complete else " The grid is incomplete, so the squares do not add up."
    over = (
        " F is taken over the term's own changes from seed to seed."
        if found.strata is not None
        else ""
    )
    caption = (
        "Sums of squares beyond all terms that do not contain the term (type II). Share: "
        f"\u03c9\u00b2, of the variance.{over}{sums}"
    )
    head = (
        f"<caption>{escape(caption)}</caption><thead><tr><th class='left'>term</th>"
        "<th>degrees of<br>freedom</th><th>sum of<br>squares</th><th>F</th><th>over</th><th>p</th>"
        "<th>share</th></tr></thead>"
    )
    return _table(head, rows)


def _line(term: Term, name: str = "") -> str:
    tested = np.isfinite(term.f)
    share = f"{100 * term.share:.0f} %" if tested else "\u2013"
    p = probability(term.p).removeprefix("p ").removeprefix("= ") if tested else "\u2013"
    over = f"{term.over:.0f}" if tested else "\u2013"
    f = f"{term.f:,.1f}" if tested else "\u2013"
    return (
        f"<tr><th scope='row'>{escape(name or term.name)}</th><td>{term.dof}</td>"
        f"<td>{term.squares:.3g}</td><td>{f}</td><td>{over}</td><td>{escape(p)}</td>"
        f"<td>{share}</td></tr>"
    )


def _effects(found: Analysis) -> str:
    if found.error is None:
        return ""
    rows = []
    for key in found.factors:
        effect = found.effect(key)
        for value, mean, width in zip(effect.levels, effect.means, effect.half_widths, strict=True):
            shown, error = number_with_error(float(mean), float(width))
            rows.append(
                f"<tr><th scope='row'>{escape(spoken(key))}</th>"
                f"<td class='left'>{escape(part(key, value))}</td>"
                f'<td>{shown} <span class="error">\u00b1 {error}</span></td></tr>'
            )
    caption = (
        "Each level's distance from the mean of its factor, over all values of the others, with "
        "its own 95 % interval. Lower is better."
    )
    head = (
        f"<caption>{escape(caption)}</caption><thead><tr><th class='left'>factor</th>"
        "<th class='left'>level</th><th>effect</th></tr></thead>"
    )
    return _table(head, rows[:_MANY])
