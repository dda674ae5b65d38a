"""evaluate(): images against a reference, every number with its interval; and METRICS, its table.

Another metric is one function of a MetricInput and one line of METRICS. In training, at the end of
a run and in `ddpm evaluate` images are measured by this one function. A number that would mean
nothing, of too few images or by features unfit for it, is left out with its reason.

A floor is the number that held-out real images get: samples as good as real ones would get it. A
number that depends on how many images it is of has a floor at equal numbers only.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ddpm.distributed import ALONE, Group, whole_batches
from ddpm.errors import InputError
from ddpm.metrics import intervals, manifold
from ddpm.metrics.distances import BLOCK_LEAST, IMAGES_PER_DIMENSION
from ddpm.metrics.features import (
    GROUPS,
    Extractor,
    Judged,
    Pixels,
    Statistics,
    collect_together,
    deal,
)
from ddpm.metrics.intervals import Interval
from ddpm.metrics.manifold import MOST_LOOKED_UP, Manifold
from ddpm.metrics.reference import READ, RealData, Reference, reference_of, subset
from ddpm.metrics.samples import SampleSet
from ddpm.runs import provenance, shown, storage

# Each of the 16 groups needs a block for KID: fewer images give no distance at all.
LEAST = GROUPS * BLOCK_LEAST
FORMAT = 1

Distances = NDArray[np.float64]


class Unmeasured(Exception):
    """The reason why a number would mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images to be measured.

    batches(places): those at these places of range(count), uint8 (n, H, W, C), by and by.
    labels: the class of each, (count,).  in_turn: classes are dealt out, not drawn.
    """

    count: int
    batches: Callable[[range], Iterable[Pixels]]
    labels: NDArray[np.int64] | None = None
    in_turn: bool = False


@dataclass(frozen=True, kw_only=True)
class MetricInput:
    """Images and reference as the metrics see them.

    nearest: distances to the nearest training image, of samples and of held-out images.
    """

    statistics: Statistics
    reference: Reference
    nearest: tuple[Distances, Distances] | None = None

    @cached_property
    def fids(self) -> tuple[Interval, Interval]:
        """At the number of images, and at infinity."""
        reference, dimension = self.reference, self.reference.extractor.dimension
        least = IMAGES_PER_DIMENSION * dimension
        for count, what in (
            (self.statistics.count, "images"),
            (reference.moments.count, "reference images"),
        ):
            if count < least:
                raise Unmeasured(
                    f"needs {least} {what} for {dimension} features, there are {count}"
                )
        return reference.frechet.fid(self.statistics.groups, reference.workers)

    @cached_property
    def manifold(self) -> Manifold:
        """Precision, recall, density, coverage."""
        self._require_pairs()
        found, reference = self.statistics, self.reference
        return manifold.measure_manifold(
            found.kept, found.kept_groups, reference.kept, reference.workers
        )

    def kid(self) -> Interval:
        """The kernel distance of the kept features."""
        self._require_pairs()
        return self.reference.kernels.kid(self.statistics.blocks())

    def class_score(self) -> Interval:
        """exp(mean_x KL(p(y | x) || p(y))) by the extractor's classes."""
        return class_score(self._judged())

    def class_accuracy(self) -> Interval:
        """The share of samples classified as their own class."""
        judged, extractor = self._judged(), self.reference.extractor
        if not extractor.knows_labels:
            raise Unmeasured(f"the classes of {extractor.name} are not those of the data")
        if judged.hits is None:
            raise Unmeasured("the images come without labels")
        return intervals.share(judged.hits, int(judged.counts.sum()))

    def nearer(self) -> Interval:
        """P(a sample is nearer to the training images than a held-out one)."""
        return manifold.nearer(*self._distances())

    def copies(self) -> Interval:
        """The share of samples that are nearer than nearly every held-out image."""
        distances, held_out = self._distances()
        if len(held_out) < manifold.HELD_OUT_LEAST:
            raise Unmeasured(
                f"needs {manifold.HELD_OUT_LEAST} held-out images, there are {len(held_out)}"
            )
        if manifold.bound(held_out) == 0:
            raise Unmeasured("1 % of the held-out images are themselves in the training set")
        return manifold.copies(distances, held_out)

    def _judged(self) -> Judged:
        if self.statistics.judged is None:
            raise Unmeasured(f"{self.reference.extractor.name} features tell no classes")
        return self.statistics.judged

    def _distances(self) -> tuple[Distances, Distances]:
        if self.nearest is None:
            raise Unmeasured(f"needs {LEAST} held-out images, which training never saw")
        return self.nearest

    def _require_pairs(self) -> None:
        for counts, what in (
            (self.statistics.kept_counts, "images"),
            (self.reference.kept_counts, "reference images"),
        ):
            if len(counts) < GROUPS or counts.min() < BLOCK_LEAST:
                raise Unmeasured(f"needs {LEAST} {what}, there are {counts.sum()}")


