"""Samples measured against real data, from end to end: the table, the protocol line, the record.

measured = evaluate(samples, real, "train", extractor)
measured.write()
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm import durable, provenance
from ddpm.distributed import ALONE, Group, whole_batches
from ddpm.errors import InputError
from ddpm.features import Extractor, Pixels
from ddpm.imagebar import shown
from ddpm.memorisation import MOST_LOOKED_UP, nearest_distances
from ddpm.real_data import READ, RealData, subset
from ddpm.reference_statistics import reference
from ddpm.sample_measures import LEAST, Row, View, rows
from ddpm.sample_sources import Samples
from ddpm.sample_statistics import Statistics, collect_together, deal

FEATURES = ("classifier", "pixels", "inception")
FORMAT = 1


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

    def write(self, command: Sequence[str] = ()) -> Path:
        """Keeps the record durably."""
        durable.write_json(self.file, self.record(command))
        return self.file

    def record(self, command: Sequence[str] = ()) -> dict[str, Any]:
        """All numbers and what they depend on, as JSON.  command: by which they were asked for."""
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
            "measures": {row.measure.key: row.told() for row in self.rows},
            "made": provenance.attempt(command or sys.argv),
        }


def evaluate(
    samples: Samples, real: RealData, split: str, extractor: Extractor, group: Group = ALONE
) -> Measured:
    """Every measure of the samples. Raises InputError where none would mean anything.

    group: workers that all call this; each takes its share, and all have all the numbers.
    """
    require_measurable(samples, real, split)
    dealt = deal(len(samples), samples.labels if samples.in_turn else None)
    statistics = _statistics(samples, dealt, extractor, group)
    if statistics.whole().scatter.diagonal().max() <= 0:
        raise InputError(f"{samples.name}: all images have the same features; they are one image")
    known = reference(real, split, extractor, group)
    held_out, distances = _distances(samples, real, group)
    view = View(
        statistics=statistics,
        reference=known,
        extractor=extractor,
        distances=distances,
        held_out=held_out,
        workers=group,
    )
    floor_ids = _floor_ids(real, split, len(samples))
    floor = None
    if len(floor_ids) >= LEAST:
        floor = View(
            statistics=_floor_statistics(real, floor_ids, extractor, group),
            reference=known,
            extractor=extractor,
            workers=group,
        )
    return Measured(
        samples=samples,
        real=real,
        split=split,
        extractor=extractor,
        rows=rows(view, floor),
        floor_images=len(floor_ids) if floor else 0,
    )


def require_measurable(samples: Samples, real: RealData, split: str) -> None:
    """Raises InputError with all that keeps samples from being measured."""
    problems = _too_few(samples, real, split) or _constant(samples)
    if problems:
        raise InputError(problems)


def _too_few(samples: Samples, real: RealData, split: str) -> list[str]:
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
    return problems


def _constant(samples: Samples) -> list[str]:
    """Samples that are all one image have no distribution."""
    first = samples.at([0])
    is_one = all(bool((batch == first).all()) for batch in samples.batches(range(len(samples))))
    return [f"{samples.name}: all {len(samples)} images are the same one"] if is_one else []


def _statistics(
    samples: Samples, dealt: NDArray[np.int64], extractor: Extractor, group: Group
) -> Statistics:
    def batches(places: range) -> Iterator[Pixels]:
        return shown("features of the samples", len(places), samples.batches(places))

    labels = samples.labels if extractor.knows_labels else None
    return collect_together(extractor, batches, dealt, group, labels=labels)


def _floor_statistics(
    real: RealData, ids: NDArray[np.int64], extractor: Extractor, group: Group
) -> Statistics:
    def batches(places: range) -> Iterator[Pixels]:
        return real.batches(ids[places.start : places.stop])

    labels = real.labels(ids)
    return collect_together(extractor, batches, deal(len(ids)), group, labels=labels)


def _floor_ids(real: RealData, split: str, count: int) -> NDArray[np.int64]:
    """Real images of the other split, as many as there are samples where there are so many."""
    others = real.ids("validation" if split == "train" else "train")
    return others[subset(len(others), count)]


def _distances(
    samples: Samples, real: RealData, group: Group
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | tuple[None, None]:
    """To the nearest training image, of held-out images and of samples.

    Every worker looks up all of these in its share of the training images.
    """
    held_out = real.validation_ids[subset(len(real.validation_ids), MOST_LOOKED_UP)]
    if len(held_out) < LEAST:
        return None, None
    chosen = samples.at(subset(len(samples), MOST_LOOKED_UP))
    queries = np.concatenate([real.images(held_out), chosen])
    own = whole_batches(len(real.train_ids), READ, group)
    batches = real.batches(real.train_ids[own.start : own.stop])
    nearest = nearest_distances(
        queries, shown("nearest training images", len(own), batches), group.device
    )
    found = group.least_(torch.from_numpy(nearest).to(group.device)).cpu().numpy()
    return found[: len(held_out)], found[len(held_out) :]
