"""`ddpm evaluate` from its arguments to its table: all is checked, then measured by this
process, or by several workers together through Ray Train.
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpm.cluster.ray_cluster import FOLDER, running_ray
from ddpm.cluster.workers import Workers, workers_of_evaluation
from ddpm.distributed import Group, best_device, current_group
from ddpm.errors import DdpmError, InputError
from ddpm.metrics import (
    Extractor,
    RealData,
    SampleSet,
    data_named,
    data_of_run,
    describe_without_reading,
    drawn,
    evaluate_samples,
    is_trained,
    load_inception,
    open_extractor,
    read_samples,
    request_of,
    require_measurable,
    show,
    write_record,
)
from ddpm.runs import storage
from ddpm.sampling import SampleRequest, foreign_overrides, locate


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line. Paths are as they were typed, in the folder `where`.

    workers: None: as many as there are GPUs, or one.
    """

    source: Path
    overrides: Sequence[str]
    against: str | None
    num: int | None
    features: str | None
    split: str
    weights: Path | None
    ema: float | None
    cache: Path | None
    workers: int | None
    where: Path
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is there before anything is drawn or measured.  samples: None where they are drawn."""

    request: SampleRequest | None
    real: RealData
    samples: SampleSet | None
    extractor: Extractor


def prepare(asked: Asked, *, is_checked: bool = False) -> Prepared:
    """The real data, the images that are read, and what both are compared by, trained if need be.

    is_checked: another process has done this. Raises InputError with what cannot be measured.
    """
    request, real = request_for(asked), _real(asked)
    samples = None
    if request is None:
        samples = read_samples(asked.source, real, is_checked=is_checked).first(asked.num)
        if not is_checked:
            require_measurable(samples, real, asked.split)
    else:
        _require_shape(asked, request, real)
    features = asked.features or ("pixels" if (real.data.num_classes or 0) < 2 else "classifier")
    extractor = open_extractor(features, real, asked.weights)
    return Prepared(request=request, real=real, samples=samples, extractor=extractor)


def measure(asked: Asked, prepared: Prepared, group: Group) -> Path | None:
    """Measures what was asked for and writes the record; its path, on rank 0.

    group: workers that all call this; each draws or reads its share.
    """
    samples = prepared.samples
    if samples is None:
        assert prepared.request is not None
        samples = drawn(prepared.request, group)
    real = prepared.real
    record = evaluate_samples(samples, real, asked.split, prepared.extractor, group, asked.command)
    return write_record(record, samples, real) if group.is_main else None


def request_for(asked: Asked) -> SampleRequest | None:
    """What is drawn; None where images are read. Raises InputError with all that does not fit."""
    problems = []
    if asked.num is not None and asked.num < 1:
        problems.append(f"--num {asked.num}: give 1 at least")
    if asked.weights is not None and asked.features != "inception":
        problems.append("--weights is for --features inception")
    if asked.workers is not None and asked.workers < 1:
        problems.append(f"--workers {asked.workers}: give 1 at least")
    if is_trained(asked.source):
        if problems:
            raise InputError(problems)
        return request_of(asked.source, asked.num, asked.overrides, asked.ema)
    if not asked.source.exists():
        problems.append(f"{asked.source} does not exist")
    if asked.overrides or asked.ema is not None:
        problems.append(f"{asked.source} is no run: its images are there, nothing chooses them")
    if asked.against is None:
        problems.append(f"{asked.source} is no run: name the real images with --against")
    if foreign := foreign_overrides(asked.overrides):
        problems.append(f"{foreign[0]} is no IMAGE_GENERATION key")
    if problems:
        raise InputError(problems)
    return None


def _real(asked: Asked) -> RealData:
    if asked.against is not None:
        return data_named(asked.against, asked.cache)
    return data_of_run(locate(asked.source)[0], asked.cache)


def _require_shape(asked: Asked, request: SampleRequest, real: RealData) -> None:
    channels, height, width = request.image_shape
    if request.image_shape != real.image_shape:
        raise InputError(
            f"{asked.source} draws {height}x{width} with {channels} channel(s), the images of "
            f"{real.name} are {real.image_shape}; nothing is resized here"
        )


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
    show(storage.read_json(path), console)
    console.print(f"record: {path}", soft_wrap=True, highlight=False)
    return 0


def _alone(asked: Asked) -> Path:
    path = measure(asked, prepare(asked), Group(device=best_device()))
    assert path is not None  # one worker is rank 0
    return path


def _together(asked: Asked, workers: Workers) -> Path:
    """The record that rank 0 of several workers has written."""
    from ddpm.cluster import ray_train

    folder = prepare(asked).real.folder.absolute()
    told = folder / f"evaluation-{uuid.uuid4().hex[:12]}.json"
    settings = {"asked": asked, "told": told}
    try:
        with running_ray(workers.count * workers.cpus):
            error = ray_train.run_loop(_loop, settings, told.with_suffix(".ray"), workers)
        if error is None:
            return Path(storage.read_json(told)["record"])
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
        storage.write_json(settings["told"], {"record": str(path.absolute())})
    ray.train.report({"done": True})


def _plan(asked: Asked, request: SampleRequest | None, workers: Workers) -> str:
    """What would be done, as far as names, headers and sizes tell."""
    own = request.run if request else asked.source
    name, has_labels = describe_without_reading(own if asked.against is None else asked.against)
    if request is None:
        describe_without_reading(asked.source)
    features = asked.features or ("classifier" if has_labels else "pixels")
    if features == "classifier" and not has_labels:
        raise InputError(f"classifier features need labels, {name} has none: use pixels")
    what = request.describe() if request else f"the images of {asked.source}"
    return (
        f"would measure {what} against the {asked.split} images of {name} by {features} features, "
        f"with {workers.count} worker(s); nothing was written"
    )
