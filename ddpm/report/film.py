"""Pictures of several trials over time or steps: a strip a trial, or, with a slider, one moment.

On paper and without the page's script the strips are there, one column a moment. The script shows
one column at a time, as large pictures side by side, and moves through them with the slider.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeVar

from ddpm.quality_file import ARRAYS, Point, read_pictures
from ddpm.report.axes import Axes
from ddpm.report.data import Sweep, Trial
from ddpm.report.grids import grid_url, picture_url
from ddpm.report.labels import cell_label
from ddpm.report.ranking import Ranking

ROWS, FRAMES = 12, 8
T = TypeVar("T")


def over_training(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """The grids drawn while the best cells trained."""
    trials = shown_trials(sweep, ranking, axes, [t for t in sweep.trials if len(t.inline) > 1])
    stems = _spread(sorted({path.stem for trial in trials for path in trial.inline}), FRAMES)
    rows = {
        _name(trial, sweep, axes): {
            _step(path.stem): url
            for path in trial.inline
            if path.stem in stems and (url := picture_url(path))
        }
        for trial in trials
    }
    if not any(rows.values()):
        return ""
    note = (
        "<p class='note'>The same noise and the same classes at every step, drawn by the averaged "
        f"weights of that moment.{_left_out(sweep, trials)}</p>"
    )
    return note + film(rows, "optimizer step")


def over_steps(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """The samples of the best cells by the number of sampling steps."""
    having = [t for t in sweep.trials if t.quality and t.run_dir and (t.run_dir / ARRAYS).exists()]
    trials = shown_trials(sweep, ranking, axes, having)
    rows = {_name(trial, sweep, axes): _by_steps(trial) for trial in trials}
    rows = {name: row for name, row in rows.items() if row}
    if not rows:
        return ""
    note = (
        "<p class='note'>The same noise and the same classes at every number of steps, by the "
        f"final averaged weights.{_left_out(sweep, trials)}</p>"
    )
    return note + film(rows, "sampling steps")


def _by_steps(trial: Trial) -> dict[str, str]:
    """A trial's pictures by sampler and steps; none where they are not those of its points."""
    found = None if trial.run_dir is None else read_pictures(trial.run_dir)
    points = () if trial.quality is None else trial.quality.points
    if found is None or len(found.images) != len(points):
        return {}
    several = len({method(point) for point in points}) > 1
    places = sorted(range(len(points)), key=lambda k: (method(points[k]), points[k].num_steps))
    return {
        f"{method(points[k])} " * several + str(points[k].num_steps): grid_url(
            found.images[k], found.labels, rows=2, largest=48, is_exact=False
        )
        for k in _spread(places, FRAMES)
    }


def method(point: Point) -> str:
    """The sampler without its steps: `ddim`, `ddim \u03b7=1`."""
    return point.sampler if point.eta == 0 else f"{point.sampler} \u03b7={point.eta:g}"


def film(rows: Mapping[str, Mapping[str, str]], what: str) -> str:
    """Strips of pictures: rows of moment -> data: URL, a column for every moment of any row."""
    moments = sorted({moment for row in rows.values() for moment in row}, key=_natural)
    heads = "".join(f'<th scope="col">{escape(moment)}</th>' for moment in moments)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_picture(row.get(moment, ""), f"{name}, {what} {moment}") for moment in moments)
        + "</tr>"
        for name, row in rows.items()
    )
    last = len(moments) - 1
    control = (
        f'<div class="slider" hidden><label>{escape(what)} <input type="range" min="0" '
        f'max="{last}" value="{last}" data-moments="{escape("|".join(moments))}"></label>'
        f'<output>{escape(moments[last])}</output><button type="button" aria-pressed="false">'
        "all at once</button></div>"
    )
    return (
        f'<div class="film">{control if last else ""}<div class="scroll"><table><thead><tr>'
        f'<th class="left">{escape(what)}</th>{heads}</tr></thead><tbody>{body}</tbody></table>'
        "</div></div>"
    )


def shown_trials(
    sweep: Sweep, ranking: Ranking, axes: Axes, having: Sequence[Trial]
) -> list[Trial]:
    """One trial a cell among those that have something: its first seed, in the grid's order; where
    there are more than fit, the best cells, the best first.
    """
    rank = {id(t): k for k, s in enumerate(ranking.standings) for t in s.trials.values()}
    ordered = sorted(having, key=lambda trial: (rank.get(id(trial), len(rank)), trial.seed))
    first = list({trial.key: trial for trial in reversed(ordered)}.values())[::-1]
    if len(first) > ROWS:
        return first[:ROWS]
    keys = (*axes.panels, *((axes.rows,) if axes.rows else ()), *filter(None, (axes.series,)))
    return sorted(first, key=lambda t: [axes.place(key, t.cell) for key in keys])


def _left_out(sweep: Sweep, trials: Sequence[Trial]) -> str:
    cells = {trial.key for trial in sweep.trials}
    return f" The {len(trials)} best cells of {len(cells)}." if len(cells) > len(trials) else ""


def _name(trial: Trial, sweep: Sweep, axes: Axes) -> str:
    return cell_label(trial.cell, tuple(axes.values)) if sweep.is_sweep else "this run"


def _picture(url: str, words: str) -> str:
    return f'<td><img src="{url}" alt="{escape(words)}"></td>' if url else "<td>\u2013</td>"


def _spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def _step(stem: str) -> str:
    """`step-00001000` as `1,000`."""
    number = stem.rpartition("-")[2]
    return f"{int(number):,}" if number.isdigit() else stem


def _natural(moment: str) -> tuple[str, int]:
    words, _, number = moment.rpartition(" ")
    digits = number.replace(",", "")
    return (words, int(digits)) if digits.isdigit() else (moment, 0)
