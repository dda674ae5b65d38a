"""What a training costs: core- and GPU-seconds, and the energy of GPUs that tell it."""

import math
import time
from collections.abc import Mapping, Sequence

import torch

from ddpm.config import Config
from ddpm.distributed import Group


class Began:
    """The clocks when a worker began its training."""

    def __init__(self) -> None:
        self._wall, self._cores, self._others = time.monotonic(), time.process_time(), 0.0

    def gather(self, group: Group) -> None:
        """Tells rank 0 what the others' cores did; to be called on all workers, at their end."""
        own = 0.0 if group.is_main else time.process_time() - self._cores
        box = torch.tensor([own], dtype=torch.float64, device=group.device)
        self._others = group.sum_(box).item()

    def took(self) -> dict[str, float]:
        """Seconds since, of the wall and of all workers' cores: training and all around it."""
        return {
            "trial_seconds": time.monotonic() - self._wall,
            "trial_core_seconds": time.process_time() - self._cores + self._others,
        }


def watts(device: torch.device) -> float:
    """Power that a whole GPU draws now, whoever uses it; NaN where nothing tells.

    NVIDIA's management library tells, through PyTorch, where its Python package (nvidia-ml-py) is
    installed and the machine does not hide it.
    """
    if device.type != "cuda":
        return math.nan
    try:
        return torch.cuda.power_draw(device) / 1000
    except (ImportError, RuntimeError):
        return math.nan
    except Exception as error:  # the library's own, such as of a part of a GPU, which has no meter
        if type(error).__module__.partition(".")[0] != "pynvml":
            raise
        return math.nan


def gpu_share(config: Config) -> float:
    """The part of a GPU that a worker has."""
    share = config.CLUSTER.GPUS_PER_WORKER
    return 1.0 if share is None else share


def cost(rows: Sequence[Mapping[str, float | None]], share: float) -> dict[str, float | None]:
    """Seconds, core_seconds, gpu_seconds and energy_joules of a training, from its rows of metrics.

    share: of a GPU, that each worker had. gpu_seconds are left out on CPUs; energy is None where a
    window was not measured. It is power at the end of each window times its length.
    """
    found: dict[str, float | None] = {
        "seconds": sum(_numbers(rows, "time/seconds")),
        "core_seconds": sum(_numbers(rows, "time/core_seconds")),
    }
    if gpu_seconds := _numbers(rows, "time/gpu_seconds"):
        found["gpu_seconds"] = share * sum(gpu_seconds)
    joules = _numbers(rows, "time/energy_joules")
    found["energy_joules"] = share * sum(joules) if joules and len(joules) == len(rows) else None
    return found


def _numbers(rows: Sequence[Mapping[str, float | None]], name: str) -> list[float]:
    return [value for row in rows if (value := row.get(name)) is not None]
