"""Results of a sweep folder or of one run, read from its files; no torch.

A sweep folder holds sweep.json, ledger/{trial}.json and references.json; each trial names its run
directory, whose files are read as far as they are there. Nothing missing or damaged is guessed: it
is None, empty, or a line in `SweepResults.problems`.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddpm.config import flat, read_yaml
from ddpm.errors import InputError
from ddpm.metrics import Quality, X0Error, read_quality
from ddpm.runs import (
    CONFIG_FILE,
    DONE_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    load_run,
    read_facts,
)
from ddpm.sweep import BEST_FILE, SWEEP_FILE, SkippedCell

Item = TypeVar("Item")
Key = TypeVar("Key")
Value = object  # a leaf of a configuration or of JSON: text, number, truth value, list or null


def mapping(value: Value) -> dict[str, Value]:
    """The value when it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Value) -> list[Value]:
    """The value when it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by what key(item) gives, both in the order in which they come."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


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


def code(value: Value) -> str:
    """The value as text that can be compared and sorted."""
    return json.dumps(value, sort_keys=True)


def number(value: Value) -> float:
    """The value as a number; NaN when it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else float("nan")  # type: ignore[arg-type]


def command(value: Value) -> str:
    """A command line, recorded as text or as its words, as one types it."""
    words = [str(word) for word in sequence(value)]
    program = Path(words[0]) if words else Path()
    if program.name == "__main__.py":
        words[:1] = ["python", "-m", program.parent.name]
    elif program.suffix == ".py":
        words.insert(0, "python")
    return shlex.join(words) if words else str(value or "")


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The named arrays of an NPZ file; None when the file or one of them is not there."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError):
        return None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A trial's final samples, read when they are shown; empty where the file is damaged."""

    path: Path

    @property
    def images(self) -> np.ndarray:
        """uint8 (N, H, W, C)."""
        return self._arrays["images"]

    @property
    def labels(self) -> np.ndarray:
        """(N,), -1 without class."""
        return self._arrays["labels"]

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        nothing: dict[str, np.ndarray]
        nothing = {"images": np.zeros((0, 1, 1, 1), np.uint8), "labels": np.zeros(0, np.int64)}
        return read_arrays(self.path, ("images", "labels")) or nothing


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One training: its place in the grid, how it ended and what it left."""

    name: str
    cell: Mapping[str, Value]
    seed: int
    status: str  # done | failed | unfinished
    reason: str | None
    run_dir: Path | None
    summary: Mapping[str, Value]
    config: Mapping[str, Value] = field(default_factory=dict)  # dotted keys
    provenance: Mapping[str, Value] = field(default_factory=dict)
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)  # columns of metrics.jsonl
    evaluation: Mapping[str, Value] = field(default_factory=dict)
    error: X0Error | None = None
    samples: Samples | None = None
    inline: tuple[Path, ...] = ()  # sample grids over training, the earliest first
    quality: Quality | None = None  # of its samples; their pictures are read where they are shown

    @property
    def key(self) -> str:
        """The cell as text that can be compared and sorted."""
        return code(self.cell)

    def number(self, name: str) -> float | None:
        """A number of the trial's summary, None where it is absent or not a number."""
        value = number(self.summary.get(name))
        return value if isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The two reference curves of the data, MSE by level, and some validation images."""

    levels: tuple[int, ...]
    gaussian: tuple[float, ...] | None
    memorisation: tuple[float, ...] | None
    num_train: int
    samples: Samples | None


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """All a report shows. A single run is a sweep of one trial with `is_sweep` False.

    window: lowest and highest log SNR over which x0-errors are averaged (metrics.data_window);
    None in a folder of an earlier version, which has none.
    """

    folder: Path
    name: str
    is_sweep: bool
    question: str
    command: str
    grid: Mapping[str, tuple[Value, ...]]
    planned: int
    trials: tuple[TrialResult, ...]
    skipped: tuple[SkippedCell, ...]
    references: Lines | None
    problems: tuple[str, ...] = field(default=())
    planned_tuning: int = 0
    tuning: tuple[TrialResult, ...] = ()  # they chose the numbers of SPACE, and are not compared
    space: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()  # as the sweep names them; () where that is not known
    window: tuple[int, int] | None = None
    # by TrialResult.key: level of log SNR -> the weight of the x0-error in the training loss
    weights: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def cells(self) -> list[Mapping[str, Value]]:
        """Those of its trials, then those that were skipped."""
        return [*(trial.cell for trial in self.trials), *(one.cell for one in self.skipped)]

    def with_status(self, status: str) -> tuple[TrialResult, ...]:
        """The trials that ended so."""
        return tuple(trial for trial in self.trials if trial.status == status)

    @property
    def best_yaml(self) -> Path | None:
        """The recommended configuration, where the sweep has written it."""
        path = self.folder / BEST_FILE
        return path if path.exists() else None


def read_results(folder: Path) -> SweepResults:
    """A sweep folder or a run directory as a Sweep; InputError when it is neither."""
    if (folder / SWEEP_FILE).exists() or (folder / "ledger").is_dir():
        return _read_sweep(folder)
    if (folder / CONFIG_FILE).exists():
        return _read_run(folder)
    raise InputError(
        f"{folder} is neither a sweep (no sweep.json, no ledger/) nor a run "
        "(no training_config.yaml); give a folder like OUTPUT_DIR/sweeps/NAME or a run directory"
    )


def _read_sweep(folder: Path) -> SweepResults:
    facts = read_facts(folder / SWEEP_FILE)
    planned = [mapping(one) for one in sequence(facts.get("planned"))]
    # With NAMES a training may have passed from one name to another when SEEDS grew.
    cells = {str(one.get("trial")): one["cell"] for one in planned if "cell" in one}
    problems: list[str] = []
    trials = []
    for path in sorted((folder / "ledger").glob("*.json")):
        outcome = read_facts(path)
        if "status" not in outcome:
            problems.append(f"ledger/{path.name} cannot be read; its trial is left out.")
            continue
        cell = cells.get(path.stem, outcome.get("cell"))
        trials.append(_trial(folder, path.stem, {**outcome, "cell": cell}))
    order = {str(one.get("trial")): place for place, one in enumerate(planned)}
    trials.sort(key=lambda trial: (order.get(trial.name, len(order)), trial.key, trial.seed))
    if order:
        stale = [trial.name for trial in trials if trial.name not in order]
        trials = [trial for trial in trials if trial.name in order]
        if stale:
            problems.append(
                f"{len(stale)} trial(s) of an earlier grid are in the ledger but not in the sweep "
                "as it is now; they are left out."
            )
    is_tuning = {str(one.get("trial")) for one in planned if one.get("is_tuning") is True}
    tuning = [trial for trial in trials if trial.name in is_tuning]
    trials = [trial for trial in trials if trial.name not in is_tuning]
    return SweepResults(
        folder=folder,
        name=str(facts.get("name", folder.name)),
        is_sweep=True,
        question=str(facts.get("question") or ""),
        command=command(facts.get("command")),
        grid={key: tuple(sequence(v)) for key, v in mapping(facts.get("grid")).items()},
        planned=max(len(order) - len(is_tuning), len(trials)),
        trials=tuple(trials),
        tuning=tuple(tuning),
        planned_tuning=len(is_tuning),
        seeds=tuple(one for one in sequence(facts.get("seeds")) if isinstance(one, int)),
        space={
            key: (number(ends[0]), number(ends[1]))
            for key, value in mapping(facts.get("space")).items()
            if len(ends := sequence(value)) == 2
        },
        skipped=tuple(
            SkippedCell(
                cell=mapping(one.get("cell")), reason=str(one.get("reason", "no reason given"))
            )
            for one in map(mapping, sequence(facts.get("skipped")))
        ),
        references=_lines(folder),
        problems=tuple(problems),
        window=_window(facts.get("window")),
        weights={
            code(mapping(one.get("cell"))): {
                int(number(level)): number(weight)
                for level, weight in zip(
                    sequence(one.get("levels")), sequence(one.get("weights")), strict=False
                )
            }
            for one in map(mapping, sequence(facts.get("weights")))
        },
    )


def _read_run(folder: Path) -> SweepResults:
    done = read_facts(folder / DONE_FILE)
    outcome = {
        "status": "done" if (folder / DONE_FILE).exists() else "unfinished",
        "run_dir": str(folder.resolve()),
        "summary": mapping(done.get("summary", done)),
    }
    trial = _trial(folder, folder.name.rsplit("_", 1)[-1], outcome)
    return SweepResults(
        folder=folder,
        name=folder.name,
        is_sweep=False,
        question="",
        command=command(trial.provenance.get("command")),
        grid={},
        planned=1,
        trials=(trial,),
        skipped=(),
        references=_lines(folder),
        window=_window(trial.evaluation.get("window")),
    )


def _trial(folder: Path, name: str, outcome: Mapping[str, Value]) -> TrialResult:
    run_dir = _run_dir(folder, outcome.get("run_dir"))
    config = {} if run_dir is None else _config(run_dir)
    seed = outcome.get("seed", config.get("TRAINING.SEED", 0))
    trial = TrialResult(
        name=str(outcome.get("trial", name)),
        cell=mapping(outcome.get("cell")),
        seed=seed if isinstance(seed, int) else 0,
        status=str(outcome["status"]),
        reason=None if outcome.get("reason") is None else str(outcome["reason"]),
        run_dir=run_dir,
        summary=mapping(outcome.get("summary")),
        config=config,
    )
    if run_dir is None:
        return trial
    arrays = read_arrays(run_dir / "evaluation.npz", ("levels", "mse", "ids"))
    return replace(
        trial,
        provenance=read_facts(run_dir / PROVENANCE_FILE),
        metrics=read_metrics(run_dir / METRICS_FILE),
        evaluation=read_facts(run_dir / EVALUATION_FILE),
        error=None if arrays is None else X0Error(**arrays),
        samples=_samples(run_dir / "samples.npz"),
        quality=read_quality(run_dir),
        inline=tuple(sorted((run_dir / "inline_gen").glob("*.png"))),
    )


def _config(run_dir: Path) -> dict[str, Value]:
    """Its configuration, StorageError where it was edited since; of another version, as it is."""
    with suppress(InputError):
        return flat(load_run(run_dir))
    with suppress(InputError):
        return read_yaml(run_dir / CONFIG_FILE)
    return {}


def _run_dir(folder: Path, value: Value) -> Path | None:
    """The run directory a trial names: absolute, or relative to the sweep's OUTPUT_DIR."""
    if not isinstance(value, str) or not value:
        return None
    path = Path(value) if Path(value).is_absolute() else folder.absolute().parents[1] / value
    return path if path.is_dir() else None


def _samples(path: Path) -> Samples | None:
    return Samples(path=path) if path.exists() else None


def _window(value: Value) -> tuple[int, int] | None:
    """The ends of a window as JSON has them; None where there is none or it is damaged."""
    match value:
        case [int(low), int(high)] if low <= high:
            return low, high
    return None


def _lines(folder: Path) -> Lines | None:
    saved = read_facts(folder / "references.json")
    if not saved.get("levels"):
        return None
    gaussian, memorisation = sequence(saved.get("gaussian")), sequence(saved.get("memorisation"))
    return Lines(
        levels=tuple(int(number(level)) for level in sequence(saved["levels"])),
        gaussian=tuple(map(number, gaussian)) or None,
        memorisation=tuple(map(number, memorisation)) or None,
        num_train=int(number(saved.get("num_train", 0))),
        samples=_samples(folder / "references.npz"),
    )
