"""Files of a run as plain values; what is missing or damaged reads as nothing, never as a guess."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

Value = object  # a leaf of a configuration or of JSON: text, number, truth value, list or null


def read_json(path: Path) -> Value:
    """The JSON value in a file; None where there is no readable one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def mapping(value: Value) -> dict[str, Value]:
    """The value when it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Value) -> list[Value]:
    """The value when it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def read_config(path: Path) -> dict[str, Value]:
    """The configuration as dotted keys."""
    try:
        tree = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return {}
    return dict(_leaves(tree, ())) if isinstance(tree, dict) else {}


def _leaves(tree: Value, path: tuple[str, ...]) -> Iterator[tuple[str, Value]]:
    if not isinstance(tree, dict):
        yield ".".join(path), tree
        return
    for key, value in tree.items():
        yield from _leaves(value, (*path, str(key)))


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The numbers of metrics.jsonl as columns, NaN where a row lacks one; a half-written last line,
    as a living run may have, ends the reading.
    """
    rows = []
    try:
        for line in path.read_text().splitlines():
            rows.append(json.loads(line))
    except (OSError, ValueError):
        pass
    rows = [row for row in rows if isinstance(row, dict) and "step" in row]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([number(row.get(name)) for row in rows]) for name in names}
    return {name: column for name, column in columns.items() if not np.isnan(column).all()}


def number(value: Value) -> float:
    """The value as a number; NaN when it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else float("nan")  # type: ignore[arg-type]


def command(value: Value) -> str:
    """A command line, recorded as text or as its words, as one types it."""
    words = [str(word) for word in sequence(value)]
    if words and words[0].endswith(".py"):
        words.insert(0, "python")
    return shlex.join(words) if words else str(value or "")


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The named arrays of an NPZ file; None when the file or one of them is not there."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError):
        return None
