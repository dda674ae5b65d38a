"""Several workers through Ray Train: a training, each of whose workers runs training.work, or the
loop of an evaluation.

Ray starts the processes and their process group, nothing more: checkpoints are committed by rank 0
to the run directory before anything is reported, and a worker's death is answered here by starting
again from the last commit.
"""

import logging
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ddpm.cluster.workers import Workers
from ddpm.distributed import current_group
from ddpm.errors import DdpmError
from ddpm.runs import RunDirectory, failure_recorded
from ddpm.tracking import wandb_tracker
from ddpm.training import TrainingJob, work

LOOK_S = 0.5
MAX_FAILURES = 3  # deaths of a worker that a training is started again after
LOCK_PATIENCE_S = 30.0  # how long the workers of the last attempt may take to die
log = logging.getLogger(__name__)


def run(
    job: TrainingJob,
    workers: Workers,
    *,
    tracker: tuple[str | None, Mapping[str, object] | None] = (None, None),
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The summary of a training over the workers of an initialised Ray.

    Raises the worker's own error (a DdpmError) at once; any other death of a worker is retried
    MAX_FAILURES times.  tracker: sweep and cell that it belongs to, for its tracker.  meanwhile:
    called in this thread every LOOK_S seconds.
    """
    run_dir = Path(job.run_dir)
    job = replace(job, wait_s=max(job.wait_s, LOCK_PATIENCE_S))
    settings = {"job": asdict(job), "tracker": tracker}
    with failure_recorded(run_dir):
        for attempt in range(MAX_FAILURES + 1):
            error = run_loop(_loop, settings, run_dir / "ray", workers, meanwhile)
            if error is None:
                return RunDirectory(run_dir).summary
            if isinstance(error, DdpmError):
                raise error
            log.warning("attempt %d of %d failed: %s", attempt + 1, MAX_FAILURES + 1, error)
        raise DdpmError(
            f"{job.run_dir}: workers died in {MAX_FAILURES + 1} attempts; the last: {error}"
        )


def run_loop(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    storage: Path,
    workers: Workers,
    meanwhile: Callable[[], None] = lambda: None,
) -> Exception | None:
    """One Ray Train run of loop(settings) on every worker; None when it ended well, else the
    worker's own DdpmError, or Ray's words on its death.

    storage: a folder that all nodes share and that Ray may use; it is removed.  Ctrl-C, where it is
    not handled otherwise, ends the workers at once.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources: dict[str, float] = {"CPU": workers.cpus}
    if workers.gpus:
        resources["GPU"] = workers.gpus
    # a folder of its own: what an earlier attempt left half written cannot keep this one back
    name = uuid.uuid4().hex[:12]
    trainer = TorchTrainer(
        loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend=backend(workers)),
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


def backend(workers: Workers) -> str:
    """NCCL when every worker has a GPU of its own; it refuses two workers on one, gloo does not."""
    return "nccl" if workers.gpus >= 1 else "gloo"


def _loop(settings: dict[str, Any]) -> None:
    """The loop of a training, in every worker process."""
    import ray.train
    from ray.train.torch import get_device

    group = current_group(get_device())
    tracker = wandb_tracker(*settings["tracker"])
    work(TrainingJob(**settings["job"]), group, tracker=tracker)
    ray.train.report({"done": True})


def _own_error(error: BaseException) -> DdpmError | None:
    """The DdpmError behind Ray's: the first worker's that has one."""
    for candidate in [error, *getattr(error, "worker_failures", {}).values()]:
        seen = candidate
        while seen is not None:
            if isinstance(seen, DdpmError):
                return seen
            seen = getattr(seen, "cause", None) or seen.__cause__
    return None
