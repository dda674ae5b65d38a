"""Everything a report is made of as tables, CSV and Parquet: one file a kind of row.

results           a row a trial: its cell, rank, measures with their errors, and cost
x0_error          a row a trial and log-SNR level
metrics           a row a trial and logged step: losses, validation measures, times
sampling          a row a trial, sampler and number of sampling steps
configuration     a row a trial: every configuration key
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddpm import durable, quality_file
from ddpm.report.data import Sweep
from ddpm.report.files import Value
from ddpm.report.labels import text

if TYPE_CHECKING:
    import pyarrow

_TEXTS = ("status", "trial", "reason", "run_dir")
_MOST_CSV = 1_000_000  # rows; a longer table is written as Parquet alone

Column = Sequence[Value] | np.ndarray


def write_tables(sweep: Sweep, results: str) -> tuple[Path, ...]:
    """Writes results.parquet from the text of results.csv, and the tables of `tables/`."""
    written = [_write(sweep.folder / "results.parquet", _parquet(_from_csv(results)))]
    for name, columns in tables(sweep).items():
        if not columns or not len(next(iter(columns.values()))):
            continue
        written += _both(sweep.folder / "tables" / name, columns)
    return tuple(written)


def tables(sweep: Sweep) -> dict[str, dict[str, Column]]:
    """The columns of each table but the results."""
    return {
        "x0_error": _x0_error(sweep),
        "metrics": _metrics(sweep),
        "sampling": _sampling(sweep),
        "configuration": _configuration(sweep),
    }


def _x0_error(sweep: Sweep) -> dict[str, Column]:
    measured = [(trial, trial.error) for trial in sweep.trials if trial.error is not None]
    curves = [error.curve() for _, error in measured]
    return {
        "trial": _repeated([(trial.name, len(error.levels)) for trial, error in measured]),
        "logsnr": _joined([error.levels for _, error in measured]),
        "mse": _joined([mean for mean, _ in curves]),
        "evaluation_error": _joined([spread for _, spread in curves]),
    }


def _metrics(sweep: Sweep) -> dict[str, Column]:
    having = [trial for trial in sweep.trials if "step" in trial.metrics]
    names = dict.fromkeys(name for trial in having for name in trial.metrics)
    lengths = [len(trial.metrics["step"]) for trial in having]
    found: dict[str, Column] = {
        "trial": _repeated(list(zip([trial.name for trial in having], lengths, strict=True)))
    }
    for name in names:
        columns = [
            trial.metrics.get(name, np.full(length, np.nan))
            for trial, length in zip(having, lengths, strict=True)
        ]
        found[name] = _joined(columns)
    return found


def _sampling(sweep: Sweep) -> dict[str, Column]:
    rows = [(t.name, point) for t in sweep.trials if t.quality for point in t.quality.points]
    found: dict[str, Column] = {"trial": [name for name, _ in rows]}
    for name in ("sampler", "num_steps", "eta", "evaluations", "seconds"):
        found[name] = [getattr(point, name) for _, point in rows]
    for name in quality_file.MEASURES:
        intervals = [point.interval(name) for _, point in rows]
        for end in ("value", "low", "high"):
            column = name if end == "value" else f"{name}_{end}"
            found[column] = [one and getattr(one, end) for one in intervals]
    return found


def _configuration(sweep: Sweep) -> dict[str, Column]:
    having = [trial for trial in sweep.trials if trial.config]
    keys = dict.fromkeys(key for trial in having for key in trial.config)
    found: dict[str, Column] = {"trial": [trial.name for trial in having]}
    for key in keys:
        found[key] = [text(t.config[key]) if key in t.config else None for t in having]
    return found


def _repeated(names: Sequence[tuple[str, int]]) -> list[Value]:
    return [name for name, count in names for _ in range(count)]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _both(path: Path, columns: Mapping[str, Column]) -> list[Path]:
    import pyarrow
    from pyarrow import csv

    table = pyarrow.table({name: pyarrow.array(values) for name, values in columns.items()})
    written = [_write(path.with_suffix(".parquet"), _parquet(table))]
    if table.num_rows <= _MOST_CSV:
        buffer = io.BytesIO()
        csv.write_csv(table, buffer, csv.WriteOptions(quoting_style="needed"))
        written.insert(0, _write(path.with_suffix(".csv"), buffer.getvalue()))
    return written


def _from_csv(results: str) -> "pyarrow.Table":
    """results.csv with the types of its columns."""
    import pyarrow
    from pyarrow import csv

    options = csv.ConvertOptions(
        column_types=dict.fromkeys(_TEXTS, pyarrow.string()), strings_can_be_null=True
    )
    parsing = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(
        io.BytesIO(results.encode()), parse_options=parsing, convert_options=options
    )


def _parquet(table: "pyarrow.Table") -> bytes:
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    durable.make_folder(path.parent)
    durable.write_bytes(path, content)
    return path
