"""Jobs on the lab: submitting, watching, and what SLURM's own books say about them."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.slurm.hosts import REPOSITORY, LabError, wait_until
from tests.slurm.lab import Lab
from tests.training.test_resume import fingerprint

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD"}
ALIVE = {*WAITING, "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED"}

# A row of metrics for every step, a checkpoint every fifth; ten seconds on one core.
TRAINING = {
    "TRAINING.NETWORK.FIRST_CHANNEL": 8,
    "TRAINING.NETWORK.NUM_RES_BLOCKS": 1,
    "TRAINING.NETWORK.DROPOUT_RATE": 0.2,
    "TRAINING.EMA_DECAYS": "[0.9]",
    "TRAINING.INLINE_GEN.ENABLE": "false",
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": 1,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 60,
    "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": 5,
    "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 10,
    "EVALUATION.NUM": 16,
    "TRAINING.MICRO_BATCH": 43,
    "TRAINING.NUMERICS": "exact",  # the same bits on every number of nodes
}


@dataclass(frozen=True)
class Job:
    """A job that was submitted; `log` is its output, all of its starts in one file."""

    lab: Lab
    id: str
    log: Path

    def shown(self) -> dict[str, str]:
        """What `scontrol show job` says of it, by its names; {} once it is forgotten."""
        done = self.lab.ctl.run("scontrol", "show", "job", "-o", self.id, check=False)
        return dict(re.findall(r"(\S+?)=(\S*)", done.stdout))

    @property
    def state(self) -> str:
        """SLURM's word for what it does, such as RUNNING; UNKNOWN where nobody answers."""
        return self.shown().get("JobState", "UNKNOWN")

    @property
    def restarts(self) -> int:
        return int(self.shown()["Restarts"])

    def starts(self, *fields: str) -> list[tuple[str, ...]]:
        """One row for each start of the job, as sacct's books have it (State and fields more)."""
        words = "sacct -X -D -P -n -j".split()
        shown = self.lab.ctl.run(*words, self.id, "-o", ",".join(("State", *fields)))
        return [tuple(line.split("|")) for line in shown.stdout.splitlines()]

    def steps(self) -> list[str]:
        """Names of the steps that were started, the batch script's included."""
        shown = self.lab.ctl.run(*"sacct -P -n -D -o JobID,JobName -j".split(), self.id)
        rows = [line.split("|") for line in shown.stdout.splitlines()]
        return [name for number, name in rows if "." in number]

    def wait_for_state(self, *states: str, seconds: float = 60) -> None:
        """LabError, with the job's log, when it is in none of these states in time."""
        self._wait(f"is {' or '.join(states)}", lambda: self.state in states, seconds)

    def wait_for_restart(self, number: int = 1, seconds: float = 90) -> None:
        """Until the job runs for the (number + 1)-th time."""
        self._wait(
            f"runs after restart {number}",
            lambda: self.shown().get("Restarts") == str(number) and self.state == "RUNNING",
            seconds,
        )

    def wait_for_text(self, text: str, seconds: float = 90) -> None:
        self._wait(f"says {text!r}", lambda: text in self.read_log(), seconds)

    def wait_for_rows(self, run_root: Path, number: int, seconds: float = 120) -> None:
        """Until the run in a folder has written so many rows of metrics."""
        self._wait(f"has {number} rows", lambda: rows(run_root) >= number, seconds)

    def seconds_to_first_row(self, run_root: Path, before: int = 0) -> float:
        """From RUNNING to the next row of metrics after so many: the time of a start."""
        self.wait_for_state("RUNNING", seconds=90)
        begin = time.monotonic()
        self.wait_for_rows(run_root, before + 1)
        return time.monotonic() - begin

    def end(self, seconds: float = 200) -> tuple[str, str]:
        """(State, ExitCode) of a job that has ended, as in sacct, when it has."""
        self._wait("ends", lambda: self.state not in {*ALIVE, "UNKNOWN"}, seconds)
        books: list[tuple[str, ...]] = []

        def written() -> bool:
            books[:] = self.starts("ExitCode")
            return bool(books) and books[-1][0].split()[0] not in ALIVE

        wait_until(f"sacct knows the end of job {self.id}", written, 20)
        return books[-1][0].split()[0], books[-1][1]

    def completes(self, seconds: float = 200) -> None:
        """LabError, with the job's log, unless it ends well."""
        ended = self.end(seconds)
        if ended != ("COMPLETED", "0:0"):
            raise LabError(f"job {self.id} ended {ended}\n{self.read_log()[-6000:]}")

    def control(self, *words: str) -> None:
        """scontrol WORDS JOB."""
        self.lab.ctl.run("scontrol", *words, self.id)

    def cancel(self) -> None:
        self.lab.ctl.run("scancel", self.id)

    def read_log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _wait(self, what: str, true: Callable[[], object], seconds: float) -> None:
        try:
            wait_until(f"job {self.id} {what}", true, seconds)
        except LabError as error:
            shown = f"{self.shown()}\n{self.starts('ExitCode', 'NodeList')}"
            raise LabError(f"{error}\n{shown}\n{self.read_log()[-6000:]}") from None


def as_words(settings: Mapping[str, object]) -> list[str]:
    """Settings as a user gives them after the configuration; paths in YAML's double quotes."""
    return [
        f"{key}={json.dumps(str(value)) if isinstance(value, Path) else value}"
        for key, value in settings.items()
    ]


class Train(Protocol):
    """train(folder, *sbatch options, changed={key: value}): a small training, submitted."""

    def __call__(
        self, root: Path, *options: str, changed: Mapping[str, object] | None = None
    ) -> Job: ...


def submit(
    lab: Lab,
    script: str,
    *arguments: object,
    options: tuple[str, ...] = (),
    output: Path,
    cwd: Path = REPOSITORY,
    by: tuple[str, ...] = (),
) -> Job:
    """`sbatch OPTIONS SCRIPT ARGUMENTS` on the controller; `by`: a command in front of it."""
    log = output / f"job-{time.monotonic_ns()}.log"
    words = [*by, "sbatch", "--parsable", f"--output={log}", *options, script, *arguments]
    return Job(lab, lab.ctl.run(*words, cwd=cwd).stdout.strip(), log)


def files_called(name: str, root: Path) -> list[Path]:
    """The files of that name below a folder in which others write: folders may vanish meanwhile."""
    return [Path(place) / name for place, _, files in os.walk(root) if name in files]


def run_of(root: Path) -> Path:
    """The one run directory below a TRAINING.OUTPUT_DIR."""
    found = [path.parent for path in files_called("metrics.jsonl", root)]
    if len(found) != 1:
        raise LabError(f"{root} holds {len(found)} runs, not one")
    return found[0]


def rows(root: Path) -> int:
    """Rows of metrics written below a TRAINING.OUTPUT_DIR so far."""
    return sum(path.read_bytes().count(b"\n") for path in files_called("metrics.jsonl", root))


def metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run directory's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The loss of every step, in order."""
    return [row["loss"] for row in metrics(run)]


def steps(run: Path) -> list[float]:
    """The steps that have a row of metrics, in order."""
    return [row["step"] for row in metrics(run)]


def assert_same(run: Path, reference: Path) -> None:
    """Weights, averages, optimizer and metrics have the same bits; every step has one row."""
    assert steps(run) == list(range(1, len(steps(reference)) + 1))
    assert fingerprint(run) == fingerprint(reference)
