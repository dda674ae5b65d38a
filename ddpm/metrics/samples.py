"""Sets of samples and the record of their evaluation: images drawn from a run now, or read from a
folder, an NPZ, IDX or shards.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ddpm.config import DatasetSection, ImageGeneration
from ddpm.data import Dataset, ImageSequence, Loaded, Source, open_npz, open_source, preparing
from ddpm.distributed import ALONE, Group, whole_batches
from ddpm.errors import InputError
from ddpm.metrics import manifold
from ddpm.metrics.evaluation import LEAST, METRICS, Images, Metric, evaluate, real_images
from ddpm.metrics.features import Extractor, Ints, Pixels
from ddpm.metrics.intervals import Interval, Numbers
from ddpm.metrics.manifold import MOST_LOOKED_UP
from ddpm.metrics.reference import READ, RealData, Reference, open_with_labels, reference_of, subset
from ddpm.runs import provenance, storage, with_bar
from ddpm.sampling import ImageGenerator, SampleRequest, to_uint8

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Images and their labels.

    labels: the class of each, (N,), where they have one.  in_turn: classes are dealt out, not
    drawn.  protocol: how the images were made, in words.  facts: the same for the record.  beside:
    the path that the results are written next to.
    """

    name: str
    images: ImageSequence
    labels: Ints | None
    in_turn: bool
    protocol: str
    facts: dict[str, Any]
    beside: Path
    count: int | None = None

    def __len__(self) -> int:
        return len(self.images) if self.count is None else self.count

    def first(self, count: int | None) -> "SampleSet":
        """The first `count` of them. Raises InputError when there are fewer."""
        if count is None or count == len(self):
            return self
        if count > len(self):
            raise InputError(f"--num {count}: {self.name} has {len(self)} images")
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, count=count, labels=labels)

    def batches(self, places: range) -> Iterator[Pixels]:
        """The images at these places, uint8 (n, H, W, C), by and by."""
        for start in range(places.start, places.stop, READ):
            yield self.at(range(start, min(start + READ, places.stop)))

    def at(self, places: Sequence[int] | Ints) -> Pixels:
        """The images at these places, uint8 (n, H, W, C).

        Floats in [0, 1] are rounded to the nearest of 256 grey values.
        """
        pixels = [np.asarray(self.images[int(place)]) for place in places]
        return np.stack(
            [
                one if one.dtype == np.uint8 else np.rint(one.astype(np.float64) * 255).astype("u1")
                for one in pixels
            ]
        )


def draw_samples(request: SampleRequest, group: Group = ALONE) -> SampleSet:
    """The images of a request, drawn unless they are there, by all workers that call this."""
    generator = ImageGenerator(request)
    made = generator.run(group)
    facts, sampler = generator.recipe(), generator.sampler
    steps, stride = sampler.num_steps, sampler.reverse_stride
    spaced = f"every {stride}th step" if steps is None else f"{steps} steps"
    protocol = (
        f"images 0 to {made.num_images - 1} of seed {sampler.seed}, {request.options.GEN_TASK}, "
        f"{_walk(request.options)}, {spaced}{_guided(request.options)}, {facts['weights']} of step "
        f"{facts['step']}"
    )
    source, loaded = _npz(made.images, "images", None if generator.labels() is None else "labels")
    step = request.checkpoint
    return SampleSet(
        name=str(request.checkpoint or request.run),
        images=loaded.images,
        labels=loaded.labels,
        in_turn=True,
        protocol=protocol,
        facts={**facts, "images_sha256": source.identity()},
        beside=request.run / f"evaluation_of_samples{f'_{step.name}' if step else ''}",
    )


def _walk(options: ImageGeneration) -> str:
    """The sampler, and its spacing where that is not the usual one."""
    name = f"DDIM eta {options.DDIM_ETA:g}" if options.SAMPLER == "ddim" else options.SAMPLER
    return name if options.SPACING == "trailing" else f"{name}, spacing {options.SPACING}"


