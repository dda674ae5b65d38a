"""The measures of samples, each with what it needs: a table of numbers, or of reasons for none.

A measure is a function of one `View` of images: the samples, and in the same way real images that
were held out, whose number is the floor: what samples as good as real ones would get. A number that
depends on how many images it is of has a floor at equal numbers only.
"""

import hashlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from ddpm import config as configuration
from ddpm.config import FID_SAMPLES, Config, plain
from ddpm.data import Dataset, ImageSequence, Loaded, Source, open_npz, open_source, packing
from ddpm.diffusion import NoiseSchedule
from ddpm.distributed import ALONE, Group, device_of, whole_batches
from ddpm.errors import InputError, Interrupted, NonFiniteError
from ddpm.metrics import features
from ddpm.metrics import manifold as memorisation
from ddpm.metrics.distances import (
    BLOCK_LEAST,
    IMAGES_PER_DIMENSION,
    Interval,
    KernelReference,
    Moments,
    fid,
    kid_against,
)
from ddpm.metrics.features import (
    GROUPS,
    Extractor,
    Judged,
    Pixels,
    Statistics,
    collect,
    collect_together,
    deal,
)
from ddpm.metrics.manifold import MOST_LOOKED_UP, Manifold, measure_manifold, nearest_distances
from ddpm.metrics.reference import (
    READ,
    OpenInception,
    RealData,
    Reference,
    as_real_data,
    classifier_features,
    open_extractor,
    open_with_labels,
    pixel_features,
    reference_of,
    subset,
)
from ddpm.runs import gpu_share, load_run, provenance, shown, storage
from ddpm.sampling import (
    CONFIG_FILE,
    SECTION,
    ImageGenerator,
    LoadedModel,
    SampleRequest,
    SamplerOptions,
    draw_batch,
    generate,
    grid_sampler,
    load_network,
    locate,
    num_calls,
    read_request,
    spacing,
    to_uint8,
)

# Each of the 16 groups needs a block for KID: fewer images give no distance at all.
LEAST = GROUPS * BLOCK_LEAST


