"""One optimizer step: the worker's share through the network, one reduction, clip, AdamW, EMA.

The step waits for the device once, to learn the loss, whether anything is not finite and whether to
stop. TrainState is all that survives a training's end or death.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from ddpm.config import HyperParameters, Training
from ddpm.diffusion import (
    AdaptiveDensity,
    NoiseSchedule,
    ema,
    power_ema_beta,
    power_ema_gamma,
    power_ema_name,
)
from ddpm.distributed import Group, share
from ddpm.errors import InputError, NonFiniteError
from ddpm.runs import watts
from ddpm.training.loss import (
    LOGSNR_EDGES,
    NUM_BINS,
    NUM_SUMS,
    Loss,
    bin_names,
    draw,
    metrics_from,
    sample_losses,
    standard_loss,
)

if TYPE_CHECKING:
    from ddpm.data import Batch

EXACT_PARTS = 4  # parts of the global batch under NUMERICS exact, unless MICRO_BATCH is given
LEAST_LOSS_SCALE = 1.0  # fp16 gradients that overflow below it are not the scale's fault
WARMUP_STEPS = 2  # of a profile: the first steps allocate, tune and compile

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that must survive: a CPU copy, safe to keep.

    tensors: model, ema-DECAY..., power-LENGTH..., optimizer, each {name: tensor}.  window: the sums
    of the report under way, so that a run stopped between two reports loses none of them.
    sigma_data: of edm, with which images are drawn too.  density: what an adaptive one has seen.
    """

    step: int
    tensors: dict[str, Tensors]
    grad_scaler: dict[str, Any] | None = None
    window: dict[str, Any] = field(default_factory=dict)
    sigma_data: float | None = None
    density: dict[str, list[float]] | None = None

    @property
    def scalars(self) -> dict[str, Any]:
        """JSON values beside the tensors."""
        always = {"step": self.step, "grad_scaler": self.grad_scaler, "window": self.window}
        some = {"sigma_data": self.sigma_data, "density": self.density}
        return always | {name: value for name, value in some.items() if value is not None}

    @classmethod
    def restored(cls, tensors: dict[str, Tensors], scalars: dict[str, Any]) -> "TrainState":
        """The state whose `tensors` and `scalars` were saved."""
        return cls(tensors=tensors, **scalars)


@dataclass
class ReportSums:
    """Sums since the last report.

    started, started_cpu: of this process.  times: the time/... of the steps before it, where the
    training was stopped between two reports.
    """

    steps: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * NUM_SUMS)
    grad_norm: float = 0.0
    skipped: int = 0
    clipped: int = 0
    times: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    started_cpu: float = field(default_factory=time.process_time)

    def add(self, sums: list[float], grad_norm: float, skipped: bool, most: float) -> None:
        """most: the gradient norm above which a step is clipped."""
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.steps += 1
        self.skipped += skipped
        self.grad_norm += 0.0 if skipped else grad_norm
        self.clipped += not skipped and grad_norm > most

    def before(self, name: str) -> float:
        """A time of the steps before this process; NaN where it was not measured."""
        return self.times.get(name, math.nan if self.times else 0.0)

    def to_json(self) -> dict[str, Any]:
        """The window as a resume continues it; empty just after a report."""
        names = ("steps", "sums", "grad_norm", "skipped", "clipped", "times")
        return {name: getattr(self, name) for name in names} if self.steps else {}


