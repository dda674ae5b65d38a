"""The one worker function: a training from its plain description to its finished run directory.

With one worker the caller's own process runs it; with several, Ray Train does. Nothing else
differs. Rank 0 alone writes: the run directory first, then the tracker (Weights & Biases) and
whoever listens.
"""

import dataclasses
import math
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.data import Dataset, open_data, staging
from ddpm.diffusion import NoiseSchedule
from ddpm.distributed import Group
from ddpm.errors import Interrupted
from ddpm.metrics import (
    LogSnrWindow,
    data_window,
    evaluate_run,
    measure_samples,
    sample_metrics,
    sigma_data_of,
    validation_metrics,
)
from ddpm.runs import (
    Patience,
    RunDirectory,
    TrainingClock,
    checkpoint,
    failure_recorded,
    gpu_share,
    judge_evaluations,
    peak_bytes,
    reset_peak,
    training_cost,
)
from ddpm.sampling import build_network, grids
from ddpm.training.step import TrainState, kernels, profiler
from ddpm.training.trainer import (
    Every,
    StepReport,
    Tracker,
    steps_per_epoch,
    total_steps,
    train,
)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training as plain data, fit to travel between processes.

    data_dir: the folder of packed shards.  threads: CPU threads of each worker.  wait_s: how long
    to wait for the lock of the run directory.  packed: whether other trainings share the machine
    meanwhile, so that speed is not the machine's.  pause_at: the optimizer step after which it
    saves and stops, to be continued.
    """

    config: dict[str, Any]
    run_dir: str
    data_dir: str
    threads: int
    command: tuple[str, ...]
    wait_s: float = 0.0
    packed: bool = False
    pause_at: int | None = None


def work(
    job: TrainingJob,
    group: Group,
    *,
    tracker: Callable[[Config, RunDirectory], Tracker | None] | None = None,
    on_report: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_held: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train, evaluate and finish the run; returns its summary (on rank 0; empty on the others).

    Continues from the last checkpoint in the run directory. Raises Interrupted, after saving, when
    `should_stop()` says so or when the run directory's stop file appears.
    on_held: called once this process holds the run directory.
    """
    began = TrainingClock()
    config = configuration.from_dict(job.config, source=job.run_dir)
    data = open_data(config, Path(job.data_dir))
    sigma_data = sigma_data_of(config.TRAINING, data, group)
    run = RunDirectory(Path(job.run_dir))
    reset_peak()
    state = _start(run, config, data, job, group)
    sigma_data = state.sigma_data if state else sigma_data
    if state and group.is_main:
        rows = [*run.metrics(), state.window.get("times", {})]
        began.went_on_after(training_cost(rows, gpu_share(config)))
    torch.set_num_threads(run.threads)
    if on_held and group.is_main:
        on_held()

    def stops() -> bool:
        return run.stop_requested or bool(should_stop and should_stop())

    try:
        # with several workers their driver knows which of their errors came first
        recorded = failure_recorded(run.path) if group.size == 1 else nullcontext()
        with recorded, kernels(config.TRAINING.NUMERICS):
            staging.stage(data, config.DATASET.STAGE, group, should_stop=stops)
            window = data_window(data, group)
            tracked = tracker(config, run) if tracker and group.is_main else None
            with closing(tracked) if tracked else nullcontext():
                listeners = [run.record, tracked.log if tracked else None, on_report]
                heard = [each for each in listeners if each and group.is_main]
                worker = _Worker(
                    job=job, config=config, data=data, window=window, run=run, group=group
                )
                worker.train(state, sigma_data, heard, stops)
                peak = peak_bytes()  # measuring is no training
                measure_samples(run.path, config, data, window, group, should_stop=stops)
                began.gather(group)
                if not group.is_main:
                    return {}
                summary = worker.finish(peak, began)
                if tracked:
                    tracked.finish(summary)
            return summary
    finally:
        run.close()