def _guided(options: ImageGeneration) -> str:
    """Guidance with all that shapes it; empty where it is off."""
    if options.GUIDANCE == 1:
        return ""
    parts = [f", guidance {options.GUIDANCE:g}"]
    if options.GUIDE is not None:
        parts.append(f"by {options.GUIDE}")
    if options.GUIDANCE_INTERVAL is not None:
        low, high = options.GUIDANCE_INTERVAL
        parts.append(f"from log SNR {low:g} to {high:g}")
    if options.GUIDANCE_RESCALE:
        parts.append(f"rescaled by {options.GUIDANCE_RESCALE:g}")
    return " ".join(parts)


def read_samples(path: Path, real: RealData, *, is_checked: bool = False) -> SampleSet:
    """The images at a path, of the size and the channels of the real ones. Raises InputError.

    is_checked: another process has read every image of them, so their shapes are known.
    """
    images: ImageSequence
    if preparing.is_shards(path):
        index = preparing.refresh(path)
        if index.image_shape is None:
            raise InputError(f"{path}: its images vary in size; measured images have one size")
        options = DatasetSection(NAME="samples", PATH=str(path), LABEL_KEY=None)
        images = _OfShards(Dataset(index, options, index.image_shape, seed=0), index.num_samples)
        labels, identity, names = index.labels, index.sha256, index.class_names
    else:
        source, loaded = _source(path)
        images, labels, identity = loaded.images, loaded.labels, source.identity()
        names = source.class_names
    if not is_checked:
        _require_shape(path, images, real)
    return SampleSet(
        name=str(path),
        images=images,
        labels=_matched(path, labels, names, real),
        in_turn=False,
        protocol=f"images of {path.name}",
        facts={"images_sha256": identity},
        beside=path.parent / f"{path.name}.evaluation_of_samples",
    )


def _source(path: Path) -> tuple[Source, Loaded]:
    if path.suffix == ".npz":
        return _npz(path, *_arrays(path))
    source = open_with_labels(str(path))
    return source, source.load()


def _npz(path: Path, pixels: str, classes: str | None) -> tuple[Source, Loaded]:
    source = open_source(path, classes, image_key=pixels)
    return source, source.load()


def _arrays(path: Path) -> tuple[str, str | None]:
    """Names of images and labels in an NPZ: `images` and `labels`, or as guided-diffusion has them.

    None for labels that mean nothing: -1 stands for images without a class.
    """
    try:
        members = open_npz(path)
        is_theirs = "arr_0" in members and "images" not in members
        pixels, classes = ("arr_0", "arr_1") if is_theirs else ("images", "labels")
        member = members.get(classes)
        has_classes = member is not None and not bool((member.read() == -1).all())
        return pixels, classes if has_classes else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


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
    path: Path, labels: Ints | None, names: tuple[str, ...] | None, real: RealData
) -> Ints | None:
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


class _OfShards:
    """The images of shards by number, many read at once."""

    def __init__(self, data: Dataset, count: int) -> None:
        self._data, self._count = data, count
        self._start, self._read = 0, np.empty((0, 0, 0, 0), np.uint8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Pixels:
        if not self._start <= number < self._start + len(self._read):
            ids = torch.arange(number, min(number + READ, self._count))
            self._start, self._read = number, to_uint8(self._data.read(ids).images).numpy()
        return self._read[number - self._start]


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
        return with_bar("features of the samples", len(places), samples.batches(places))

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
    wanted = [name for name in found if METRICS[name].fresh is None]
    floors, num = real_images(wanted, count, real, split, reference)
    comparable = {
        name: floor
        for name, floor in floors.items()
        if found[name].unbiased or floor.n == found[name].n
    }
    return comparable, num


def _nearest(samples: SampleSet, real: RealData, group: Group) -> tuple[Numbers, Numbers] | None:
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
        queries, with_bar("nearest training images", len(own), batches), group.device
    )
    found = group.least_(torch.from_numpy(nearest).to(group.device)).cpu().numpy()
    return found[len(held_out) :], found[: len(held_out)]


def print_record(record: Mapping[str, Any], console: Console) -> None:
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
