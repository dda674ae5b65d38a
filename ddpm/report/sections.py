"""Sections of a report: one list, rendered as the page, as Markdown and as a W&B report.

A section is a title and blocks in reading order: text, tables, commands, charts, pictures. Texts
are plain; each renderer escapes them in its own way and leaves out what it cannot show. A new
section is one function and one line in `sections`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, log10
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.config import X0_MEASURES, leaves
from ddpm.errors import as_typed
from ddpm.metrics import QUALITY_MEASURES
from ddpm.report import charts, strips
from ddpm.report.best_samples import Spot, best_front, left_out, method, spots_of
from ddpm.report.cautions import commit, differences
from ddpm.report.charts import GAUSSIAN, MEMORISATION
from ddpm.report.costs import cheapest, compute_seconds, cost, front
from ddpm.report.effects import Analysis, Term, analyse
from ddpm.report.labels import (
    TITLES,
    Axes,
    Cell,
    aligned,
    axes_of,
    capital,
    cell_label,
    common_digits,
    duration,
    energy,
    interval_text,
    listed,
    number_with_error,
    part,
    probability,
    signed,
    size,
    spoken,
    text,
    with_error,
)
from ddpm.report.prediction import predicted_cost
from ddpm.report.ranking import CONFIDENCE, Comparison, Gap, Ranking, Standing, against, agreement
from ddpm.report.reading import SweepResults, TrialResult, mapping, number, sequence
from ddpm.report.scaling import SIZES, crossings, laws, slope_in_words, unresolved
from ddpm.report.tuning import tuning_of
from ddpm.report.verdict import (
    against_baseline,
    looks,
    meaning_of_errors,
    pairing,
    race_in_words,
    unequal,
    uninformative,
)
from ddpm.report.verdict import sentences as factor_sentences
from ddpm.runs import CONFIG_FILE
from ddpm.sweep import cell_name

OUTCOMES = {
    "higher": "worse",
    "lower": "better",
    "mixed": "measures disagree",
    "tied": "cannot be told apart",
}
_PANELS, _LEVEL_ROWS, _SHOWN = 12, 30, 50
_NONE = "\u2013"
# Facts of provenance.json that differ from trial to trial by their nature, or repeat others.
_OF_ONE_TRIAL = ("attempts", "command", "config_sha256", "job", "run_id", "sequence", "started")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; `kind` is paragraph, note (what a table or chart shows), heading or command."""

    words: str
    kind: str = "paragraph"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text below a head.

    right, wrap, code: columns set to the right, broken into lines, set as code.  label: the column
    that names the row.  fold: its title where it is folded.  is_short: whether it belongs in the
    short renderings.  best: a row that stands out.  shades: of each cell, 0 to 1 (the best), None
    where there is none; the cell with `first` is framed.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    right: Sequence[int] = ()
    wrap: Sequence[int] = ()
    code: Sequence[int] = ()
    label: int = 0
    fold: str = ""
    is_short: bool = True
    has_filter: bool = False
    best: int | None = None
    shades: Sequence[Sequence[float | None]] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A Vega-Lite specification, and its name for who cannot see it."""

    name: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Sample grids side by side: (caption, URL); with `moments`, films: rows of moment -> URL.

    classes: of the columns of each grid.
    """

    classes: Sequence[str] = ()
    grids: Sequence[tuple[str, str]] = ()
    columns: int = 0  # 0: as many as fit
    film: Mapping[str, Mapping[str, str]] | None = None
    over: str = ""
    moments: Sequence[str] = ()


Block = Text | Table | Chart | Pictures


@dataclass(frozen=True, kw_only=True)
class Section:
    """A title and what stands below it; nothing where there is nothing to show."""

    title: str
    blocks: Sequence[Block]
    is_folded: bool = False  # statistics and records, for who looks for them


def sections(sweep: SweepResults, ranking: Ranking) -> list[Section]:
    """All sections that have something to show, in reading order."""
    axes = axes_of(sweep)
    every: list[tuple[str, Callable[[SweepResults, Ranking, Axes], Iterable[Block]]]] = [
        ("Samples", samples),
        ("Ranking", ranked),
        ("x0-error by noise level", errors_by_level),
        ("Cost", costs),
        ("Scaling", scaled),
        ("Tuned within cells", tuned),
        ("Samples over sampling steps", samples_over_steps),
        ("Samples over training", samples_over_training),
        ("Training curves", training_curves),
        ("Search", search),
        ("Failed, skipped and not ranked", failures),
    ]
    folded: list[tuple[str, Callable[[SweepResults, Ranking, Axes], Iterable[Block]]]] = [
        ("Differences", compared),
        ("Factors", factors),
        ("Heat maps", heat_maps),
        ("Configuration", configuration),
        ("Provenance", provenance),
        ("Bits per dimension", bits),
    ]
    found = [
        Section(title=title, blocks=list(make(sweep, ranking, axes)), is_folded=is_folded)
        for some, is_folded in ((every, False), (folded, True))
        for title, make in some
    ]
    return [section for section in found if section.blocks]


def _note(words: str) -> Text:
    return Text(words=words, kind="note")


