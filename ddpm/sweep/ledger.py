"""The ledger of a sweep: one small file a trial that ended, the truth about what is done.

Files are written whole or not at all, so a ledger survives a kill at any instant; what is not a
whole outcome of the file's own name is left out with a warning. Trials are known by their run id:
a changed grid adds trials and keeps the outcomes of the others.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from ddpm.config import show
from ddpm.runs import storage, without_nan

# Of a sweep's folder, beside its ledger: what was planned; the recommended cell, ready to train.
SWEEP_FILE, BEST_FILE = "sweep.json", "best.yaml"
_LOG = logging.getLogger("ddpm.ledger")
_NAME = re.compile(r"[0-9a-f]{8}\.json")


class _Identified(Protocol):
    @property
    def trial_id(self) -> str: ...


T = TypeVar("T", bound=_Identified)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial and how it ended. trial: its run id; cell: dotted key -> value; run_dir: where it is.

    status: "stopped" trials were ended early by a search, "unrun" ones not run for want of budget.
    reason: why it failed or was ended.  summary: what it measured; a number that is not finite is
    kept as null.
    """

    trial: str
    cell: Mapping[str, object]
    seed: int
    run_dir: str
    status: Literal["planned", "done", "failed", "stopped", "unrun"] = "planned"
    reason: str | None = None
    summary: Mapping[str, object] = field(default_factory=dict)

    @property
    def trial_id(self) -> str:
        return self.trial

    @property
    def name(self) -> str:
        return f"{cell_name(self.cell)} · seed {self.seed}"

    def done(self, summary: Mapping[str, object]) -> "Outcome":
        """This trial, finished."""
        return replace(self, status="done", reason=None, summary=summary)

    def failed(self, reason: str) -> "Outcome":
        """This trial, failed for a reason."""
        return replace(self, status="failed", reason=reason)

    def stopped(self, reason: str, summary: Mapping[str, object]) -> "Outcome":
        """This trial, ended early by a search; what it had measured by then."""
        return replace(self, status="stopped", reason=reason, summary=summary)

    def unrun(self, reason: str) -> "Outcome":
        """This trial, not run to its end for a reason that is not its own."""
        return replace(self, status="unrun", reason=reason)


def cell_name(cell: Mapping[str, object]) -> str:
    """A cell in a few words: `cosine · velocity · T=250 · BATCH_SIZE=64`."""
    words = []
    for key, value in cell.items():
        name = key.rpartition(".")[2].replace("TIMESTEPS", "T")
        words.append(value if isinstance(value, str) else f"{name}={show(value)}")
    return " · ".join(words) or "the base"


@dataclass(frozen=True, kw_only=True)
class SkippedCell:
    """A cell that cannot be trained, and why."""

    cell: Mapping[str, object]
    reason: str

    @property
    def name(self) -> str:
        return cell_name(self.cell)


class Ledger:
    """The outcomes in a folder; many processes may record into it."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._warned: set[str] = set()

    def record(self, outcome: Outcome) -> None:
        """Keeps an outcome durably; a later one of the same trial replaces it."""
        if outcome.status == "planned":
            raise ValueError(f"trial {outcome.trial} has not ended; record .done() or .failed()")
        name = f"{outcome.trial}.json"
        if not _NAME.fullmatch(name):
            raise ValueError(f"trial is {outcome.trial!r}; give 8 lower-case hexadecimal digits")
        storage.make_folder(self.folder)
        storage.write_json(self.folder / name, without_nan(asdict(outcome)))

    def outcomes(self) -> dict[str, Outcome]:
        """Trial id -> outcome, of every trial that ended."""
        found: dict[str, Outcome] = {}
        for path in sorted(self.folder.glob("*")) if self.folder.is_dir() else []:
            outcome = _read(path)
            if outcome is not None:
                found[outcome.trial] = outcome
            elif path.name not in self._warned and not path.name.startswith("."):
                self._warned.add(path.name)
                _LOG.warning("%s is no whole outcome of a trial; left out", path)
        return found

    def todo(self, trials: Iterable[T], settled: Collection[str] = ("done",)) -> list[T]:
        """The trials whose status is not settled, in their order; failed ones are tried again."""
        outcomes = self.outcomes()
        done = {trial for trial, outcome in outcomes.items() if outcome.status in settled}
        return [trial for trial in trials if trial.trial_id not in done]


def _read(path: Path) -> Outcome | None:
    """The outcome in a file, None unless it is a whole one under its own name."""
    if not _NAME.fullmatch(path.name):
        return None
    record = storage.read_facts(path)
    types: dict[str, type | tuple[type, ...]] = {
        "trial": str,
        "cell": dict,
        "seed": int,
        "status": str,
        "run_dir": str,
        "reason": (str, type(None)),
        "summary": dict,
    }
    is_whole = (
        record.keys() == types.keys()
        and all(isinstance(record[name], kind) for name, kind in types.items())
        and record["trial"] == path.stem
        and record["status"] in ("done", "failed", "stopped", "unrun")
    )
    return Outcome(**record) if is_whole else None