class GradientBuffer:
    """Gradients of `parameters` in rows, each row followed by `num_sums` further numbers.

    One flat buffer, reduced over workers in one collective. Its layout depends on the parameters
    alone, never on when the process started, so a resumed run sums in the same order. `fast` has
    one row: micro-batches accumulate in it and workers' rows are summed by one all-reduce. `exact`
    has one row for each of a fixed number of parts of the global batch; adding other workers' zeros
    changes no bit, and the rows are then summed pairwise in a fixed tree: the result is the same
    bits for any number of workers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_sums: int, rows: int = 1) -> None:
        self.parameters = list(parameters)
        self.size = sum(p.numel() for p in self.parameters)
        device = self.parameters[0].device
        self.buffer = torch.zeros(rows, self.size + num_sums, device=device)
        self.views = [self._views(row) for row in self.buffer]

    def _views(self, row: Tensor) -> list[Tensor]:
        pieces = row[: self.size].split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def begin(self) -> None:
        """Everything zero: a new optimizer step."""
        self.buffer.zero_()

    def collect_into(self, row: int) -> None:
        """Let the next backward passes add to this row."""
        for parameter, view in zip(self.parameters, self.views[row], strict=True):
            parameter.grad = view

    def add_sums(self, row: int, sums: Tensor) -> None:
        """Add to the numbers that ride behind the gradients of a row."""
        self.buffer[row, self.size :] += sums

    def reduce(self, group: Group) -> tuple[Tensor, Tensor]:
        """(gradient (size,), sums): totals over all parts and workers.

        The parameters' .grad point into the first.
        """
        group.sum_(self.buffer)
        total = tree_sum(self.buffer)
        # a row of its own would still hold -0.0 where a sum over workers holds 0.0
        total = total.add_(0.0)
        for parameter, view in zip(self.parameters, self._views(total), strict=True):
            parameter.grad = view
        return total[: self.size], total[self.size :]


def tree_sum(rows: Tensor) -> Tensor:
    """The sum over rows (R, n) -> (n,), pairwise in an order that depends on R alone."""
    while rows.shape[0] > 1:
        half = (rows.shape[0] + 1) // 2
        folded = rows[:half].clone()
        folded[: rows.shape[0] - half] += rows[half:]
        rows = folded
    return rows[0]


def exact_part_size(training: Training) -> int:
    """Samples of one part of the global batch under NUMERICS exact."""
    return training.MICRO_BATCH or -(-training.HYPER_PARAMETERS.BATCH_SIZE // EXACT_PARTS)


def exact_parts(training: Training) -> int:
    """Parts of the global batch under NUMERICS exact: the most workers there can be."""
    return -(-training.HYPER_PARAMETERS.BATCH_SIZE // exact_part_size(training))


def learning_rate(hyper: HyperParameters, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0), with `total_steps` in all.

    constant: LEARNING_RATE.  cosine_decay: half a cosine from LEARNING_RATE to 0 at total_steps.
    warmup_cosine: linear over WARMUP_STEPS, then half a cosine. Clamped at the end: it never rises
    again.
    """
    peak = hyper.LEARNING_RATE
    if hyper.LR_TYPE == "constant":
        return peak
    warmup = (hyper.WARMUP_STEPS or 0) if hyper.LR_TYPE == "warmup_cosine" else 0
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) by PyTorch's fused kernel, its state by parameter name.
    Biases and gains (one dimension) are not decayed.

    parameters: those that are trained; the gradients of all are there at each step.

    torch.optim.AdamW is the same to the bit, but loads the compiler: 3 s at each start.
    tensors: {"exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME": tensor}, empty before the first step.
    param_groups: all parameters, as GradScaler reads them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float) -> None:
        self.tensors: Tensors = {}
        self._parameters = dict(parameters)
        self.param_groups = [{"params": list(self._parameters.values())}]
        vectors = [name for name, p in self._parameters.items() if p.ndim <= 1]
        matrices = [name for name in self._parameters if name not in vectors]
        self._groups = [(weight_decay, matrices), (0.0, vectors)]
        self.lr = 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient, at the learning rate `lr`."""
        for name, parameter in self._parameters.items():
            if f"step.{name}" not in self.tensors:
                self.tensors |= {
                    f"exp_avg.{name}": torch.zeros_like(parameter),
                    f"exp_avg_sq.{name}": torch.zeros_like(parameter),
                    f"step.{name}": torch.zeros((), device=parameter.device),
                }
        for weight_decay, names in self._groups:
            parameters = [self._parameters[name] for name in names]
            moments, squares, steps = (
                [self.tensors[f"{key}.{name}"] for name in names]
                for key in ("exp_avg", "exp_avg_sq", "step")
            )
            gradients = [p.grad for p in parameters if p.grad is not None]
            assert len(gradients) == len(parameters)  # GradientBuffer gives every one its row
            adamw(
                list[Tensor](parameters), gradients, moments, squares, [], steps, fused=True,
                amsgrad=False, beta1=0.9, beta2=0.999, eps=1e-8, lr=self.lr,
                weight_decay=weight_decay, maximize=False,
            )  # fmt: skip

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the `tensors` of another, which are copied."""
        self.tensors = {
            key: tensor.to(self._parameters[key.partition(".")[2]].device, copy=True)
            for key, tensor in tensors.items()
        }