def class_score(judged: Judged) -> Interval:
    """The inception or classifier score, exp(H(mean p) - mean H(p))         (Salimans 2016).

    "inception score" with Inception's classes, "classifier score" with the data's own: from 1 (all
    alike) to the number of classes (each sure, all equally frequent). A score of n images is too
    small by about (K - 1) / 2n, which the jackknife over groups takes out.
    """
    counts, entropies, classes = judged.counts, judged.entropies, judged.classes
    whole = _score(counts.sum(), entropies.sum(), classes.sum(dim=0))
    without = [
        _score(
            counts.sum() - counts[group],
            entropies.sum() - entropies[group],
            classes.sum(dim=0) - classes[group],
        )
        for group in range(len(counts))
    ]
    return intervals.jackknife(whole, np.array(without), int(counts.sum()), corrected=True)


def _score(count: Tensor, entropy: Tensor, classes: Tensor) -> float:
    p = classes / count
    marginal = -(p * p.clamp(min=1e-12).log()).sum()
    return float(torch.exp(marginal - entropy / count))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """better: the direction of better samples.  fresh: the floor where it is known beforehand."""

    title: str
    better: str
    of: Callable[[MetricInput], Interval]
    scale: float = 1.0
    fresh: float | None = None


METRICS = {
    "fid": Metric(title="FID of n images", better="lower", of=lambda c: c.fids[0]),
    "fid_infinity": Metric(title="FID, n → ∞", better="lower", of=lambda c: c.fids[1]),
    "kid": Metric(title="KID x 1000", better="lower", of=MetricInput.kid, scale=1000.0),
    "precision": Metric(title="precision", better="higher", of=lambda c: c.manifold.precision),
    "recall": Metric(title="recall", better="higher", of=lambda c: c.manifold.recall),
    "density": Metric(title="density", better="higher", of=lambda c: c.manifold.density),
    "coverage": Metric(title="coverage", better="higher", of=lambda c: c.manifold.coverage),
    "class_score": Metric(title="class score", better="higher", of=MetricInput.class_score),
    "class_accuracy": Metric(
        title="class accuracy", better="higher", of=MetricInput.class_accuracy
    ),
    "nearer": Metric(
        title="nearer than held out", better="to 0.5", of=MetricInput.nearer, fresh=0.5
    ),
    "copies": Metric(
        title="copies of training images",
        better="to 0.01",
        of=MetricInput.copies,
        fresh=manifold.COPY_SHARE,
    ),
}


def evaluate(
    images: Images,
    reference: Reference,
    metrics: Iterable[str] = METRICS,
    *,
    nearest: tuple[Distances, Distances] | None = None,
) -> tuple[dict[str, Interval], dict[str, str]]:
    """{name: Interval} of images against a reference, and {name: reason} of those left out.

    All workers of the reference call this; each takes its share, and all have all the numbers.
    """
    extractor = reference.extractor
    statistics = collect_together(
        extractor,
        images.batches,
        deal(images.count, images.labels if images.in_turn else None),
        reference.workers,
        labels=images.labels if extractor.knows_labels else None,
    )
    comparison = MetricInput(statistics=statistics, reference=reference, nearest=nearest)
    found: dict[str, Interval] = {}
    reasons: dict[str, str] = {}
    for name in metrics:
        try:
            found[name] = METRICS[name].of(comparison)
        except Unmeasured as reason:
            reasons[name] = str(reason)
    return found, reasons


