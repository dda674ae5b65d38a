"""The words and tables of an online report, in Markdown: what panels of single runs cannot show.

What report.md says too is its own text (ddpm.report.markdown).
"""

from collections.abc import Mapping
from math import isfinite

from ddpm.measures import MEASURES
from ddpm.report import markdown, searched
from ddpm.report.axes import Axes
from ddpm.report.curves import GAUSSIAN, MEMORISATION
from ddpm.report.data import Sweep
from ddpm.report.effects_page import OUTCOMES, Against, basis, compared, of_pairs, ratio_text
from ddpm.report.files import mapping, number
from ddpm.report.first_screen import progress
from ddpm.report.flags import flags
from ddpm.report.gaps import Gap
from ddpm.report.labels import part, signed, spoken, text, with_error
from ddpm.report.markdown import bullets, escaped, table
from ddpm.report.pareto import costs_of_cells, on_front, total
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.sampling import LEFT_OUT, left_out
from ddpm.report.verdict import NAMES, Verdict

MANY = 60  # rows of a table, and tables of a section: a report is read, results.csv has the rest


def answer(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> str:
    """The question, the answer of report.md, and what to bear in mind."""
    doubts = flags(sweep)
    parts = [
        f"*{escaped(sweep.question)}*" if sweep.question else "",
        markdown.answer(sweep, ranking, verdict),
        f"{_capital(progress(sweep))}.",
        f"Read with this in mind:\n\n{bullets(doubts)}" if doubts else "",
    ]
    return "\n\n".join(filter(None, parts))


def ranked(ranking: Ranking) -> str:
    """The ranking of report.md, and what the service's own table of runs is not."""
    below = "In the table of runs below a row is one training, and has no interval."
    return f"{markdown.ranked(ranking)} {below}"


def differences(ranking: Ranking) -> str:
    """Every cell against the lowest, and against the baseline; "" where nothing is compared."""
    if len(ranking.standings) < 2:
        return ""
    told = map(escaped, of_pairs(ranking))
    return "\n\n".join([*told, *map(_against, compared(ranking)), basis(ranking)])


def _against(one: Against) -> str:
    rows = [
        (
            row.standing.label,
            _difference(row.gaps[MEASURES[0]]),
            ratio_text(10 ** row.gaps[MEASURES[0]].mean),
            _difference(row.gaps[MEASURES[1]]),
            OUTCOMES[row.outcome],
        )
        for row in one.found[:MANY]
    ]
    head = ("cell", NAMES[MEASURES[0]], "x0-error", f"log10 of {NAMES[MEASURES[1]]}", "difference")
    words = [escaped(one.lead)] if one.lead else []
    return "\n\n".join([*words, f"{escaped(one.caption)}.", table(head, rows, right=(1, 2, 3))])


def _difference(gap: Gap) -> str:
    return with_error(gap.mean, gap.half_width)


def costs(sweep: Sweep, ranking: Ranking) -> str:
    """What the sweep took, the cells on the Pareto front, and a row a cell."""
    head, rows = costs_of_cells(ranking)
    fronts = [
        f"By {NAMES[measure]}, from the cheapest: "
        + ", ".join(f"**{escaped(label)}** {words}" for label, words in found)
        + "."
        for measure in MEASURES
        if (found := on_front(ranking, measure))
    ]
    note = ["A cell is on the front when no other is both cheaper and better.", *fronts]
    shown = table(head, rows[:MANY], right=range(1, len(head)))
    return "\n\n".join([total(sweep), *(note if fronts else ()), shown])


def sampling(sweep: Sweep, axes: Axes) -> str:
    """The best cell at each number of steps, and the points that were left out."""
    rows = left_out(sweep, axes)
    parts = [markdown.sampling(sweep), table(LEFT_OUT, rows[:MANY]) if rows else ""]
    return "\n\n".join(filter(None, parts))


def search(sweep: Sweep) -> str:
    """How the sweep was searched; empty for a plain grid of which nothing was predicted."""
    return "\n\n".join(
        f"{escaped(one.text)}\n\n{table(one.head, one.rows) if one.rows else ''}".rstrip()
        for one in searched.parts(sweep)
    )


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


def configuration(sweep: Sweep) -> str:
    """The keys in which trials differ, with their values; all keys of a single run."""
    trials = [trial for trial in sweep.trials if trial.config]
    if not trials:
        return "No trial has left its configuration."
    if sweep.is_sweep:
        return markdown.configuration(sweep)
    return table(("key", "value"), [(key, text(value)) for key, value in trials[0].config.items()])


def provenance(sweep: Sweep, ranking: Ranking) -> str:
    """How to make it again, what it ran on, and the folder that is the truth."""
    where = (
        f"The whole report is report.html in `{sweep.folder.name}`, every number in results.csv."
    )
    return "\n\n".join(filter(None, [markdown.again(sweep, ranking), where]))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _number(standing: Standing, measure: str) -> str:
    return with_error(standing.value(measure), standing.error(measure))
