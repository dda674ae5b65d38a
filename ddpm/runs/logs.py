"""Logs of a run: metrics.jsonl and log.csv, train.log, and FAILED.json where it ended in an error.

metrics.jsonl is the truth, one JSON object a line: {"step": 100, "images": 6400, "loss": 0.41, ...,
"time/seconds": 7.9}. Keys that start with "time/" or "memory/" differ from one execution to the
next; all others are reproducible. A number that is not finite is null. log.csv is derived for
spreadsheets, and rewritten when in doubt.

FAILED.json: {"reason": the error's text, "exit_code": that of the command, "ended": when}. The next
start removes it.
"""

import csv
import io
import json
import logging
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import IntFlag
from pathlib import Path
from typing import Any

from ddpm.config import Evaluation
from ddpm.errors import DdpmError, Interrupted, LockedError, StorageError
from ddpm.runs import storage

METRICS_FILE = "metrics.jsonl"
LOG = "train.log"
FAILED_FILE = "FAILED.json"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"

Row = dict[str, Any]


class MetricsLog:
    """Both files in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.path, self.table_path = folder / METRICS_FILE, folder / "log.csv"
        self._columns: list[str] = []

    def rows(self) -> list[Row]:
        """All rows, oldest first."""
        if not self.path.exists():
            return []
        whole = self.path.read_bytes().rpartition(b"\n")[0]  # a kill may have cut the last line
        return [json.loads(line) for line in whole.splitlines()]

    def rewind(self, step: int) -> int:
        """Drops the rows after `step` and what a kill has torn; the number of rows dropped.

        The steps after it are about to be repeated, so that each appears exactly once.
        """
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        content = "".join(f"{_line(row)}\n" for row in kept).encode()
        if self.path.exists() and self.path.read_bytes() != content:
            storage.write_bytes(self.path, content)
        self._columns = _columns(kept)
        if kept or self.table_path.exists():
            storage.write_text(self.table_path, _table(self._columns, kept))
        return len(rows) - len(kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row to both files, durably."""
        clean: Row = without_nan(row)
        storage.append_line(self.path, _line(clean))
        if self._columns and clean.keys() <= set(self._columns):
            storage.append_line(self.table_path, _cells(self._columns, clean))
        else:
            rows = self.rows()
            self._columns = _columns(rows)
            storage.write_text(self.table_path, _table(self._columns, rows))


def without_nan(value: Any) -> Any:
    """The value with numbers that JSON lacks, NaN and infinity, as None."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False)


def _columns(rows: Iterable[Row]) -> list[str]:
    """Every key, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _cells(columns: list[str], row: Row) -> str:
    buffer = io.StringIO()
    values = ["" if row.get(column) is None else row[column] for column in columns]
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def _table(columns: list[str], rows: Iterable[Row]) -> str:
    header = dict(zip(columns, columns, strict=True))
    return "".join(f"{_cells(columns, row)}\n" for row in [header, *rows]) if columns else ""


@contextmanager
def logging_to(run_dir: Path) -> Iterator[None]:
    """While it lasts, what `ddpm` logs goes to train.log too."""
    handler = logging.FileHandler(run_dir / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("ddpm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def failure_recorded(run_dir: Path) -> Iterator[None]:
    """Notes an error that passes through, unless the run may simply go on or is another's."""
    try:
        yield
    except (Interrupted, LockedError):
        raise
    except Exception as error:
        if run_dir.is_dir():  # an error before the first start has no run to belong to
            record_failure(run_dir, error)
        raise


def record_failure(run_dir: Path, error: Exception) -> None:
    """Writes FAILED.json and an ERROR line of train.log, as far as the storage still takes them."""
    text, now = error_text(error), datetime.now().astimezone()
    code = error.exit_code if isinstance(error, DdpmError) else 1
    with suppress(StorageError):
        line = " | ".join(text.splitlines())
        stamp = f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}"
        storage.append_line(run_dir / LOG, f"{stamp} ERROR exit code {code}: {line}")
        facts = {"reason": text, "exit_code": code, "ended": now.isoformat(timespec="seconds")}
        storage.write_json(run_dir / FAILED_FILE, facts)


def error_text(error: BaseException) -> str:
    """An error in words: the message for the user, else its type, text and place in the code."""
    if isinstance(error, DdpmError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


class Patience(IntFlag):
    """Meaning of an evaluation for the training.

    Decided from the run's own rows of metrics, so a run that continues decides as one that was
    never stopped.
    """

    NOTHING = 0
    KEEP = 1  # the best so far: its checkpoint is saved and kept
    ENOUGH = 2  # PATIENCE evaluations were no better: the training ends here


def best_step(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> int | None:
    """The step of the lowest EVALUATION.BEST, the first of equals; None without either."""
    return min(_measured(rows, options), default=(0.0, None))[1]


def judge_evaluations(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> Patience:
    """The meaning of the last of a run's evaluations."""
    found = _measured(rows, options)
    if not found:
        return Patience.NOTHING
    best = min(found)
    verdict = Patience.KEEP if best == found[-1] else Patience.NOTHING
    since = sum(step > best[1] for _, step in found)
    if options.PATIENCE is not None and since >= options.PATIENCE:
        verdict |= Patience.ENOUGH
    return verdict


def _measured(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> list[tuple[float, int]]:
    """(value, step) of the evaluations, in order; one that was not finite is none."""
    if options.BEST is None:
        return []
    found = ((row.get(f"val_{options.BEST}"), row["step"]) for row in rows)
    return [(value, step) for value, step in found if value is not None]
