"""The quality of a trial's samples over samplers and sampling steps, as its run directory holds it.

sample_quality.json has a number with its interval for each point, sample_quality.npz the images of
each point: the same seeds and classes at every one. What is missing is None, never guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from ddpm.report.files import Value, mapping, number, read_arrays, read_json, sequence

QUALITIES = ("fid", "kid", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """Samples drawn in one way. evaluations: network calls an image; seconds: core or GPU."""

    place: int  # row of the images
    sampler: str
    num_steps: int
    eta: float
    evaluations: float
    seconds: float
    qualities: Mapping[str, Estimate]

    @property
    def method(self) -> str:
        """The sampler without its steps: `ddim`, `ddim η=1`."""
        return self.sampler if self.eta == 0 else f"{self.sampler} \u03b7={self.eta:g}"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """All points of one trial, how they were measured, and why others are not there.

    unit: of their seconds, core-seconds or GPU-seconds.
    """

    features: str
    num: int
    protocol: str
    unit: str
    points: tuple[Point, ...]
    left_out: tuple[str, ...]
    images: Path | None


def read_sampled(run_dir: Path) -> Sampled | None:
    """What a run directory holds; None where there is no readable sample_quality.json."""
    saved = mapping(read_json(run_dir / "sample_quality.json"))
    rows = enumerate(map(mapping, sequence(saved.get("points"))))
    points = tuple(_point(place, row) for place, row in rows)
    images = run_dir / "sample_quality.npz"
    if not points and not saved.get("left_out"):
        return None
    return Sampled(
        features=str(saved.get("features", "")),
        num=int(np.nan_to_num(number(saved.get("num")))),
        protocol=str(saved.get("protocol", "")),
        unit=str(saved.get("unit", "core- or GPU-seconds")),
        points=points,
        left_out=tuple(_left_out(one) for one in map(mapping, sequence(saved.get("left_out")))),
        images=images if images.exists() else None,
    )


def read_images(sampled: Sampled) -> dict[str, np.ndarray] | None:
    """images: uint8 (points, N, H, W, C) and labels: (N,) of a trial; None without them."""
    found = None if sampled.images is None else read_arrays(sampled.images, ("images", "labels"))
    if found is None or found["images"].ndim != 5:
        return None
    return found if len(found["images"]) == len(sampled.points) else None


def _point(place: int, row: Mapping[str, Value]) -> Point:
    steps = number(row.get("num_steps"))
    eta = number(row.get("eta", 0.0))
    return Point(
        place=place,
        sampler=str(row.get("sampler", "")),
        num_steps=int(steps) if isfinite(steps) else 0,
        eta=eta if isfinite(eta) else 0.0,
        evaluations=number(row.get("evaluations")),
        seconds=number(row.get("seconds")),
        qualities={
            name: found for name in QUALITIES if (found := _estimate(row.get(name))) is not None
        },
    )


def _left_out(row: Mapping[str, Value]) -> str:
    steps, eta = number(row.get("num_steps")), number(row.get("eta"))
    return f"{steps:g} steps, \u03b7={eta:g}: {row.get('reason', 'no reason was recorded')}"


def _estimate(value: Value) -> Estimate | None:
    found = mapping(value)
    numbers = {name: number(found.get(name)) for name in ("value", "low", "high")}
    return Estimate(**numbers) if isfinite(numbers["value"]) else None
