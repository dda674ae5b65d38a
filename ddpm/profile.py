"""TRAINING.PROFILE: a trace of some optimizer steps, to be looked at in Perfetto or Chrome."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

WARMUP_STEPS = 2  # the first steps allocate, tune and compile


@contextmanager
def profiler(path: Path, steps: int) -> Iterator[Callable[[], None] | None]:
    """Gives what is to be called after each step; writes the trace of `steps` steps to `path`.

    None when steps is 0. Counting starts where this process does, after WARMUP_STEPS.
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
