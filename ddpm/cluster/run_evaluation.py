"""`ddpm evaluate` from its arguments to its table: all is checked, then measured by this
process, or by several workers together through Ray Train.
"""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ddpm.cluster.ray_cluster import FOLDER, running_ray
from ddpm.cluster.workers import Workers, workers_of_evaluation
from ddpm.distributed import Group, best_device, current_group
from ddpm.errors import DdpmError, InputError
from ddpm.metrics import (
    PRETRAINED,
    EvaluationOptions,
    Extractor,
    RealData,
    SampleSet,
    data_named,
    data_of_run,
    describe_without_reading,
    draw_samples,
    evaluate_samples,
    open_extractor,
    print_record,
    read_samples,
    require_measurable,
    write_record,
)
from ddpm.runs import storage
from ddpm.sampling import SampleRequest, locate_run


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that is read before anything is drawn.  samples: None where they are drawn."""

    request: SampleRequest | None
    real: RealData
    samples: SampleSet | None
    extractor: Extractor


def prepare(options: EvaluationOptions, *, is_checked: bool = False) -> Prepared:
    """The real data, the images that are read, and what both are compared by, trained if need be.

    is_checked: another process has done this. Raises InputError with what cannot be measured.
    """
    request, real = options.request(), _real(options)
    samples = None
    if request is None:
        samples = read_samples(options.source, real, is_checked=is_checked).first(options.num)
        if not is_checked:
            require_measurable(samples, real, options.split)
    else:
        _require_shape(options, request, real)
    features = options.features or ("pixels" if (real.data.num_classes or 0) < 2 else "classifier")
    extractor = open_extractor(features, real, options.weights)
    return Prepared(request=request, real=real, samples=samples, extractor=extractor)


def measure(options: EvaluationOptions, prepared: Prepared, group: Group) -> Path | None:
    """Measures, and writes the record; its path, on rank 0.

    group: workers that all call this; each draws or reads its share.
    """
    samples = prepared.samples
    if samples is None:
        assert prepared.request is not None
        samples = draw_samples(prepared.request, group)
    real = prepared.real
    record = evaluate_samples(
        samples, real, options.split, prepared.extractor, group, options.command
    )
    return write_record(record, samples, real) if group.is_main else None


def _real(options: EvaluationOptions) -> RealData:
    if options.against is not None:
        return data_named(options.against, options.cache)
    return data_of_run(locate_run(options.source)[0], options.cache)


def _require_shape(options: EvaluationOptions, request: SampleRequest, real: RealData) -> None:
    channels, height, width = request.image_shape
    if options.features in PRETRAINED and channels not in (1, 3):
        raise InputError(
            f"--features {options.features} takes 1 or 3 channels, {options.source} has {channels}"
        )
    if request.image_shape != real.image_shape:
        raise InputError(
            f"{options.source} draws {height}x{width} with {channels} channel(s), the images of "
            f"{real.name} are {real.image_shape}; nothing is resized here"
        )


def run(options: EvaluationOptions, *, dry: bool = False) -> int:
    """Measures and prints; 0. Dry: checks it, draws and trains nothing."""
    console, request = Console(), options.request()
    workers = workers_of_evaluation(options.workers, all_nodes=FOLDER in os.environ)
    if workers.count > 1 and request and request.options.EXPORT_INTERM:
        raise InputError("IMAGE_GENERATION.EXPORT_INTERM is for one worker; give --workers 1")
    if options.features in PRETRAINED:
        PRETRAINED[options.features](options.weights, "--weights")  # before images are drawn
    if dry:
        console.print(_plan(options, request, workers), soft_wrap=True, highlight=False)
        return 0
    if workers.count == 1:
        path = measure(options, prepare(options), Group(device=best_device()))
    else:
        path = _together(options, workers)
    assert path is not None  # rank 0 has written it
    print_record(storage.read_json(path), console)
    console.print(f"record: {path}", soft_wrap=True, highlight=False)
    return 0


def _together(options: EvaluationOptions, workers: Workers) -> Path:
    """The record that rank 0 of several workers has written."""
    from ddpm.cluster import ray_train

    folder = prepare(options).real.folder.absolute()
    told = folder / f"evaluation-{uuid.uuid4().hex[:12]}.json"
    settings = {"options": options, "told": told}
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
    """The loop of an evaluation, in every worker process."""
    import ray.train
    from ray.train.torch import get_device

    options: EvaluationOptions = settings["options"]
    os.chdir(options.where)  # paths are relative to where they were typed
    path = measure(options, prepare(options, is_checked=True), current_group(get_device()))
    if path is not None:
        storage.write_json(settings["told"], {"record": str(path.absolute())})
    ray.train.report({"done": True})


def _plan(options: EvaluationOptions, request: SampleRequest | None, workers: Workers) -> str:
    """A line on what would be done, as far as names, headers and sizes tell."""
    own = request.run if request else options.source
    name, has_labels = describe_without_reading(own if options.against is None else options.against)
    if request is None:
        describe_without_reading(options.source)
    features = options.features or ("classifier" if has_labels else "pixels")
    if features == "classifier" and not has_labels:
        raise InputError(f"classifier features need labels, {name} has none: use pixels")
    what = request.describe() if request else f"the images of {options.source}"
    return (
        f"would measure {what} against the {options.split} images of {name} by {features} "
        "features, "
        f"with {workers.count} worker(s); nothing was written"
    )
