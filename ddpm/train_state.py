"""What survives a training's end or death: TrainState; and the sums of the report under way:
Window.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ddpm.objective import NUM_SUMS

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that must survive: a CPU copy, safe to keep. tensors: model, ema-DECAY...,
    power-LENGTH..., optimizer, each {name: tensor}.

    window: the sums of the report under way, so that a run stopped between two reports loses none
    of them.
    """

    step: int
    tensors: dict[str, Tensors]
    grad_scaler: dict[str, Any] | None = None
    window: dict[str, Any] = field(default_factory=dict)

    @property
    def scalars(self) -> dict[str, Any]:
        """What goes to JSON beside the tensors."""
        return {"step": self.step, "grad_scaler": self.grad_scaler, "window": self.window}

    @classmethod
    def restored(cls, tensors: dict[str, Tensors], scalars: dict[str, Any]) -> "TrainState":
        """The state whose `tensors` and `scalars` were saved."""
        return cls(tensors=tensors, **scalars)


@dataclass
class Window:
    """Sums since the last report. seconds and core seconds are this process's own and not kept over
    a resume.
    """

    steps: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * NUM_SUMS)
    grad_norm: float = 0.0
    skipped: int = 0
    started: float = field(default_factory=time.perf_counter)
    started_cpu: float = field(default_factory=time.process_time)

    def add(self, sums: list[float], grad_norm: float, skipped: bool) -> None:
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.steps += 1
        self.skipped += skipped
        self.grad_norm += 0.0 if skipped else grad_norm

    def to_json(self) -> dict[str, Any]:
        names = ("steps", "sums", "grad_norm", "skipped")
        return {name: getattr(self, name) for name in names} if self.steps else {}
