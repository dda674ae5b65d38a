"""TRAINING.NUMERICS on the device: the kernels a training may use."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kernels(numerics: str) -> Iterator[None]:
    """Under "exact" deterministic kernels alone, in full float32; as before afterwards.

    On a GPU some fast kernels add in the order in which threads arrive, and cuDNN rounds the inputs
    of float32 convolutions to TF32. An operation that has no deterministic kernel raises
    RuntimeError. On a CPU nothing changes: all kernels in use are deterministic there.
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
