"""The real images that samples are compared with: a data set, its split, its features, kept.

Images come as the training sees them, without augmentation and random crops, as uint8 by rounding.
Trained extractors and the statistics of a split are computed once and kept under
OUTPUT_DIR/metrics/{data}/ with what they were computed from: the data's hash, split, count and
extractor. Anything else found there is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.data import (
    INDEX_FILE,
    Dataset,
    Source,
    open_data,
    open_index,
    open_source,
    preparing,
    scan_folder,
)
from ddpm.diffusion import Stream, philox
from ddpm.distributed import ALONE, Group
from ddpm.errors import InputError
from ddpm.metrics.classifier import (
    CLASSIFIER_STEPS,
    RECIPE,
    ClassifierFeatures,
    ClassifierNetwork,
    scale_features,
    train_classifier,
)
from ddpm.metrics.distances import Frechet, KernelReference
from ddpm.metrics.features import (
    KEPT,
    Extractor,
    Ints,
    Moments,
    PixelFeatures,
    Pixels,
    collect_features,
    collect_together,
    principal_components,
    random_groups,
)
from ddpm.metrics.pretrained import OPTION, PRETRAINED
from ddpm.runs import (
    CONFIG_FILE,
    ImageBar,
    KeptTensors,
    RunDirectory,
    digest,
    load_file,
    load_run,
    storage,
    tensors,
    with_bar,
)
from ddpm.sampling import locate_run, to_uint8

READ = 512  # images read at once
PIXELS_VERSION = 1
STATISTICS_VERSION = 1
_SUBSET_ID = 1 << 42  # of the draw that picks images; those of data sets lie below
# Beyond this the principal components are those of a part of the training images.
_COMPONENTS_OF = 100_000
_SCALED_BY = 10_000
_IN_MEMORY = 1 << 30  # bytes of training images, for the classifier's training


@dataclass(frozen=True, kw_only=True)
class RealData:
    """A data set with its split.

    name: for messages and the protocol.  facts: all that its images depend on.  folder: of the
    files computed from it.
    """

    name: str
    data: Dataset
    facts: dict[str, Any]
    folder: Path
    train_ids: Ints
    validation_ids: Ints

    def ids(self, split: str) -> Ints:
        """The samples of "train" or "validation", ascending."""
        return self.train_ids if split == "train" else self.validation_ids

    def images(self, ids: Ints) -> Pixels:
        """uint8 (n, H, W, C)."""
        return to_uint8(self.data.read(torch.from_numpy(ids)).images).numpy()

    def batches(self, ids: Ints) -> Iterator[Pixels]:
        """The images by and by."""
        for start in range(0, len(ids), READ):
            yield self.images(ids[start : start + READ])

    def labels(self, ids: Ints) -> Ints | None:
        """The classes of samples, without reading them."""
        index = self.data.index
        labels = None if index is None or self.data.num_classes is None else index.labels
        return None if labels is None else labels[ids]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.data.image_shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None if self.data.index is None else self.data.index.class_names


def real_data(config: Config, data_dir: Path | None, cache: Path | None = None) -> RealData:
    """The data of a configuration.  data_dir: its shards, where they are known.

    cache: where computed things are kept; None is OUTPUT_DIR/metrics. Packs what is not packed yet.
    """
    folder = data_dir if data_dir is not None else preparing.prepare(config).folder
    return as_real_data(config, open_data(config, folder), cache)


def as_real_data(config: Config, data: Dataset, cache: Path | None = None) -> RealData:
    """Data that have been opened as the configuration says."""
    options = asdict(config.DATASET.PREPROCESSING)
    facts = {
        "data_sha256": data.sha256,
        "image_shape": list(data.image_shape),
        "validation_fraction": config.DATASET.VALIDATION_FRACTION,
        "labels": config.DATASET.LABEL_KEY is not None,
        "crop": ["RESIZE" if options["RESIZE"] else options["CROP_SIZE"], options["CROP_POSITION"]],
    }
    train = np.sort(data.order(torch.arange(data.num_train)).numpy())
    everything = np.arange(data.num_train + data.num_validation)
    root = cache if cache is not None else Path(config.TRAINING.OUTPUT_DIR) / "metrics"
    return RealData(
        name=config.DATASET.NAME,
        data=data,
        facts=facts,
        folder=root / data.sha256[:16],
        train_ids=train,
        validation_ids=np.setdiff1d(everything, train, assume_unique=True),
    )


def data_of_run(run: Path, cache: Path | None = None) -> RealData:
    """The data that a run was trained on. Raises InputError when it is not what it was."""
    directory = RunDirectory(run)
    config, facts = directory.config(), directory.provenance
    place = Path(facts["data_dir"]) if "data_dir" in facts else None
    real = real_data(config, place if place and place.is_dir() else None, cache)
    known = facts.get("data_sha256", real.data.sha256)
    if known != real.data.sha256:
        raise InputError(
            f"{run} was trained on data {known[:8]}, {config.DATASET.PATH} is now "
            f"{real.data.sha256[:8]}; name the data with --against"
        )
    return real


def data_named(against: str, cache: Path | None = None) -> RealData:
    """The data that --against names: a YAML, a run directory, or whatever DATASET.PATH takes."""
    path = Path(against)
    if path.suffix in (".yaml", ".yml"):
        return real_data(load_file(path), None, cache)
    if (path / CONFIG_FILE).is_file():
        return data_of_run(locate_run(path)[0], cache)
    return real_data(*_described(against), cache)


def describe_without_reading(named: str | Path) -> tuple[str, bool]:
    """Name of the data that `named` would be, and whether it has labels; packs and writes nothing.

    named: as for data_named.  Raises InputError with what headers and sizes show to be wrong.
    """
    path = Path(named)
    is_run = (path / CONFIG_FILE).is_file()
    if is_run or path.suffix in (".yaml", ".yml"):
        config = load_run(path) if is_run else load_file(path)
        if problems := preparing.source_problems(config):
            raise InputError(problems)
        return config.DATASET.NAME, config.DATASET.LABEL_KEY is not None
    if not preparing.is_shards(path):
        return _name_of(str(named)), open_with_labels(str(named)).has_labels
    if (path / INDEX_FILE).exists():
        return _name_of(str(named)), open_index(path).num_classes is not None
    _, scans = scan_folder(path)
    return _name_of(str(named)), scans[0].samples[0].label is not None


def _described(against: str) -> tuple[Config, Path]:
    """The configuration of data that came without one, and its shards."""
    if preparing.is_shards(against):
        index = preparing.refresh(Path(against))
        channels, size, has_labels = index.channels, index.smallest_size, index.num_classes
    else:
        source = open_with_labels(against)
        shape, has_labels = source.image_shape, source.has_labels
        if shape is None:  # only pixels tell; whether they agree is known once they are packed
            first = source.load().images[0]
            shape = (first.shape[2], first.shape[0], first.shape[1])
        channels, size = shape[0], (shape[1], shape[2])
    plain = {
        "DATASET": {
            "NAME": _name_of(against),
            "PATH": against,
            "LABEL_KEY": "labels" if has_labels else None,
        },
        "TRAINING": {"INPUT_IMAGE_CHANNEL": channels, "INPUT_IMAGE_SIZE": list(size)},
    }
    config = configuration.from_dict(plain, source=f"--against {against}")
    index = preparing.prepare(config)
    if index.image_shape is None:
        raise InputError(
            f"--against {against}: its images vary in size; name a YAML instead, whose "
            "DATASET.PREPROCESSING says how they are cropped"
        )
    return config, index.folder


def open_with_labels(path: str) -> Source:
    """The source at a path, with its labels where it has any."""
    try:
        return open_source(path, "labels")
    except InputError as first:
        try:
            return open_source(path, None)
        except InputError:
            raise first from None


def subset(count: int, most: int) -> Ints:
    """At most so many of range(count), ascending: the same ones every time."""
    if count <= most:
        return np.arange(count)
    order = philox.permutation(0, Stream.EVAL, count, id=_SUBSET_ID).numpy()
    return np.sort(order[:most])


def _name_of(path: str) -> str:
    name = Path(path).name.partition(".")[0]
    safe = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
    return safe.strip("_")[:64] or "data"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A split of the real data as an extractor sees it.

    moments: of all its images.  kept: (m, D) features of at most 10,000, dealt into kept_groups.
    """

    extractor: Extractor
    moments: Moments
    kept: Tensor
    kept_groups: Tensor
    workers: Group = ALONE

    @property
    def kept_counts(self) -> Ints:
        """Number kept of each group, (K,)."""
        return self.kept_groups.bincount().numpy()

    def blocks(self) -> list[Tensor]:
        """The kept features of each group."""
        return [self.kept[self.kept_groups == group] for group in range(len(self.kept_counts))]

    @cached_property
    def kernels(self) -> KernelReference:
        """For KID; all workers call this together."""
        return KernelReference(self.blocks(), self.workers)

    @cached_property
    def frechet(self) -> Frechet:
        """For FID."""
        return Frechet(self.moments)


