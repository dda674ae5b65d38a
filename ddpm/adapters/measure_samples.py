"""What `launch/evaluate.py` asks for, checked, and measured by every worker of a group together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm.adapters.inception import load_inception
from ddpm.distributed import Group
from ddpm.errors import InputError
from ddpm.features import Extractor
from ddpm.real_data import RealData, data_named, data_of_run
from ddpm.reference_statistics import open_extractor
from ddpm.request import Request, foreign_overrides, locate
from ddpm.sample_evaluation import evaluate, require_measurable
from ddpm.sample_sources import Samples, drawn, is_trained, read, request_of


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

    request: Request | None
    real: RealData
    samples: Samples | None
    extractor: Extractor


def prepare(asked: Asked, *, is_checked: bool = False) -> Prepared:
    """The real data, the images that are read, and what both are compared by, trained if need be.

    is_checked: another process has done this. Raises InputError with what cannot be measured.
    """
    request, real = request_for(asked), _real(asked)
    samples = None
    if request is None:
        samples = read(asked.source, real, is_checked=is_checked).first(asked.num)
        if not is_checked:
            require_measurable(samples, real, asked.split)
    else:
        _require_shape(asked, request, real)
    features = asked.features or ("pixels" if (real.data.num_classes or 0) < 2 else "classifier")
    extractor = open_extractor(features, real, asked.weights, load_inception)
    return Prepared(request=request, real=real, samples=samples, extractor=extractor)


def measure(asked: Asked, prepared: Prepared, group: Group) -> Path | None:
    """Measures what was asked for and writes the record; its path, on rank 0.

    group: workers that all call this; each draws or reads its share.
    """
    samples = prepared.samples
    if samples is None:
        assert prepared.request is not None
        samples = drawn(prepared.request, group)
    measured = evaluate(samples, prepared.real, asked.split, prepared.extractor, group)
    return measured.write(asked.command) if group.is_main else None


def request_for(asked: Asked) -> Request | None:
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


def _require_shape(asked: Asked, request: Request, real: RealData) -> None:
    channels, height, width = request.image_shape
    if request.image_shape != real.image_shape:
        raise InputError(
            f"{asked.source} draws {height}x{width} with {channels} channel(s), the images of "
            f"{real.name} are {real.image_shape}; nothing is resized here"
        )
