"""A training worker as a process, for tests that kill it; its argument: the file of a TrainingJob.

DDPM_TEST_FSYNC_S slows the storage: so many seconds for each fsync.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from ddpm.distributed import process_group
from ddpm.errors import run_main
from ddpm.runs import storage
from ddpm.training.worker import TrainingJob, work


def run(job: str) -> int:
    """The exit code of work under torchrun's environment variables, one process a rank."""
    return run_main(partial(_work, Path(job)))


def _work(file: Path) -> int:
    if delay := os.environ.get("DDPM_TEST_FSYNC_S"):
        slow_down(float(delay))
    job = TrainingJob(**json.loads(file.read_text()))
    with process_group() as group:
        began = time.process_time()
        work(job, group)
        print(f"core seconds: {time.process_time() - began}", file=sys.stderr)
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name], "the process group is still there"
    if job.config["TRAINING"].get("NUMERICS") != "exact":  # which PyTorch tells its compiler too
        assert "torch._dynamo" not in sys.modules, "the compiler was loaded, for seconds"
    return 0


def slow_down(seconds: float) -> None:
    """Every fsync takes so much longer."""

    class Slow(storage.SystemCalls):
        @staticmethod
        def fsync(descriptor: int) -> None:
            time.sleep(seconds)
            os.fsync(descriptor)

    storage.system = Slow()