def open_extractor(
    features: str, real: RealData, weights: Path | None, named_by: str = OPTION
) -> Extractor:
    """The extractor of a name.  weights: its file, `named_by` this key.  Raises InputError."""
    if features in PRETRAINED:
        return PRETRAINED[features](weights, named_by)
    return classifier_features(real) if features == "classifier" else pixel_features(real)


def pixel_features(real: RealData) -> PixelFeatures:
    """The principal components of the training images, kept or computed now."""
    facts = {**real.facts, "extractor": "pixels", "version": PIXELS_VERSION}
    with _locked(real.folder):
        stem = _stem(real, "pixels", facts)
        kept = tensors.read(stem, facts)
        if kept is None:
            ids = real.train_ids[subset(len(real.train_ids), _COMPONENTS_OF)]
            batches = with_bar("principal components", len(ids), real.batches(ids))
            kept = tensors.write(stem, principal_components(batches), facts)
    return PixelFeatures(kept.tensors["mean"], kept.tensors["components"], kept.sha256)


def classifier_features(real: RealData) -> ClassifierFeatures:
    """The classifier of the data's own labels, kept or trained now. Raises InputError without."""
    num_classes = real.data.num_classes
    if num_classes is None or num_classes < 2:
        raise InputError(
            f"classifier features need data of two classes or more; {real.name} has "
            f"{'no labels' if num_classes is None else 'one'}: use --features pixels"
        )
    stem, facts = _classifier(real)
    with _locked(real.folder):
        kept = tensors.read(stem, facts) or _trained(real, num_classes, stem, facts)
    network = ClassifierNetwork(real.image_shape, num_classes)
    network.load_state_dict(kept.tensors)
    return ClassifierFeatures(network, kept.sha256, kept.results["accuracy"])