def evaluate_samples(
    samples: SampleSet,
    real: RealData,
    split: str,
    extractor: Extractor,
    group: Group = ALONE,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of `ddpm evaluate`: every metric with its floor, and all it depends on.

    group: workers that all call this.  command: which asked for it.  Raises InputError where no
    number would mean anything.
    """
    require_measurable(samples, real, split)

    def batches(places: range) -> Iterator[Pixels]:
        return shown("features of the samples", len(places), samples.batches(places))

    reference = reference_of(real, split, extractor, group)
    found, reasons = evaluate(
        Images(count=len(samples), batches=batches, labels=samples.labels, in_turn=samples.in_turn),
        reference,
        nearest=_nearest(samples, real, group),
    )
    floors, floor_images = _floors(found, len(samples), real, split, reference)
    measures: dict[str, Any] = {}
    for name, metric in METRICS.items():
        if name in reasons:
            measures[name] = {"value": None, "reason": reasons[name]}
            continue
        floor = vars(floors[name]) if name in floors else metric.fresh
        measures[name] = {**vars(found[name]), "better": metric.better, "floor": floor}
    return {
        "format": FORMAT,
        "protocol": _protocol(samples, real, split, extractor),
        "samples": {"name": samples.name, "n": len(samples), **samples.facts},
        "reference": {"name": real.name, "split": split, "n": len(real.ids(split)), **real.facts},
        "floor_images": floor_images,
        "features": {
            "name": extractor.name,
            "sha256": extractor.sha256,
            "dimension": extractor.dimension,
            "description": extractor.description,
        },
        "measures": measures,
        "made": provenance.attempt(command or sys.argv),
    }


def write_record(record: Mapping[str, Any], samples: SampleSet, real: RealData) -> Path:
    """Keeps a record durably, beside the samples, or by the statistics where none may write."""
    beside = samples.beside
    folder = beside.parent if os.access(beside.parent, os.W_OK) else real.folder
    path = folder / f"{beside.name}_{record['features']['name']}.json"
    storage.write_json(path, record)
    return path


def _protocol(samples: SampleSet, real: RealData, split: str, extractor: Extractor) -> str:
    """The line to paste into a paper: all that the numbers depend on."""
    return (
        f"{len(samples):,} samples ({samples.protocol}) against {len(real.ids(split)):,} "
        f"{split} images of {real.name} ({real.data.sha256[:8]}), uint8, not "
        f"resized; {extractor.description} ({extractor.sha256[:8]}); FID "
        "extrapolated to infinitely many samples by the jackknife over 16 groups, KID "
        "unbiased over pairs of 16 groups, k = 3 (precision, recall) and 5 (density, "
        "coverage); 95 % intervals"
    )


def require_measurable(samples: SampleSet, real: RealData, split: str) -> None:
    """Raises InputError with all that keeps samples from being measured."""
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
    if not problems:
        first = samples.at([0])
        if all(bool((batch == first).all()) for batch in samples.batches(range(len(samples)))):
            problems.append(f"{samples.name}: all {len(samples)} images are the same one")
    if problems:
        raise InputError(problems)


def _floors(
    found: Mapping[str, Interval], count: int, real: RealData, split: str, reference: Reference
) -> tuple[dict[str, Interval], int]:
    """The floors of the numbers found, and how many real images they are of, of the other split."""
    others = real.ids("validation" if split == "train" else "train")
    ids = others[subset(len(others), count)]
    if len(ids) < LEAST:
        return {}, 0
    images = Images(
        count=len(ids),
        batches=lambda places: real.batches(ids[places.start : places.stop]),
        labels=real.labels(ids),
    )
    wanted = [name for name in found if METRICS[name].fresh is None]
    floors, _ = evaluate(images, reference, wanted)
    comparable = {
        name: floor
        for name, floor in floors.items()
        if found[name].unbiased or floor.n == found[name].n
    }
    return comparable, len(ids)


def _nearest(
    samples: SampleSet, real: RealData, group: Group
) -> tuple[Distances, Distances] | None:
    """Distances to the nearest training image, of samples and of held-out images.

    Every worker looks up all of these in its share of the training images.
    """
    held_out = real.validation_ids[subset(len(real.validation_ids), MOST_LOOKED_UP)]
    if len(held_out) < LEAST:
        return None
    chosen = samples.at(subset(len(samples), MOST_LOOKED_UP))
    queries = np.concatenate([real.images(held_out), chosen])
    own = whole_batches(len(real.train_ids), READ, group)
    batches = real.batches(real.train_ids[own.start : own.stop])
    nearest = manifold.nearest_distances(
        queries, shown("nearest training images", len(own), batches), group.device
    )
    found = group.least_(torch.from_numpy(nearest).to(group.device)).cpu().numpy()
    return found[len(held_out) :], found[: len(held_out)]


def show(record: Mapping[str, Any], console: Console) -> None:
    """Prints a record: its table, the reasons for missing numbers, the protocol line to paste."""
    table = Table(title=record["samples"]["name"], title_justify="left", box=box.SIMPLE)
    for heading in ("measure", "value", "95 % interval", "n", "floor", "better"):
        is_number = heading in ("value", "n", "floor")
        side: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(heading, justify=side, no_wrap=heading != "measure")
    for name, metric in METRICS.items():
        table.add_row(*cells(metric, record["measures"][name]))
    console.print(table)
    for name, metric in METRICS.items():
        if reason := record["measures"][name].get("reason"):
            console.print(f"{metric.title}: not measured, {reason}", soft_wrap=True)
    if record["floor_images"]:
        other = "validation" if record["reference"]["split"] == "train" else "train"
        console.print(
            f"floor: {record['floor_images']:,} real images of the {other} split, measured as the "
            "samples are",
            soft_wrap=True,
        )
    console.print(f"protocol: {record['protocol']}", soft_wrap=True, highlight=False)


def cells(metric: Metric, found: Mapping[str, Any]) -> list[str]:
    """One line of the table, from a metric's entry in a record."""
    if found["value"] is None:
        return [metric.title, "–", "", "", "", metric.better]

    def number(value: float, of: Mapping[str, Any]) -> str:
        """With as many decimals as the interval bears."""
        width = (of["high"] - of["low"]) * metric.scale
        decimals = 1 if width >= 10 else 2 if width >= 1 else 3 if width >= 0.1 else 4
        return f"{value * metric.scale:.{decimals}f}"

    floor = f"{metric.fresh:g}" if metric.fresh is not None else "–"
    if isinstance(found["floor"], Mapping):
        floor = number(found["floor"]["value"], found["floor"])
    return [
        metric.title,
        number(found["value"], found),
        f"{number(found['low'], found)} to {number(found['high'], found)}",
        f"{found['n']:,}",
        floor,
        metric.better,
    ]
