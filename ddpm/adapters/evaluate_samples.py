"""`launch/evaluate.py`, from its arguments to the table: all is checked, then measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ddpm.adapters.inception import load_inception
from ddpm.errors import InputError
from ddpm.real_data import RealData, data_named, data_of_run, told_without_reading
from ddpm.request import Request, foreign_overrides, locate
from ddpm.sample_evaluation import evaluate, open_extractor
from ddpm.sample_sources import Samples, drawn, is_trained, read, request_of
from ddpm.sample_table import show


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line. Paths are as they were typed."""

    source: Path
    overrides: Sequence[str]
    against: str | None
    num: int | None
    features: str | None
    split: str
    weights: Path | None
    ema: float | None
    cache: Path | None


def run(asked: Asked, *, dry: bool = False) -> int:
    """Measures what was asked for and prints it; 0. Dry: checks it, draws and trains nothing."""
    console, request = Console(), _request(asked)
    if asked.features == "inception":
        load_inception(asked.weights)  # before images are drawn
    if dry:
        console.print(_plan(asked, request), soft_wrap=True, highlight=False)
        return 0
    real = _real(asked)
    features = asked.features or ("pixels" if (real.data.num_classes or 0) < 2 else "classifier")
    samples = _samples(asked, request, real)
    extractor = open_extractor(features, real, asked.weights, load_inception)
    measured = evaluate(samples, real, asked.split, extractor)
    show(measured, console)
    console.print(f"record: {measured.write()}", soft_wrap=True, highlight=False)
    return 0


def _plan(asked: Asked, request: Request | None) -> str:
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
        f"would measure {what} against the {asked.split} images of {name} by {features} features; "
        "nothing was written"
    )


def _request(asked: Asked) -> Request | None:
    """What is drawn; None where images are read. Raises InputError with all that does not fit."""
    problems = []
    if asked.num is not None and asked.num < 1:
        problems.append(f"--num {asked.num}: give 1 at least")
    if asked.weights is not None and asked.features != "inception":
        problems.append("--weights is for --features inception")
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


def _samples(asked: Asked, request: Request | None, real: RealData) -> Samples:
    if request is None:
        return read(asked.source, real).first(asked.num)
    channels, height, width = request.image_shape
    if request.image_shape != real.image_shape:
        raise InputError(
            f"{asked.source} draws {height}x{width} with {channels} channel(s), the images of "
            f"{real.name} are {real.image_shape}; nothing is resized here"
        )
    return drawn(request)
