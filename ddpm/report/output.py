"""The offline report of a sweep or a run: report.html, report.md and tables beside its files.

    report = build(Path("training_outputs/sweeps/pred_types"))
    report.print()                                  # the ranking and the verdict on the terminal
    report.ranking.recommended                      # the cell for best.yaml, None without a ranking

No torch is imported, so that a report is made in a second on a login node.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ddpm.errors import InputError
from ddpm.report import page as searched
from ddpm.report.effects import with_baseline
from ddpm.report.markdown import document
from ddpm.report.page import next_command, progress, render_page
from ddpm.report.ranking import Ranking, rank
from ddpm.report.reading import SweepResults, read
from ddpm.report.tables import csv_text, print_table, statistics, write_tables
from ddpm.report.verdict import Conclusion, judge
from ddpm.runs import load_run, storage
from ddpm.sweep import write_best


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

    def print(self, console: Console | None = None) -> None:
        """The ranking, the answer and the next command on the terminal."""
        console = console or Console()
        print_table(self.sweep, self.ranking, self.verdict, console)
        console.print(progress(self.sweep), style="dim", markup=False, highlight=False)
        what, command = next_command(self.sweep, self.ranking, self.verdict)
        if command:
            console.print(f"{what}:", markup=False, highlight=False)
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def assess(folder: Path, *, baseline: str | None = None) -> ReportFiles:
    """Reads and judges a sweep folder or a run directory; writes nothing.

    baseline: `KEY=value,...` of the cell that all others are compared with as well.
    """
    sweep = read(folder)
    ranking = rank(sweep)
    if baseline is not None and not sweep.is_sweep:
        raise InputError(f"--baseline {baseline}: {folder} is one run, with no cells to compare")
    if baseline is not None:
        ranking = with_baseline(ranking, baseline)
    return ReportFiles(
        sweep=sweep,
        ranking=ranking,
        verdict=searched.allowed(sweep, judge(sweep, ranking)),
        html=folder / "report.html",
        markdown=folder / "report.md",
        csv=folder / "results.csv",
    )


def build(
    folder: Path, *, console: Console | None = None, baseline: str | None = None
) -> ReportFiles:
    """Writes report.html, report.md and the tables of a sweep folder or a run, and a sweep's
    statistics.json and best.yaml.

    console: print the ranking and the answer there too.
    """
    report = assess(folder, baseline=baseline)
    report = replace(report, best=_write_best(report))
    said = (report.sweep, report.ranking, report.verdict)
    results = csv_text(report.sweep, report.ranking)
    storage.write_text(report.csv, results)
    report = replace(report, tables=write_tables(report.sweep, results))
    if report.sweep.is_sweep:
        storage.write_json(folder / "statistics.json", statistics(report.ranking))
    storage.write_text(report.markdown, document(*said))
    storage.write_text(report.html, render_page(*said))
    if console is not None:
        report.print(console)
    return report


def _write_best(report: ReportFiles) -> Path | None:
    """best.yaml: the configuration of the recommended cell, its first seed; None without one."""
    best = report.ranking.recommended
    trial = None if best is None else best.trials[min(best.trials)]
    if not report.sweep.is_sweep or trial is None or trial.run_dir is None:
        return None
    path = report.sweep.folder / "best.yaml"
    write_best(load_run(trial.run_dir), path)
    return path
