"""The run directory: everything a training leaves behind, and all it needs to go on.

    training_config.yaml  provenance.json  train.log  metrics.jsonl  log.csv  memory.csv
    checkpoints/step-00001000/  inline_gen/step-00001000.png  ema_snapshots/ (with EMA_POWER)
    DONE.json (once finished)   FAILED.json (after an error, until the next start)

It is the truth about the run; other records are mirrors. One living process holds it. A row of
metrics is written before the checkpoint of its step, and rows after the checkpoint that a run
continues from are dropped, so that each step is there exactly once whatever happened between.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm import checkpoint, durable, lock, pictures, provenance, run_log, run_names, stage_notes
from ddpm import config as configuration
from ddpm.best import Best, best_of
from ddpm.checkpoint import Checkpoint
from ddpm.config import Config
from ddpm.ema_snapshots import forget_after, keep_if_due
from ddpm.errors import InputError
from ddpm.memory import MemoryLog
from ddpm.metrics_log import MetricsLog, Row, without_nan
from ddpm.run_config import load_run
from ddpm.run_names import CONFIG, DONE, LOCK, MEMORY, PROVENANCE, STOP


class State(Protocol):
    """What a checkpoint holds."""

    @property
    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]: ...

    @property
    def scalars(self) -> Mapping[str, Any]: ...


class Report(Protocol):
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
        return found or cls(run_names.new_path(config, run_id))

    @classmethod
    def find(cls, output_dir: Path, run_id: str) -> "RunDirectory | None":
        """The newest run of that id, an unfinished one first; None where there is none."""
        runs = [cls(path) for path in run_names.existing(output_dir, run_id)]
        order = {run: (not run.is_finished, run._sequence, run.path.name) for run in runs}
        return max(runs, key=order.__getitem__, default=None)

    @property
    def run_id(self) -> str:
        """8 hexadecimal digits that name configuration and data."""
        known: str | None = self.provenance.get("run_id")
        return known or run_names.id_of(self.path)

    @property
    def title(self) -> str:
        """The run as errors call it."""
        return f"run directory {self.path}"

    @property
    def is_held(self) -> bool:
        """Whether a living process is seen to hold the directory."""
        return bool(lock.is_held(self.path / LOCK))

    def config(self) -> Config:
        """The configuration the run was started with; StorageError where it was edited since."""
        return self._started or load_run(self.path)

    @property
    def provenance(self) -> dict[str, Any]:
        """The facts of the latest attempt, and under "attempts" of all; empty before the first."""
        return durable.read_json(self.path / PROVENANCE)

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
        return durable.read_json(self.path / DONE).get("summary", {})

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
            durable.make_folder(self.path)
            durable.write_text(self.path / STOP, "")

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
            durable.make_folder(folder)
        try:
            self._open.enter_context(durable.lock(self.path / LOCK, self.title, wait_s=wait_s))
            self.refuse_another(config, data_sha256)
            for folder in (self.path, self.checkpoints, self.inline_gen):
                durable.clean_temporaries(folder)
            durable.remove(self.path / STOP)
            durable.remove(self.path / run_log.FAILED)
            stage_notes.forget(self.path)
            self._open.enter_context(run_log.logging_to(self.path))
            more = {"data_dir": str(data_dir), **(facts or {})}
            self._record_attempt(config, data_sha256, threads, command, more)
            self._started = config
            return self._rewind()
        except BaseException:
            self.close()
            raise

    def record(self, report: Report) -> None:
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
            durable.write_bytes(self.inline_gen / f"step-{report.step:08d}.png", picture)
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
        facts = {"run_id": self.run_id, "ended": provenance.now(), "summary": without_nan(summary)}
        durable.write_json(self.path / DONE, facts)
        self.log.info("finished at step %d", self._last_step)

    def close(self) -> None:
        """Lets go of the directory. Harmless when it is not held."""
        self._open.close()
        self._started = None

    def refuse_held(self, *, wait_s: float) -> None:
        """LockedError when another process still holds the directory after `wait_s` seconds."""
        lock.refuse_held(self.path / LOCK, self.title, wait_s=wait_s)

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
        facts = {**provenance.attempt(command), **more}
        if known:
            for line in provenance.changes(known, facts):
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
        before = provenance.ended(known.get("attempts", []), self.path / MEMORY)
        attempts = [*before, facts]
        durable.write_text(self.path / CONFIG, configuration.to_yaml(config))
        durable.write_json(self.path / PROVENANCE, {**fixed, **facts, "attempts": attempts})
        self.log.info("attempt %d: %s", len(attempts), facts["command"])

    def _next_sequence(self) -> int:
        """One more than any run of the same name has: which is newest is not left to clocks."""
        others = run_names.existing(run_names.output_dir(self.path), self.run_id)
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
