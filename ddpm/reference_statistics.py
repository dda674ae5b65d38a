"""The real side of every comparison, computed once: trained extractors, statistics of a split.

They are kept under OUTPUT_DIR/metrics/{data}/ with what they were computed from: the data's hash,
split, count and extractor. Anything else found there is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import durable, tensor_files
from ddpm.classifier import RECIPE, STEPS, ClassifierFeatures, Network, scale_features, train
from ddpm.distributed import ALONE, Group
from ddpm.errors import InputError
from ddpm.features import Extractor, PixelFeatures, Pixels, principal_components
from ddpm.imagebar import ImageBar, shown
from ddpm.moments import Moments
from ddpm.real_data import RealData, subset
from ddpm.sample_statistics import KEPT, collect, collect_together, deal
from ddpm.tensor_files import Kept, digest

PIXELS_VERSION = 1
STATISTICS_VERSION = 1
# Beyond this the principal components are those of a part of the training images.
_COMPONENTS_OF = 100_000
_SCALED_BY = 10_000
_HELD_IN_MEMORY = 1 << 30

# Opens the file of Inception's weights: frameworks are the adapters' own.
OpenInception = Callable[[Path | None], Extractor]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A split of the real data as an extractor sees it.

    moments: of all its images.  kept: (m, D) features of at most 10,000, dealt into kept_groups.
    """

    moments: Moments
    kept: Tensor
    kept_groups: Tensor

    @property
    def kept_counts(self) -> NDArray[np.int64]:
        """How many are kept of each group, (K,)."""
        return self.kept_groups.bincount().numpy()

    def blocks(self) -> list[Tensor]:
        """The kept features of each group."""
        return [self.kept[self.kept_groups == group] for group in range(len(self.kept_counts))]


def open_extractor(
    features: str, real: RealData, weights: Path | None, inception: OpenInception | None
) -> Extractor:
    """The extractor of a name. Raises InputError where it cannot be had."""
    if features == "inception":
        if inception is None:
            raise InputError("inception is opened by `launch/`; give classifier or pixels")
        return inception(weights)
    return classifier_features(real) if features == "classifier" else pixel_features(real)


def pixel_features(real: RealData) -> PixelFeatures:
    """The principal components of the training images, kept or computed now."""
    facts = {**real.facts, "extractor": "pixels", "version": PIXELS_VERSION}
    with _locked(real.folder):
        stem = _stem(real, "pixels", facts)
        kept = tensor_files.read(stem, facts)
        if kept is None:
            ids = real.train_ids[subset(len(real.train_ids), _COMPONENTS_OF)]
            batches = shown("principal components", len(ids), real.batches(ids))
            kept = tensor_files.write(stem, principal_components(batches), facts)
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
        kept = tensor_files.read(stem, facts) or _trained(real, num_classes, stem, facts)
    network = Network(real.image_shape, num_classes)
    network.load_state_dict(kept.tensors)
    return ClassifierFeatures(network, kept.sha256, kept.results["accuracy"])


def has_classifier(real: RealData) -> bool:
    """Whether the classifier of the data is kept."""
    return tensor_files.read(*_classifier(real)) is not None


def _classifier(real: RealData) -> tuple[Path, dict]:
    """Where it is kept, and what it depends on."""
    classes = {"classes": real.data.num_classes}
    facts = {**real.facts, "extractor": "classifier", **classes, **RECIPE}
    return _stem(real, "classifier", facts), facts


def reference(real: RealData, split: str, extractor: Extractor, group: Group = ALONE) -> Reference:
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
        kept = tensor_files.read(stem, facts) if group.is_main else None
        if group.any(kept is not None):
            kept = kept or tensor_files.read(stem, facts)
            assert kept is not None  # as rank 0 has found
            found = kept.tensors
        else:
            found = _statistics(real, split, extractor, group)
            if group.is_main:
                tensor_files.write(stem, found, facts)
    return Reference(
        moments=Moments(count=len(ids), mean=found["mean"], scatter=found["scatter"]),
        kept=found["kept"],
        kept_groups=found["kept_groups"],
    )


def _statistics(
    real: RealData, split: str, extractor: Extractor, group: Group
) -> dict[str, Tensor]:
    """What is kept of a split, on every worker: its features too, which all compare theirs with."""
    ids = real.ids(split)

    def batches(places: range) -> Iterator[Pixels]:
        own = ids[places.start : places.stop]
        return shown(f"{split} images", len(own), real.batches(own))

    statistics = collect_together(extractor, batches, deal(len(ids)), group)
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


def _trained(real: RealData, num_classes: int, stem: Path, facts: dict) -> Kept:
    labels = real.labels(real.train_ids)
    assert labels is not None  # there are classes
    whole = _in_memory(real)

    def read(places: NDArray[np.int64]) -> Pixels:
        return real.images(real.train_ids[places]) if whole is None else whole[places]

    with ImageBar("training the classifier", STEPS, is_shown=True) as bar:
        network = train(read, labels, real.image_shape, num_classes, bar.advance)
    judge = ClassifierFeatures(network, "", None)
    ids = real.train_ids[subset(len(real.train_ids), _SCALED_BY)]
    scale_features(network, collect(judge, real.batches(ids), deal(len(ids)), kept=0).whole())
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    return tensor_files.write(stem, weights, facts, {"accuracy": _accuracy(judge, real)})


def _accuracy(judge: ClassifierFeatures, real: RealData) -> float | None:
    """The share of held-out images it tells right, of at most 10,000; None without any."""
    ids = real.validation_ids[:KEPT]
    labels = real.labels(ids)
    if not len(ids) or labels is None:
        return None
    statistics = collect(judge, real.batches(ids), deal(len(ids)), labels=labels, kept=0)
    assert statistics.judged is not None and statistics.judged.hits is not None
    return statistics.judged.hits / len(ids)


def _in_memory(real: RealData) -> Pixels | None:
    """All training images, where they are small."""
    if len(real.train_ids) * int(np.prod(real.image_shape)) > _HELD_IN_MEMORY:
        return None
    return np.concatenate(list(real.batches(real.train_ids)))


def _stem(real: RealData, what: str, facts: dict) -> Path:
    return real.folder / f"{what}-{digest(facts)[:8]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time computes what is not there."""
    durable.make_folder(folder)
    with durable.lock(folder / "lock", f"the statistics in {folder}", wait_s=float("inf")):
        yield
