"""The workers of one training or evaluation: who this one is, what it takes of a batch, and what
they know together.

One worker is the ordinary case and needs no process group. With several, torch.distributed has been
initialised by whoever started the processes (Ray Train, or `process_group` below under torchrun's
environment variables).
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Group:
    """This worker's place: rank in [0, size), and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Whether this worker records: exactly one does."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor, summed in place over all workers."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all workers, stacked by rank: (size, *shape)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def least_(self, tensor: Tensor) -> Tensor:
        """The tensor, in place the least of all workers."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return tensor

    def passing(self, own: Tensor) -> Iterator[Tensor]:
        """The tensor of each worker in turn, by rank, on every worker and where `own` is.

        Their lengths may differ. One is held at a time: what is large is never in one place.
        """
        if self.size == 1:
            yield own
            return
        lengths = self.gather(torch.tensor([len(own)], device=self.device)).flatten().tolist()
        for rank, length in enumerate(lengths):
            if rank == self.rank:
                block = own.to(self.device).contiguous()
            else:
                shape = (length, *own.shape[1:])
                block = torch.empty(shape, dtype=own.dtype, device=self.device)
            if length:
                dist.broadcast(block, src=rank)
            yield own if rank == self.rank else block.to(own.device)

    def numbers(self, count: int, of: Callable[[int], float]) -> list[float]:
        """of(0) to of(count - 1), each computed by one worker, on every worker."""
        found = torch.zeros(count, dtype=torch.float64, device=self.device)
        for number in range(self.rank, count, self.size):
            found[number] = of(number)
        return self.sum_(found).tolist()

    def largest(self, value: int) -> int:
        """The largest value of any worker, on every worker."""
        return int(self.gather(torch.tensor([value], device=self.device)).max())

    def wait(self) -> None:
        """Until all workers are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, value: int) -> int:
        """Rank 0's value, on every worker."""
        box = torch.tensor([value if self.is_main else 0], dtype=torch.int64, device=self.device)
        return int(self.sum_(box).item())

    def any(self, value: bool) -> bool:
        """Whether it is true on one worker at least, on every worker."""
        box = torch.tensor([int(value)], dtype=torch.int64, device=self.device)
        return bool(self.sum_(box).item())


ALONE = Group()


def share(count: int, rank: int, size: int) -> range:
    """The part of range(count) that `rank` of `size` takes; parts are contiguous and differ by at
    most one.

    Raises ValueError when there are more workers than items: an idle worker would wait for nothing.
    """
    if size > count:
        raise ValueError(
            f"{size} workers cannot share {count} samples; use at most {count} workers"
        )
    return range(rank * count // size, (rank + 1) * count // size)


def whole_batches(count: int, size: int, group: Group) -> range:
    """The part of range(count) that a worker takes in whole batches of `size`, the last one cut.

    Every item keeps its place in its batch. With more workers than batches some parts are empty.
    """
    batches = -(-count // size)
    first, last = (batches * rank // group.size for rank in (group.rank, group.rank + 1))
    return range(min(count, first * size), min(count, last * size))


def best_device(local_rank: int = 0) -> torch.device:
    """The GPU of this local rank where there is one, else the CPU."""
    if not torch.cuda.is_available():
        return CPU
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def device_of(network: object) -> torch.device:
    """Device of a network's parameters; the CPU for a function, or a module without any."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), CPU)


def current_group(device: torch.device) -> Group:
    """The group this process belongs to, as torch.distributed knows it."""
    if not (dist.is_available() and dist.is_initialized()):
        return Group(device=device)
    return Group(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


@contextmanager
def process_group(timeout_s: float = 1800.0) -> Iterator[Group]:
    """A process group from torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, ...); one worker
    without them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = best_device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield Group(device=device)
        return
    # Keeps, as default arguments, the group that there is when it is first imported, as making an
    # optimizer does. That one's threads would outlive it, and could abort the process at its end.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s)
    )
    try:
        yield current_group(device)
    finally:
        dist.destroy_process_group()
