"""sample_quality.json and .npz of a run: what its samples are worth, by steps and eta; no torch.

    {"format": 1, "features", "num", "protocol", "unit", "is_beta_defined", "identity",
     "points": [{"sampler", "num_steps", "eta", "evaluations", "seconds",
                 "fid": {"value", "low", "high"} | null, "kid", "accuracy", "reasons"}, ...],
     "left_out": [{"num_steps", "eta", "reason"}, ...], "arrays_sha256"}
    images uint8 (points, N, H, W, C), labels int64 (N,), num_steps and eta (points,)

Both are written anew after every point, the arrays first. What does not fit together, or was
measured of anything else than `identity` says, counts as nothing and is measured again.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm import durable

FORMAT = 1
FACTS, ARRAYS = "sample_quality.json", "sample_quality.npz"
MEASURES = ("fid", "kid", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % interval, over samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """What images are worth that were drawn in `num_steps` steps with `eta`.

    evaluations: network calls an image.  seconds: core- or GPU-seconds of drawing all images.
    fid (extrapolated to infinitely many samples), kid, accuracy: None for the reason in `reasons`.
    """

    sampler: str
    num_steps: int
    eta: float
    evaluations: int
    seconds: float
    fid: Interval | None
    kid: Interval | None
    accuracy: Interval | None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def interval(self, measure: str) -> Interval | None:
        """One of MEASURES by its name."""
        return {"fid": self.fid, "kid": self.kid, "accuracy": self.accuracy}[measure]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A point that was asked for and is not there, and why."""

    num_steps: int
    eta: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Some of the images of every point: the same seeds and classes in all of them.

    images: uint8 (points, N, H, W, C).  labels: int64 (N,), -1 without class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All points of a run.

    num: images measured at each.  unit: of seconds, core-seconds or GPU-seconds.  is_beta_defined:
    whether the noise schedule depends on the number of timesteps.  identity: what was measured.
    """

    features: str
    num: int
    protocol: str
    unit: str
    is_beta_defined: bool
    identity: Mapping[str, Any]
    points: tuple[Point, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def point(self, num_steps: int, eta: float) -> Point | None:
        """The point with these; None where it was left out or not asked for."""
        same = (p for p in self.points if (p.num_steps, p.eta) == (num_steps, eta))
        return next(same, None)


def write(folder: Path, quality: Quality, pictures: Pictures) -> None:
    """Both files, durably."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=pictures.images,
        labels=pictures.labels,
        num_steps=np.array([point.num_steps for point in quality.points], dtype=np.int64),
        eta=np.array([point.eta for point in quality.points], dtype=np.float64),
    )
    written = durable.write_bytes(folder / ARRAYS, buffer.getvalue())
    facts = {"format": FORMAT, **asdict(quality), "arrays_sha256": written.sha256}
    durable.write_json(folder / FACTS, facts)


def read(folder: Path) -> Quality | None:
    """What sample_quality.json says; None where there is none, or a damaged or foreign one."""
    facts = _facts(folder)
    try:
        return None if facts is None else _quality(facts)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def read_pictures(folder: Path) -> Pictures | None:
    """The images beside it; None where they are not those it was written with."""
    facts = _facts(folder)
    if facts is None:
        return None
    try:
        content = (folder / ARRAYS).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts.get("arrays_sha256"):
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Pictures(images=arrays["images"], labels=arrays["labels"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _facts(folder: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("format") == FORMAT else None


def _quality(facts: Mapping[str, Any]) -> Quality:
    return Quality(
        features=str(facts["features"]),
        num=int(facts["num"]),
        protocol=str(facts["protocol"]),
        unit=str(facts.get("unit", "core-seconds")),
        is_beta_defined=bool(facts.get("is_beta_defined", False)),
        identity=dict(facts.get("identity", {})),
        points=tuple(map(_point, facts["points"])),
        left_out=tuple(
            LeftOut(
                num_steps=int(one["num_steps"]), eta=float(one["eta"]), reason=str(one["reason"])
            )
            for one in facts.get("left_out", ())
        ),
    )


def _point(facts: Mapping[str, Any]) -> Point:
    return Point(
        sampler=str(facts["sampler"]),
        num_steps=int(facts["num_steps"]),
        eta=float(facts["eta"]),
        evaluations=int(facts["evaluations"]),
        seconds=float(facts["seconds"]),
        fid=_interval(facts.get("fid")),
        kid=_interval(facts.get("kid")),
        accuracy=_interval(facts.get("accuracy")),
        reasons={str(key): str(value) for key, value in facts.get("reasons", {}).items()},
    )


def _interval(facts: Mapping[str, Any] | None) -> Interval | None:
    if facts is None:
        return None
    numbers = [float(facts[name]) for name in ("value", "low", "high")]
    if not all(map(isfinite, numbers)):
        raise ValueError("not finite")
    return Interval(value=numbers[0], low=numbers[1], high=numbers[2])


def stacked(images: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Images of each point as one array; (0, *shape) of none."""
    return np.stack(images) if images else np.zeros((0, *shape), np.uint8)