def _start(
    run: RunDirectory, config: Config, data: Dataset, job: TrainingJob, group: Group
) -> TrainState | None:
    """The state all workers continue from: rank 0 opens the run directory and chooses it."""
    found = None
    if group.is_main:
        found = run.start(
            config,
            data_sha256=data.sha256,
            data_dir=Path(job.data_dir),
            threads=job.threads,
            command=job.command,
            wait_s=job.wait_s,
            facts={
                "total_steps": total_steps(config.TRAINING, data.num_train),
                **({"ranges": data.index.ranges} if data.index and data.index.ranges else {}),
                "workers": group.size,
                "cpus_per_worker": job.threads,
                "gpus_per_worker": gpu_share(config) if group.device.type == "cuda" else 0,
            },
        )
    step = group.agree(found.step if found else -1)
    if step >= 0 and not group.is_main:
        found = checkpoint.load(checkpoint.folder_of(run.checkpoints, step))
    return TrainState.restored(found.tensors, found.state) if found else None


@dataclass(frozen=True, kw_only=True)
class _Worker:
    """One process of a training that has its run directory."""

    job: TrainingJob
    config: Config
    data: Dataset
    window: LogSnrWindow
    run: RunDirectory
    group: Group

    def train(
        self,
        state: TrainState | None,
        sigma_data: float | None,
        listeners: list[Callable[[StepReport], None]],
        should_stop: Callable[[], bool],
    ) -> None:
        """Every report to the listeners; Interrupted when stopped."""
        training, options, run = self.config.TRAINING, self.config.EVALUATION, self.run

        def verdict(row: dict[str, float]) -> Patience:
            return judge_evaluations([*run.metrics(), row], options)

        is_enough = self.group.is_main and options.PATIENCE is not None
        if self.group.any(
            is_enough and Patience.ENOUGH in judge_evaluations(run.metrics(), options)
        ):
            return  # and was killed before it could say that it is done
        network, schedule = build_network(self.config)
        schedule = dataclasses.replace(schedule, sigma_data=sigma_data)
        epoch = steps_per_epoch(training, self.data.num_train)
        sampler = None
        if training.INLINE_GEN.ENABLE:
            sampler = Every(
                steps=training.INLINE_GEN.PERIOD * epoch,
                call=lambda network: grids.sample_grid(network, schedule, self.config),
            )
        last: StepReport | None = None
        traced = training.PROFILE if self.group.is_main else 0
        with profiler(run.path / "profile.json", traced) as on_step:
            for report in train(
                training,
                network,
                schedule,
                self.data,
                state=state,
                group=self.group,
                sampler=sampler,
                evaluator=self._evaluator(schedule, epoch),
                judge=None if options.BEST is None else verdict,
                should_stop=should_stop,
                pause_at=self.job.pause_at,
                on_step=on_step,
            ):
                last = report
                for listener in listeners:
                    listener(report)
        if last and last.stopped:
            # whoever started the workers may kill them all when the first ends: none before it is
            # saved
            self.group.wait()
            raise Interrupted(
                f"stopped at step {last.step}, saved in {run.path}; "
                "run the same command again to continue"
            )

    def _evaluator(self, schedule: NoiseSchedule, epoch: int) -> Every | None:
        options = self.config.EVALUATION
        if options.EVERY is None:
            return None
        of_samples = None
        if options.FEATURES is not None:
            of_samples = sample_metrics(self.config, schedule, self.data, self.group)

        def measure(network: nn.Module) -> dict[str, float]:
            numbers = validation_metrics(
                network, schedule, self.config, self.data, self.window, self.group
            )
            return numbers | (of_samples(network) if of_samples else {})

        return Every(steps=options.EVERY * epoch, call=measure)

    def finish(self, peak_memory: int, began: TrainingClock) -> dict[str, Any]:
        """Evaluation and samples of the final EMA network, written into the run; its summary."""
        run = self.run
        last = max(checkpoint.steps(run.checkpoints))
        run.record_memory("evaluation", last)
        numbers = evaluate_run(run.path, self.data, self.window)
        run.record_memory("sampling", last)
        grids.save_samples(run.path, self.config)
        rows, best = run.metrics(), run.best_step
        costs = training_cost(rows, gpu_share(self.config))
        summary = {
            "steps": rows[-1]["step"],
            "images": rows[-1]["images"],
            "final_loss": rows[-1]["loss"],
            **costs,
            "images_per_s": rows[-1]["images"] / (costs["seconds"] or math.inf),
            "peak_memory_bytes": peak_memory,
            "packed": self.job.packed,
            **({} if best is None else {"best_step": best}),
            **numbers,
            **began.took(),
        }
        run.finish(summary)
        return summary
