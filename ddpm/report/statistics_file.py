"""statistics.json: every number of the report's statistics, for programs.

    {"format": 1, "confidence": 0.95,
     "measures": {MEASURE: {"paired_over_unpaired_variance", "intervals", "dof", "variance",
                            "set_apart": [label], "factors": {...}, "sentences": [...]}},
     "against_lowest": {"reference", "correction", "cells": [...]}, "against_baseline": same | null}

Numbers are log10; null where there is none.
"""

from math import isfinite

from ddpm.measures import MEASURES
from ddpm.report.comparisons import Comparison, against
from ddpm.report.factors import Analysis, Term, analyse
from ddpm.report.gaps import CONFIDENCE
from ddpm.report.labels import text
from ddpm.report.ranking import Ranking
from ddpm.report.scope import pairing
from ddpm.report.sentences import sentences

Json = dict[str, object]


def statistics(ranking: Ranking) -> Json:
    """The content of statistics.json."""
    several = len(ranking.standings) > 1
    lowest = ranking.standings[0] if several else None
    base = None
    if several and ranking.baseline is not None:
        base = ranking.standings[ranking.baseline]
    return {
        "format": 1,
        "confidence": CONFIDENCE,
        "problem": ranking.problem,
        "measures": {m: _measure(ranking, m) for m in MEASURES} if several else {},
        "against_lowest": lowest
        and {
            "reference": lowest.label,
            "correction": "Tukey, all pairs of cells",
            "cells": [_comparison(one) for one in against(ranking, lowest, "pairs")],
        },
        "against_baseline": base
        and {
            "reference": base.label,
            "correction": "Dunnett",
            "cells": [_comparison(one) for one in against(ranking, base, "baseline")],
        },
    }


def _measure(ranking: Ranking, measure: str) -> Json:
    found, analysis = ranking.spread(measure), analyse(ranking, measure)
    return {
        "paired_over_unpaired_variance": _number(found.ratio) if found else None,
        "intervals": ("paired" if found.is_paired else "unpaired") if found else "evaluation error",
        "pairing": pairing(ranking, measure),
        "dof": found.dof if found else None,
        "variance": found.variance if found else None,
        "set_apart": [ranking.standings[place].label for place in found.apart] if found else [],
        "factors": _factors(analysis),
        "sentences": list(sentences(analysis)),
    }


def _factors(analysis: Analysis) -> Json:
    lines = [*((analysis.seeds,) if analysis.seeds else ()), *analysis.terms]
    return {
        "keys": list(analysis.factors),
        "reason": analysis.reason,
        "sums_of_squares": "type II",
        "terms": [_term(term) for term in lines],
        "error": _term(analysis.error) if analysis.error else None,
        "effects": [_effect(analysis, key) for key in analysis.factors] if analysis.error else [],
    }


def _term(term: Term) -> Json:
    return {
        "name": term.name,
        "keys": list(term.keys),
        "dof": term.dof,
        "sum_of_squares": term.squares,
        "f": _number(term.f),
        "over_dof": _number(term.over),
        "p": _number(term.p),
        "omega_squared": _number(term.share),
    }


def _effect(analysis: Analysis, key: str) -> Json:
    effect = analysis.effect(key)
    return {
        "key": key,
        "levels": [text(value) for value in effect.levels],
        "effects": [_number(value) for value in effect.means],
        "half_widths": [_number(value) for value in effect.half_widths],
    }


def _comparison(one: Comparison) -> Json:
    return {
        "cell": dict(one.standing.cell),
        "label": one.standing.label,
        "outcome": one.outcome,
        **{
            measure: {
                "difference": _number(gap.mean),
                "half_width": _number(gap.half_width),
                "intervals": gap.basis,
                "paired_over_unpaired_variance": _number(one.ratios[measure]),
            }
            for measure, gap in one.gaps.items()
        },
    }


def _number(value: float) -> float | None:
    return float(value) if isfinite(value) else None