class Stepper:
    """The moving parts of one training: optimizer steps, and what they report and leave behind.

    state: None starts from the network's weights. total: optimizer steps of the whole training.
    """

    def __init__(
        self,
        training: Training,
        network: nn.Module,
        schedule: NoiseSchedule,
        loss: Loss | None,
        state: TrainState | None,
        group: Group,
        total: int,
    ) -> None:
        self.training, self.schedule, self.group = training, schedule, group
        self.network = network.to(group.device).train()
        self.forward = torch.compile(network) if training.COMPILE else network
        self.loss = loss or standard_loss(training, schedule.sigma_data)
        self.batch_size = training.HYPER_PARAMETERS.BATCH_SIZE
        self.total = total
        self.parameters = dict(network.named_parameters())
        trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        if not trained:
            raise InputError("no parameter of the network requires a gradient: nothing to train")
        self.optimizer = AdamW(trained, training.WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=training.PRECISION == "fp16")
        self.parts = self._parts()
        self.density: AdaptiveDensity | None = None
        if training.LOGSNR_DENSITY == "adaptive":
            seen = state.density if state else None
            self.density = AdaptiveDensity(schedule, LOGSNR_EDGES, seen)
        rows = len(self.parts) if training.NUMERICS == "exact" else 1
        num_sums = NUM_SUMS + (NUM_BINS if self.density else 0) + 1
        self.buffer = GradientBuffer(list(trained.values()), num_sums, rows)
        self._restore(state)

    def _parts(self) -> list[range]:
        """The parts of the global batch that go through the network at once.

        `exact` fixes them for any group size.
        """
        micro = self.training.MICRO_BATCH
        if self.training.NUMERICS == "exact":
            size = exact_part_size(self.training)
            own = range(self.batch_size)
        else:
            own = share(self.batch_size, self.group.rank, self.group.size)
            size = micro or len(own)
        return [
            range(first, min(first + size, own.stop)) for first in range(own.start, own.stop, size)
        ]

    def _own_parts(self) -> range:
        """The indices of self.parts that this worker computes."""
        if self.training.NUMERICS == "exact":
            return share(len(self.parts), self.group.rank, self.group.size)
        return range(len(self.parts))

    def _restore(self, state: TrainState | None) -> None:
        self.step = state.step if state else 0
        self.window = ReportSums(**(state.window if state else {}))
        self.emas = {
            f"ema-{decay:g}": ema.init(self.parameters) for decay in self.training.EMA_DECAYS
        }
        self.gammas = {
            power_ema_name(length): power_ema_gamma(length) for length in self.training.EMA_POWER
        }
        self.powers = {name: ema.init(self.parameters) for name in self.gammas}
        if state is None:
            return
        self.network.load_state_dict(state.tensors["model"])
        for averages in (self.emas, self.powers):
            for name in averages:
                kept = state.tensors[name].items()
                averages[name] = {k: v.to(self.group.device, copy=True) for k, v in kept}
        self.optimizer.load(state.tensors["optimizer"])
        if state.grad_scaler:
            self.scaler.load_state_dict(state.grad_scaler)

    def share_of(self, step: int) -> Tensor:
        """Positions in the endless order that this worker reads for optimizer step `step`."""
        own = self._own_parts()
        first, last = self.parts[own[0]].start, self.parts[own[-1]].stop
        return torch.arange(first, last) + step * self.batch_size

    def train_step(self, batch: "Batch", stop: bool) -> bool:
        """One optimizer step on this worker's share; whether rank 0 asks to stop after it."""
        batch = batch.to(self.group.device)
        self.buffer.begin()
        own = self._own_parts()
        offset = self.parts[own[0]].start
        seen: list[Tensor] = []
        for index in own:
            part = self.parts[index]
            piece = batch.part(part.start - offset, part.stop - offset)
            seen.append(self._backward(piece, index if len(self.buffer.views) > 1 else 0))
        if self.group.is_main and stop:
            self.buffer.buffer[0, -1] = 1.0
        gradient, sums = self.buffer.reduce(self.group)
        skipped, norm, numbers = self._apply(gradient, sums, seen)
        clip = self.training.CLIP_NORM
        most = float("inf") if clip is None else clip
        self.window.add(numbers[:NUM_SUMS], norm, skipped, most)
        if self.density:
            self.density.update(numbers[NUM_SUMS:-1], numbers[NUM_SUMS - NUM_BINS : NUM_SUMS])
        self.step += 1
        return numbers[-1] > 0

    def _backward(self, piece: "Batch", row: int) -> Tensor:
        """Gradients and sums of one part, added to its row.

        Returns int64 (n, 3): timestep, sample id and whether the loss is finite.
        """
        draws = draw(self.training, self.network, self.schedule, piece, self.step, self.density)
        losses = sample_losses(
            self.training, self.forward, self.schedule, piece, draws, self.loss, self._autocast()
        )
        self.buffer.collect_into(row)
        self.scaler.scale(losses.total / self.batch_size).backward()
        squares = [losses.squares()] if self.density else []
        self.buffer.add_sums(row, torch.cat([losses.sums(), *squares, losses.loss.new_zeros(1)]))
        return torch.stack([draws.t, piece.ids, torch.isfinite(losses.loss).long()], dim=1)

    def _autocast(self) -> AbstractContextManager[object]:
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.training.PRECISION not in dtypes:
            return nullcontext()
        return torch.autocast(self.group.device.type, dtype=dtypes[self.training.PRECISION])

    def _apply(
        self, gradient: Tensor, sums: Tensor, seen: list[Tensor]
    ) -> tuple[bool, float, list[float]]:
        """(skipped, gradient norm, sums): clip by the global norm, AdamW, EMA.

        fp16 may skip an overflown step.
        """
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        # the one place where the step waits for the device
        norm, *numbers = torch.cat([gradient.norm()[None], sums]).tolist()
        if numbers[1] > 0 or not (np.isfinite(norm) or self.scaler.is_enabled()):
            raise self._non_finite(norm, seen)
        skipped = not np.isfinite(norm)
        if skipped and self.scaler.get_scale() < LEAST_LOSS_SCALE:
            raise self._non_finite(norm, seen)
        clip = self.training.CLIP_NORM
        if clip is not None and not skipped and norm > clip:
            gradient *= clip / norm
        hyper = self.training.HYPER_PARAMETERS
        self.optimizer.lr = learning_rate(hyper, self.step, self.total)
        self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        if not skipped:
            for decay, tensors in zip(self.training.EMA_DECAYS, self.emas.values(), strict=True):
                ema.update(tensors, self.parameters, decay, self.step)
        # Averages over steps: at one that was skipped the weights stood still, and count again.
        for name, gamma in self.gammas.items():
            ema.move(self.powers[name], self.parameters, power_ema_beta(gamma, self.step))
        return skipped, norm, numbers

    def _non_finite(self, norm: float, seen: list[Tensor]) -> NonFiniteError:
        """The error naming step, timesteps and sample ids of losses not finite on any worker."""
        found = torch.full((16, 2), -1, dtype=torch.int64, device=self.group.device)
        samples = torch.cat(seen)
        rows = samples[samples[:, 2] == 0][:16, :2]
        found[: len(rows)] = rows
        pairs = [pair for pair in self.group.gather(found).flatten(0, 1).tolist() if pair[0] >= 0]
        what = f"gradient norm {norm}"
        if pairs:
            what = "loss at " + ", ".join(f"timestep {t} of sample {i}" for t, i in pairs[:16])
        return NonFiniteError(
            f"step {self.step}: non-finite {what}; the step was not applied and the last "
            "checkpoint is intact; lower LEARNING_RATE, or look at the samples named"
        )

    def metrics(self) -> dict[str, float]:
        """Means over the window, learning rate, and timings (keys time/...)."""
        window = self.window
        result = metrics_from(window.sums, window.steps * self.batch_size)
        applied = max(1, window.steps - window.skipped)
        hyper = self.training.HYPER_PARAMETERS
        result["grad_norm"] = window.grad_norm / applied
        if self.training.CLIP_NORM is not None:
            result["clipped_share"] = window.clipped / applied
        result["learning_rate"] = learning_rate(hyper, self.step - 1, self.total)
        if self.density:
            shares = zip(bin_names(), self.density.shares.tolist(), strict=True)
            result |= {name.replace("loss/", "share/"): share for name, share in shares if share}
        if self.scaler.is_enabled():
            result["loss_scale"] = self.scaler.get_scale()
            result["skipped_steps"] = float(window.skipped)
        seconds = time.perf_counter() - window.started
        cores = torch.tensor(time.process_time() - window.started_cpu, dtype=torch.float64)
        times = {
            "time/seconds": seconds,
            "time/core_seconds": self.group.sum_(cores.to(self.group.device)).item(),
        }
        if self.group.device.type == "cuda":
            times["time/gpu_seconds"] = seconds * self.group.size
            joules = torch.tensor(watts(self.group.device) * seconds, dtype=torch.float64)
            times["time/energy_joules"] = self.group.sum_(joules.to(self.group.device)).item()
        result |= {name: value + window.before(name) for name, value in times.items()}
        result["time/images_per_s"] = window.steps * self.batch_size / result["time/seconds"]
        return result

    def ema_network(self) -> nn.Module:
        """A copy of the network in eval mode with the first EMA's weights."""
        return with_weights(self.network, next(iter(self.emas.values()), None))

    def state(self) -> TrainState:
        """The state after self.step steps, copied to the CPU; every tensor finite."""
        tensors = {
            "model": dict(self.network.state_dict()),
            **self.emas,
            **self.powers,
            "optimizer": self.optimizer.tensors,
        }
        for part in ("model", *self.emas, *self.powers):
            for name, tensor in tensors[part].items():
                if not torch.isfinite(tensor).all():
                    raise NonFiniteError(
                        f"step {self.step}: {part}.{name} is not finite; nothing was saved"
                    )
        return TrainState(
            step=self.step,
            tensors={part: _on_cpu(group) for part, group in tensors.items()},
            grad_scaler=self.scaler.state_dict() or None,
            window=self.window.to_json(),
            sigma_data=self.schedule.sigma_data,
            density=self.density.state() if self.density else None,
        )


