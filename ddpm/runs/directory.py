"""Where a run's directory lies, what it is called, and what the files in it are called.

    OUTPUT_DIR/{dataset}_{H}x{W}x{C}/{architecture_tag}/
        {scheduler}_{timesteps}_{pred_type}_{loss}_{timestamp}_{run_id}

The run_id finds a run again; the timestamp is for people, nothing is ordered by it.
OUTPUT_DIR/.locks/{run_id} is held by the process that makes the first directory of a run.
"""

import hashlib
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import IntFlag
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import config as configuration
from ddpm.config import Config, Evaluation
from ddpm.errors import InputError, LockedError, StorageError
from ddpm.runs import checkpoint, logs, pictures, storage
from ddpm.runs.checkpoint import Checkpoint, forget_after, keep_if_due
from ddpm.runs.logs import MemoryLog, MetricsLog, Row, without_nan
from ddpm.runs.storage import Sign

CONFIG = "training_config.yaml"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
MEMORY = "memory.csv"
DONE = "DONE.json"
STOP = "STOP"
LOCK = ".lock"
LINEAGE = "lineage.json"


def existing(root: Path, run_id: str) -> list[Path]:
    """The directories of the runs called `run_id` below OUTPUT_DIR, in no particular order."""
    return [path for path in root.glob(f"*/*/*_{run_id}") if path.is_dir()]


def id_lock(path: Path) -> Path:
    """The lock file of the run id of a run directory."""
    return output_dir(path) / ".locks" / id_of(path)


def id_of(path: Path) -> str:
    """The run id in the name of a run directory."""
    return path.name.rpartition("_")[2]


def output_dir(path: Path) -> Path:
    """The OUTPUT_DIR of a run directory."""
    return path.parent.parent.parent


def new_path(config: Config, run_id: str) -> Path:
    """A directory that no run has yet."""
    channels, height, width = configuration.image_shape(config)
    training = config.TRAINING
    network = training.NETWORK
    parts = (network.SCHEDULER, network.TIMESTEPS, training.PRED_TYPE, training.LOSS_FN)
    # microseconds, so that two names made in one second differ
    timestamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return (
        Path(training.OUTPUT_DIR)
        / f"{config.DATASET.NAME}_{height}x{width}x{channels}"
        / configuration.architecture_tag(config)
        / "_".join((*map(str, parts), timestamp, run_id))
    )


# --------
# Where a run's numbers come from: code, versions, machine and command of each attempt.
#
# Attempt is one execution of the command; a resumed run has several. Facts that can change the bits
# of the result are compared between attempts. Secrets stay out: no environment variable is recorded,
# and what looks like a credential on the command line is masked.

PACKAGES = ("torch", "numpy", "safetensors", "webdataset", "ray", "wandb")
# Facts that a bit-identical continuation needs unchanged, and what to call them.
DECIDES_BITS = {
    "source_sha256": "the code of ddpm",
    "torch": "torch",
    "cpu_capability": "the CPU capability",
    "gpus": "the GPUs",
}
_SECRET_NAME = re.compile(r"(?i)(api[_-]?key|token|secret|passw|credential)")
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_MASK = "***"
_PACKAGE = Path(__file__).parent.parent


