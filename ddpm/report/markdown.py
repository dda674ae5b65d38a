"""report.md: the answer, the ranking, what it cost, what may not be claimed, and how to rerun it.

Reads in a terminal and on a git forge; report.html beside it has the curves and the pictures.
"""

import re
from collections.abc import Sequence

from ddpm.metrics import MEASURES, QUALITY_MEASURES
from ddpm.report.best_samples import TITLES, interval_text, spots_of
from ddpm.report.costs import cost
from ddpm.report.figures import total
from ddpm.report.page import failed, headline, next_command, progress, reproduce
from ddpm.report.ranking import (
    Ranking,
    aligned,
    axes_of,
    cell_label,
    common_digits,
    duration,
    listed,
    size,
    spoken,
    text,
)
from ddpm.report.reading import SweepResults, TrialResult
from ddpm.report.verdict import NAMES, Conclusion, by_measure, commit, differences, flags, spread

_ROWS = 30  # of the ranking; all of them are in results.csv


def document(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    """The whole report.md."""
    sections = [
        ("Ranking", ranked(ranking) if sweep.is_sweep else ""),
        ("Factors", factors(ranking) if sweep.is_sweep else ""),
        ("Cost", total(sweep) if sweep.is_sweep else ""),
        ("Quality of samples", sampling(sweep)),
        ("Read with this in mind", bullets(flags(sweep))),
        ("Failed, skipped and not ranked", failures(sweep, ranking)),
        ("What differs between trials", configuration(sweep)),
        ("Run it again", again(sweep, ranking)),
        ("Files", _files(sweep)),
    ]
    body = "".join(f"\n## {title}\n\n{words}\n" for title, words in sections if words)
    return f"{_lead(sweep, ranking, verdict)}{body}"


def _lead(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    question = sweep.question[:1].upper() + sweep.question[1:] or sweep.name
    kind = "Sweep" if sweep.is_sweep else "Run"
    return (
        f"# {escaped(question)}\n\n{kind} `{sweep.name}`: {escaped(progress(sweep))}.\n\n"
        f"{answer(sweep, ranking, verdict)}\n"
    )


def answer(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    """The verdict and the next command."""
    what, command = next_command(sweep, ranking, verdict)
    then = [f"{escaped(what)}:", _code(command)] if command else []
    said = map(escaped, verdict.sentences)
    return "\n\n".join([f"**{escaped(headline(sweep, verdict))}**", *said, *then])


def ranked(ranking: Ranking) -> str:
    """The cells with both measures, their errors and their cost, the lowest first."""
    if not ranking.standings:
        return ""
    costs = [cost(list(standing.trials.values())) for standing in ranking.standings]
    unit = costs[0].unit.removesuffix("-seconds")
    head = ("#", "cell", *(NAMES[measure] for measure in MEASURES), "rank by it", "seeds",
            f"{unit} time", "peak memory")  # fmt: skip
    digits = {m: common_digits([s.error(m) for s in ranking.standings]) for m in MEASURES}
    rows = [
        (
            str(place + 1),
            standing.label,
            *(
                " \u00b1 ".join(aligned(standing.value(m), standing.error(m), digits[m]))
                for m in MEASURES
            ),
            str(ranking.rank(place, MEASURES[1])),
            str(len(standing.summaries)),
            duration(costs[place].compute_seconds),
            size(costs[place].peak_memory_bytes),
        )
        for place, standing in enumerate(ranking.standings[:_ROWS])
    ]
    rest = len(ranking.standings) - len(rows)
    more = f"\n\n{rest:,} more cells are in results.csv." if rest else ""
    low, high = ranking.levels[0], ranking.levels[-1]
    return (
        f"{table(head, rows, right=(0, 2, 3, 4, 5, 6, 7))}{more}\n\nLower is better. Over log-SNR "
        f"levels {low} to {high}, which all cells share; {spread(ranking.standings)}."
    )


def factors(ranking: Ranking) -> str:
    """What each factor of the grid does, by both measures."""
    return "\n\n".join(
        f"By {escaped(name)}:\n\n{bullets(said)}" for name, said in by_measure(ranking).items()
    )


def sampling(sweep: SweepResults) -> str:
    """The best cell of each quality at each number of steps."""
    spots = spots_of(sweep, axes_of(sweep))
    names = [name for name in QUALITY_MEASURES if any(name in spot.qualities for spot in spots)]
    rows = []
    for steps in sorted({spot.num_steps for spot in spots}):
        best = []
        for name in names:
            some = [s for s in spots if s.num_steps == steps and name in s.qualities]
            sign = -1 if name == "accuracy" else 1
            some.sort(key=lambda spot: sign * spot.qualities[name].value)
            best.append(
                f"{some[0].label}: {interval_text(some[0].qualities[name])}" if some else "\u2013"
            )
        rows.append((str(steps), *best))
    head = ("sampling steps", *(f"best {TITLES[name]} [interval]" for name in names))
    return table(head, rows, right=(0,)) if names else ""


def failures(sweep: SweepResults, ranking: Ranking) -> str:
    """Every trial and cell without a place, and why."""
    rows = failed(sweep, ranking)
    return table(("cell", "seed", "status", "reason"), rows) if rows else ""


def configuration(sweep: SweepResults) -> str:
    """The keys in which trials differ, with their values."""
    found = differences([trial for trial in sweep.trials if trial.config])
    return bullets([f"{key}: {listed(values, limit=12)}" for key, values in found.items()])


def again(sweep: SweepResults, ranking: Ranking) -> str:
    """The command of the sweep and of its best trial, and what they ran on."""
    trials = [trial for trial in sweep.trials if trial.run_dir is not None]
    parts = [f"All of it:\n\n{_code(sweep.command)}"] if sweep.command else []
    if trials:
        best = ranking.recommended
        one = trials[0] if best is None else best.trials[min(best.trials)]
        label = cell_label(one.cell, tuple(axes_of(sweep).values))
        which = f"Only {label}, seed {one.seed}" if sweep.is_sweep else "This run"
        parts.append(f"{escaped(which)} (report.html has the command of each trial):")
        parts.append(_code(reproduce(one)))
        parts.append(f"It ran with:\n\n{bullets(_facts(trials))}")
    return "\n\n".join(parts)


def _facts(trials: Sequence[TrialResult]) -> list[str]:
    names = ("python", "torch", "numpy", "ray", "system", "cpu", "cores", "gpus", "host")
    commits = sorted({name for trial in trials if (name := commit(trial))})
    short = [name[:12] + "+" * name.endswith("+") for name in commits]
    lines = [f"git: {listed(short)}"] if short else []
    for name in names:
        seen = {text(t.provenance[name]): None for t in trials if t.provenance.get(name)}
        if seen:
            lines.append(f"{spoken(name)}: {listed(list(seen), limit=4)}")
    return lines


def _files(sweep: SweepResults) -> str:
    best = ["best.yaml: the configuration to go on with"] * (sweep.best_yaml is not None)
    return bullets(
        [
            "report.html: everything, with curves and pictures, in one file",
            "results.csv, results.parquet: a row a trial",
            "tables/: x0-error by noise level, metrics by step, quality by sampling steps, "
            "configurations; CSV and Parquet",
            *best,
        ]
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table, its columns as wide as their texts, so that it reads as plain text too."""
    cells = [[escaped(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(head))]
    lines = [
        "| " + " | ".join(
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ) + " |"
        for row in cells
    ]  # fmt: skip
    rule = "|".join(
        "-" * (width + 1) + ":" if k in right else "-" * (width + 2)
        for k, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def escaped(words: str) -> str:
    """Text on one line in which Markdown and HTML see nothing of theirs."""
    return re.sub(r"([\\`*<>])", r"\\\1", words.replace("\n", " "))


def bullets(lines: Sequence[str]) -> str:
    """A list of plain text."""
    return "\n".join(f"- {escaped(line)}" for line in lines)


def _code(command: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}"