def _on_cpu(tensors: Tensors) -> Tensors:
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }


def with_weights(network: nn.Module, weights: Tensors | None) -> nn.Module:
    """A copy of the network in eval mode, its parameters replaced by `weights` where given."""
    network = copy.deepcopy(network).eval()
    if weights is not None:
        network.load_state_dict(weights, strict=False)
    return network


@contextmanager
def kernels(numerics: str) -> Iterator[None]:
    """The kernels of TRAINING.NUMERICS; as before afterwards.

    Under "exact" deterministic ones alone, in full float32: on a GPU some fast kernels add in the
    order in which threads arrive, and cuDNN rounds the inputs of float32 convolutions to TF32. An
    operation that has no deterministic kernel raises RuntimeError. On a CPU nothing changes: all
    kernels in use are deterministic there.
    """
    if numerics != "exact":
        yield
        return
    # asked for by torch: cuBLAS reads it when a process calls it first
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.allow_tf32
    torch.use_deterministic_algorithms(True)
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.allow_tf32 = before[1]


@contextmanager
def profiler(path: Path, steps: int) -> Iterator[Callable[[], None] | None]:
    """The function to call after each step, which traces `steps` steps into `path`; None for 0.

    The trace is for Perfetto or Chrome. Counting starts where this process does, after
    WARMUP_STEPS.
    """
    if steps == 0:
        yield None
        return
    cpu, cuda = ProfilerActivity.CPU, ProfilerActivity.CUDA
    with profile(
        activities=[kind for kind in (cpu, cuda) if kind in supported_activities()],
        schedule=schedule(wait=0, warmup=WARMUP_STEPS, active=steps, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
    ) as running:
        yield running.step