class Unmeasured(Exception):
    """Why a number would mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Images as the measures see them.

    distances: of samples to the nearest training image; held_out: the same of held-out images.
    workers: all measure this view together; each keeps the features of its own images.
    """

    statistics: Statistics
    reference: Reference
    extractor: Extractor
    distances: NDArray[np.float64] | None = None
    held_out: NDArray[np.float64] | None = None
    workers: Group = ALONE

    @cached_property
    def fids(self) -> tuple[Interval, Interval]:
        """At the number of images, and at infinity."""
        least = IMAGES_PER_DIMENSION * self.extractor.dimension
        for count, what in (
            (self.statistics.count, "images"),
            (self.reference.moments.count, "reference images"),
        ):
            if count < least:
                raise Unmeasured(
                    f"needs {least} {what} for {self.extractor.dimension} features, there are "
                    f"{count}"
                )
        return fid(self.statistics.groups, self.reference.moments, self.workers)

    @cached_property
    def manifold(self) -> Manifold:
        """Precision, recall, density, coverage."""
        self._require_pairs()
        statistics = self.statistics
        return measure_manifold(
            statistics.kept, statistics.kept_groups, self.reference.kept, self.workers
        )

    def kid(self) -> Interval:
        """The kernel distance of the kept features."""
        self._require_pairs()
        reference = KernelReference.of(self.reference.blocks(), self.workers)
        return kid_against(self.statistics.blocks(), reference)

    def judged(self) -> Judged:
        """What the extractor's classes say."""
        if self.statistics.judged is None:
            raise Unmeasured(f"{self.extractor.name} features tell no classes")
        return self.statistics.judged

    def accuracy(self) -> Interval:
        """Of samples that have a class."""
        judged = self.judged()
        if not self.extractor.knows_labels:
            raise Unmeasured(f"the classes of {self.extractor.name} are not those of the data")
        if judged.hits is None:
            raise Unmeasured("the images come without labels")
        return features.accuracy(judged)

    def nearer(self) -> Interval:
        """How often a sample is nearer to the training images than a held-out one."""
        return memorisation.nearer(*self._distances())

    def copies(self) -> Interval:
        """The share of samples that are nearer than nearly every held-out image."""
        distances, held_out = self._distances()
        if len(held_out) < memorisation.HELD_OUT_LEAST:
            raise Unmeasured(
                f"needs {memorisation.HELD_OUT_LEAST} held-out images, there are {len(held_out)}"
            )
        if memorisation.bound(held_out) == 0:
            raise Unmeasured("1 % of the held-out images are themselves in the training set")
        return memorisation.copies(distances, held_out)

    def _distances(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.distances is None or self.held_out is None or len(self.held_out) < LEAST:
            raise Unmeasured(f"needs {LEAST} held-out images, which training never saw")
        return self.distances, self.held_out

    def _require_pairs(self) -> None:
        for counts, what in (
            (self.statistics.kept_counts, "images"),
            (self.reference.kept_counts, "reference images"),
        ):
            if len(counts) < GROUPS or counts.min() < BLOCK_LEAST:
                raise Unmeasured(f"needs {LEAST} {what}, there are {counts.sum()}")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row. better: where better samples go.  fresh: the floor where it is known beforehand."""

    key: str
    title: str
    better: str
    of: Callable[[View], Interval]
    scale: float = 1.0
    fresh: float | None = None


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """What came of a measure: a number, or the reason for none; and its floor or none."""

    measure: Measure
    estimate: Interval | None
    reason: str | None
    floor: Interval | None

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        if self.estimate is None:
            return {"value": None, "reason": self.reason}
        floor = vars(self.floor) if self.floor else self.measure.fresh
        return {**vars(self.estimate), "better": self.measure.better, "floor": floor}

    @classmethod
    def of(cls, measure: Measure, told: Mapping[str, Any]) -> "MeasureRow":
        """From what told() gave."""
        floor = told.get("floor")
        return cls(
            measure=measure,
            estimate=None if told["value"] is None else _estimate(told),
            reason=told.get("reason"),
            floor=_estimate(floor) if isinstance(floor, Mapping) else None,
        )


def _estimate(told: Mapping[str, Any]) -> Interval:
    names = ("value", "low", "high", "n", "unbiased")
    return Interval(**{name: told[name] for name in names})


MEASURES = (
    Measure(key="fid", title="FID of n images", better="lower", of=lambda view: view.fids[0]),
    Measure(key="fid_infinity", title="FID, n → ∞", better="lower", of=lambda view: view.fids[1]),
    Measure(key="kid", title="KID x 1000", better="lower", of=View.kid, scale=1000.0),
    Measure(
        key="precision", title="precision", better="higher", of=lambda view: view.manifold.precision
    ),
    Measure(key="recall", title="recall", better="higher", of=lambda view: view.manifold.recall),
    Measure(key="density", title="density", better="higher", of=lambda view: view.manifold.density),
    Measure(
        key="coverage", title="coverage", better="higher", of=lambda view: view.manifold.coverage
    ),
    Measure(
        key="class_score",
        title="class score",
        better="higher",
        of=lambda view: features.score(view.judged()),
    ),
    Measure(key="class_accuracy", title="class accuracy", better="higher", of=View.accuracy),
    Measure(key="nearer", title="nearer than held out", better="to 0.5", of=View.nearer, fresh=0.5),
    Measure(
        key="copies",
        title="copies of training images",
        better="to 0.01",
        of=View.copies,
        fresh=memorisation.COPY_SHARE,
    ),
)


def rows(view: View, floor: View | None) -> list[MeasureRow]:
    """Every measure of `view`, with the floor that held-out images give where they are enough."""
    found = []
    for measure in MEASURES:
        estimate, reason = _of(measure, view)
        below = None
        if floor is not None and estimate is not None and measure.fresh is None:
            below, _ = _of(measure, floor)
            if below is not None and not estimate.unbiased and below.n != estimate.n:
                below = None
        found.append(MeasureRow(measure=measure, estimate=estimate, reason=reason, floor=below))
    return found


def _of(measure: Measure, view: View) -> tuple[Interval | None, str | None]:
    try:
        return measure.of(view), None
    except Unmeasured as reason:
        return None, str(reason)


# --------
# The images to be measured: drawn from a run now, or read from a folder, an NPZ, IDX or shards.
#
# Every run is drawn from in the same way, so that what is compared is comparable: images 0 .. N - 1
# of seed 0, the classes in turn, DDIM of at most 50 steps, eta 0, x0 clipped, batches of 64.

DRAWN = 2000
DRAW_BATCH = 64
# Whatever the run's own file says of its pictures.
_PROTOCOL = {
    "DDIM_ETA": "0",
    "CLIP_DENOISE": "true",
    "SAMPLER": "ddim",
    "REVERSE_STRIDE": "null",
    "NUM_STEPS": "null",
    "GUIDANCE": "1",
    "RANDOM_SEED": "0",
    "CLASS_LABEL": "null",
    "FREEZE_CHANNEL": "null",
    "EXTERNAL_NPZ_INPUT": "null",
    "NEW_IMAGE_SIZE": "null",
    "EXPORT_INTERM": "false",
    "GEN_SAVE_DIR": "null",
}


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """Images and their labels.

    labels: the class asked for or told, (N,).  in_turn: classes are dealt out, not drawn.
    protocol: how the images were made, in words.  facts: the same for the record.  beside: the
    path that the results are written next to.
    """

    name: str
    images: ImageSequence
    labels: NDArray[np.int64] | None
    in_turn: bool
    protocol: str
    facts: dict[str, Any]
    beside: Path

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int | None) -> "SampleSource":
        """The first `count` of them. Raises InputError when there are fewer."""
        if count is None or count == len(self):
            return self
        if count > len(self):
            raise InputError(f"--num {count}: {self.name} has {len(self)} images")
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=_First(self.images, count), labels=labels)

    def batches(self, places: range) -> Iterator[Pixels]:
        """The images at these places, uint8 (n, H, W, C), by and by."""
        for start in range(places.start, places.stop, READ):
            yield self.at(range(start, min(start + READ, places.stop)))

    def at(self, places: Sequence[int] | NDArray[np.int64]) -> Pixels:
        """The images at these places, uint8 (n, H, W, C)."""
        return np.stack([as_bytes(self.images[int(place)]) for place in places])


def is_trained(source: Path) -> bool:
    """Whether a source is a run directory or a checkpoint: images are drawn from it."""
    if not source.is_dir():
        return False
    return (source / CONFIG_FILE).is_file() or source.resolve().parent.name == "checkpoints"


def request_of(
    source: Path, num: int | None, overrides: Sequence[str], ema: float | None
) -> SampleRequest:
    """What is drawn from a run, everything checked. `overrides` go over the usual protocol."""
    run, _ = locate(source)
    classes = load_run(run).TRAINING.NETWORK.NUM_CLASSES
    task = "random_uncond" if classes is None else "class_cond"
    usual = {"NUM_GEN_IMAGES": str(num or DRAWN), "GEN_TASK": task, **_PROTOCOL}
    changed = {text.partition("=")[0].upper() for text in overrides}
    kept = [
        f"{SECTION}.{key}={value}"
        for key, value in usual.items()
        if f"{SECTION}.{key}" not in changed
    ]
    return read_request(source, [*kept, *overrides], ema=ema, batch_size=DRAW_BATCH)


def drawn(request: SampleRequest, group: Group = ALONE) -> SampleSource:
    """The images of a request, drawn unless they are there, by all workers that call this."""
    made = generate(request, group=group)
    generator = ImageGenerator(request)
    facts, sampler = generator.recipe(), generator.sampler
    steps, stride = sampler.num_steps, sampler.reverse_stride
    spaced = f"every {stride}th step" if steps is None else f"{steps} steps"
    guided = "" if sampler.guidance == 1 else f", guidance {sampler.guidance:g}"
    protocol = (
        f"images 0 to {made.num_images - 1} of seed {sampler.seed}, {request.options.GEN_TASK}, "
        f"DDIM eta {sampler.ddim_eta:g}, {spaced}{guided}, {facts['weights']} of step "
        f"{facts['step']}"
    )
    labels = generator.labels()
    source, loaded = _npz(made.images, has_labels=labels is not None)
    step = request.checkpoint
    return SampleSource(
        name=str(request.checkpoint or request.run),
        images=loaded.images,
        labels=loaded.labels,
        in_turn=True,
        protocol=protocol,
        facts={**facts, "images_sha256": source.identity()},
        beside=request.run / f"evaluation_of_samples{f'_{step.name}' if step else ''}",
    )


def read_samples(path: Path, real: RealData, *, is_checked: bool = False) -> SampleSource:
    """The images at a path, of the size and the channels of the real ones. Raises InputError.

    is_checked: another process has read every image of them, so their shapes are known.
    """
    if packing.is_shards(path):
        images, labels, identity, names = _shards(path)
    else:
        source, loaded = _source(path)
        images, labels, identity = loaded.images, loaded.labels, source.identity()
        names = source.class_names
    if not is_checked:
        _require_shape(path, images, real)
    return SampleSource(
        name=str(path),
        images=images,
        labels=_matched(path, labels, names, real),
        in_turn=False,
        protocol=f"images of {path.name}",
        facts={"images_sha256": identity},
        beside=path.parent / f"{path.name}.evaluation_of_samples",
    )


def as_bytes(pixels: NDArray) -> Pixels:
    """(H, W, C) uint8 as it is, float in [0, 1] rounded to the nearest of 256 grey values."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.rint(np.asarray(pixels, np.float64) * 255).astype(np.uint8)


def _source(path: Path) -> tuple[Source, Loaded]:
    if path.suffix == ".npz":
        return _npz(path, has_labels=_has_classes(path))
    source = open_with_labels(str(path))
    return source, source.load(progress=True)


def _npz(path: Path, *, has_labels: bool) -> tuple[Source, Loaded]:
    source = open_source(path, "labels" if has_labels else None)
    return source, source.load()


def _has_classes(path: Path) -> bool:
    """Whether an NPZ has labels that mean something: -1 stands for images without a class."""
    try:
        member = open_npz(path).get("labels")
        return member is not None and not bool((member.read() == -1).all())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _shards(
    path: Path,
) -> tuple[ImageSequence, NDArray[np.int64] | None, str, tuple[str, ...] | None]:
    index = packing.refresh(path)
    if index.image_shape is None:
        raise InputError(f"{path}: its images vary in size; measured images have one size")
    from ddpm.config import DatasetSection as Options

    options = Options(NAME="samples", PATH=str(path), LABEL_KEY=None)
    data = Dataset(index, options, index.image_shape, seed=0)
    return _OfShards(data, index.num_samples), index.labels, index.sha256, index.class_names


def _require_shape(path: Path, images: ImageSequence, real: RealData) -> None:
    channels, height, width = real.image_shape
    wrong: list[str] = []
    for place in range(len(images)) if not isinstance(images, _OfShards | np.ndarray) else (0,):
        if (shape := images[place].shape) != (height, width, channels):
            wrong.append(f"image {place} is {shape[0]}x{shape[1]} with {shape[2]} channel(s)")
    if wrong:
        raise InputError(
            f"{path}: {wrong[0]}, {len(wrong)} image(s) in all differ; the images of {real.name} "
            f"are {height}x{width} with {channels}. Nothing is resized here, since that changes "
            "every number; resize them yourself, and say how"
        )


def _matched(
    path: Path,
    labels: NDArray[np.int64] | None,
    names: tuple[str, ...] | None,
    real: RealData,
) -> NDArray[np.int64] | None:
    """The labels as classes of the real data, by name where both have names."""
    classes = real.data.num_classes
    if labels is None or classes is None:
        return None
    if names and real.class_names and names != real.class_names:
        if unknown := sorted(set(names) - set(real.class_names)):
            raise InputError(
                f"{path}: {unknown[0]!r} is no class of {real.name}; it has "
                f"{', '.join(real.class_names[:10])}"
            )
        return np.array([real.class_names.index(name) for name in names], np.int64)[labels]
    if len(labels) and int(labels.max()) >= classes:
        raise InputError(
            f"{path} has the label {int(labels.max())}; {real.name} has the classes 0 to "
            f"{classes - 1}"
        )
    return labels


class _First:
    """The first images of a sequence."""

    def __init__(self, images: ImageSequence, count: int) -> None:
        self._images, self._count = images, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        return self._images[number]


class _OfShards:
    """The images of shards by number, a span read at once."""

    def __init__(self, data: Dataset, count: int) -> None:
        self._data, self._count = data, count
        self._start, self._span = 0, np.empty((0, 0, 0, 0), np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Pixels:
        if not self._start <= number < self._start + len(self._span):
            import torch

            ids = torch.arange(number, min(number + READ, self._count))
            self._start, self._span = number, to_uint8(self._data.read(ids).images).numpy()
        return self._span[number - self._start]


# --------
# Samples measured against real data, from end to end: the table, the protocol line, the record.
#
# measured = evaluate(samples, real, "train", extractor)
# measured.write()

FEATURES = ("classifier", "pixels", "inception")
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured, of what, against what."""

    samples: SampleSource
    real: RealData
    split: str
    extractor: Extractor
    rows: list[MeasureRow]
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
        storage.write_json(self.file, self.record(command))
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
    samples: SampleSource, real: RealData, split: str, extractor: Extractor, group: Group = ALONE
) -> Measured:
    """Every measure of the samples. Raises InputError where none would mean anything.

    group: workers that all call this; each takes its share, and all have all the numbers.
    """
    require_measurable(samples, real, split)
    dealt = deal(len(samples), samples.labels if samples.in_turn else None)
    statistics = _statistics(samples, dealt, extractor, group)
    if statistics.whole().scatter.diagonal().max() <= 0:
        raise InputError(f"{samples.name}: all images have the same features; they are one image")
    known = reference_of(real, split, extractor, group)
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


def require_measurable(samples: SampleSource, real: RealData, split: str) -> None:
    """Raises InputError with all that keeps samples from being measured."""
    problems = _too_few(samples, real, split) or _constant(samples)
    if problems:
        raise InputError(problems)


def _too_few(samples: SampleSource, real: RealData, split: str) -> list[str]:
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


def _constant(samples: SampleSource) -> list[str]:
    """Samples that are all one image have no distribution."""
    first = samples.at([0])
    is_one = all(bool((batch == first).all()) for batch in samples.batches(range(len(samples))))
    return [f"{samples.name}: all {len(samples)} images are the same one"] if is_one else []


def _statistics(
    samples: SampleSource, dealt: NDArray[np.int64], extractor: Extractor, group: Group
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
    samples: SampleSource, real: RealData, group: Group
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


# --------
# The measures of samples as a table on the terminal, the protocol line under it.


def show(record: Mapping[str, Any], console: Console) -> None:
    """Prints the record of an evaluation: its table, the reasons for what is missing, the protocol
    line to paste.
    """
    table = Table(title=record["samples"]["name"], title_justify="left", box=box.SIMPLE)
    for heading in ("measure", "value", "95 % interval", "n", "floor", "better"):
        is_number = heading in ("value", "n", "floor")
        side: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(heading, justify=side, no_wrap=heading != "measure")
    rows = [MeasureRow.of(measure, record["measures"][measure.key]) for measure in MEASURES]
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    for row in rows:
        if row.reason:
            console.print(f"{row.measure.title}: not measured, {row.reason}", soft_wrap=True)
    if record["floor_images"]:
        other = "validation" if record["reference"]["split"] == "train" else "train"
        console.print(
            f"floor: {record['floor_images']:,} real images of the {other} split, measured as the "
            "samples are",
            soft_wrap=True,
        )
    console.print(f"protocol: {record['protocol']}", soft_wrap=True, highlight=False)


def cells(row: MeasureRow) -> list[str]:
    """One line of the table."""
    measure, found = row.measure, row.estimate
    if found is None:
        return [measure.title, "–", "", "", "", measure.better]
    floor = f"{measure.fresh:g}" if measure.fresh is not None else "–"
    if row.floor is not None:
        floor = _number(row.floor.value * measure.scale, row.floor, measure.scale)
    return [
        measure.title,
        _number(found.value * measure.scale, found, measure.scale),
        " to ".join(
            _number(bound * measure.scale, found, measure.scale)
            for bound in (found.low, found.high)
        ),
        f"{found.n:,}",
        floor,
        measure.better,
    ]


def _number(value: float, of: Interval, scale: float) -> str:
    """With as many decimals as the interval bears."""
    width = (of.high - of.low) * scale
    decimals = 1 if width >= 10 else 2 if width >= 1 else 3 if width >= 0.1 else 4
    return f"{value:.{decimals}f}"


# --------
# What the samples of a network are worth while it trains: FID, KID and class accuracy.
#
# Each worker draws its share of EVALUATION.SAMPLES images and extracts their features; sums are
# added, the features that KID compares pass by, and no worker waits for more than a share. The images
# are those of the sample grids: DDIM, eta 0, x0 clipped, EVALUATION.SEED, classes in turn, batches of
# one size. A number that would mean nothing, of too few images, is left out.

KID_IMAGES = GROUPS * BLOCK_LEAST
# Images are drawn in the batches in which features are extracted: both keep their bits.
BATCH = Extractor.batch_size


class SampleValidation:
    """Measures networks against the training images of `data`; all workers call it together."""

    def __init__(
        self,
        config: Config,
        schedule: NoiseSchedule,
        data: Dataset,
        group: Group,
        inception: OpenInception | None = None,
    ) -> None:
        self._config, self._schedule, self._group = config, schedule, group
        self._real, self._inception = as_real_data(config, data), inception
        self._known: _Known | None = None
        self._require_enough()

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """val_fid_infinity and val_kid, and val_class_accuracy where classes were asked for."""
        known = self._known = self._known or self._opened()
        extractor, count, labels = known.extractor, self._config.EVALUATION.SAMPLES, self._labels()
        statistics = collect_together(
            extractor,
            lambda places: self._drawn(network, places, labels),
            deal(count, labels),
            self._group,
            labels=labels if extractor.knows_labels else None,
        )
        found = {}
        if min(count, known.moments.count) >= IMAGES_PER_DIMENSION * extractor.dimension:
            estimate = fid(statistics.groups, known.moments, self._group)[1]
            found["val_fid_infinity"] = estimate.value
        if min(*statistics.kept_counts, *known.kernels.sizes) >= BLOCK_LEAST:
            found["val_kid"] = kid_against(statistics.blocks(), known.kernels).value
        if statistics.judged is not None and statistics.judged.hits is not None:
            found["val_class_accuracy"] = statistics.judged.hits / count
        return found

    def _require_enough(self) -> None:
        """Raises InputError where BEST could never be measured."""
        options, train = self._config.EVALUATION, len(self._real.train_ids)
        least = {"fid_infinity": FID_SAMPLES[options.FEATURES or "pixels"], "kid": KID_IMAGES}
        if train < least.get(options.BEST or "", 0):
            raise InputError(
                f"EVALUATION.BEST is {options.BEST}, which needs {least[options.BEST or '']} "
                f"training images with FEATURES {options.FEATURES}, and {self._real.name} has "
                f"{train}; give BEST mean_log10_mse"
            )

    def _opened(self) -> "_Known":
        """Made at the first call. What is trained is trained by rank 0; the others read it."""
        options = self._config.EVALUATION
        weights = None if options.WEIGHTS is None else Path(options.WEIGHTS)
        if not self._group.is_main:
            self._group.wait()
        extractor = open_extractor(
            options.FEATURES or "pixels", self._real, weights, self._inception
        )
        if self._group.is_main:
            self._group.wait()
        found = reference_of(self._real, "train", extractor, self._group)
        return _Known(
            extractor=extractor,
            moments=found.moments,
            kernels=KernelReference.of(found.blocks(), self._group),
        )

    def _labels(self) -> NDArray[np.int64] | None:
        classes = self._config.TRAINING.NETWORK.NUM_CLASSES
        return None if classes is None else np.arange(self._config.EVALUATION.SAMPLES) % classes

    def _drawn(
        self, network: nn.Module, places: range, labels: NDArray[np.int64] | None
    ) -> Iterator[NDArray[np.uint8]]:
        """The images at these places, whole batches; the last one without what fills it up."""
        count, sampler = self._config.EVALUATION.SAMPLES, grid_sampler(self._config, self._schedule)
        for first in range(places.start, places.stop, BATCH):
            ids = torch.arange(first, first + BATCH, device=self._group.device)
            wanted = None if labels is None else torch.from_numpy(labels[ids.cpu() % count])
            pixels = draw_batch(
                network,
                self._schedule,
                ids,
                configuration.image_shape(self._config),
                sampler,
                labels=None if wanted is None else wanted.to(ids.device),
            )
            yield pixels[: count - first]


def passes(config: Config, schedule: NoiseSchedule) -> int:
    """Images that go through the network at one evaluation; none where no FEATURES are given."""
    if config.EVALUATION.FEATURES is None:
        return 0
    batches = -(-config.EVALUATION.SAMPLES // BATCH)
    return batches * BATCH * num_calls(grid_sampler(config, schedule), schedule)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What samples are compared by, and the training images as it sees them."""

    extractor: Extractor
    moments: Moments
    kernels: KernelReference


# --------
# sample_quality.json and .npz of a run: what its samples are worth, by steps and eta; no torch.
#
#     {"format": 1, "features", "num", "protocol", "unit", "is_beta_defined", "identity",
#      "points": [{"sampler", "num_steps", "eta", "evaluations", "seconds",
#                  "fid": {"value", "low", "high"} | null, "kid", "accuracy", "reasons"}, ...],
#      "left_out": [{"num_steps", "eta", "reason"}, ...], "arrays_sha256"}
#     images uint8 (points, N, H, W, C), labels int64 (N,), num_steps and eta (points,)
#
# Both are written anew after every point, the arrays first. What does not fit together, or was
# measured of anything else than `identity` says, counts as nothing and is measured again.

QUALITY_FORMAT = 1
FACTS, ARRAYS = "sample_quality.json", "sample_quality.npz"
QUALITY_MEASURES = ("fid", "kid", "accuracy")


@dataclass(frozen=True, kw_only=True)
class StoredInterval:
    """A number and its 95 % interval, over samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class QualityPoint:
    """What images are worth that were drawn in `num_steps` steps with `eta`.

    evaluations: network calls an image.  seconds: core- or GPU-seconds of drawing all images.
    fid (extrapolated to infinitely many samples), kid, accuracy: None for the reason in `reasons`.
    """

    sampler: str
    num_steps: int
    eta: float
    evaluations: int
    seconds: float
    fid: StoredInterval | None
    kid: StoredInterval | None
    accuracy: StoredInterval | None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def interval(self, measure: str) -> StoredInterval | None:
        """One of MEASURES by its name."""
        return {"fid": self.fid, "kid": self.kid, "accuracy": self.accuracy}[measure]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A point that was asked for and is not there, and why."""

    num_steps: int
    eta: float
    reason: str


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
    whether the noise schedule depends on the number of timesteps.  identity: what was measured.
    """

    features: str
    num: int
    protocol: str
    unit: str
    is_beta_defined: bool
    identity: Mapping[str, Any]
    points: tuple[QualityPoint, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def point(self, num_steps: int, eta: float) -> QualityPoint | None:
        """The point with these; None where it was left out or not asked for."""
        same = (p for p in self.points if (p.num_steps, p.eta) == (num_steps, eta))
        return next(same, None)


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
    written = storage.write_bytes(folder / ARRAYS, buffer.getvalue())
    facts = {"format": QUALITY_FORMAT, **asdict(quality), "arrays_sha256": written.sha256}
    storage.write_json(folder / FACTS, facts)


def read_quality(folder: Path) -> Quality | None:
    """What sample_quality.json says; None where there is none, or a damaged or foreign one."""
    facts = _facts(folder)
    try:
        return None if facts is None else _quality(facts)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None


def read_pictures(folder: Path) -> SamplePictures | None:
    """The images beside it; None where they are not those it was written with."""
    facts = _facts(folder)
    if facts is None:
        return None
    try:
        content = (folder / ARRAYS).read_bytes()
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


def _point(facts: Mapping[str, Any]) -> QualityPoint:
    return QualityPoint(
        sampler=str(facts["sampler"]),
        num_steps=int(facts["num_steps"]),
        eta=float(facts["eta"]),
        evaluations=int(facts["evaluations"]),
        seconds=float(facts["seconds"]),
        fid=_read_interval(facts.get("fid")),
        kid=_read_interval(facts.get("kid")),
        accuracy=_read_interval(facts.get("accuracy")),
        reasons={str(key): str(value) for key, value in facts.get("reasons", {}).items()},
    )


def _read_interval(facts: Mapping[str, Any] | None) -> StoredInterval | None:
    if facts is None:
        return None
    numbers = [float(facts[name]) for name in ("value", "low", "high")]
    if not all(map(isfinite, numbers)):
        raise ValueError("not finite")
    return StoredInterval(value=numbers[0], low=numbers[1], high=numbers[2])


def stacked(images: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Images of each point as one array; (0, *shape) of none."""
    return np.stack(images) if images else np.zeros((0, *shape), np.uint8)


# --------
# Measures the images of one walk after the other, and keeps what was measured in the run.

PICTURED = 100  # images of each point that are kept to be looked at
SAMPLER = "ddim"
# What the samples depend on besides the network.
_KEYS = ("SEED", "SAMPLING_STEPS", "SAMPLING_ETAS", "SAMPLING_NUM", "SAMPLING_LOGSNR")

KeptPixels = NDArray[np.uint8]

log = logging.getLogger("ddpm.run")


@dataclass(frozen=True, kw_only=True)
class SampleWalk:
    """A number of steps and an eta."""

    num_steps: int
    eta: float


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images uint8 (N, H, W, C) and the core- or GPU-seconds that drawing them took."""

    images: KeptPixels
    seconds: float


class Keeper:
    """Measures what is drawn, and keeps it beside what had been measured before."""

    def __init__(
        self,
        run: Path,
        labels: NDArray[np.int64] | None,
        extractor: Extractor,
        known: Reference,
        quality: Quality,
        images: list[KeptPixels],
    ) -> None:
        self.quality = quality
        self._run, self._labels, self._extractor, self._known = run, labels, extractor, known
        self._images = images

    @classmethod
    def open(
        cls,
        run: Path,
        model: LoadedModel,
        config: Config,
        data: Dataset,
        labels: NDArray[np.int64] | None,
    ) -> "Keeper":
        """With the points that are there, if they are of this network and these samples."""
        real, options = as_real_data(config, data), config.EVALUATION
        has_classes = data.num_classes is not None and data.num_classes > 1
        extractor = classifier_features(real) if has_classes else pixel_features(real)
        quality = Quality(
            features=extractor.name,
            num=options.SAMPLING_NUM,
            protocol=_protocol(model, config, real, extractor),
            unit="GPU-seconds" if device_of(model.network).type == "cuda" else "core-seconds",
            is_beta_defined=model.schedule.is_beta_defined,
            identity={
                "step": model.step,
                "weights": model.name,
                "weights_sha256": model.sha256,
                "data_sha256": data.sha256,
                "features_sha256": extractor.sha256,
                **{name: plain(getattr(options, name)) for name in _KEYS},
            },
        )
        before, pictures = read_quality(run), read_pictures(run)
        images: list[KeptPixels] = []
        if before and pictures and before.identity == quality.identity:
            quality = replace(quality, points=before.points, left_out=before.left_out)
            images = list(pictures.images)
        known = reference_of(real, "train", extractor)
        return cls(run, labels, extractor, known, quality, images)

    @property
    def done(self) -> int:
        """Walks that need not be taken again."""
        return len(self.quality.points) + len(self.quality.left_out)

    def leave_out(self, walk: SampleWalk, reason: str | None) -> None:
        """Says why there is nothing to measure."""
        left = LeftOut(num_steps=walk.num_steps, eta=walk.eta, reason=reason or "")
        self.quality = replace(self.quality, left_out=(*self.quality.left_out, left))
        self._write()

    def add(self, walk: SampleWalk, drawn: Drawn) -> None:
        """Measures the images of a walk and writes what there is."""
        labels = self._labels if self._extractor.knows_labels else None
        statistics = collect(
            self._extractor,
            [drawn.images],
            deal(len(drawn.images), self._labels),
            labels=labels,
        )
        view = View(statistics=statistics, reference=self._known, extractor=self._extractor)
        reasons: dict[str, str] = {}
        found = {
            name: _interval(name, of, reasons)
            for name, of in (
                ("fid", lambda: view.fids[1]),
                ("kid", view.kid),
                ("accuracy", view.accuracy),
            )
        }
        point = QualityPoint(
            sampler=SAMPLER,
            num_steps=walk.num_steps,
            eta=walk.eta,
            evaluations=walk.num_steps,
            seconds=drawn.seconds,
            reasons=reasons,
            **found,
        )
        self.quality = replace(self.quality, points=(*self.quality.points, point))
        self._images.append(drawn.images[:PICTURED])
        log.info("%d steps, eta %g: %s", walk.num_steps, walk.eta, _glance(point))
        self._write()

    def _write(self) -> None:
        shape = self._images[0].shape if self._images else (0, 0, 0, 0)
        numbers = np.full(self.quality.num, -1) if self._labels is None else self._labels
        pictures = SamplePictures(images=stacked(self._images, shape), labels=numbers[:PICTURED])
        store_quality(self._run, self.quality, pictures)


def _protocol(model: LoadedModel, config: Config, real: RealData, extractor: Extractor) -> str:
    """All that the numbers depend on but steps and eta, in a line."""
    options = config.EVALUATION
    levels = "evenly spaced timesteps"
    if options.SAMPLING_LOGSNR is not None:
        levels = "log SNRs evenly from {:g} to {:g}".format(*options.SAMPLING_LOGSNR)
    return (
        f"{options.SAMPLING_NUM:,} samples of seed {options.SEED} ({model.name}, DDIM, x0 clipped, "
        f"{levels}) against {len(real.train_ids):,} train images of {real.name} "
        f"({real.data.sha256[:8]}); {extractor.description} ({extractor.sha256[:8]}); FID "
        "extrapolated to infinitely many samples, KID unbiased; 95 % intervals over samples"
    )


def _glance(point: QualityPoint) -> str:
    """The numbers of a point, short."""
    found = ((name, point.interval(name)) for name in QUALITY_MEASURES)
    return "  ".join(f"{name} {one.value:.4g}" for name, one in found if one is not None)


def _interval(
    name: str, measure: Callable[[], Interval], reasons: dict[str, str]
) -> StoredInterval | None:
    """A measure's number; None, and the reason noted, where it would mean nothing."""
    try:
        found = measure()
    except Unmeasured as reason:
        reasons[name] = str(reason)
        return None
    return StoredInterval(value=found.value, low=found.low, high=found.high)


# --------
# What the samples of a finished network are worth and cost, over numbers of steps and eta.
#
# For every EVALUATION.SAMPLING_STEPS and SAMPLING_ETAS the same SAMPLING_NUM images are drawn (DDIM,
# x0 clipped, EVALUATION.SEED, classes in turn, batches of one size, averaged weights) and compared
# with the training images: FID extrapolated to infinitely many samples, KID, class accuracy.
#
# With SAMPLING_LOGSNR the walks visit the same log SNRs whatever noise schedule the network was
# trained with, as in Hang et al. 2024, section 4: what is compared is the network, not the spacing
# that its schedule happens to have. Schedules that do not reach them are left out, with the reason.
#
# All workers draw, rank 0 measures. Every point is kept as soon as it is measured; a run that is
# continued goes on with the next.

QUALITY_BATCH = 64


def walks(config: Config) -> list[SampleWalk]:
    """What is asked for: fewest steps first, within them the etas as they are given."""
    options = config.EVALUATION
    return [
        SampleWalk(num_steps=num_steps, eta=eta)
        for num_steps, eta in product(sorted(options.SAMPLING_STEPS), options.SAMPLING_ETAS)
    ]


def sampler_of(walk: SampleWalk, config: Config) -> SamplerOptions:
    """How the images of a walk are drawn."""
    between = config.EVALUATION.SAMPLING_LOGSNR
    return SamplerOptions(
        pred_type=config.TRAINING.PRED_TYPE,
        num_steps=walk.num_steps,
        ddim_eta=walk.eta,
        spacing="trailing" if between is None else "logsnr",
        between=between,
        clip_denoise=True,
        seed=config.EVALUATION.SEED,
    )


def why_not(walk: SampleWalk, config: Config, schedule: NoiseSchedule) -> str | None:
    """Why a schedule cannot be walked so; None where it can."""
    last = schedule.num_timesteps
    if walk.num_steps > last:
        return f"{walk.num_steps} steps are more than the {last} timesteps it was trained with"
    sampler = sampler_of(walk, config)
    try:
        spacing.levels(
            schedule, spacing=sampler.spacing, between=sampler.between, num_steps=walk.num_steps
        )
    except ValueError as reason:
        return str(reason)
    return None


def measure_samples(
    run: Path,
    config: Config,
    data: Dataset,
    group: Group,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Quality | None:
    """The quality of a run's samples, written into its directory; None where nothing is asked for.

    Called by all workers together, once the last checkpoint is there; those but rank 0 get None.
    Raises Interrupted when `should_stop()` says so on rank 0.
    """
    if not walks(config):
        return None
    group.wait()  # for rank 0 to have written the checkpoint that all read
    model = load_network(run, device=group.device)
    asked, labels = walks(config), labels_of(config)
    keeper = Keeper.open(run, model, config, data, labels) if group.is_main else None
    draw = _Draw(model, config, group, labels, should_stop)
    for walk in asked[group.agree(keeper.done if keeper else 0) :]:
        reason, drawn = why_not(walk, config, model.schedule), None
        if reason is None:
            drawn, reason = draw(walk), "the images that the network draws are not finite"
        if keeper is None:
            continue
        if drawn is None:
            keeper.leave_out(walk, reason)
        else:
            keeper.add(walk, drawn)
    return keeper.quality if keeper else None


class _Draw:
    """Draws the images of a walk, by all workers."""

    def __init__(
        self,
        model: LoadedModel,
        config: Config,
        group: Group,
        labels: NDArray[np.int64] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._model, self._config, self._group = model, config, group
        self._labels, self._should_stop = labels, should_stop

    def __call__(self, walk: SampleWalk) -> Drawn | None:
        """None where an image is not finite."""
        group, count = self._group, self._config.EVALUATION.SAMPLING_NUM
        channels, height, width = configuration.image_shape(self._config)
        batches, sampler = -(-count // QUALITY_BATCH), sampler_of(walk, self._config)
        images = torch.zeros(batches * QUALITY_BATCH, height, width, channels, dtype=torch.uint8)
        wall, cpu, is_finite = time.perf_counter(), time.process_time(), True
        for batch in range(group.rank, -(-batches // group.size) * group.size, group.size):
            if group.any(group.is_main and self._should_stop()):
                raise Interrupted(
                    f"stopped at {walk.num_steps} steps with eta {walk.eta:g} of the samples that "
                    "are measured at the end; run the same command again to continue"
                )
            if batch < batches and is_finite:
                try:
                    images[batch * QUALITY_BATCH : (batch + 1) * QUALITY_BATCH] = self._batch(
                        batch, sampler
                    )
                except NonFiniteError:
                    is_finite = False
        if group.any(not is_finite):
            return None
        found = group.sum_(images.to(group.device)).cpu()  # each is drawn by one of them
        if group.device.type == "cuda":
            seconds = (time.perf_counter() - wall) * gpu_share(self._config)
        else:
            seconds = time.process_time() - cpu
        total = group.sum_(torch.tensor(seconds, dtype=torch.float64, device=group.device))
        return Drawn(images=found[:count].numpy(), seconds=float(total))

    def _batch(self, batch: int, sampler: SamplerOptions) -> torch.Tensor:
        ids = torch.arange(
            batch * QUALITY_BATCH, (batch + 1) * QUALITY_BATCH, device=self._group.device
        )
        wanted = None
        if self._labels is not None:
            wanted = torch.from_numpy(self._labels[ids.cpu() % len(self._labels)]).to(ids.device)
        shape = configuration.image_shape(self._config)
        model = self._model
        pixels = draw_batch(model.network, model.schedule, ids, shape, sampler, labels=wanted)
        return torch.from_numpy(pixels)


def labels_of(config: Config) -> NDArray[np.int64] | None:
    """The class of each image, classes in turn; None without any."""
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    return None if classes is None else np.arange(config.EVALUATION.SAMPLING_NUM) % classes


def quality_passes(config: Config, schedule: NoiseSchedule) -> int:
    """Images that go through the network to draw all that is asked for."""
    possible = [walk for walk in walks(config) if why_not(walk, config, schedule) is None]
    drawn = -(-config.EVALUATION.SAMPLING_NUM // QUALITY_BATCH) * QUALITY_BATCH
    return drawn * sum(walk.num_steps for walk in possible)
