"""One self-contained page: the question and its answer first, then what they rest on."""

import re
from html import escape
from importlib.resources import files

from ddpm.report import (
    appendix,
    curves,
    effects_page,
    film,
    learning,
    maps,
    pareto,
    sampling,
    searched,
)
from ddpm.report.axes import axes_of
from ddpm.report.data import Sweep
from ddpm.report.first_screen import first_screen
from ddpm.report.ranking import Ranking
from ddpm.report.verdict import Verdict


def page(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> str:
    """The whole report.html."""
    axes = axes_of(sweep)
    sections = [
        ("Ranking", maps.ranking_table(ranking) if ranking.standings and sweep.is_sweep else ""),
        ("Differences", effects_page.differences(ranking) if sweep.is_sweep else ""),
        ("Factors", effects_page.factors(ranking) if sweep.is_sweep else ""),
        ("Heat maps", maps.heat_maps_section(sweep, ranking, axes)),
        ("x0-error over noise level", curves.x0_section(sweep, ranking, axes)),
        ("Cost", pareto.cost_section(sweep, ranking, axes)),
        ("Samples", appendix.samples(sweep, ranking, axes)),
        ("Samples over training", film.over_training(sweep, ranking, axes)),
        ("Samples over sampling steps", sampling.sampling_section(sweep, ranking, axes)),
        ("Training curves", learning.learning_section(sweep, ranking, axes)),
        ("Search", searched.section(sweep) if sweep.is_sweep else ""),
        ("Failed, skipped and not ranked", appendix.failures(sweep, ranking)),
        ("Configuration", appendix.configuration(sweep)),
        ("Provenance", appendix.provenance(sweep)),
        ("Bits per dimension", appendix.bits(sweep)),
    ]
    sections = [(title, html) for title, html in sections if html]
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{html}</section>'
        for title, html in sections
    )
    here = files("ddpm.report")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(sweep.name)}</title>'
        f"<style>{(here / 'report.css').read_text()}</style></head><body>"
        f"{first_screen(sweep, ranking, verdict)}{_contents([title for title, _ in sections])}"
        f"<main>{body}</main>"
        "<footer>Everything above is in this one file. Beside it: report.md, the same in short; "
        "results.csv and results.parquet, a row a trial; tables/, every curve.</footer>"
        f"<script>{(here / 'report.js').read_text()}</script></body></html>\n"
    )


def _contents(titles: list[str]) -> str:
    items = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in titles)
    return f'<nav aria-label="Sections">{items}</nav>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