def attempt(command: Sequence[str]) -> dict[str, Any]:
    """The facts of this execution, as JSON values."""
    return {
        "started": now(),
        "command": masked(command),
        "git": git_state(),
        "source_sha256": source_sha256(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def now() -> str:
    """The time, as ISO 8601 has it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def ended(attempts: Sequence[Mapping[str, Any]], sign: Path) -> list[Mapping[str, Any]]:
    """The attempts with the end of the last: when it last wrote the file `sign`, if it ever did."""
    if not attempts or not sign.exists():
        return list(attempts)
    last = datetime.fromtimestamp(sign.stat().st_mtime).astimezone()
    end = max(last, datetime.fromisoformat(attempts[-1]["started"]))
    return [*attempts[:-1], {**attempts[-1], "ended": end.isoformat(timespec="seconds")}]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two attempts that can change the bits of the result, one line each."""
    return [
        f"{what} changed from {_short(before.get(key))} to {_short(now.get(key))} since the last "
        "attempt; the continuation is valid but may differ from an uninterrupted run in its bits"
        for key, what in DECIDES_BITS.items()
        if before.get(key) != now.get(key)
    ]


def masked(command: Sequence[str]) -> str:
    """The command as one would type it, credentials replaced by ***."""
    secrets = {
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and _SECRET_NAME.search(name) and not Path(value).exists()
    }
    words = []
    hide_next = False
    for word in command:
        name, equals, value = word.partition("=")
        for secret in secrets:
            word = word.replace(secret, _MASK)
        if hide_next:
            word = _MASK
        elif equals and value and _SECRET_NAME.search(name):
            word = f"{name}={_MASK}"
        hide_next = not equals and word.startswith("-") and bool(_SECRET_NAME.search(word))
        words.append(_URL_LOGIN.sub(f"{_MASK}@", word))
    return " ".join(word if _MASK in word else shlex.quote(word) for word in words)


def git_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout the package runs from; None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", str(_PACKAGE)))}


def source_sha256() -> str:
    """SHA-256 over the package's source: what ran, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(_PACKAGE), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _short(value: Any) -> str:
    text = ", ".join(value) or "none" if isinstance(value, list) else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


# --------
# The best evaluation of a run so far, from its rows of metrics: whose checkpoint is kept, and when
# none better has come for so long that training ends.
#
# Rows are the run's own, so a run that continues decides as one that was never stopped.


class Patience(IntFlag):
    """What an evaluation means for the training."""

    NOTHING = 0
    KEEP = 1  # the best so far: its checkpoint is saved and kept
    ENOUGH = 2  # PATIENCE evaluations were no better: the training ends here


@dataclass(frozen=True, kw_only=True)
class Best:
    """The evaluation with the lowest value; the first of equals."""

    step: int
    value: float


def best_of(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> Best | None:
    """The best of a run's rows by EVALUATION.BEST; None without either."""
    found = _measured(rows, options)
    return min(found, key=lambda best: (best.value, best.step), default=None)


def judge(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> Patience:
    """What the last of a run's evaluations means."""
    found, best = _measured(rows, options), best_of(rows, options)
    if best is None:
        return Patience.NOTHING
    verdict = Patience.KEEP if best == found[-1] else Patience.NOTHING
    since = sum(one.step > best.step for one in found)
    if options.PATIENCE is not None and since >= options.PATIENCE:
        verdict |= Patience.ENOUGH
    return verdict


def _measured(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> list[Best]:
    """The evaluations among the rows, in order; one that was not finite is none."""
    if options.BEST is None:
        return []
    found = ((row["step"], row.get(f"val_{options.BEST}")) for row in rows)
    return [Best(step=step, value=value) for step, value in found if value is not None]


# --------
# The configuration a run was trained with, which its checkpoints confirm. No torch.
#
# Every manifest holds the SHA-256 of the configuration's identity: the keys that differ from their
# defaults. Lay-out, machine keys and keys added to the project later do not change it. An edited
# training_config.yaml does, and would silently draw other images than the network was trained for.


def load_run(run: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of the run in the directory `run`, `overrides` put over it once compared.

    Raises InputError as config.load does, StorageError where the file was edited.
    """
    own = configuration.load(run / CONFIG)
    if newest := _newest_manifest(run):
        refuse_edited(run, own, newest)
    return configuration.load(run / CONFIG, overrides) if overrides else own


def load_file(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, as load_run's where it is that of a run."""
    if path.name == CONFIG:
        return load_run(path.parent, overrides)
    return configuration.load(path, overrides)


def refuse_edited(run: Path, own: Config, made: Mapping[str, Any]) -> None:
    """Raises StorageError when `own`, read from the run, is not what the checkpoint with the
    manifest `made` was trained with.
    """
    known, found = made.get("config_sha256"), configuration.config_sha256(own)
    if known is None or known == found or made["step"] == _given_step(run):
        return
    raise StorageError(
        f"{run / CONFIG} was edited: its configuration is {found[:8]}, but "
        f"{checkpoint.folder_name(made['step'])} was trained with {known[:8]}; undo the edit or "
        "restore the file from a copy; for other settings train a new run, or give "
        "IMAGE_GENERATION.KEY=value where images are drawn"
    )


def _newest_manifest(run: Path) -> dict[str, Any] | None:
    """The newest that can be read; None where there is none, so nothing to compare with."""
    folder = run / "checkpoints"
    for step in reversed(checkpoint.steps(folder)):
        try:
            return checkpoint.read_manifest(checkpoint.folder_of(folder, step))
        except (StorageError, InputError):
            continue  # whoever wants the weights is told; one before it knows as well
    return None


def _given_step(run: Path) -> int | None:
    """The step a member of a population took over from another, of another configuration."""
    step: int | None = storage.read_json(run / LINEAGE).get("step")
    return step


# --------
# The run directory: everything a training leaves behind, and all it needs to go on.
#
#     training_config.yaml  provenance.json  train.log  metrics.jsonl  log.csv  memory.csv
#     checkpoints/step-00001000/  inline_gen/step-00001000.png  ema_snapshots/ (with EMA_POWER)
#     DONE.json (once finished)   FAILED.json (after an error, until the next start)
#
# It is the truth about the run; other records are mirrors. One living process holds it. A row of
# metrics is written before the checkpoint of its step, and rows after the checkpoint that a run
# continues from are dropped, so that each step is there exactly once whatever happened between.


class State(Protocol):
    """What a checkpoint holds."""

    @property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]: ...

    @property
    def scalars(self) -> Mapping[str, Any]: ...


class RunState(Protocol):
    """What happened in a training up to `step`, as the trainer yields it."""

    @property
    def step(self) -> int: ...

    @property
    def images(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...

    @property
    def samples(self) -> NDArray[np.uint8] | None: ...

    @property
    def state(self) -> State | None: ...


class RunDirectory:
    """The directory of one run, at `path`, whether it exists yet or not."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.inline_gen = self.path / "inline_gen"
        self.log = logging.getLogger("ddpm.run")
        self._metrics = MetricsLog(self.path)
        self._memory: MemoryLog | None = None
        self._open = ExitStack()
        self._started: Config | None = None

    @classmethod
    def find_or_name(cls, config: Config, data_sha256: str, *, new: bool = False) -> "RunDirectory":
        """The run of this configuration and data under OUTPUT_DIR; an unfinished one goes first.

        Where there is none, or new: one with a name of its own. Nothing is written.
        """
        run_id = configuration.run_id(config, data_sha256)
        found = None if new else cls.find(Path(config.TRAINING.OUTPUT_DIR), run_id)
        return found or cls(new_path(config, run_id))

    @classmethod
    def find(cls, output_dir: Path, run_id: str) -> "RunDirectory | None":
        """The newest run of that id, an unfinished one first; None where there is none."""
        runs = [cls(path) for path in existing(output_dir, run_id)]
        order = {run: (not run.is_finished, run._sequence, run.path.name) for run in runs}
        return max(runs, key=order.__getitem__, default=None)

    @property
    def run_id(self) -> str:
        """8 hexadecimal digits that name configuration and data."""
        known: str | None = self.provenance.get("run_id")
        return known or id_of(self.path)

    @property
    def title(self) -> str:
        """The run as errors call it."""
        return f"run directory {self.path}"

    @property
    def is_held(self) -> bool:
        """Whether a living process is seen to hold the directory."""
        return bool(storage.is_held(self.path / LOCK))

    def config(self) -> Config:
        """The configuration the run was started with; StorageError where it was edited since."""
        return self._started or load_run(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts of the latest attempt, and under "attempts" of all; empty before the first."""
        return storage.read_json(self.path / PROVENANCE)

    @property
    def threads(self) -> int:
        """CPU threads of each worker, fixed at the first start because they decide bits."""
        return int(self.provenance["threads"])

    @property
    def is_finished(self) -> bool:
        return (self.path / DONE).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """What `finish` was given; empty while the run is unfinished."""
        return storage.read_json(self.path / DONE).get("summary", {})

    def metrics(self) -> list[Row]:
        """The rows of metrics.jsonl."""
        return self._metrics.rows()

    @property
    def best(self) -> Best | None:
        """The best evaluation so far; None where none is asked for."""
        options = self.config().EVALUATION
        return best_of(self.metrics(), options) if options.BEST else None

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the run to save and stop."""
        return (self.path / STOP).exists()

    def request_stop(self) -> None:
        """Asks the run, wherever it is, to save and stop. Its next start forgets it."""
        if not self.stop_requested:
            storage.make_folder(self.path)
            storage.write_text(self.path / STOP, "")

    def start(
        self,
        config: Config,
        *,
        data_sha256: str,
        data_dir: Path,
        threads: int,
        command: Sequence[str],
        wait_s: float = 0.0,
        facts: Mapping[str, Any] | None = None,
    ) -> Checkpoint | None:
        """Takes the directory for this process; the checkpoint to continue from, None to begin.

        facts: what else provenance.json shall say of this attempt, as JSON values.
        Makes it when missing, sets it right when a kill left it half written. Raises LockedError
        when a living process still holds it after `wait_s` seconds, InputError when it belongs to
        another configuration or other data, StorageError.
        """
        for folder in (self.path, self.checkpoints, self.inline_gen):
            storage.make_folder(folder)
        try:
            self._open.enter_context(storage.lock(self.path / LOCK, self.title, wait_s=wait_s))
            self.refuse_another(config, data_sha256)
            for folder in (self.path, self.checkpoints, self.inline_gen):
                storage.clean_temporaries(folder)
            storage.remove(self.path / STOP)
            storage.remove(self.path / logs.FAILED)
            self._open.enter_context(logs.logging_to(self.path))
            more = {"data_dir": str(data_dir), **(facts or {})}
            self._record_attempt(config, data_sha256, threads, command, more)
            self._started = config
            return self._rewind()
        except BaseException:
            self.close()
            raise

    def record(self, report: RunState) -> None:
        """Keeps a report: its metrics, its samples, and then its state as a checkpoint."""
        if report.metrics:
            row = {"step": report.step, "images": report.images, **report.metrics}
            self._metrics.append(row)
            self.log.info("step %d: %s", report.step, _glance(report.metrics))
            self.record_memory("train", report.step)
        if report.samples is not None:
            classes = self.config().TRAINING.NETWORK.NUM_CLASSES
            columns = pictures.columns_by_class(len(report.samples), classes)
            picture = pictures.png(pictures.grid(report.samples, columns))
            storage.write_bytes(self.inline_gen / f"step-{report.step:08d}.png", picture)
            self.record_memory("sampling", report.step)
        if report.state is not None:
            self._commit(report.step, report.state)
            self.record_memory("checkpoint", report.step)

    def record_memory(self, stage: str, step: int) -> None:
        """Adds a row to memory.csv."""
        if self._memory is None:
            self._memory = MemoryLog(self.path / MEMORY, len(self.provenance["attempts"]))
        self._memory.record(stage, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as done; from now on the same command only prints `summary`."""
        self.record_memory("end", self._last_step)
        facts = {"run_id": self.run_id, "ended": now(), "summary": without_nan(summary)}
        storage.write_json(self.path / DONE, facts)
        self.log.info("finished at step %d", self._last_step)

    def close(self) -> None:
        """Lets go of the directory. Harmless when it is not held."""
        self._open.close()
        self._started = None

    def refuse_held(self, *, wait_s: float) -> None:
        """LockedError when another process still holds the directory after `wait_s` seconds."""
        storage.refuse_held(self.path / LOCK, self.title, wait_s=wait_s)

    def refuse_another(self, config: Config, data_sha256: str) -> None:
        """Raises InputError when the directory belongs to another configuration or other data."""
        if not (self.path / CONFIG).exists():
            return
        own = self.config()
        before, after = configuration.identity(own), configuration.identity(config)
        changed = {key for key in before | after if before.get(key) != after.get(key)}
        lines = [
            line
            for line in configuration.difference(own, config)
            if line.partition(":")[0] in changed
        ]
        known = self.provenance.get("data_sha256", data_sha256)
        if known != data_sha256:
            lines.append(f"data: index {known[:8]} -> {data_sha256[:8]}")
        if lines:
            head = f"{self.path} belongs to another configuration; start a new run, or undo:"
            raise InputError([head, *lines])

    @property
    def _last_step(self) -> int:
        return max(checkpoint.steps(self.checkpoints), default=0)

    @property
    def _sequence(self) -> int:
        return int(self.provenance.get("sequence", 0))

    def _record_attempt(
        self,
        config: Config,
        data_sha256: str,
        threads: int,
        command: Sequence[str],
        more: Mapping[str, Any],
    ) -> None:
        """Writes training_config.yaml and provenance.json; warns of what changed meanwhile."""
        known = self.provenance
        facts = {**attempt(command), **more}
        if known:
            for line in changes(known, facts):
                self.log.warning("%s", line)
            if known["threads"] != threads:
                kept = known["threads"]
                self.log.warning("%d threads asked for; the run keeps its %d", threads, kept)
        fixed = {
            "run_id": configuration.run_id(config, data_sha256),
            "config_sha256": configuration.config_sha256(config),
            "data_sha256": data_sha256,
            "threads": known.get("threads", threads),
            "sequence": known.get("sequence", self._next_sequence()),
        }
        before = ended(known.get("attempts", []), self.path / MEMORY)
        attempts = [*before, facts]
        storage.write_text(self.path / CONFIG, configuration.to_yaml(config))
        storage.write_json(self.path / PROVENANCE, {**fixed, **facts, "attempts": attempts})
        self.log.info("attempt %d: %s", len(attempts), facts["command"])

    def _next_sequence(self) -> int:
        """One more than any run of the same name has: which is newest is not left to clocks."""
        others = existing(output_dir(self.path), self.run_id)
        return 1 + max((RunDirectory(other)._sequence for other in others), default=0)

    def _rewind(self) -> Checkpoint | None:
        """The checkpoint to continue from, the metrics cut back to it."""
        found = checkpoint.latest(self.checkpoints)
        forget_after(self.path, found.step if found else 0)
        dropped = self._metrics.rewind(found.step if found else 0)
        if dropped:
            self.log.info("dropped %d rows of metrics after the checkpoint", dropped)
        self.record_memory("start", found.step if found else 0)
        return found

    def _commit(self, step: int, state: State) -> None:
        facts = self.provenance
        same = ("config_sha256", "data_sha256", "torch", "threads")
        manifest = {key: facts[key] for key in same} | {"cpu": facts["cpu_capability"]}
        config, total = self.config(), facts.get("total_steps", step)
        keep_if_due(self.path, config, step, total, state.tensors, manifest)
        folder = checkpoint.folder_of(self.checkpoints, step)
        checkpoint.save(folder, tensors=state.tensors, state=state.scalars, manifest=manifest)
        pinned = {best.step} if (best := self.best) else ()
        checkpoint.prune(self.checkpoints, config.TRAINING.CHECKPOINTS_KEEP, pinned)


def _glance(metrics: Mapping[str, float]) -> str:
    """The first few numbers, short."""
    return "  ".join(f"{key} {value:.4g}" for key, value in list(metrics.items())[:5])


# --------
# The claim on a run that has no directory yet: one living process makes it, others learn where.
#
# Several that search at once all find none, and each would make its own. So the first directory of a
# run is made under a lock of the run id, held from another search until the directory's own lock is.
# The lock file stays: of a file that is removed and made again, two could hold one each.

_POLL_S = 0.05
_NAMING_S = 10.0  # the holder names its directory after a search; NFS may show it later


class RunClaim:
    """The run that this process may start: no other makes a directory for it meanwhile."""

    def __init__(self, run: RunDirectory, held: ExitStack) -> None:
        self.run = run
        self._held: ExitStack | None = held

    def release(self) -> None:
        """To be called once the directory's own lock is held; harmless when called again."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def release_if_held(self) -> None:
        """As release, once another process, such as a worker, is seen to hold the directory."""
        if self._held is not None and self.run.is_held:
            self.release()


@contextmanager
def claimed(run: RunDirectory, *, another: bool = False, wait_s: float = 0.0) -> Iterator[RunClaim]:
    """`run` as it was searched for, or the run of its id that has been made since.

    another: it shall be made beside others, whatever there is.  Raises LockedError when a living
    process still makes one after `wait_s` seconds. Writes nothing where the directory is there.
    """
    run = RunDirectory(run.path.absolute())
    with ExitStack() as held:
        if not another and not run.path.is_dir():
            sign = _take(run.path, wait_s, held)
            root, run_id = output_dir(run.path), id_of(run.path)
            run = RunDirectory.find(root, run_id) or run
            sign(run_dir=str(run.path))
        yield RunClaim(run, held)


def _take(path: Path, wait_s: float, held: ExitStack) -> Sign:
    """The lock of the run id, taken; LockedError names the directory its holder has chosen."""
    file = id_lock(path)
    what = f"run {id_of(path)} in {output_dir(path)}"
    storage.make_folder(file.parent)
    deadline = time.monotonic() + wait_s
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            return held.enter_context(storage.lock(file, what, wait_s=left))
        except LockedError:
            holder = storage.signature(file)
            if chosen := holder.get("run_dir"):
                raise storage.locked(RunDirectory(Path(chosen)).title, holder) from None
            if time.monotonic() >= deadline + _NAMING_S:
                raise
        time.sleep(_POLL_S)