def ranked(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Every ranked cell with the measures of the headline, their errors and its cost."""
    standings = ranking.standings
    if not standings or not sweep.is_sweep:
        return
    first, second = ranking.measures
    spent = [standing.cost for standing in standings]
    digits = {m: common_digits([s.error(m) for s in standings]) for m in ranking.measures}
    correct = [_accuracy(ranking, standing) for standing in standings]
    has_classes = any(correct)
    all_packed = all(one.is_packed for one in spent)
    unit = " / ".join(sorted({one.unit for one in spent}))
    head = ["#", "cell", TITLES[first], TITLES[second], f"rank by {TITLES[second]}",
            *["class accuracy"] * has_classes, "seeds", unit,
            "images/s packed" if all_packed else "images/s", "peak memory"]  # fmt: skip
    rows = []
    for place, (standing, one) in enumerate(zip(standings, spent, strict=True)):
        numbers = [
            aligned(standing.value(m), standing.error(m), digits[m]) for m in ranking.measures
        ]
        seconds = one.compute_seconds
        rows.append(
            [str(place + 1), standing.label, *(" \u00b1 ".join(pair) for pair in numbers),
             str(ranking.rank(place, second) or _NONE), *[correct[place] or _NONE] * has_classes,
             str(len(standing.trials)),
             _NONE if seconds is None else f"{seconds:,.{0 if seconds >= 100 else 1}f}",
             one.speed() + " packed" * (one.is_packed and not all_packed),
             size(one.peak_memory_bytes)]
        )  # fmt: skip
    if ranking.real:
        real = [ranking.real.get(m) for m in ranking.measures]
        shown = [
            _NONE if one is None
            else " \u00b1 ".join(aligned(one.value, (one.high - one.low) / 2, digits[m]))
            for m, one in zip(ranking.measures, real, strict=True)
        ]  # fmt: skip
        right_of = ranking.real.get("accuracy")
        accuracy = f"{100 * right_of.value:.1f} %" if right_of else _NONE
        rows.append(["", "real images", *shown, "", *[accuracy] * has_classes,
                     *[""] * (len(head) - 5 - has_classes)])  # fmt: skip
    best = None if ranking.recommended is None else ranking.place(ranking.recommended)
    right = (0, *range(2, len(head)))
    yield Table(head=head, rows=rows, right=right, label=1, best=best, has_filter=True)
    errors = capital(meaning_of_errors(standings))
    yield _note(
        f"Lower is better; cells stand in the order of the mean of log10. {_measured_on(ranking)} "
        f"{errors}."
    )
    if len(standings) > 1:
        name = "both measures of each cell, with intervals"
        yield Chart(name=name, spec=charts.intervals(ranking))
    spots = spots_of(sweep, axes)
    if _is_one_walk(sweep, ranking, spots):
        names = [n for n in QUALITY_MEASURES if any(n in spot.qualities for spot in spots)]
        yield replace(_points(sweep, spots, names), caption=_how_measured(sweep))


def _measured_on(ranking: Ranking) -> str:
    """On what the numbers of the ranking were measured."""
    if ranking.point is not None:
        return (
            f"KID and FID\u221e (FID extrapolated to infinitely many samples) of "
            f"{ranking.num_samples:,} samples a training against the training images, drawn by "
            f"{ranking.point.sampler} in {ranking.point.evaluations} network calls an image, the "
            f"same noise and classes for all.{_of_real(ranking)}"
        )
    low, high = signed(ranking.levels[0]), signed(ranking.levels[-1])
    window = (
        f"the data's window of log SNR, {low} to {high}"
        if ranking.is_window
        else f"the {len(ranking.levels)} log-SNR levels from {low} to {high} that all cells share"
    )
    first, second = (capital(TITLES[measure]) for measure in X0_MEASURES)
    return (
        f"Averages run over {window}. {first}: mean over levels of log10 MSE of the x0 estimate; "
        f"0.1 lower is a 21 % smaller error at every level. {second}: mean over levels of "
        "SNR \u00d7 MSE, the error of the noise; the nearly clean levels weigh most."
    )


def _of_real(ranking: Ranking) -> str:
    if not ranking.real:
        return ""
    num = max(one.n for one in ranking.real.values())
    return (
        f" Real images: {num:,} held-out ones, measured in the same way; a cell within their "
        "interval (of evaluation, 95 %) cannot be told from real images by that measure."
    )


def _accuracy(ranking: Ranking, standing: Standing) -> str:
    """Class accuracy of the compared samples, mean over seeds; "" without classes."""
    found = [
        point.accuracy.value
        for trial in standing.trials.values()
        if trial.quality is not None and ranking.point is not None
        for point in trial.quality.points
        if point.accuracy is not None and point.evaluations == ranking.point.evaluations
        and (point.sampler, point.eta) == (ranking.point.sampler, ranking.point.eta)
    ]  # fmt: skip
    return f"{100 * sum(found) / len(found):.1f} %" if found else ""


def compared(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Every cell against the recommended one, and against a baseline where one was named."""
    best = ranking.recommended
    if len(ranking.standings) < 2 or not sweep.is_sweep or best is None:
        return
    yield from (Text(words=words) for words in _of_pairs(ranking))
    yield _against(
        f"Against {best.label}. Intervals hold at 95 % for all pairs of cells (Tukey) and both "
        "measures (Bonferroni) together, as the data have picked the cell",
        ranking,
        against(ranking, best, "pairs"),
    )
    if ranking.baseline is not None:
        base = ranking.standings[ranking.baseline]
        yield Text(words=against_baseline(ranking))
        yield _against(
            f"Against {base.label}, the baseline that was named. Intervals hold at 95 % for all of "
            "its comparisons (Dunnett) and both measures together",
            ranking,
            against(ranking, base, "baseline"),
        )
    one_seed = (
        "One seed: \u00b1 is evaluation error and speaks of these trained networks only. "
        if ranking.spread(ranking.measures[0]) is None
        else ""
    )
    yield _note(
        f"{one_seed}Differences are of log10: 0.1 is 26 % more. Paired / unpaired: variance of the "
        "difference over the seeds both cells have, as a share of what it would be if the seeds "
        "had nothing in common; from few seeds it is rough."
    )


def _of_pairs(ranking: Ranking) -> list[str]:
    """The effect of pairing by seed on the intervals, and cells that scatter more than others."""
    first, *others = ranking.measures
    said = [f"{TITLES[first]}: {pairing(ranking, first)}"]
    for measure in others:
        found = ranking.spread(measure)
        if measure not in ranking.informative:
            said.append(uninformative(measure))
        elif found is not None and isfinite(found.ratio):
            kind = "paired" if found.is_paired else "unpaired"
            said.append(f"{TITLES[measure]}: {found.ratio:.2f} times; intervals are {kind}.")
    return [*said, *filter(None, [unequal(ranking)])]


def _against(caption: str, ranking: Ranking, found: Sequence[Comparison]) -> Table:
    first = ranking.measures[0]
    with_ratio = any(isfinite(one.ratios[first]) for one in found)
    rows = []
    for one in found:
        ratio = one.ratios[first]
        shown = [signed(ratio, 2) if isfinite(ratio) else _NONE] * with_ratio
        gaps = [
            w
            for g in one.gaps.values()
            for w in (
                (_NONE, _NONE)
                if g == Gap()
                else (with_error(g.mean, g.half_width), ratio_text(10**g.mean))
            )
        ]
        rows.append([one.standing.label, *gaps, *shown, OUTCOMES[one.outcome]])
    head = ["cell", *(words for m in ranking.measures for words in (_log_name(m), "that is")),
            *["paired / unpaired"] * with_ratio, "the cell is"]  # fmt: skip
    return Table(head=head, rows=rows, caption=caption, right=range(1, 5 + with_ratio))


def _log_name(measure: str) -> str:
    return TITLES[measure] if measure == X0_MEASURES[0] else f"log10 of {TITLES[measure]}"


def ratio_text(ratio: float) -> str:
    """`+3.1 %`; from twice the error on, times how much it is."""
    if ratio >= 2:
        return f"\u00d7{ratio:,.1f}"
    percent = 100 * (ratio - 1)
    return f"{'+' if percent > 0 else ''}{signed(percent, 1)} %"


def factors(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Each factor of the grid by both measures: sentences, analysis of variance, effects."""
    if len(ranking.standings) < 2 or not sweep.is_sweep:
        return
    for measure in ranking.measures:
        if measure not in ranking.informative:
            yield Text(words=uninformative(measure))
            continue
        found = analyse(ranking, measure)
        said = [Text(words=sentence) for sentence in factor_sentences(found)]
        if found.reason is not None:
            yield from said if measure == ranking.measures[0] else ()
            continue
        yield Text(words=capital(_log_name(measure)), kind="heading")
        yield from said
        yield _variance(found)
        if found.error is not None:
            yield _effects(found)


def _variance(found: Analysis) -> Table:
    lines = [(term.name, term) for term in ((found.seeds,) if found.seeds else ()) + found.terms]
    if found.error is not None:
        lines.append((f"error: {found.error.name}", found.error))
    sums = "" if found.is_complete else ". The grid is incomplete, so the squares do not add up"
    over = ". F is taken over the term's own changes from seed to seed"
    return Table(
        head=("term", "degrees of freedom", "sum of squares", "F", "over", "p", "share"),
        rows=[_line(name, term) for name, term in lines],
        right=range(1, 7),
        caption="Sums of squares beyond all terms that do not contain the term (type II). Share: "
        f"\u03c9\u00b2, of the variance{over if found.strata is not None else ''}{sums}",
    )


def _line(name: str, term: Term) -> list[str]:
    fitted = [name, str(term.dof), f"{term.squares:.3g}"]
    if not isfinite(term.f):
        return [*fitted, *4 * [_NONE]]
    p = probability(term.p).removeprefix("p ").removeprefix("= ")
    return [*fitted, f"{term.f:,.1f}", f"{term.over:.0f}", p, f"{100 * term.share:.0f} %"]


def _effects(found: Analysis) -> Table:
    effects = [found.effect(key) for key in found.factors]
    return Table(
        head=("factor", "value", "effect"),
        rows=[
            [spoken(one.key), part(one.key, value), with_error(float(mean), float(width))]
            for one in effects
            for value, mean, width in zip(one.levels, one.means, one.half_widths, strict=True)
        ],
        right=(2,),
        caption="Each value's distance from the mean of its factor, over all values of the others, "
        "with its own 95 % interval. Lower is better.",
    )  # fmt: skip


def heat_maps(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Both measures over two factors, a pair of tables a value of the others."""
    if axes.series is None or axes.rows is None or not ranking.standings:
        return
    panels = charts.chosen(sweep.cells, axes.panels, axes, ranking, _PANELS)
    for measure in ranking.measures:
        for title, group in panels.items():
            caption = capital(TITLES[measure]) + (f", {title}" if title else "")
            yield _heat_map(sweep, ranking, axes, group, measure, caption)
    if rest := len(axes.grouped(sweep.cells, axes.panels)) - len(panels):
        yield _note(
            f"The {len(panels)} panels that hold the best cells are shown; {rest} more are in "
            "results.csv."
        )
    yield _note(
        f"Rows: {spoken(axes.rows)}; columns: {spoken(axes.series)}. Darker is better; the lowest "
        "of all cells is framed."
    )


def _heat_map(
    sweep: SweepResults, ranking: Ranking, axes: Axes, group: list[Cell], measure: str, caption: str
) -> Table:
    assert axes.series is not None and axes.rows is not None
    key, other = axes.rows, axes.series
    rows, columns = axes.values[key], axes.values[other]

    def place(cell: Cell) -> tuple[int, int]:
        return axes.place(key, cell), axes.place(other, cell)

    ended = [(t.cell, {"done": "not ranked"}.get(t.status, t.status)) for t in sweep.trials]
    ended += [(one.cell, "skipped") for one in sweep.skipped]
    words = {place(cell): word for cell, word in ended if cell in group}
    shades: dict[tuple[int, int], float] = {}
    logs = [standing.log10(measure) for standing in ranking.standings]
    most, least = max(logs), min(logs)
    digits = common_digits([standing.error(measure) for standing in ranking.standings])
    for standing, log in zip(ranking.standings, logs, strict=True):
        if standing.cell in group:
            at, value = place(standing.cell), standing.value(measure)
            many = number_with_error(value, standing.error(measure))[0]
            words[at] = many if digits is None else signed(value, digits)
            shades[at] = 1.0 if most == least else (most - log) / (most - least)
    return Table(
        head=("", *(part(other, value) for value in columns)),
        rows=[
            [part(key, value), *(words.get((i, j), "not trained") for j in range(len(columns)))]
            for i, value in enumerate(rows)
        ],
        caption=caption,
        shades=[[shades.get((i, j)) for j in range(len(columns))] for i in range(len(rows))],
    )


def errors_by_level(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """The x0-error over log SNR: at which noise levels each cell is above the lowest."""
    if not ranking.standings:
        return
    solid = ""
    if sweep.is_sweep:
        solid = (
            " Solid: the window of the data, which alone is averaged. Dashed, on grey: beyond it."
            if ranking.is_window
            else " Solid: the levels all cells share, which alone are averaged. Dashed, on grey: "
            "levels that some schedule does not reach."
        )
    if (found := agreement(ranking)) is not None:
        tau, low, high, cells = found
        inside = f" (95 % interval {signed(low, 2)} to {signed(high, 2)})" if isfinite(low) else ""
        yield Text(
            words=f"The mean log10 x0-error orders these {cells} cells as FID\u221e does to the "
            f"extent of Kendall's tau {signed(tau, 2)}{inside}: 1 is the same order, 0 none."
        )
    lines = (
        f" {GAUSSIAN} is the best linear estimate from the training data's mean and covariance, on "
        "the same validation pairs: a network above it has learned less than two moments. "
        f"{MEMORISATION.capitalize()} is the ideal denoiser that only remembers "
        f"{sweep.references.num_train:,} training images, on training pairs: no network that "
        "generalises reaches it. Neither is told the class."
        if sweep.references is not None
        else ""
    )
    yield _note(
        "Mean squared error of the network's estimate of the clean image, on fixed (validation "
        f"image, noise) pairs, in units where pixels lie in [\u22121, 1].{solid}{lines}"
    )
    yield Chart(name="x0-error over log SNR", spec=charts.x0_curves(sweep, ranking, axes))
    if (weights := charts.weight_curves(sweep, ranking, axes)) is not None:
        yield _note(
            "Where the training loss looked: how often a noise level was drawn, times its weight, "
            "times what a squared error of the loss space is in squared error of the image, so "
            "that the curve weighs the x0-error above level by level. It adds up to 1 over the "
            "window that is averaged. A cell tends to lose where others weigh more."
        )
        yield Chart(name="weight of the x0-error in the training loss over log SNR", spec=weights)
    if len(ranking.standings) > 1:
        yield _level_map(ranking)
    if (references := _reference_table(sweep, ranking)) is not None:
        yield references


def _level_map(ranking: Ranking) -> Table:
    standings = ranking.standings[:_LEVEL_ROWS]
    curves = np.full((len(ranking.standings), len(ranking.levels)), np.nan)
    for row, standing in zip(curves, ranking.standings, strict=True):
        here = [level in standing.levels for level in ranking.levels]
        row[here] = standing.curve([k for k, has in zip(ranking.levels, here, strict=True) if has])
    above = 100 * (curves / np.nanmin(curves, axis=0) - 1)[: len(standings)]
    top = max(float(np.nanmax(np.log10(1 + above))), log10(2))  # less than 1 %: alike
    shades = 1 - np.log10(1 + above) / top
    more = f". The {len(standings)} best cells" if len(standings) < len(curves) else ""
    return Table(
        head=("", *map(signed, ranking.levels)),
        rows=[
            [standing.label, *map(_per_cent, row)]
            for standing, row in zip(standings, above, strict=True)
        ],
        caption="x0-error above the lowest at each log-SNR level, in per cent (0: the lowest; "
        f"\u00d712: twelve times it). Noisy on the left, nearly clean on the right{more}",
        shades=[[None if np.isnan(one) else one for one in row] for row in shades.tolist()],
    )


def _per_cent(value: float) -> str:
    if np.isnan(value):
        return _NONE
    if value >= 1000:
        return f"\u00d7{1 + value / 100:,.0f}"
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


def _reference_table(sweep: SweepResults, ranking: Ranking) -> Table | None:
    """The two reference curves at the levels of the ranking, beside the recommended cell."""
    lines, best = sweep.references, ranking.recommended
    levels = [
        one
        for one in ranking.levels
        if lines and one in lines.levels and best and one in best.levels
    ]
    if lines is None or best is None or not levels:
        return None
    curves = {best.label: dict(zip(levels, best.curve(levels), strict=True))}
    for name, values in ((GAUSSIAN, lines.gaussian), (MEMORISATION, lines.memorisation)):
        if values is not None:
            curves[name] = dict(zip(lines.levels, values, strict=True))
    rows = [[signed(level), *(f"{one[level]:.3g}" for one in curves.values())] for level in levels]
    head = ("log SNR", *curves)
    fold = f"The reference lines at {len(levels)} levels"
    return Table(head=head, rows=rows, right=range(len(head)), fold=fold)


def costs(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Totals, both measures over the training cost, the front in words, a row a cell, and what was
    predicted beside what was measured.
    """
    if not sweep.is_sweep or not ranking.standings:
        return
    yield Text(words=total(sweep))
    spec = charts.over_cost(ranking, axes)
    if spec is not None:
        yield Chart(name="both measures over the cost of a trial", spec=spec)
        yield _note(_fronts(ranking))
    head, rows = _cost_rows(ranking)
    fold = f"What each of {len(rows)} cells took"
    yield Table(head=head, rows=rows, right=range(1, len(head)), fold=fold)
    if (found := predicted_cost(sweep)) is not None:
        yield _note(
            "What a probe of a few steps predicted before the first trial, and what "
            f"{found.trials} trials took. Load of the machine when probed: {found.load:.1f}."
        )
        yield Table(head=("", "predicted", "measured", "more"), rows=found.rows(), right=(1, 2, 3))


def scaled(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Slopes of log error over compute of cells that differ in size, and where two cross."""
    rows, families = [], []
    for measure in dict.fromkeys((*ranking.measures, X0_MEASURES[0])):
        if lost := unresolved(ranking, measure):
            yield _note(
                f"Left out of the lines of {TITLES[measure]}: {len(lost)} of "
                f"{len(ranking.standings)} cells, whose number is on some seed not above its "
                "evaluation error."
            )
        if not (found := laws(ranking, measure)):
            continue
        families.append(found)
        yield from (Text(words=words) for words in crossings(found))
        rows += [
            [TITLES[measure], law.name, slope_in_words(law), ratio_text(2 ** law.slope[0]),
             f"{duration(10 ** law.compute[0])} to {duration(10 ** law.compute[-1])}",
             ", ".join(cell_label(one.cell, SIZES) for one in law.front)]
            for law in found
        ]  # fmt: skip
    if not rows:
        return
    head = ("measure", "cells", "slope", "with twice the compute", "compute", "sizes on the front")
    yield Table(head=head, rows=rows, right=(2, 3), wrap=(5,))
    yield _note(
        "Slope: of log10 of the number over log10 of the core- or GPU-seconds of training, on the "
        "sizes that no cheaper one matches, \u00b1 95 % interval over seeds. Where two cells cross "
        "is said only where the intervals show who is better at either end. Lines: the fits."
    )
    spec = charts.over_compute(families, axes)
    yield Chart(name="error over training compute by size", spec=spec)


def total(sweep: SweepResults) -> str:
    """`27 trainings took 3.4 min of core time in all, 7.1 s to 8.0 s each.`"""
    known = [(t, s) for t in sweep.trials if (s := compute_seconds(t)) is not None]
    if not known:
        return "What the trainings took was not recorded."
    unit = cost([trial for trial, _ in known]).device
    lost = sum(seconds for trial, seconds in known if trial.status != "done")
    spent = sum(seconds for _, seconds in known)
    more = f"; {duration(lost)} of it went into trials that did not finish" if lost else ""
    known.sort(key=lambda one: one[1])
    ends = [duration(seconds) for seconds in (known[0][1], known[-1][1])]
    each = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    took = f"{len(known):,} trainings took {duration(spent)} of {unit} time in all, {each} each"
    return f"{took}{more}."


def _fronts(ranking: Ranking) -> str:
    """The cells on the Pareto front of each measure, from the cheapest."""
    standings, seconds = charts.known_costs(ranking)
    ratio = max(seconds) / max(min(seconds), 1e-12)
    said = ["A cell is on the front when no other is both cheaper and better."]
    if len(standings) <= 60:
        said.append("Bars: the intervals of the ranking.")
    if len(cheapest([one.costs for one in standings], CONFIDENCE)) == len(standings):
        said.append(
            f"All cells cost alike, as far as can be told (within {max(1, ceil(100 * (ratio - 1)))}"
            " %, which may be the machine's), so the front says little here."
        )
    for measure in ranking.measures:
        values = [standing.value(measure) for standing in standings]
        named = [
            f"{standings[k].label} ({number_with_error(values[k], standings[k].error(measure))[0]} "
            f"for {duration(seconds[k])})"
            for k in front(seconds, values)
        ]
        said.append(f"By {TITLES[measure]}, from the cheapest: {', '.join(named)}.")
    return " ".join(said)


def _cost_rows(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Cost of each cell, mean over its seeds and in all, without columns nobody has recorded."""
    kind = ranking.standings[0].cost.device
    head = ("cell", "trials", f"{kind} time per trial", f"{kind} time in all", "wall time",
            "images/s", "peak memory", "energy")  # fmt: skip
    rows = []
    for standing in ranking.standings:
        trials = list(standing.trials.values())
        one, spent = standing.cost, [s for t in trials if (s := compute_seconds(t)) is not None]
        rows.append((standing.label, str(len(trials)), duration(one.compute_seconds),
                     duration(sum(spent) if spent else None), duration(one.seconds),
                     one.speed() + " packed" * one.is_packed, size(one.peak_memory_bytes),
                     energy(one.energy_joules)))  # fmt: skip
    kept = [k for k in range(len(head)) if any(row[k] != _NONE for row in rows)]
    return [head[k] for k in kept], [[row[k] for k in kept] for row in rows]


def samples(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Sample grids side by side: same seeds, same classes; the best cells of many."""
    having = [trial for trial in sweep.trials if trial.samples is not None]
    shown = strips.shown_trials(ranking, axes, having)
    grids = [
        (
            f"{axes.label(t.cell)}, seed {t.seed}",
            strips.grid_url(t.samples.images, t.samples.labels),
        )
        for t in shown
        if t.samples and t.samples.images.size
    ]
    if not grids:
        return
    if sweep.is_sweep:
        cells = len({trial.key for trial in having})
        part = f"; the {len(shown)} best cells of {cells}, best first" if cells > len(shown) else ""
        yield _note(
            "Every grid starts from the same noise and has the same class in the same column, so "
            f"grids differ by the trained network alone{part}. Real images first."
        )
    first = next(trial.samples for trial in shown if trial.samples)
    classes = strips.classes_of(first)
    real = None if sweep.references is None else sweep.references.samples
    if real is not None and real.images.size:
        picture = [("real validation images", strips.grid_url(real.images, real.labels))]
        yield Pictures(grids=picture, classes=strips.classes_of(real))
    side_by_side = len({axes.style(trial.cell) for trial in shown})
    is_even = len(shown) % side_by_side == 0 and 2 <= side_by_side <= 4
    columns = side_by_side if is_even and len(shown) > 1 else 0
    yield Pictures(grids=grids, columns=columns, classes=classes)


def samples_over_training(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """The grids drawn while the best cells trained."""
    rows = strips.over_training(sweep, ranking, axes)
    if rows:
        yield _note(
            "The same noise and the same classes at every step, drawn by the averaged weights of "
            f"that moment.{_best_of(sweep, len(rows))}"
        )
        yield Pictures(film=rows, over="optimizer step", moments=strips.moments(rows))


def samples_over_steps(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Quality and pictures of samples by the number of sampling steps."""
    every, lost = spots_of(sweep, axes), left_out(sweep, axes)
    if is_ranked := _is_one_walk(sweep, ranking, every):
        every = []
    names = [name for name in QUALITY_MEASURES if any(name in spot.qualities for spot in every)]
    base = ranking.point.guidance if ranking.point else every[0].point.guidance if every else 1.0
    spots = [spot for spot in every if spot.point.guidance == base]
    if names:
        yield _note(_how_measured(sweep))
        yield _best_by_calls(spots, names)
        yield _note(
            "Pareto front: the best cell at each number of network calls; a dash where fewer calls "
            "do as well. Cells whose intervals overlap may swap places."
        )
        spec = charts.sampling_curves(spots, names, ranking, axes)
        yield Chart(name="quality of samples over network calls per image", spec=spec)
        most = max(spot.point.num_steps for spot in every)
        guided = [spot for spot in every if spot.point.num_steps == most]
        if len({spot.point.guidance for spot in guided}) > 1:
            yield _note(
                f"Guidance away from the null class, at {most} steps: 1 is the network alone, any "
                "other costs twice its network calls."
            )
            spec = charts.sampling_curves(guided, names, ranking, axes, over="guidance")
            yield Chart(name="quality of samples over guidance", spec=spec)
        yield _points(sweep, every, names)
    if lost:
        fold = f"Points left out: {len(lost)}"
        yield Table(head=("cell", "left out, and why"), rows=lost, wrap=(1,), fold=fold)
    if not is_ranked and (rows := strips.over_steps(sweep, ranking, axes)):
        yield _note(
            "The same noise and the same classes at every number of steps, by the final averaged "
            f"weights.{_best_of(sweep, len(rows))}"
        )
        yield Pictures(film=rows, over="sampling steps", moments=strips.moments(rows))


def _is_one_walk(sweep: SweepResults, ranking: Ranking, spots: Sequence[Spot]) -> bool:
    """Whether all samples were drawn in one way, by which the cells are ranked already."""
    ways = {(method(spot.point), spot.point.num_steps, spot.point.guidance) for spot in spots}
    return sweep.is_sweep and ranking.of_samples and len(ways) == 1


def _best_of(sweep: SweepResults, shown: int) -> str:
    cells = len({trial.key for trial in sweep.trials})
    return f" The {shown} best cells of {cells}." if cells > shown else ""


def _how_measured(sweep: SweepResults) -> str:
    measured = [(t.key, t.quality) for t in sweep.trials if t.quality is not None]
    keys, every = [key for key, _ in measured], [quality for _, quality in measured]
    counts = listed(sorted({f"{one.num:,}" for one in every}))
    features = listed(sorted({one.features or "features that are not named" for one in every}))
    protocols = listed(sorted({one.protocol for one in every if one.protocol})[:3] or ["none"])
    several = len(set(keys)) < len(keys)
    bars = "the interval of one trained network"
    if several:
        bars = "95 % intervals over training seeds"
    return (
        f"{counts} images a point, measured with {features} (protocol: {protocols}). Lower is "
        f"better for FID and KID, higher for accuracy. Bars: {bars}."
    )


def _best_by_calls(spots: Sequence[Spot], names: Sequence[str]) -> Table:
    best = {name: best_front(spots, name) for name in names}
    calls = sorted({spot.point.evaluations for some in best.values() for spot in some})
    rows = []
    for count in calls:
        here = {name: [s for s in best[name] if s.point.evaluations == count] for name in names}
        said = [
            f"{some[0].label}: {interval_text(some[0].qualities[name])}" if some else _NONE
            for name, some in here.items()
        ]
        rows.append([f"{count:g}", *said])
    head = ("calls per image", *(f"best {TITLES[name]} [interval]" for name in names))
    return Table(head=head, rows=rows, wrap=range(1, len(head)))


def _points(sweep: SweepResults, spots: Sequence[Spot], names: Sequence[str]) -> Table:
    units = dict.fromkeys(trial.quality.unit for trial in sweep.trials if trial.quality)
    rows = [
        [spot.label, str(spot.num_seeds), method(spot.point), str(spot.point.num_steps),
         f"{spot.point.evaluations:g}", f"{spot.seconds:,.1f}" if isfinite(spot.seconds) else _NONE,
         *(interval_text(spot.qualities[n]) if n in spot.qualities else _NONE for n in names)]
        for spot in spots
    ]  # fmt: skip
    head = ["cell", "seeds", "sampler", "steps", "calls per image", " / ".join(units),
            *(f"{TITLES[name]} [interval]" for name in names)]  # fmt: skip
    return Table(head=head, rows=rows, right=(1, *range(3, len(head))), is_short=False,
                 fold=f"The numbers of {len(rows)} points")  # fmt: skip


def training_curves(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """First the measures that compare, then the losses, which do not."""
    many = len({trial.seed for trial in sweep.trials}) > 1
    seeds = " Lines: mean over seeds; bands: the lowest to the highest seed." if many else ""
    comparable = charts.learning_curves(sweep, ranking, axes, charts.COMPARABLE)
    if comparable is not None:
        yield Text(words="On validation images", kind="heading")
        yield _note(
            f"The numbers of the ranking while training went on; they compare across cells.{seeds}"
        )
        yield Chart(name="measures on validation images over training", spec=comparable)
    losses = charts.learning_curves(sweep, ranking, axes, charts.LOSSES)
    if losses is not None:
        yield Text(words="Training losses", kind="heading")
        yield _note(
            "Not comparable across schedules or timesteps: each trial averages these over its own "
            "noise levels. Use them to see whether training was stable and had levelled off, not "
            f"to rank.{'' if comparable else seeds}"
        )
        yield Chart(name="training losses", spec=losses)


def tuned(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """The choice within each cell, the curves it was chosen from, and what that changes."""
    found = tuning_of(sweep)
    if found is None or not found.cells:
        return
    names = [spoken(key) for key in found.keys]
    draws = len({str([trial.cell.get(key) for key in sweep.space]) for trial in sweep.tuning})
    seeds = listed(sorted({str(trial.seed) for trial in sweep.tuning}))
    spent = sum(compute_seconds(trial) or 0.0 for trial in sweep.tuning)
    of_measures = " and ".join(TITLES[measure] for measure in found.ranking.measures)
    yield Text(
        words=f"{listed(names)} chosen within each cell: {draws} draws, the same for all cells, "
        f"trained for a third of the length on seed {seeds}, {duration(spent)} of compute in all. "
        f"Chosen is the lowest mean of log10 of {of_measures}. The ranking rests on other seeds."
    )
    if (kept := found.order_kept()) is not None:
        tau, common = kept
        at = " ".join(part(key, value) for key, value in common.items())
        yield Text(
            words=f"With the one choice that suits all cells best, {at}, the tuning trainings "
            "order "
            "the cells as their own best choices do to the extent of Kendall's tau "
            f"{signed(tau, 2)} (1: the same order)."
        )
    clipped = any("clipped_share" in trial.metrics for trial in sweep.tuning)
    rows = []
    for one in sorted(found.cells, key=lambda cell: found.score(cell.best)):
        shown = [text(value) for value in found.values(one.best).values()]
        rows.append([axes.label(one.cell), *shown,
                     *(number_with_error(one.best.value(m), one.best.error(m))[0]
                       for m in found.ranking.measures),
                     *[_clipped(one.best)] * clipped,
                     "the end of what was tried" if one.is_at_edge else ""])  # fmt: skip
    head = ["cell", *names, *(TITLES[measure] for measure in found.ranking.measures),
            *["steps clipped"] * clipped, ""]  # fmt: skip
    yield Table(head=head, rows=rows, right=range(1, len(head) - 1))
    if len(found.keys) == 1:
        name = f"each cell over {names[0]}"
        yield Chart(name=name, spec=charts.over_choice(found, axes))


def _clipped(standing: Standing) -> str:
    """Share of optimizer steps whose gradient was clipped, mean over seeds."""
    shares = [
        float(np.nanmean(trial.metrics["clipped_share"]))
        for trial in standing.trials.values()
        if "clipped_share" in trial.metrics
    ]
    return f"{100 * sum(shares) / len(shares):.0f} %" if shares else _NONE


def search(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Trials ended early, the race of seeds and the budget."""
    if not sweep.is_sweep:
        return
    if ended := sweep.with_status("stopped"):
        yield Text(
            words=f"asha ended {len(ended)} of {sweep.planned} trials early, each at a rung that "
            "all reach after equally many images, by the measure that the others had there. Only "
            "those it let train to the end are ranked: what is said of them is said of survivors."
        )
        rows = [(cell_name(t.cell), str(t.seed), t.reason or "") for t in ended[:_SHOWN]]
        yield Table(head=("cell", "seed", "how it ended"), rows=rows, wrap=(2,))
    if race := looks(sweep.folder):
        yield Text(words=race_in_words(race))
        rows = [
            (str(one.get("seeds")), measure, listed([str(name) for name in sequence(names)]))
            for one in race
            for measure, names in mapping(one.get("candidates")).items()
        ]
        head = ("after seeds", "by", "may still be the best, the leader first")
        yield Table(head=head, rows=rows, wrap=(2,))
    if left := sweep.with_status("unrun"):
        reason = (left[0].reason or "").partition(": ")[2]
        yield Text(
            words=f"{len(left)} of {sweep.planned} trials have not been run to their end: {reason}."
        )


def failures(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Every trial and cell without a place, what became of it and why."""
    keys = tuple(dict.fromkeys(key for trial in sweep.trials for key in trial.cell))
    rows = [
        (cell_label(t.cell, keys), str(t.seed), t.status, t.reason or "no reason was recorded")
        for t in sweep.trials
        if t.status != "done" and sweep.is_sweep
    ]
    rows += [(cell_label(one.cell, keys), _NONE, "skipped", one.reason) for one in sweep.skipped]
    named = {t.key for t in sweep.trials if t.status != "done"}
    done = {axes.label(t.cell) for t in sweep.trials if t.key not in named}
    rows += [(label, "", "not ranked", why) for label, why in ranking.excluded if label in done]
    if rows:
        yield Table(head=("cell", "seed", "status", "reason"), rows=rows, wrap=(3,))


def configuration(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """The keys in which trials differ, then those they share, folded."""
    trials = [trial for trial in sweep.trials if trial.config]
    if not trials:
        yield Text(words="No trial has left its configuration.")
        return
    rows = [(key, listed(values, limit=12)) for key, values in differences(trials).items()]
    if rows:
        yield Table(head=("key", "values"), rows=rows, wrap=(1,))
    seeds = listed([str(seed) for seed in sorted({trial.seed for trial in trials})])
    yield Text(words=f"Seeds: {seeds}.")
    differing = {key for key, _ in rows}
    same = [(k, text(v)) for k, v in trials[0].config.items() if k not in differing]
    said = "What all trials share" if len(trials) > 1 else "The whole configuration"
    fold = f"{said} ({len(same)} keys)"
    yield Table(head=("key", "value"), rows=same, wrap=(1,), fold=fold, is_short=not sweep.is_sweep)


def provenance(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """Code, versions, machine and the command that reproduces each trial."""
    if sweep.command:
        yield Text(words=sweep.command, kind="command")
    having = [trial for trial in sweep.trials if trial.run_dir is not None]
    if having and sweep.is_sweep:
        best = ranking.recommended
        one = having[0] if best is None else best.trials[min(best.trials)]
        yield Text(words=f"Only {axes.label(one.cell)}, seed {one.seed}:")
        yield Text(words=reproduce(one), kind="command")
    values: dict[str, dict[str, None]] = {}
    for trial in sweep.trials:
        for key, value in leaves(dict(trial.provenance)):  # type: ignore[arg-type]
            if key.split(".")[0] not in _OF_ONE_TRIAL and value not in (None, []):
                values.setdefault(key, {})[text(value)] = None
    facts = [(key, listed(list(seen), limit=4)) for key, seen in values.items()]
    if facts:
        yield Table(head=("recorded", "value"), rows=facts, wrap=(1,))
    rows = [(axes.label(t.cell), str(t.seed), t.name, reproduce(t)) for t in having]
    fold = f"Commands of {len(rows)} trials" if len(rows) > 12 else ""
    if rows:
        yield Table(head=("cell", "seed", "trial", "reproduce with"), rows=rows, wrap=(3,),
                    code=(2, 3), fold=fold, is_short=not sweep.is_sweep)  # fmt: skip


def reproduce(trial: TrialResult) -> str:
    """The command that trains this trial again from nothing."""
    assert trial.run_dir is not None
    name = commit(trial)
    checkout = f"git checkout {name.rstrip('+')[:12]} && " if name else ""
    return checkout + as_typed("train", short_path(trial.run_dir / CONFIG_FILE), "--new")


def short_path(path: Path) -> Path:
    """The path, relative where it lies below the working directory."""
    whole, here = path.absolute(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def bits(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Iterable[Block]:
    """The bound on bits/dim of each trial, in the order of the grid: nothing is ranked by it."""
    rows = []
    for trial in sweep.trials:
        found = mapping(trial.evaluation.get("bits_per_dim"))
        value, error = number(found.get("value")), number(found.get("evaluation_error"))
        if not isfinite(value):
            continue
        terms = [number(term) for term in sequence(found.get("terms"))]
        ends = [f"{terms[k]:.2g}" for k in (0, -1)] if terms else ["", ""]
        steps = str(len(sequence(found.get("timesteps"))) - 1)
        shown = with_error(value, error)
        rows.append((axes.label(trial.cell), str(trial.seed), shown, *ends, steps))
    if rows:
        yield _note(
            "The variational bound, lower is better, \u00b1 evaluation error; over a walk of so "
            "many steps, not all timesteps. Not comparable across schedules or numbers of "
            "timesteps: what goes below the step between two grey values pays for noise that "
            "nobody sees."
        )
        head = ("cell", "seed", "bits/dim", "prior", "decoder", "steps")
        yield Table(head=head, rows=rows, right=range(1, 6))
