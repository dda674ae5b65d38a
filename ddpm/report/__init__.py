"""The offline report of a sweep or a run: report.html and results.csv beside its files.

    report = build(Path("training_outputs/sweeps/pred_types"))
    report.print()                                  # the ranking and the verdict on the terminal
    report.ranking.recommended                      # the cell for best.yaml, None without a ranking

No torch is imported, so that a report is made in a second on a login node.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ddpm import durable
from ddpm.config import load
from ddpm.report import searched
from ddpm.report.data import Sweep, read
from ddpm.report.html import next_command, page, progress
from ddpm.report.ranking import Ranking, rank
from ddpm.report.table import csv_text, print_table
from ddpm.report.verdict import Verdict, judge
from ddpm.sweep import write_best

__all__ = ["Ranking", "Report", "Sweep", "Verdict", "assess", "build", "judge", "rank", "read"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report and what it says. `html` and `csv` exist once it was built, not when assessed."""

    sweep: Sweep
    ranking: Ranking
    verdict: Verdict
    html: Path
    csv: Path
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


def assess(folder: Path) -> Report:
    """Reads and judges a sweep folder or a run directory; writes nothing."""
    sweep = read(folder)
    ranking = rank(sweep)
    return Report(
        sweep=sweep,
        ranking=ranking,
        verdict=searched.allowed(sweep, judge(sweep, ranking)),
        html=folder / "report.html",
        csv=folder / "results.csv",
    )


def build(folder: Path, *, console: Console | None = None) -> Report:
    """Writes report.html and results.csv of a sweep folder or a run, and a sweep's best.yaml.

    console: print the ranking and the answer there too.
    """
    report = assess(folder)
    report = replace(report, best=_write_best(report))
    durable.write_text(report.csv, csv_text(report.sweep, report.ranking))
    durable.write_text(report.html, page(report.sweep, report.ranking, report.verdict))
    if console is not None:
        report.print(console)
    return report


def _write_best(report: Report) -> Path | None:
    """best.yaml: the configuration of the recommended cell, its first seed; None without one."""
    best = report.ranking.recommended
    trial = None if best is None else best.trials[min(best.trials)]
    if not report.sweep.is_sweep or trial is None or trial.run_dir is None:
        return None
    path = report.sweep.folder / "best.yaml"
    write_best(load(trial.run_dir / "training_config.yaml"), path)
    return path