def has_classifier(real: RealData) -> bool:
    """True where the classifier of the data is kept."""
    return tensors.read(*_classifier(real)) is not None


def _classifier(real: RealData) -> tuple[Path, dict]:
    """Path of its file, and all that it depends on."""
    classes = {"classes": real.data.num_classes}
    facts = {**real.facts, "extractor": "classifier", **classes, **RECIPE}
    return _stem(real, "classifier", facts), facts


def reference_of(
    real: RealData, split: str, extractor: Extractor, group: Group = ALONE
) -> Reference:
    """The statistics of a split of the real data, kept, or computed now by all workers together."""
    ids = real.ids(split)
    facts = {
        **real.facts,
        "split": split,
        "count": len(ids),
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "version": STATISTICS_VERSION,
    }
    _require_the_same(facts, group)
    stem = _stem(real, f"{split}-{extractor.name}", facts)
    with _locked(real.folder) if group.is_main else nullcontext():
        kept = tensors.read(stem, facts) if group.is_main else None
        if group.any(kept is not None):
            kept = kept or tensors.read(stem, facts)
            assert kept is not None  # as rank 0 has found
            found = kept.tensors
        else:
            found = _statistics(real, split, extractor, group)
            if group.is_main:
                tensors.write(stem, found, facts)
    return Reference(
        extractor=extractor,
        workers=group,
        moments=Moments(count=len(ids), mean=found["mean"], scatter=found["scatter"]),
        kept=found["kept"],
        kept_groups=found["kept_groups"],
    )


def _statistics(
    real: RealData, split: str, extractor: Extractor, group: Group
) -> dict[str, Tensor]:
    """Tensors of a split, on every worker: its features too, which all compare theirs with."""
    ids = real.ids(split)

    def batches(places: range) -> Iterator[Pixels]:
        own = ids[places.start : places.stop]
        return with_bar(f"{split} images", len(own), real.batches(own))

    statistics = collect_together(extractor, batches, random_groups(len(ids)), group)
    whole = statistics.whole()
    return {
        "mean": whole.mean,
        "scatter": whole.scatter,
        "kept": torch.cat(list(group.passing(statistics.kept))),
        "kept_groups": torch.cat(list(group.passing(statistics.kept_groups))),
    }


def _require_the_same(facts: dict, group: Group) -> None:
    """Raises InputError where workers see other data or other weights than rank 0 does."""
    own = int(digest(facts)[:15], 16)
    if group.any(own != group.agree(own)):
        raise InputError(
            "the workers do not see the same data, or not the same weights of the features; give "
            "paths that are the same files on every node"
        )


def _trained(real: RealData, num_classes: int, stem: Path, facts: dict) -> KeptTensors:
    labels = real.labels(real.train_ids)
    assert labels is not None  # there are classes
    is_small = len(real.train_ids) * int(np.prod(real.image_shape)) <= _IN_MEMORY
    whole = np.concatenate(list(real.batches(real.train_ids))) if is_small else None

    def read(places: Ints) -> Pixels:
        return real.images(real.train_ids[places]) if whole is None else whole[places]

    with ImageBar("training the classifier", CLASSIFIER_STEPS, is_shown=True) as bar:
        network = train_classifier(read, labels, real.image_shape, num_classes, bar.advance)
    judge = ClassifierFeatures(network, "", None)
    ids = real.train_ids[subset(len(real.train_ids), _SCALED_BY)]
    scale_features(
        network, collect_features(judge, real.batches(ids), random_groups(len(ids)), kept=0).whole()
    )
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    return tensors.write(stem, weights, facts, {"accuracy": _accuracy(judge, real)})


def _accuracy(judge: ClassifierFeatures, real: RealData) -> float | None:
    """The share of held-out images it classifies right, of at most 10,000; None without any."""
    ids = real.validation_ids[:KEPT]
    labels = real.labels(ids)
    if not len(ids) or labels is None:
        return None
    statistics = collect_features(
        judge, real.batches(ids), random_groups(len(ids)), labels=labels, kept=0
    )
    assert statistics.judged is not None and statistics.judged.hits is not None
    return statistics.judged.hits / len(ids)


def _stem(real: RealData, what: str, facts: dict) -> Path:
    return real.folder / f"{what}-{digest(facts)[:8]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time computes missing files."""
    storage.make_folder(folder)
    with storage.lock(folder / "lock", f"the statistics in {folder}", wait_s=float("inf")):
        yield
