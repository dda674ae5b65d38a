"""Training as a generator of finished reports.

    for report in train(config.TRAINING, network, schedule, data):
        ...            # commit report.state, append report.metrics, show report.samples

Everything random is a function of (seed, position in the endless sample order), so the whole state
is TrainState: a run continued from any report is the uninterrupted run, bit for bit, on the same
number of workers and threads.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

from ddpm.config import Training
from ddpm.diffusion import NoiseSchedule
from ddpm.distributed import Group
from ddpm.runs import Patience
from ddpm.training.loss import Loss
from ddpm.training.step import ReportSums, Stepper, TrainState

if TYPE_CHECKING:
    from ddpm.data import Dataset

LONGEST_WINDOW = 100  # optimizer steps between reports at most


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Progress up to `step`: means since the last report; rank 0 alone has samples and state."""

    step: int
    images: int
    metrics: dict[str, float]
    samples: np.ndarray | None = field(default=None, repr=False)  # uint8 (N, H, W, C)
    state: TrainState | None = field(default=None, repr=False)
    stopped: bool = False  # the run was asked to stop: this is the last report


class Tracker(Protocol):
    """A second place where a run is shown; it may lag or vanish."""

    def log(self, report: StepReport) -> None:
        """Show one report."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The last word on a run that ended well; closes."""

    def close(self) -> None:
        """Let go of everything; harmless when already closed."""


@dataclass(frozen=True, kw_only=True)
class Every:
    """Something done with the EMA network every `steps` optimizer steps, and at the end."""

    steps: int
    call: Callable[[nn.Module], Any]


def steps_per_epoch(training: Training, num_train: int) -> int:
    """STEPS_PER_EPOCH, or as many steps as see every training image once."""
    hyper = training.HYPER_PARAMETERS
    return hyper.STEPS_PER_EPOCH or -(-num_train // hyper.BATCH_SIZE)


def total_steps(training: Training, num_train: int) -> int:
    """Optimizer steps of the whole training."""
    return training.HYPER_PARAMETERS.EPOCHS * steps_per_epoch(training, num_train)


def train(
    training: Training,
    network: nn.Module,
    schedule: NoiseSchedule,
    data: "Dataset",
    *,
    loss: Loss | None = None,
    state: TrainState | None = None,
    group: Group | None = None,
    sampler: Every | None = None,
    evaluator: Every | None = None,
    judge: Callable[[dict[str, float]], Patience] | None = None,
    should_stop: Callable[[], bool] | None = None,
    pause_at: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> Iterator[StepReport]:
    """Trains from `state` (None: the network's weights) to the end; a StepReport at each boundary.

    Boundaries depend on the step alone: every epoch, and every LONGEST_WINDOW steps within one.
    Reports carry a state every SAVE_PERIOD epochs, at the end, and when the run is stopped: because
    `should_stop()` says so (asked each step, rank 0's answer counts), or after step `pause_at`.
    on_step is called after every optimizer step.
    The evaluator is called on all workers, which share its work, the sampler on rank 0. judge says
    what the numbers of an evaluation mean (rank 0's answer counts). Raises NonFiniteError before a
    step with a non-finite loss or gradient is applied.
    """
    end = total_steps(training, data.num_train)
    last = end if pause_at is None else pause_at
    run = Stepper(training, network, schedule, loss, state, group or Group(), end)
    epoch = steps_per_epoch(training, data.num_train)
    save = (training.HYPER_PARAMETERS.SAVE_PERIOD or training.HYPER_PARAMETERS.EPOCHS) * epoch
    for batch in data.batches(run.share_of(step) for step in range(run.step, end)):
        # rank 0's answer counts: thousands of workers need not look for the same file
        wanted = bool(run.group.is_main and should_stop and should_stop())
        stopping = run.train_step(batch, wanted) or run.step >= last
        if on_step:
            on_step()
        at_end, boundary = run.step == end, run.step % epoch % LONGEST_WINDOW == 0
        if not (boundary or at_end or stopping):
            continue
        full = boundary or at_end
        metrics = run.metrics()  # before the grid and the evaluation, which are no training
        extra: dict[str, float] = {}
        verdict, samples = Patience.NOTHING, None
        if full and evaluator and (run.step % evaluator.steps == 0 or at_end):
            extra = evaluator.call(run.ema_network())
            row = {"step": run.step, **extra}
            verdict = judge(row) if judge and run.group.is_main else verdict
            verdict = Patience(run.group.agree(verdict))
            at_end = at_end or Patience.ENOUGH in verdict
        if full and sampler and run.group.is_main and (run.step % sampler.steps == 0 or at_end):
            samples = sampler.call(run.ema_network())
        if full:
            run.window = ReportSums()
        else:  # stopped between two reports: the next one is of these steps too
            run.window.times = {
                name: value
                for name, value in metrics.items()
                if name.startswith("time/") and math.isfinite(value)
            }
        due = at_end or stopping or run.step % save == 0 or Patience.KEEP in verdict
        yield StepReport(
            step=run.step,
            images=run.step * run.batch_size,
            metrics=metrics | extra if full else {},
            samples=samples,
            state=run.state() if due and run.group.is_main else None,
            stopped=stopping and not at_end,
        )
        if stopping or at_end:
            return
        run.window.started, run.window.started_cpu = time.perf_counter(), time.process_time()
