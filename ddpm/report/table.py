"""The ranking as rows: printed at the end of a sweep, and in results.csv."""

import csv
import io
from collections.abc import Iterator
from math import isfinite

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ddpm.measures import MEASURES
from ddpm.report import quality
from ddpm.report.costs import cost, speed
from ddpm.report.data import Sweep
from ddpm.report.labels import duration, number_with_error, size
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.verdict import Verdict, spread


def print_table(sweep: Sweep, ranking: Ranking, verdict: Verdict, console: Console) -> None:
    """The ranking and its verdict on the terminal."""
    if ranking.standings and sweep.is_sweep:
        _print_ranking(sweep, ranking, console)
    console.print(verdict.headline, style="bold", markup=False, highlight=False)
    for sentence in verdict.sentences:
        console.print(sentence, markup=False, highlight=False)
    for label, reason in ranking.excluded:
        console.print(f"not ranked: {label}: {reason}", markup=False, highlight=False)


def _print_ranking(sweep: Sweep, ranking: Ranking, console: Console) -> None:
    wide = console.width >= 100
    table = Table(
        title=f"{sweep.name}: {len(ranking.standings)} cells by x0-error", box=SIMPLE_HEAD
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("cell", overflow="fold")
    for heading in ("mean log10\nerror", "SNR-weighted\nerror", "#"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("images/s", "compute", "memory") if wide else ("images/s",):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, standing in enumerate(ranking.standings):
        costs = cost(list(standing.trials.values()))
        both = [_with_error(standing, measure) for measure in MEASURES]
        second = str(ranking.rank(place, MEASURES[1]))
        rest = [duration(costs.compute_seconds), size(costs.peak_memory_bytes)] if wide else []
        table.add_row(str(place + 1), standing.label, *both, second, speed(costs), *rest)
    console.print(table)
    low, high = ranking.levels[0], ranking.levels[-1]
    packed = any(trial.summary.get("packed") is True for trial in sweep.trials)
    star = " *: packed, several trials shared the machine." if packed else ""
    note = f"Log-SNR levels {low} to {high}; {spread(ranking.standings)}.{star}"
    console.print(note, style="dim", highlight=False)


def _with_error(standing: Standing, measure: str) -> str:
    value, error = number_with_error(standing.value(measure), standing.error(measure))
    return f"{value} \u00b1{error}"


_COLUMNS = (
    "rank",
    "status",
    "trial",
    "seed",
    *MEASURES,
    *(f"{measure}_evaluation_error" for measure in MEASURES),
    "images_per_s",
    "packed",
    "seconds",
    "core_seconds",
    "gpu_seconds",
    "peak_memory_bytes",
    "steps",
    "final_loss",
    "reason",
    "run_dir",
)


def csv_text(sweep: Sweep, ranking: Ranking) -> str:
    """results.csv: one row a trial, best cell first; skipped cells last, with their reason."""
    keys = tuple(dict.fromkeys(key for trial in sweep.trials for key in trial.cell))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    more = quality.columns(sweep)
    writer.writerow((*keys, *_COLUMNS, *more))
    writer.writerows(_rows(sweep, ranking, keys, more))
    return buffer.getvalue()


def _rows(
    sweep: Sweep, ranking: Ranking, keys: tuple[str, ...], more: tuple[str, ...]
) -> Iterator[list[str]]:
    places = {trial.key: (place, standing) for place, standing in enumerate(ranking.standings)
              for trial in standing.trials.values()}  # fmt: skip
    last = len(ranking.standings)
    for trial in sorted(sweep.trials, key=lambda t: places[t.key][0] if t.key in places else last):
        place, standing = places.get(trial.key, (None, None))
        summary = standing.summaries.get(trial.seed) if standing else None
        cells = [_plain(trial.cell.get(key)) for key in keys]
        numbers = [_plain(summary.value(m)) if summary else "" for m in MEASURES]
        errors = [_plain(summary.evaluation_error(m)) if summary else "" for m in MEASURES]
        rank = "" if place is None or summary is None else str(place + 1)
        costs = [_plain(trial.summary.get(name)) for name in _COLUMNS[8:16]]
        measured = quality.cells(trial, ranking.levels if summary else ())
        run_dir = "" if trial.run_dir is None else str(trial.run_dir)
        yield [*cells, rank, trial.status, trial.name, str(trial.seed), *numbers, *errors, *costs,
               trial.reason or "", run_dir,
               *(_plain(measured.get(name)) for name in more)]  # fmt: skip
    for skipped in sweep.skipped:
        cells = [_plain(skipped.cell.get(key)) for key in keys]
        blank = [""] * (len(_COLUMNS) - 4)
        yield [*cells, "", "skipped", *blank, skipped.reason, "", *[""] * len(more)]


def _plain(value: object) -> str:
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
