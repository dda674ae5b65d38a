"""`launch/evaluate.py`, from its arguments to the table: all is checked, then measured by this
process, or by several workers through Ray Train.
"""

import os
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpm import durable
from ddpm.adapters.inception import load_inception
from ddpm.adapters.measure_samples import Asked, measure, prepare, request_for
from ddpm.distributed import Group, best_device, current_group
from ddpm.errors import DdpmError, InputError
from ddpm.job_folder import FOLDER
from ddpm.real_data import told_without_reading
from ddpm.request import Request
from ddpm.sample_table import show
from ddpm.workers import Workers, workers_of_evaluation


def run(asked: Asked, *, dry: bool = False) -> int:
    """Measures what was asked for and prints it; 0. Dry: checks it, draws and trains nothing."""
    console, request = Console(), request_for(asked)
    workers = workers_of_evaluation(asked.workers, all_nodes=FOLDER in os.environ)
    if workers.count > 1 and request and request.options.EXPORT_INTERM:
        raise InputError("IMAGE_GENERATION.EXPORT_INTERM is for one worker; give --workers 1")
    if asked.features == "inception":
        load_inception(asked.weights)  # before images are drawn
    if dry:
        console.print(_plan(asked, request, workers), soft_wrap=True, highlight=False)
        return 0
    path = _alone(asked) if workers.count == 1 else _together(asked, workers)
    show(durable.read_json(path), console)
    console.print(f"record: {path}", soft_wrap=True, highlight=False)
    return 0


def _alone(asked: Asked) -> Path:
    path = measure(asked, prepare(asked), Group(device=best_device()))
    assert path is not None  # one worker is rank 0
    return path


def _together(asked: Asked, workers: Workers) -> Path:
    """The record that rank 0 of several workers has written."""
    from ddpm.adapters import ray_train
    from ddpm.adapters.ray_cluster import ray_cluster

    folder = prepare(asked).real.folder.absolute()
    told = folder / f"evaluation-{uuid.uuid4().hex[:12]}.json"
    resources = ray_train.resources_of(workers.cpus, workers.gpus)
    settings = {"asked": asked, "told": told}
    try:
        with ray_cluster(workers.count * workers.cpus):
            error = ray_train.run_loop(
                _loop, settings, told.with_suffix(".ray"), workers.count, resources
            )
        if error is None:
            return Path(durable.read_json(told)["record"])
    finally:
        told.unlink(missing_ok=True)
    if isinstance(error, DdpmError):
        raise error
    raise DdpmError(f"a worker died: {error}; run the same command again") from error


def _loop(settings: dict[str, Any]) -> None:
    """What every worker process runs."""
    import ray.train
    from ray.train.torch import get_device

    asked: Asked = settings["asked"]
    os.chdir(asked.where)  # paths are relative to where they were typed
    path = measure(asked, prepare(asked, is_checked=True), current_group(get_device()))
    if path is not None:
        durable.write_json(settings["told"], {"record": str(path.absolute())})
    ray.train.report({"done": True})


def _plan(asked: Asked, request: Request | None, workers: Workers) -> str:
    """What would be done, as far as names, headers and sizes tell."""
    own = request.run if request else asked.source
    name, has_labels = told_without_reading(own if asked.against is None else asked.against)
    if request is None:
        told_without_reading(asked.source)
    features = asked.features or ("classifier" if has_labels else "pixels")
    if features == "classifier" and not has_labels:
        raise InputError(f"classifier features need labels, {name} has none: use pixels")
    what = request.describe() if request else f"the images of {asked.source}"
    return (
        f"would measure {what} against the {asked.split} images of {name} by {features} features, "
        f"with {workers.count} worker(s); nothing was written"
    )
