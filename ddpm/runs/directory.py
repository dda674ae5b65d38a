"""The run directory: everything a training leaves behind, and all it needs to go on.

    training_config.yaml  provenance.json  train.log  metrics.jsonl  log.csv  memory.csv
    checkpoints/step-00001000/  inline_gen/step-00001000.png  ema_snapshots/ (with EMA_POWER)
    DONE.json (once finished)   FAILED.json (after an error, until the next start)

It is the truth about the run; other records are mirrors. One living process holds it. A row of
metrics is written before the checkpoint of its step, and rows after the checkpoint that a run
continues from are dropped, so that each step is there exactly once whatever happened between.

A run that has no directory yet is claimed: several processes that search at once all find none, and
each would make its own. So the first directory is made under a lock of the run id, held from
another search until the directory's own lock is. That lock file stays: of a file that is removed
and made again, two could hold one each.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.errors import InputError, LockedError
from ddpm.runs import averages, checkpoint, layout, logs, pictures, provenance, storage
from ddpm.runs.checkpoint import Checkpoint
from ddpm.runs.layout import (
    CONFIG_FILE,
    DONE_FILE,
    LOCK_FILE,
    MEMORY_FILE,
    PROVENANCE_FILE,
    STOP_FILE,
)
from ddpm.runs.logs import MetricsLog, Row, best_step, without_nan
from ddpm.runs.machine import MemoryLog
from ddpm.runs.storage import Sign

_POLL_S = 0.05
_NAMING_S = 10.0  # the holder names its directory after a search; NFS may show it later


class State(Protocol):
    """The content of a checkpoint."""

    @property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]: ...

    @property
    def scalars(self) -> Mapping[str, Any]: ...


class RunState(Protocol):
    """A training at `step`, as the trainer reports it."""

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
        return found or cls(layout.new_path(config, run_id))

    @classmethod
    def find(cls, output_dir: Path, run_id: str) -> "RunDirectory | None":
        """The newest run of that id, an unfinished one first; None where there is none."""
        runs = [cls(path) for path in layout.existing(output_dir, run_id)]
        order = {run: (not run.is_finished, run._sequence, run.path.name) for run in runs}
        return max(runs, key=order.__getitem__, default=None)

    @property
    def run_id(self) -> str:
        """8 hexadecimal digits that name configuration and data."""
        known: str | None = self.provenance.get("run_id")
        return known or layout.id_of(self.path)

    @property
    def title(self) -> str:
        """The run as errors call it."""
        return f"run directory {self.path}"

    @property
    def is_held(self) -> bool:
        """True where a living process is seen to hold the directory."""
        return bool(storage.is_held(self.path / LOCK_FILE))

    def config(self) -> Config:
        """The configuration the run was started with; StorageError where it was edited since."""
        return self._started or layout.load_run(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts of the latest attempt, and under "attempts" of all; empty before the first."""
        return storage.read_json(self.path / PROVENANCE_FILE)

    @property
    def threads(self) -> int:
        """CPU threads of each worker, fixed at the first start because they decide bits."""
        return int(self.provenance["threads"])

    @property
    def is_finished(self) -> bool:
        """True once the training has taken its last step and been measured: `finish`."""
        return (self.path / DONE_FILE).exists()

    @property
    def summary(self) -> dict[str, Any]:
        """The summary given to `finish`; empty while the run is unfinished."""
        return storage.read_json(self.path / DONE_FILE).get("summary", {})

    def metrics(self) -> list[Row]:
        """The rows of metrics.jsonl."""
        return self._metrics.rows()

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation so far; None where EVALUATION.BEST asks for none."""
        options = self.config().EVALUATION
        return best_step(self.metrics(), options) if options.BEST else None

    @property
    def stop_requested(self) -> bool:
        """True once somebody has asked the run to save and stop."""
        return (self.path / STOP_FILE).exists()

    def request_stop(self) -> None:
        """Asks the run, wherever it is, to save and stop. Its next start forgets it."""
        if not self.stop_requested:
            storage.make_folder(self.path)
            storage.write_text(self.path / STOP_FILE, "")

    def start(
        self,
        config: Config,
        *,
        data_sha256: str | None,
        data_dir: Path | None,
        threads: int,
        command: Sequence[str],
        wait_s: float = 0.0,
        facts: Mapping[str, Any] | None = None,
    ) -> Checkpoint | None:
        """Takes the directory for this process; the checkpoint to continue from, None to begin.

        data_sha256, data_dir: None where they are not known, of weights trained elsewhere.
        facts: what else provenance.json shall say of this attempt, as JSON values.
        Makes it when missing, sets it right when a kill left it half written. Raises LockedError
        when a living process still holds it after `wait_s` seconds, InputError when it belongs to
        another configuration or other data, StorageError.
        """
        for folder in (self.path, self.checkpoints, self.inline_gen):
            storage.make_folder(folder)
        try:
            self._open.enter_context(storage.lock(self.path / LOCK_FILE, self.title, wait_s=wait_s))
            self.refuse_another(config, data_sha256)
            for folder in (self.path, self.checkpoints, self.inline_gen):
                storage.clean_temporaries(folder)
            storage.remove(self.path / STOP_FILE)
            storage.remove(self.path / logs.FAILED_FILE)
            self._open.enter_context(logs.logging_to(self.path))
            more = {"data_dir": str(data_dir)} if data_dir else {}
            more |= facts or {}
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
            self._memory = MemoryLog(self.path / MEMORY_FILE, len(self.provenance["attempts"]))
        self._memory.record(stage, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Marks the run as done; from now on the same command only prints `summary`."""
        self.record_memory("end", self._last_step)
        facts = {"run_id": self.run_id, "ended": provenance.now(), "summary": without_nan(summary)}
        storage.write_json(self.path / DONE_FILE, facts)
        self.log.info("finished at step %d", self._last_step)

    def close(self) -> None:
        """Lets go of the directory. Harmless when it is not held."""
        self._open.close()
        self._started = None

    def refuse_held(self, *, wait_s: float) -> None:
        """LockedError when another process still holds the directory after `wait_s` seconds."""
        storage.refuse_held(self.path / LOCK_FILE, self.title, wait_s=wait_s)

    def refuse_another(self, config: Config, data_sha256: str | None) -> None:
        """Raises InputError when the directory belongs to another configuration or other data."""
        if not (self.path / CONFIG_FILE).exists():
            return
        own = self.config()
        before, after = configuration.identifying(own), configuration.identifying(config)
        changed = {key for key in before | after if before.get(key) != after.get(key)}
        lines = [
            line
            for line in configuration.difference(own, config)
            if line.partition(":")[0] in changed
        ]
        known = self.provenance.get("data_sha256", data_sha256)
        if known and data_sha256 and known != data_sha256:
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
        data_sha256: str | None,
        threads: int,
        command: Sequence[str],
        more: Mapping[str, Any],
    ) -> None:
        """Writes training_config.yaml and provenance.json; warns of what changed meanwhile."""
        known = self.provenance
        facts = {**provenance.attempt(command), **more}
        if known:
            for line in provenance.changes(known, facts):
                self.log.warning("%s", line)
            if known["threads"] != threads:
                kept = known["threads"]
                self.log.warning("%d threads asked for; the run keeps its %d", threads, kept)
        run_id = layout.id_of(self.path)
        if data_sha256 is not None:
            run_id = configuration.run_id(config, data_sha256)
        fixed = {
            "run_id": run_id,
            "config_sha256": configuration.config_sha256(config),
            **({} if data_sha256 is None else {"data_sha256": data_sha256}),
            "threads": known.get("threads", threads),
            "sequence": known.get("sequence", self._next_sequence()),
        }
        before = provenance.ended(known.get("attempts", []), self.path / MEMORY_FILE)
        attempts = [*before, facts]
        storage.write_text(self.path / CONFIG_FILE, configuration.to_yaml(config))
        storage.write_json(self.path / PROVENANCE_FILE, {**fixed, **facts, "attempts": attempts})
        self.log.info("attempt %d: %s", len(attempts), facts["command"])

    def _next_sequence(self) -> int:
        """One more than any run of the same name has: which is newest is not left to clocks."""
        others = layout.existing(layout.output_dir(self.path), self.run_id)
        return 1 + max((RunDirectory(other)._sequence for other in others), default=0)

    def _rewind(self) -> Checkpoint | None:
        """The checkpoint to continue from, the metrics cut back to it."""
        found = checkpoint.latest(self.checkpoints)
        averages.forget_after(self.path, found.step if found else 0)
        dropped = self._metrics.rewind(found.step if found else 0)
        if dropped:
            self.log.info("dropped %d rows of metrics after the checkpoint", dropped)
        self.record_memory("start", found.step if found else 0)
        return found

    def _commit(self, step: int, state: State) -> None:
        facts = self.provenance
        same = ("config_sha256", "data_sha256", "torch", "threads")
        manifest = {key: facts[key] for key in same if key in facts}
        manifest["cpu"] = facts["cpu_capability"]
        config, total = self.config(), facts.get("total_steps", step)
        averages.keep_if_due(self.path, config, step, total, state.tensors, manifest)
        folder = checkpoint.folder_of(self.checkpoints, step)
        checkpoint.save(folder, tensors=state.tensors, state=state.scalars, manifest=manifest)
        pinned = {best} if (best := self.best_step) else ()
        checkpoint.prune(self.checkpoints, config.TRAINING.CHECKPOINTS_KEEP, pinned)


def _glance(metrics: Mapping[str, float]) -> str:
    """The first few numbers, short."""
    return "  ".join(f"{key} {value:.4g}" for key, value in list(metrics.items())[:5])


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
            root, run_id = layout.output_dir(run.path), layout.id_of(run.path)
            run = RunDirectory.find(root, run_id) or run
            sign(run_dir=str(run.path))
        yield RunClaim(run, held)


def _take(path: Path, wait_s: float, held: ExitStack) -> Sign:
    """The lock of the run id, taken; LockedError names the directory its holder has chosen."""
    file = layout.id_lock(path)
    what = f"run {layout.id_of(path)} in {layout.output_dir(path)}"
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
