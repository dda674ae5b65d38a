"""A training on several workers through Ray Train; `ddpm.training.worker.work` is what each of them runs.
And `run_loop`, by which an evaluation does the same.

Ray starts the processes and their process group, nothing more: checkpoints are committed by rank 0
to the run directory before anything is reported, and a worker's death is answered here by starting
again from the last commit.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm.distributed import current_group
from ddpm.errors import DdpmError
from ddpm.metrics import inception_of_training
from ddpm.runs import RunDirectory, failure_recorded
from ddpm.tracking import wandb_mirror
from ddpm.training import Job, work

LOOK_S = 0.5
LOCK_PATIENCE_S = 30.0  # how long the workers of the last attempt may take to die
log = logging.getLogger(__name__)


def run(
    job: Job,
    *,
    num_workers: int,
    use_gpu: bool,
    cpus_per_worker: int,
    gpus_per_worker: float,
    sweep: str | None = None,
    cell: Mapping[str, object] | None = None,
    max_failures: int = 3,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The summary of a training over `num_workers` workers of an initialised Ray.

    Raises the worker's own error (a DdpmError) at once; any other death of a worker is retried
    `max_failures` times. sweep, cell: what it belongs to, for its mirror.  meanwhile: called in
    this thread every LOOK_S seconds.
    """
    resources = resources_of(cpus_per_worker, gpus_per_worker if use_gpu else 0)
    job = Job(**(asdict(job) | {"wait_s": max(job.wait_s, LOCK_PATIENCE_S)}))
    with failure_recorded(Path(job.run_dir)):
        for attempt in range(max_failures + 1):
            error = _attempt(job, num_workers, resources, (sweep, cell), meanwhile)
            if error is None:
                return RunDirectory(Path(job.run_dir)).summary
            if isinstance(error, DdpmError):
                raise error
            log.warning("attempt %d of %d failed: %s", attempt + 1, max_failures + 1, error)
        raise DdpmError(
            f"{job.run_dir}: workers died in {max_failures + 1} attempts; the last: {error}"
        )


def _attempt(
    job: Job,
    num_workers: int,
    resources: dict[str, float],
    mirror: tuple[str | None, Mapping[str, object] | None],
    meanwhile: Callable[[], None],
) -> Exception | None:
    """One training; its error, or None when it ended well.

    mirror: what wandb_mirror is given: the sweep and the cell.
    """
    settings = {"job": asdict(job), "mirror": mirror}
    storage = Path(job.run_dir) / "ray"
    return run_loop(_loop, settings, storage, num_workers, resources, meanwhile)


def run_loop(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    storage: Path,
    num_workers: int,
    resources: dict[str, float],
    meanwhile: Callable[[], None] = lambda: None,
) -> Exception | None:
    """One Ray Train run of loop(settings) on every worker; None when it ended well, else the
    worker's own DdpmError, or what Ray says of its death.

    storage: a folder that all nodes share and that Ray may use; it is removed. resources: of each
    worker.  meanwhile: called in this thread every LOOK_S seconds.  Ctrl-C, where it is not handled
    otherwise, ends the workers at once.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    # a folder of its own: what an earlier attempt left half written cannot keep this one back
    name = uuid.uuid4().hex[:12]
    trainer = TorchTrainer(
        loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend=_backend(resources)),
        run_config=RunConfig(
            name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        # In a thread, because in the main thread Ray would put its own handler of Ctrl-C, which
        # aborts, in the place of ours, which saves.
        with ThreadPoolExecutor(1, thread_name_prefix="ddpm-ray") as pool:
            fitted = pool.submit(trainer.fit)
            try:
                while wait([fitted], LOOK_S).not_done:
                    meanwhile()
                fitted.result()
            except KeyboardInterrupt:
                ray.shutdown()
                raise
    except Exception as error:  # every kind of failure of a worker group arrives here
        return _own_error(error) or error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return None


def resources_of(cpus: int, gpus: float) -> dict[str, float]:
    """What a worker takes, in Ray's words."""
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _backend(resources: dict[str, float]) -> str:
    """NCCL when every worker has a GPU of its own; it refuses two workers on one, gloo does not."""
    return "nccl" if resources.get("GPU", 0) >= 1 else "gloo"


def _loop(settings: dict[str, Any]) -> None:
    """What every worker process runs."""
    import ray.train
    from ray.train.torch import get_device

    group = current_group(get_device())
    mirror = wandb_mirror(*settings["mirror"])
    work(Job(**settings["job"]), group, mirror=mirror, inception=inception_of_training)
    ray.train.report({"done": True})


def _own_error(error: BaseException) -> DdpmError | None:
    """The DdpmError behind Ray's: the first worker's that has one."""
    failures = getattr(error, "worker_failures", {})
    chain = [error, *failures.values()]
    for candidate in chain:
        seen = candidate
        while seen is not None:
            if isinstance(seen, DdpmError):
                return seen
            seen = getattr(seen, "cause", None) or seen.__cause__
    return None
