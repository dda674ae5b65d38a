"""Quality over cost: what the sweep took in all, and the cells on the Pareto front."""

from collections.abc import Sequence
from html import escape
from math import ceil, isfinite

from ddpm.measures import MEASURES
from ddpm.report import ticks
from ddpm.report.axes import Axes
from ddpm.report.charts import facets, first_each, in_order, legend
from ddpm.report.costs import compute_seconds, cost, front
from ddpm.report.data import Sweep
from ddpm.report.labels import duration, energy, number_with_error, size, with_error
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.svg import Frame, Series, line_chart
from ddpm.report.tabular import table
from ddpm.report.verdict import NAMES

FRONT = "Pareto front"
_BARS = 60  # intervals of more cells would hide each other
_WIDE = 8  # costs beyond this ratio are drawn on a logarithmic scale
_ALIKE = 1.1  # costs within this ratio are not told apart
_UNITS = ((1, "s"), (60, "min"), (3600, "h"))


def cost_section(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """Totals, both measures over the training cost, the front in words, and a row a cell."""
    if not ranking.standings or not sweep.is_sweep:
        return ""
    return f"<p>{escape(total(sweep))}</p>{_fronts(ranking, axes)}{_table(ranking)}"


def total(sweep: Sweep) -> str:
    """What the sweep took: `27 trainings took 3.4 min of core time in all, 7.1 s to 8.0 s each.`"""
    known = [(t, s) for t in sweep.trials if (s := compute_seconds(t)) is not None]
    if not known:
        return "What the trainings took was not recorded."
    unit = cost([trial for trial, _ in known]).unit.removesuffix("-seconds")
    lost = sum(seconds for trial, seconds in known if trial.status != "done")
    spent = sum(seconds for _, seconds in known)
    more = f"; {duration(lost)} of it went into trials that did not finish" if lost else ""
    known.sort(key=lambda one: one[1])
    ends = [duration(seconds) for seconds in (known[0][1], known[-1][1])]
    each = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    took = f"{len(known):,} trainings took {duration(spent)} of {unit} time in all, {each} each"
    return f"{took}{more}."


def _fronts(ranking: Ranking, axes: Axes) -> str:
    standings, seconds = _known(ranking)
    if len(standings) < 2:
        return ""
    size, name = next((u for u in reversed(_UNITS) if max(seconds) >= 2 * u[0]), _UNITS[0])
    unit = f"{_kind(ranking)} time per trial ({name})"
    charts, words, drawn = {}, [], []
    for measure in MEASURES:
        x = [one / size for one in seconds]
        values = [standing.value(measure) for standing in standings]
        best = front(seconds, values)
        series = [*_points(standings, x, measure, unit, axes), _line(best, x, values)]
        drawn.append(series)
        charts[NAMES[measure][0].upper() + NAMES[measure][1:]] = line_chart(
            series, _frame(series, unit, measure), f"{NAMES[measure]} over cost"
        )
        named = [_named(standings[k], seconds[k], measure) for k in best]
        said = ", ".join(f"<strong>{escape(one)}</strong> {for_what}" for one, for_what in named)
        words.append((NAMES[measure], said))
    ratio = max(seconds) / max(min(seconds), 1e-12)
    alike = (
        f"All cells cost nearly the same (within {max(1, ceil(100 * (ratio - 1)))} %, which may "
        "be the machine's), so the front says little here. "
        if ratio < _ALIKE
        else ""
    )
    bars = "Bars: the intervals of the ranking. " if len(standings) <= _BARS else ""
    note = (
        "<p class='note'>A cell is on the front when no other is both cheaper and better. "
        f"{bars}{alike}"
        + " ".join(
            f"By <em>{escape(name)}</em>, from the cheapest: {said}." for name, said in words
        )
        + "</p>"
    )
    return legend(first_each(drawn)) + facets(charts, 2) + note


def on_front(ranking: Ranking, measure: str) -> list[tuple[str, str]]:
    """The cells on the front, from the cheapest: each with `(−1.72 for 12 s)`."""
    standings, seconds = _known(ranking)
    best = front(seconds, [standing.value(measure) for standing in standings])
    return [_named(standings[k], seconds[k], measure) for k in best]


def _known(ranking: Ranking) -> tuple[list[Standing], list[float]]:
    """The cells whose cost is known, and that cost."""
    costs = [cost(list(one.trials.values())).compute_seconds for one in ranking.standings]
    known = [(s, c) for s, c in zip(ranking.standings, costs, strict=True) if c is not None]
    return [standing for standing, _ in known], [seconds for _, seconds in known]


def _named(standing: Standing, seconds: float, measure: str) -> tuple[str, str]:
    value = number_with_error(standing.value(measure), standing.error(measure))[0]
    return standing.label, f"({value} for {duration(seconds)})"


def _kind(ranking: Ranking) -> str:
    """core or GPU, what time is counted of."""
    return cost(list(ranking.standings[0].trials.values())).unit.removesuffix("-seconds")


def _points(
    standings: Sequence[Standing], x: Sequence[float], measure: str, unit: str, axes: Axes
) -> list[Series]:
    """The cells as markers with intervals, one series a colour."""
    has_bars = len(standings) <= _BARS
    groups: dict[str, list[int]] = {}
    for place, standing in enumerate(standings):
        groups.setdefault(axes.series_name(standing.cell), []).append(place)
    found = []
    for name, places in groups.items():
        some = [standings[k] for k in places]
        ends = [(s.value(measure), s.error(measure)) for s in some]
        tips = [
            f"{s.label}\n{NAMES[measure]} {with_error(value, error)}\n{unit}: {x[k]:.3g}"
            for s, k, (value, error) in zip(some, places, ends, strict=True)
        ]
        found.append(
            Series(
                name=name,
                x=[x[k] for k in places],
                y=[value for value, _ in ends],
                low=[value - error for value, error in ends] if has_bars else (),
                high=[value + error for value, error in ends] if has_bars else (),
                tips=tips,
                style=axes.style(some[0].cell),
                has_line=False,
            )
        )
    return in_order(found)


def _line(best: Sequence[int], x: Sequence[float], values: Sequence[float]) -> Series:
    """The front as a staircase: from each cell on it to the cost of the next."""
    xs: list[float] = []
    ys: list[float] = []
    for place in best:
        if ys:
            xs.append(x[place])
            ys.append(ys[-1])
        xs.append(x[place])
        ys.append(values[place])
    xs.append(max(x))
    ys.append(ys[-1])
    return Series(name=FRONT, x=xs, y=ys, style="b", has_markers=False)


def _frame(series: Sequence[Series], unit: str, measure: str) -> Frame:
    xs = [x for one in series for x in one.x]
    ys = [y for one in series for y in (*one.y, *one.low, *one.high) if isfinite(y)]
    is_wide = max(xs) > _WIDE * min(xs) > 0
    is_log = measure != MEASURES[0] and max(ys) > ticks.LOGARITHMIC * min(ys) > 0
    return Frame(
        x_range=ticks.beside(xs) if is_wide else ticks.around([0, *xs]),
        x_is_log=is_wide,
        y_range=ticks.decades(ys) if is_log else ticks.around(ys),
        y_is_log=is_log,
        x_title=unit,
        y_title=NAMES[measure],
        width=460,
        height=300,
    )


def _table(ranking: Ranking) -> str:
    head, rows = costs_of_cells(ranking)
    fold = f"What each of {len(rows)} cells took"
    return table(head, rows, numbers=range(1, len(head)), fold=fold)


def costs_of_cells(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """What each cell took, mean over its seeds and in all, in the order of the ranking: the head of
    a table and its rows, without columns that nobody has recorded.
    """
    rows = []
    for standing in ranking.standings:
        trials = list(standing.trials.values())
        one = cost(trials)
        spent = [s for t in trials if (s := compute_seconds(t)) is not None]
        speed = "\u2013" if one.images_per_s is None else f"{one.images_per_s:,.0f}"
        rows.append(
            (
                standing.label,
                str(len(trials)),
                duration(one.compute_seconds),
                duration(sum(spent) if spent else None),
                duration(one.seconds),
                speed + " packed" * one.is_packed,
                size(one.peak_memory_bytes),
                energy(one.energy_joules),
            )
        )
    kind = _kind(ranking)
    head = ("cell", "trials", f"{kind} time per trial", f"{kind} time in all", "wall time",
            "images/s", "peak memory", "energy")  # fmt: skip
    kept = [k for k in range(len(head)) if any(row[k] != "\u2013" for row in rows)]
    return [head[k] for k in kept], [[row[k] for k in kept] for row in rows]
