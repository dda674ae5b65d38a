"""The offline report of a sweep or a run: report.html, report.md and tables beside its files.

    report = build(Path("training_outputs/sweeps/pred_types"))
    report.print()                                  # the ranking and the verdict on the terminal
    report.ranking.recommended                      # the cell for best.yaml, None without a ranking

No torch is imported, so that a report is made in seconds on a login node.
"""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ddpm.config import X0_MEASURES
from ddpm.errors import InputError, as_typed
from ddpm.report import charts
from ddpm.report.cautions import flags, is_confounded
from ddpm.report.labels import SWEEP, TITLES, capital, duration, number_with_error, signed, size
from ddpm.report.ranking import Ranking, Standing, kendall_tau, rank, side_by_side, with_baseline
from ddpm.report.reading import SweepResults, read_results
from ddpm.report.sections import Chart, Section, Table, sections, short_path
from ddpm.report.tables import csv_text, print_table, statistics, write_tables
from ddpm.report.verdict import Conclusion, after_race, judge
from ddpm.runs import CONFIG_FILE, load_run, storage
from ddpm.sweep import BEST_FILE, write_best

if TYPE_CHECKING:
    import jinja2

_SETTLED = 0.8  # of Kendall's tau
_EPOCHS = "TRAINING.HYPER_PARAMETERS.EPOCHS"
_ROWS = {"html": 60, "md": 30}  # of a table, before it is folded or cut
_PALE, _DEEP = (226, 234, 242), (8, 76, 140)
_MIDDLE = 0.179  # of this luminance, black and white text have the same contrast, 4.6 : 1


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """A report and what it says. Its files exist once it was built, not when assessed."""

    sweep: SweepResults
    ranking: Ranking
    verdict: Conclusion
    html: Path
    markdown: Path
    csv: Path
    tables: tuple[Path, ...] = ()  # Parquet and CSV of everything
    best: Path | None = None  # best.yaml, where one was written

    @cached_property
    def sections(self) -> list[Section]:
        """The sections of the page, of report.md and of a W&B report, below the answer."""
        return sections(self.sweep, self.ranking)

    def print(self, console: Console | None = None) -> None:
        """The ranking, the answer and the next command on the terminal."""
        console = console or Console()
        print_table(self.sweep, self.ranking, self.verdict, console)
        console.print(progress(self.sweep), style="dim", markup=False, highlight=False)
        what, command = next_command(self.sweep, self.ranking, self.verdict)
        if command:
            console.print(f"{what}:", markup=False, highlight=False)
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def assess(folder: Path, *others: Path, baseline: str | None = None) -> ReportFiles:
    """Reads and judges a sweep folder or a run directory; writes nothing.

    others: sweeps shown beside it.  baseline: `KEY=value,...` of the cell that all others are
    compared with as well.
    """
    sweep = read_results(folder)
    if others:
        folder = folder.resolve().parent / "+".join(one.resolve().name for one in (folder, *others))
        sweep = side_by_side([sweep, *map(read_results, others)], folder)
    ranking = rank(sweep)
    if baseline is not None and not sweep.is_sweep:
        raise InputError(f"--baseline {baseline}: {folder} is one run, with no cells to compare")
    if baseline is not None:
        ranking = with_baseline(ranking, baseline)
    return ReportFiles(
        sweep=sweep,
        ranking=ranking,
        verdict=after_race(sweep, ranking, judge(sweep, ranking)),
        html=folder / "report.html",
        markdown=folder / "report.md",
        csv=folder / "results.csv",
    )


def build(
    folder: Path, *others: Path, console: Console | None = None, baseline: str | None = None
) -> ReportFiles:
    """Writes report.html, report.md and the tables of a sweep folder or a run, and a sweep's
    statistics.json and best.yaml.

    console: print the ranking and the answer there too.
    """
    report = assess(folder, *others, baseline=baseline)
    folder = report.sweep.folder
    storage.make_folder(folder)
    report = replace(report, best=_write_best(report))
    results = csv_text(report.sweep, report.ranking)
    storage.write_text(report.csv, results)
    report = replace(report, tables=write_tables(report.sweep, results))
    if report.sweep.is_sweep:
        storage.write_json(folder / "statistics.json", statistics(report.ranking))
    storage.write_text(report.markdown, as_markdown(report))
    storage.write_text(report.html, as_html(report))
    if console is not None:
        report.print(console)
    return report


def _write_best(report: ReportFiles) -> Path | None:
    """best.yaml: the configuration of the recommended cell, its first seed; None without one."""
    best = report.ranking.recommended
    trial = None if best is None else best.trials[min(best.trials)]
    if not report.sweep.is_sweep or trial is None or trial.run_dir is None:
        return None
    path = report.sweep.folder / BEST_FILE
    write_best(load_run(trial.run_dir), path)
    return path


