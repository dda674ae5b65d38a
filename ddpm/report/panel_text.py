"""The words and tables of an online report, in Markdown: what panels of single runs cannot show."""

from collections.abc import Mapping, Sequence
from math import isfinite

from ddpm.measures import MEASURES
from ddpm.report import next_command, progress
from ddpm.report.axes import Axes
from ddpm.report.curves import GAUSSIAN, MEMORISATION
from ddpm.report.data import Sweep
from ddpm.report.files import mapping, number
from ddpm.report.flags import commit, differences, flags
from ddpm.report.labels import (
    cell_label,
    duration,
    listed,
    number_with_error,
    part,
    ranges,
    signed,
    size,
    spoken,
    varied,
)
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.table import cost, speed
from ddpm.report.verdict import NAMES, Verdict, spread

MANY = 60  # rows of a table, and tables of a section: a report is read, results.csv has the rest


def answer(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> str:
    """The question, the verdict's own sentences, what to bear in mind and the next command."""
    what, command = next_command(sweep, ranking, verdict)
    parts = [
        f"*{escaped(sweep.question)}*" if sweep.question else "",
        f"**{escaped(verdict.headline)}**",
        *map(escaped, verdict.sentences),
        f"{_capital(progress(sweep))}.",
        bullets("Read with this in mind:", flags(sweep)),
        f"{escaped(what)}:\n\n```\n{command}\n```" if command else "",
    ]
    return "\n\n".join(filter(None, parts))


def ranked(ranking: Ranking) -> str:
    """The ranked cells with both numbers, their errors and their cost, the lowest first."""
    rows = []
    for place, standing in enumerate(ranking.standings[:MANY]):
        costs = cost(list(standing.trials.values()))
        both = [_number(standing, measure) for measure in MEASURES]
        rest = [speed(costs), duration(costs.compute_seconds), size(costs.peak_memory_bytes)]
        second = str(ranking.rank(place, MEASURES[1]))
        rows.append([str(place + 1), standing.label, *both, second, *rest])
    head = ("#", "cell", *NAMES.values(), "# by it", "images/s", "compute", "memory")
    left = len(ranking.standings) - len(rows)
    more = f" {left} more cells are in results.csv." if left else ""
    packed = any(cost(list(one.trials.values())).is_packed for one in ranking.standings)
    star = " \\*: packed, several trials shared the machine." if packed else ""
    note = f"Lower is better, over log SNR {ranges(ranking.levels)}; {spread(ranking.standings)}."
    below = "In the table of runs below a row is one training, and has no interval."
    return f"{table(head, rows)}\n\n{note}{star}{more} {below}"


def heat_maps(ranking: Ranking, axes: Axes) -> str:
    """For each number and each value of the other factors, a table of two factors."""
    if axes.series is None or axes.rows is None:
        return ""
    standings = {id(standing.cell): standing for standing in ranking.standings}
    groups = axes.grouped([standing.cell for standing in ranking.standings], axes.panels)
    shown = []
    for name, cells in list(groups.items())[: MANY // 2]:
        for measure in MEASURES:
            found = {
                (axes.place(axes.rows, cell), axes.place(axes.series, cell)): standings[id(cell)]
                for cell in cells
            }
            title = f"**{_capital(NAMES[measure])}**{f', {escaped(name)}' if name else ''}"
            shown.append(f"{title}\n\n{_map(found, axes.rows, axes.series, axes, measure)}")
    return "\n\n".join(shown)


def _map(
    found: Mapping[tuple[int, int], Standing], rows: str, columns: str, axes: Axes, measure: str
) -> str:
    body = [
        [part(rows, value)]
        + [
            _number(found[at, place], measure) if (at, place) in found else "\u2013"
            for place in range(len(axes.values[columns]))
        ]
        for at, value in enumerate(axes.values[rows])
    ]
    head = (
        f"{spoken(rows)} / {spoken(columns)}",
        *(part(columns, v) for v in axes.values[columns]),
    )
    return table(head, body)


def reference_lines(sweep: Sweep, ranking: Ranking) -> str:
    """The two reference curves at the levels of the ranking, beside the recommended cell."""
    lines, best = sweep.references, ranking.recommended
    if lines is None or best is None:
        return ""
    levels = [level for level in ranking.levels if level in lines.levels]
    curves = {best.label: dict(zip(levels, best.curve(levels), strict=True))}
    for name, values in ((GAUSSIAN, lines.gaussian), (MEMORISATION, lines.memorisation)):
        if values is not None:
            curves[name] = dict(zip(lines.levels, values, strict=True))
    rows = [[signed(level), *(f"{one[level]:.3g}" for one in curves.values())] for level in levels]
    if not levels:
        return ""
    note = (
        f"{GAUSSIAN}: the best linear estimate from the training data's mean and covariance. "
        f"{MEMORISATION.capitalize()}: the ideal denoiser that only remembers training images, on "
        "training pairs."
    )
    return f"{table(('log SNR', *curves), rows)}\n\n{note}"


def bits(sweep: Sweep) -> str:
    """What the bound may not be used for; empty where no trial has one."""
    found = [mapping(trial.evaluation.get("bits_per_dim")).get("value") for trial in sweep.trials]
    if not any(isfinite(number(value)) for value in found):
        return ""
    return (
        "The variational bound, lower is better. Not comparable across schedules or numbers of "
        "timesteps: what goes below the step between two grey values pays for noise that nobody "
        "sees."
    )


def failures(sweep: Sweep, ranking: Ranking) -> str:
    """Failed trials, skipped cells and finished ones that could not be ranked, with reasons."""
    keys = _keys(sweep)
    rows = [
        (cell_label(t.cell, keys), str(t.seed), t.status, t.reason or "no reason was recorded")
        for t in sweep.trials
        if t.status != "done" and sweep.is_sweep
    ]
    rows += [(cell_label(one.cell, keys), "", "skipped", one.reason) for one in sweep.skipped]
    unfinished = {cell_label(t.cell, keys) for t in sweep.trials if t.status != "done"}
    rows += [
        (label, "", "not ranked", why) for label, why in ranking.excluded if label not in unfinished
    ]
    return table(("cell", "seed", "", "reason"), rows[:MANY]) if rows else ""


def configuration(sweep: Sweep) -> str:
    """The keys in which trials differ, with their values."""
    trials = [trial for trial in sweep.trials if trial.config]
    rows = [(key, listed(values, limit=12)) for key, values in differences(trials).items()]
    return table(("key", "values"), rows) if rows else ""


def provenance(sweep: Sweep) -> str:
    """The command that made it, the code it ran from and the folder that is the truth."""
    commits = sorted({name for trial in sweep.trials if (name := commit(trial))})
    machines = sorted({str(t.provenance["host"]) for t in sweep.trials if "host" in t.provenance})
    lines = [
        f"Made by `{sweep.command}`" if sweep.command else "",
        f"Code: {listed([f'`{name}`' for name in commits])}" if commits else "",
        f"Machines: {escaped(listed(machines))}" if machines else "",
        f"The whole report is report.html in `{sweep.folder.name}`, every number in results.csv.",
    ]
    return bullets("", [line for line in lines if line])


def bullets(lead: str, lines: Sequence[str]) -> str:
    """A list below a sentence; empty without lines."""
    items = "\n".join(f"- {line}" for line in lines)
    return "\n\n".join(filter(None, (lead, items))) if lines else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that no renderer of Markdown takes for a table's edge, a tag or a new line."""
    for mark, instead in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(mark, instead)
    return " ".join(text.split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(standing: Standing, measure: str) -> str:
    value, error = number_with_error(standing.value(measure), standing.error(measure))
    return f"{value} \u00b1 {error}"


def _keys(sweep: Sweep) -> tuple[str, ...]:
    return varied([*(t.cell for t in sweep.trials), *(s.cell for s in sweep.skipped)])
