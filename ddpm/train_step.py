"""One optimizer step: this worker's share through the network, one reduction, clip, AdamW, EMA.

The step waits for the device once, to learn the loss, whether anything is not finite and whether to
stop.
"""

import copy
import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from ddpm import ema
from ddpm.config import Training
from ddpm.cost import watts
from ddpm.dataset import Batch
from ddpm.distributed import Group, share
from ddpm.ema_profile import beta_at, gamma_of, name_of
from ddpm.errors import NonFiniteError
from ddpm.gradients import GradientBuffer
from ddpm.objective import (
    NUM_SUMS,
    Loss,
    draw,
    metrics_from,
    sample_losses,
    standard_loss,
)
from ddpm.optimizer import (
    learning_rate,
    load_state_by_name,
    make_optimizer,
    set_learning_rate,
    state_by_name,
)
from ddpm.schedule import NoiseSchedule
from ddpm.train_state import Tensors, TrainState, Window

EXACT_PARTS = 4  # parts of the global batch under NUMERICS exact, unless MICRO_BATCH is given
LEAST_LOSS_SCALE = 1.0  # fp16 gradients that overflow below it are not the scale's fault


def exact_part_size(training: Training) -> int:
    """Samples of one part of the global batch under NUMERICS exact."""
    return training.MICRO_BATCH or -(-training.HYPER_PARAMETERS.BATCH_SIZE // EXACT_PARTS)


def exact_parts(training: Training) -> int:
    """Parts of the global batch under NUMERICS exact: the most workers there can be."""
    return -(-training.HYPER_PARAMETERS.BATCH_SIZE // exact_part_size(training))


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
        self.loss = loss or standard_loss(training)
        self.batch_size = training.HYPER_PARAMETERS.BATCH_SIZE
        self.total = total
        self.parameters = dict(network.named_parameters())
        self.optimizer = make_optimizer(network, training.WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=training.PRECISION == "fp16")
        self.parts = self._parts()
        rows = len(self.parts) if training.NUMERICS == "exact" else 1
        self.buffer = GradientBuffer(list(self.parameters.values()), NUM_SUMS + 1, rows)
        self._restore(state)

    def _parts(self) -> list[range]:
        """The parts of the global batch that go through the network at once; `exact` fixes them for
        any group size.
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
        self.window = Window(**(state.window if state else {}))
        self.emas = {
            f"ema-{decay:g}": ema.init(self.parameters) for decay in self.training.EMA_DECAYS
        }
        self.gammas = {name_of(length): gamma_of(length) for length in self.training.EMA_POWER}
        self.powers = {name: ema.init(self.parameters) for name in self.gammas}
        if state is None:
            return
        self.network.load_state_dict(state.tensors["model"])
        self.emas, self.powers = (
            {
                name: {
                    k: v.to(self.group.device, copy=True) for k, v in state.tensors[name].items()
                }
                for name in averages
            }
            for averages in (self.emas, self.powers)
        )
        load_state_by_name(self.optimizer, self.network, state.tensors["optimizer"])
        if state.grad_scaler:
            self.scaler.load_state_dict(state.grad_scaler)

    def share_of(self, step: int) -> Tensor:
        """Positions in the endless order that this worker reads for optimizer step `step`."""
        own = self._own_parts()
        first, last = self.parts[own[0]].start, self.parts[own[-1]].stop
        return torch.arange(first, last) + step * self.batch_size

    def train_step(self, batch: Batch, stop: bool) -> bool:
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
        self.window.add(numbers[:-1], norm, skipped)
        self.step += 1
        return numbers[-1] > 0

    def _backward(self, piece: Batch, row: int) -> Tensor:
        """Gradients and sums of one part, added to its row. Returns int64 (n, 3): timestep, sample
        id and whether the loss is finite.
        """
        draws = draw(self.training, self.network, self.schedule, piece, self.step)
        losses = sample_losses(
            self.training, self.forward, self.schedule, piece, draws, self.loss, self._autocast()
        )
        self.buffer.collect_into(row)
        self.scaler.scale(losses.loss.sum() / self.batch_size).backward()
        self.buffer.add_sums(row, torch.cat([losses.sums(), losses.loss.new_zeros(1)]))
        return torch.stack([draws.t, piece.ids, torch.isfinite(losses.loss).long()], dim=1)

    def _autocast(self) -> AbstractContextManager[object]:
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.training.PRECISION not in dtypes:
            return nullcontext()
        return torch.autocast(self.group.device.type, dtype=dtypes[self.training.PRECISION])

    def _apply(
        self, gradient: Tensor, sums: Tensor, seen: list[Tensor]
    ) -> tuple[bool, float, list[float]]:
        """(skipped, gradient norm, sums): clip by the global norm, AdamW, EMA. fp16 may skip an
        overflown step.
        """
        self.scaler.unscale_(self.optimizer)
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
        set_learning_rate(self.optimizer, learning_rate(hyper, self.step, self.total))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not skipped:
            for decay, tensors in zip(self.training.EMA_DECAYS, self.emas.values(), strict=True):
                ema.update(tensors, self.parameters, decay, self.step)
        # Averages over steps: at one that was skipped the weights stood still, and count again.
        for name, gamma in self.gammas.items():
            ema.move(self.powers[name], self.parameters, beta_at(gamma, self.step))
        return skipped, norm, numbers

    def _non_finite(self, norm: float, seen: list[Tensor]) -> NonFiniteError:
        """The error naming the step, and the timesteps and sample ids whose loss is not finite, on
        any worker.
        """
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
        result["learning_rate"] = learning_rate(hyper, self.step - 1, self.total)
        if self.scaler.is_enabled():
            result["loss_scale"] = self.scaler.get_scale()
            result["skipped_steps"] = float(window.skipped)
        seconds = time.perf_counter() - window.started
        cores = torch.tensor(time.process_time() - window.started_cpu, dtype=torch.float64)
        result["time/seconds"] = seconds
        result["time/core_seconds"] = self.group.sum_(cores.to(self.group.device)).item()
        if self.group.device.type == "cuda":
            result["time/gpu_seconds"] = seconds * self.group.size
            joules = torch.tensor(watts(self.group.device) * seconds, dtype=torch.float64)
            result["time/energy_joules"] = self.group.sum_(joules.to(self.group.device)).item()
        result["time/images_per_s"] = window.steps * self.batch_size / seconds
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
            "optimizer": state_by_name(self.optimizer, self.network),
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
