"""Samples measured against real data, from end to end: the table, the protocol line, the record.

measured = evaluate(samples, real, "train", extractor)
measured.write()
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm import durable, provenance
from ddpm.distributed import best_device
from ddpm.errors import InputError
from ddpm.features import Extractor, Pixels
from ddpm.imagebar import ImageBar
from ddpm.memorisation import MOST_LOOKED_UP, nearest_distances
from ddpm.real_data import RealData, subset
from ddpm.reference_statistics import classifier_features, pixel_features, reference
from ddpm.sample_measures import LEAST, Row, View, rows
from ddpm.sample_sources import Samples
from ddpm.sample_statistics import Statistics, collect, deal

FEATURES = ("classifier", "pixels", "inception")
FORMAT = 1

OpenInception = Callable[[Path | None], Extractor]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured, of what, against what."""

    samples: Samples
    real: RealData
    split: str
    extractor: Extractor
    rows: list[Row]
    floor_images: int

    def protocol(self) -> str:
        """The line to paste into a paper: all that the numbers depend on."""
        count = len(self.real.ids(self.split))
        return (
            f"{len(self.samples):,} samples ({self.samples.protocol}) against {count:,} "
            f"{self.split} images of {self.real.name} ({self.real.data.sha256[:8]}), uint8, not "
            f"resized; {self.extractor.description} ({self.extractor.sha256[:8]}); FID "
            "extrapolated to infinitely many samples by the jackknife over 16 groups, KID "
            "unbiased over pairs of 16 groups, k = 3 (precision, recall) and 5 (density, "
            "coverage); 95 % intervals"
        )

    @property
    def file(self) -> Path:
        """Where the record goes: beside the samples, or to the statistics where none may write."""
        beside = self.samples.beside
        folder = beside.parent if os.access(beside.parent, os.W_OK) else self.real.folder
        return folder / f"{beside.name}_{self.extractor.name}.json"

    def write(self) -> Path:
        """Keeps the record durably."""
        durable.write_json(self.file, self.record())
        return self.file

    def record(self) -> dict[str, Any]:
        """All numbers and what they depend on, as JSON."""
        return {
            "format": FORMAT,
            "protocol": self.protocol(),
            "samples": {"name": self.samples.name, "n": len(self.samples), **self.samples.facts},
            "reference": {
                "name": self.real.name,
                "split": self.split,
                "n": len(self.real.ids(self.split)),
                **self.real.facts,
            },
            "floor_images": self.floor_images,
            "features": {
                "name": self.extractor.name,
                "sha256": self.extractor.sha256,
                "dimension": self.extractor.dimension,
                "description": self.extractor.description,
            },
            "measures": {row.measure.key: _row(row) for row in self.rows},
            "made": provenance.attempt(sys.argv),
        }


def open_extractor(
    features: str, real: RealData, weights: Path | None, inception: OpenInception
) -> Extractor:
    """The extractor of a name. Raises InputError where it cannot be had."""
    if features == "inception":
        return inception(weights)
    return classifier_features(real) if features == "classifier" else pixel_features(real)


def evaluate(samples: Samples, real: RealData, split: str, extractor: Extractor) -> Measured:
    """Every measure of the samples. Raises InputError where none would mean anything."""
    if problems := _problems(samples, real, split):
        raise InputError(problems)
    dealt = deal(len(samples), samples.labels if samples.in_turn else None)
    statistics = _statistics(samples, dealt, extractor)
    if statistics.whole().scatter.diagonal().max() <= 0:
        raise InputError(f"{samples.name}: all images have the same features; they are one image")
    known = reference(real, split, extractor)
    held_out, distances = _distances(samples, real)
    view = View(
        statistics=statistics,
        reference=known,
        extractor=extractor,
        distances=distances,
        held_out=held_out,
    )
    floor_ids = _floor_ids(real, split, len(samples))
    floor = None
    if len(floor_ids) >= LEAST:
        labels = real.labels(floor_ids)
        floor_statistics = collect(
            extractor, real.batches(floor_ids), deal(len(floor_ids)), labels=labels
        )
        floor = View(statistics=floor_statistics, reference=known, extractor=extractor)
    return Measured(
        samples=samples,
        real=real,
        split=split,
        extractor=extractor,
        rows=rows(view, floor),
        floor_images=len(floor_ids) if floor else 0,
    )


def _problems(samples: Samples, real: RealData, split: str) -> list[str]:
    """Why nothing can be measured."""
    problems = []
    if len(samples) < LEAST:
        problems.append(
            f"{samples.name}: {len(samples)} images are too few for any measure; give {LEAST} at "
            "least, some thousands for narrow intervals"
        )
    if (count := len(real.ids(split))) < LEAST:
        problems.append(
            f"--split {split}: {real.name} has {count} images there, {LEAST} are needed; give "
            "another split, or a larger DATASET.VALIDATION_FRACTION"
        )
    return problems or _constant(samples)


def _constant(samples: Samples) -> list[str]:
    """Samples that are all one image have no distribution."""
    first = samples.at([0])
    is_one = all(bool((batch == first).all()) for batch in samples.batches())
    return [f"{samples.name}: all {len(samples)} images are the same one"] if is_one else []


def _statistics(samples: Samples, dealt: NDArray[np.int64], extractor: Extractor) -> Statistics:
    with ImageBar("features of the samples", len(samples), is_shown=True) as bar:

        def shown() -> Iterator[Pixels]:
            for batch in samples.batches():
                yield batch
                bar.advance(len(batch))

        labels = samples.labels if extractor.knows_labels else None
        return collect(extractor, shown(), dealt, labels=labels)


def _floor_ids(real: RealData, split: str, count: int) -> NDArray[np.int64]:
    """Real images of the other split, as many as there are samples where there are so many."""
    others = real.ids("validation" if split == "train" else "train")
    return others[subset(len(others), count)]


def _distances(
    samples: Samples, real: RealData
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | tuple[None, None]:
    """To the nearest training image, of held-out images and of samples."""
    held_out = real.validation_ids[subset(len(real.validation_ids), MOST_LOOKED_UP)]
    if len(held_out) < LEAST:
        return None, None
    chosen = samples.at(subset(len(samples), MOST_LOOKED_UP))
    queries = np.concatenate([real.images(held_out), chosen])
    with ImageBar("nearest training images", len(real.train_ids), is_shown=True) as bar:

        def shown() -> Iterator[Pixels]:
            for batch in real.batches(real.train_ids):
                yield batch
                bar.advance(len(batch))

        found = nearest_distances(queries, shown(), best_device())
    return found[: len(held_out)], found[len(held_out) :]


def _row(row: Row) -> dict[str, Any]:
    if row.estimate is None:
        return {"value": None, "reason": row.reason}
    told: dict[str, Any] = {**vars(row.estimate), "better": row.measure.better}
    return told | {"floor": vars(row.floor) if row.floor else row.measure.fresh}
