"""sample_quality.json and .npz of a run: the quality of its samples by steps and eta; no torch.

    {"format": 1, "features", "num", "protocol", "unit", "is_beta_defined", "identity",
     "points": [{"sampler", "num_steps", "eta", "guidance", "ema_length", "evaluations", "seconds",
                 "fid": {"value", "low", "high"} | null, "kid", "accuracy", "reasons"}, ...],
     "left_out": [{"num_steps", "eta", "guidance", "reason"}, ...], "arrays_sha256",
     "real": {measure: {"value", "low", "high", "n", "unbiased"}}}
    images uint8 (points, N, H, W, C), labels int64 (N,), num_steps and eta (points,)

Both are written anew after every point, the arrays first. Files that do not fit together, or are of
other samples than `identity` says, count as nothing, and the samples are measured again.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from ddpm.config import MEASURES
from ddpm.metrics.intervals import Interval
from ddpm.runs import storage

QUALITY_FORMAT = 1
FACTS, QUALITY_FILE = "sample_quality.json", "sample_quality.npz"
QUALITY_MEASURES = tuple(one.key for one in MEASURES.values() if one.of == "samples")


@dataclass(frozen=True, kw_only=True)
class QualityPoint:
    """Quality of images drawn in `num_steps` steps with `eta` and `guidance`, by an average of
    `ema_length`; None is the first of EMA_DECAYS.

    evaluations: network calls an image.  seconds: core- or GPU-seconds of drawing all images.
    fid (extrapolated to infinitely many samples), kid, accuracy: None for the reason in `reasons`.
    """

    sampler: str
    num_steps: int
    eta: float
    evaluations: int
    seconds: float
    fid: Interval | None = None
    kid: Interval | None = None
    accuracy: Interval | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    guidance: float = 1.0
    ema_length: float | None = None

    def interval(self, measure: str) -> Interval | None:
        """One of QUALITY_MEASURES by its name."""
        found: Interval | None = getattr(self, measure)
        return found


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A point that was asked for and is not there, and why."""

    num_steps: int
    eta: float
    reason: str
    guidance: float = 1.0
    ema_length: float | None = None


@dataclass(frozen=True, kw_only=True)
class SamplePictures:
    """Some of the images of every point: the same seeds and classes in all of them.

    images: uint8 (points, N, H, W, C).  labels: int64 (N,), -1 without class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All points of a run.

    num: images measured at each.  unit: of seconds, core-seconds or GPU-seconds.  is_beta_defined:
    whether the noise schedule depends on the number of timesteps.  identity: of the samples.
    real: by measure, of held-out real images against the training images, as samples are measured.
    """

    features: str
    num: int
    protocol: str
    unit: str = "core-seconds"
    is_beta_defined: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[QualityPoint, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    real: Mapping[str, Interval] = field(default_factory=dict)


def store_quality(folder: Path, quality: Quality, pictures: SamplePictures) -> None:
    """Both files, durably."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=pictures.images,
        labels=pictures.labels,
        num_steps=np.array([point.num_steps for point in quality.points], dtype=np.int64),
        eta=np.array([point.eta for point in quality.points], dtype=np.float64),
    )
    written = storage.write_bytes(folder / QUALITY_FILE, buffer.getvalue())
    facts = {"format": QUALITY_FORMAT, **asdict(quality), "arrays_sha256": written.sha256}
    for point in facts["points"]:
        for measure in QUALITY_MEASURES:
            if point[measure] is not None:
                point[measure] = {end: point[measure][end] for end in ("value", "low", "high")}
    storage.write_json(folder / FACTS, facts)


def read_quality(folder: Path) -> Quality | None:
    """The content of sample_quality.json; None where there is none, or a damaged or foreign one."""
    facts = _facts(folder)
    if facts is None:
        return None
    try:
        for point in facts["points"]:
            for measure in QUALITY_MEASURES:
                if point.get(measure):
                    point[measure]["n"] = facts["num"]
        return _checker().validate_python(facts)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


@cache
def _checker() -> TypeAdapter[Quality]:
    return TypeAdapter(Quality)  # takes milliseconds to make


def read_pictures(folder: Path) -> SamplePictures | None:
    """The images beside it; None where they are not those it was written with."""
    facts = _facts(folder)
    if facts is None:
        return None
    try:
        content = (folder / QUALITY_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts.get("arrays_sha256"):
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return SamplePictures(images=arrays["images"], labels=arrays["labels"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _facts(folder: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("format") == QUALITY_FORMAT else None