def as_html(report: ReportFiles) -> str:
    """One self-contained page: the question and its answer first, then what they rest on."""
    specs = [b.spec for s in report.sections for b in s.blocks if isinstance(b, Chart)]
    folder = Path(__file__).parent / "templates"
    # "<" is escaped so that no text of a chart can end the script it stands in.
    return _environment().get_template("report.html").render(
        **_lead(report),
        sections=report.sections,
        specs=json.dumps(specs, ensure_ascii=False).replace("<", "\\u003c"),
        vega=charts.vega().replace("</script", "<\\/script") if specs else "",
        style=(folder / "report.css").read_text(),
        script=(folder / "report.js").read_text(),
    )  # fmt: skip


def as_markdown(report: ReportFiles) -> str:
    """report.md: the same sections without charts and pictures, long tables cut."""
    template = _environment().get_template("report.md")
    return template.render(**_lead(report), sections=report.sections)


def answer(report: ReportFiles) -> str:
    """The question, the answer and what to bear in mind, as Markdown."""
    return _environment().get_template("answer.md").render(**_lead(report)).strip()


def section_text(section: Section) -> str:
    """A section's blocks as Markdown, without its title."""
    return _environment().get_template("section.md").render(section=section).strip()


@cache
def _environment() -> "jinja2.Environment":
    """The templates; what ends in .html is escaped, Markdown is by the filter `md`."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    found.filters |= {"md": escaped, "anchor": _anchor, "fenced": _fenced, "shade": shade}
    found.filters |= {"md_table": table, "capital": capital}
    found.globals["rows_shown"] = _ROWS
    return found


def _lead(report: ReportFiles) -> dict[str, Any]:
    """The first screen: the question, its answer, the next command, and what to doubt."""
    sweep, ranking, verdict = report.sweep, report.ranking, report.verdict
    commands = [next_command(sweep, ranking, verdict)]
    if sweep.is_sweep and sweep.command and sweep.command != commands[0][1]:
        commands.append(("Run the whole sweep again", sweep.command))
    headline = verdict.headline
    if verdict.kind != "none" and is_confounded(sweep.trials):
        headline += " (Prediction type and loss space vary together.)"
    return {
        "sweep": sweep,
        "question": capital(sweep.question) or sweep.name,
        "kind": "Sweep" if sweep.is_sweep else "Run",
        "progress": progress(sweep),
        "headline": headline,
        "sentences": verdict.sentences,
        "commands": [(what, command) for what, command in commands if command],
        "facts": _facts(ranking, verdict, sweep.is_sweep),
        "flags": flags(sweep),
        "has_best": sweep.best_yaml is not None,
    }


def progress(sweep: SweepResults) -> str:
    """`7 of 9 trials finished, 1 failed, 2 cells skipped`."""
    if not sweep.is_sweep:
        return "finished" if sweep.trials[0].status == "done" else "unfinished"
    parts = [f"{len(sweep.with_status('done'))} of {sweep.planned} trials finished"]
    if count := _tuning_left(sweep):
        chosen = f"{sweep.planned_tuning - count} of {sweep.planned_tuning}"
        said = f"{chosen} trainings that choose within cells finished"
        parts = [said, *parts] if sweep.planned else [said]
    kinds = (("failed", "failed"), ("stopped", "ended early"), ("unrun", "left by the budget"))
    for status, words in kinds:
        if count := len(sweep.with_status(status)):
            parts.append(f"{count} {words}")
    if count := len(sweep.skipped):
        parts.append(f"{count} {'cell' if count == 1 else 'cells'} skipped")
    return ", ".join(parts)


def _tuning_left(sweep: SweepResults) -> int:
    """Trainings that choose within cells and have not ended well."""
    return sweep.planned_tuning - sum(trial.status == "done" for trial in sweep.tuning)


def next_command(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> tuple[str, str]:
    """The next step in words and its command; an empty command when there is none."""
    left = sweep.planned - sum(len(sweep.with_status(s)) for s in ("done", "failed", "stopped"))
    tuning = 0 if sweep.trials else _tuning_left(sweep)
    if sweep.is_sweep and left + tuning > 0 and sweep.command:
        of = sweep.planned_tuning if tuning else sweep.planned
        what = f"Unfinished: {left + tuning} of {of} trials are left. Continue with"
        return what, sweep.command
    if not sweep.is_sweep:
        run = sweep.trials[0].run_dir or sweep.folder
        return "Generate images from it", as_typed("sample", short_path(run))
    best = ranking.recommended
    if best is None:
        return "", ""
    epochs = next(iter(best.trials.values())).config.get(_EPOCHS)
    if ranking.too_few_learned and sweep.command and isinstance(epochs, int):
        return "Train ten times as long", _again(sweep.command, _EPOCHS, 10 * epochs)
    if SWEEP in sweep.grid and verdict.kind != "winner":
        return "", ""  # no one command gives seeds to several sweeps
    seeds = list(sweep.seeds) or sorted({trial.seed for trial in sweep.trials})
    is_open = verdict.kind not in ("winner", "disagree") or len(seeds) == 1
    if sweep.command and is_open and len(ranking.standings) > 1:
        more = list(range(max(seeds) + 1, max(seeds) + 1 + max(2, len(seeds))))
        why = "one seed says nothing of another" if len(seeds) == 1 else "to tell the cells apart"
        return f"More seeds, {why}", _again(
            sweep.command, "SEEDS", f"[{','.join(map(str, [*seeds, *more]))}]"
        )
    trial = next(iter(best.trials.values()))
    config = sweep.best_yaml or (trial.run_dir and trial.run_dir / CONFIG_FILE)
    if config is None or not isinstance(epochs, int):
        return "", ""
    order = settled(sweep, ranking)
    if order is not None and order < _SETTLED and sweep.command:
        return (
            "The order of the cells has not settled (Kendall's tau of the last third of training "
            f"{signed(order, 2)}), so train all of them three times as long before choosing",
            _again(sweep.command, _EPOCHS, 3 * epochs),
        )
    unknown = "; whether the order holds then is not known" if order is None else ""
    name = f"the winner, {best.label}," if verdict.kind == "winner" else best.label
    what = f"Train {name} ten times as long{unknown}"
    if verdict.kind == "disagree":
        what = f"The measures disagree, which more seeds do not settle. {what}"
    return what, as_typed("train", short_path(config), f"{_EPOCHS}={10 * epochs}")


def _again(command: str, key: str, value: object) -> str:
    """The command with this value of a key, in place of one that it gives."""
    words = [word for word in shlex.split(command) if not word.startswith(f"{key}=")]
    return f"{shlex.join(words)} {key}={value}"


def settled(sweep: SweepResults, ranking: Ranking) -> float | None:
    """Kendall's tau of the cells' order by validation error at two thirds of training and at its
    end; None where that was not measured, or for fewer than three cells.
    """
    name, rows = f"val_{X0_MEASURES[0]}", []
    for standing in ranking.standings:
        ends = []
        for trial in standing.trials.values():
            values, steps = trial.metrics.get(name), trial.metrics.get("step")
            if values is None or steps is None:
                return None
            known = np.isfinite(values)
            early = known & (steps <= 2 / 3 * steps.max())
            if not early.any():
                return None
            ends.append((values[early][-1], values[known][-1]))
        rows.append(np.mean(ends, axis=0))
    return kendall_tau(*np.transpose(rows)) if len(rows) > 2 else None


def _facts(ranking: Ranking, verdict: Conclusion, is_sweep: bool) -> list[tuple[str, str, str]]:
    """Name, value and remark of the numbers on the first screen."""
    best = ranking.recommended
    if best is None:
        return []
    costs = best.cost
    waited = "" if costs.seconds is None else f"{duration(costs.seconds)} of waiting"
    spent = (f"Cost of a training, {costs.device} time", duration(costs.compute_seconds), waited)
    if is_sweep:
        title = {"winner": "Winner", "none": "Cell"}.get(verdict.kind, "Recommended")
        numbers = [(capital(TITLES[m]), *_value(best, m)) for m in ranking.measures]
        values = [(title, best.label, ""), *numbers, spent]
    else:
        packed = "packed: others ran beside it" if costs.is_packed else ""
        values = [spent, ("Images per second", costs.speed(), packed)]
        values.append(("Peak memory", size(costs.peak_memory_bytes), ""))
    return [value for value in values if value[1] != "\u2013"]


def _value(standing: Standing, measure: str) -> tuple[str, str]:
    value, error = number_with_error(standing.value(measure), standing.error(measure))
    kind = "95 % interval over seeds" if len(standing.trials) > 1 else "evaluation error"
    return value, f"\u00b1 {error} {kind}"


def table(block: Table, most: int = _ROWS["md"]) -> str:
    """A table in Markdown, its columns as wide as their texts, so that it reads as plain text."""
    shown = [block.head, *block.rows[:most]]
    cells = [[escaped(cell).replace("|", "\\|") for cell in row] for row in shown]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(block.head))]
    lines = [
        "| " + " | ".join(
            cell.rjust(width) if k in block.right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ) + " |"
        for row in cells
    ]  # fmt: skip
    rule = "|".join(
        "-" * (width + 1) + ":" if k in block.right else "-" * (width + 2)
        for k, width in enumerate(widths)
    )
    rest = len(block.rows) - most
    more = f"\n\n{rest:,} more rows are in report.html." if rest > 0 else ""
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]]) + more


def escaped(words: str) -> str:
    """Text on one line in which Markdown and HTML see nothing of theirs."""
    return re.sub(r"([\\`*<>])", r"\\\1", words.replace("\n", " "))


def _fenced(command: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def shade(share: float) -> str:
    """Background and text of a heat map cell: from pale (0) to deep blue (1, the best)."""
    share = min(max(share, 0.0), 1.0)
    rgb = [round(a + (b - a) * share) for a, b in zip(_PALE, _DEEP, strict=True)]
    ink = "#fff" if luminance(rgb) < _MIDDLE else "#000"
    return f"background:rgb({','.join(map(str, rgb))});color:{ink}"


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour of bytes (WCAG 2.2)."""
    parts = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
