"""The offline report of a sweep or a run: report.html and results.csv beside its files.

    report = build(Path("training_outputs/sweeps/pred_types"))
    report.print()                                  # the ranking and the verdict on the terminal
    report.ranking.recommended                      # the cell for best.yaml, None without a ranking

No torch is imported, so that a report is made in a second on a login node.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ddpm import durable
from ddpm.report.data import Sweep, read
from ddpm.report.html import next_command, page, progress
from ddpm.report.ranking import Ranking, rank
from ddpm.report.table import csv_text, print_table
from ddpm.report.verdict import Verdict, judge

__all__ = ["Ranking", "Report", "Sweep", "Verdict", "assess", "build", "judge", "rank", "read"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report and what it says. `html` and `csv` exist once it was built, not when assessed."""

    sweep: Sweep
    ranking: Ranking
    verdict: Verdict
    html: Path
    csv: Path

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
        verdict=judge(sweep, ranking),
        html=folder / "report.html",
        csv=folder / "results.csv",
    )


def build(folder: Path) -> Report:
    """Writes report.html and results.csv of a sweep folder or a run directory."""
    report = assess(folder)
    durable.write_text(report.csv, csv_text(report.sweep, report.ranking))
    durable.write_text(report.html, page(report.sweep, report.ranking, report.verdict))
    return report
