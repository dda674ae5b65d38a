"""A worker as a process, for test_moments: its share of keyed features, reduced over all workers,
and the measures that compare pairs.
"""

from pathlib import Path

import numpy as np
import torch

from ddpm.distributed import Group, process_group, share, whole_batches
from ddpm.metrics.distances import Frechet, KernelReference
from ddpm.metrics.features import (
    Extractor,
    Features,
    Statistics,
    collect_features,
    collect_together,
    random_groups,
)
from ddpm.metrics.manifold import measure_manifold, nearest_distances

SEED = 5


class Known(Extractor):
    """Features that are the pixels, and two classes by the first of them."""

    name, sha256, description, knows_labels = "known", "0" * 64, "pixels as they are", True

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def batch(self, images: torch.Tensor) -> Features:
        vectors = images.flatten(1).to(torch.float32)
        high = vectors[:, 0] / 255
        return Features(vectors=vectors, probabilities=torch.stack([1 - high, high], dim=1))


def images_of(count: int, dimension: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (count, 1, dimension, 1), dtype=np.uint8)


def pairs(statistics: Statistics, images: np.ndarray, group: Group) -> dict[str, list[float]]:
    """The measures against a reference that holds a hundred of the images themselves.

    Where a copy lies on the edge of a ball, rounding must not decide.
    """
    reference = np.concatenate([images[:100], images_of(1300, images.shape[2])[1003:]])
    known = collect_features(
        Known(images.shape[2]), [reference], random_groups(len(reference)), kept=10_000
    )
    shown = measure_manifold(statistics.kept / 7, statistics.kept_groups, known.kept / 7, group)
    kernels = KernelReference(known.blocks(), group)
    own = whole_batches(len(reference), 64, group)
    nearest = nearest_distances(images, [reference[own.start : own.stop]], group.device)
    return {
        "kid": [*vars(kernels.kid(statistics.blocks())).values()],
        "fid": [*vars(Frechet(known.whole()).fid(statistics.groups, group)[1]).values()],
        **{name: [*vars(estimate).values()] for name, estimate in vars(shown).items()},
        "nearest": group.least_(torch.from_numpy(nearest)).tolist(),
    }


def few(group: Group) -> list[float]:
    """Hits, classes and what is kept of images that are fewer batches than there are workers."""
    images, labels = images_of(130, 6), np.arange(130) % 2

    def batches(places: range) -> list[np.ndarray]:
        return [images[places.start : places.stop]] if places else []

    found = collect_together(Known(6), batches, random_groups(130), group, labels=labels)
    assert found.judged is not None and found.judged.hits is not None
    kept = torch.cat(list(group.passing(found.kept)))
    assert torch.equal(kept, Known(6)(images).vectors)
    return [found.judged.hits, *found.judged.classes.flatten().tolist(), *found.kept_counts]


def main(count: int, dimension: int, path: Path) -> int:
    """Rank 0's result in `path`; under torchrun's environment variables."""
    images, labels = images_of(count, dimension), np.arange(count) % 2
    with process_group() as group:
        mine = share(count, group.rank, group.size)
        statistics = collect_features(
            Known(dimension),
            (images[part : part + 100] for part in range(mine.start, mine.stop, 100))
            if group.size == 1
            else (images[mine.start : mine.stop],),
            random_groups(count),
            labels=labels,
            first=mine.start,
        )
        statistics.reduce_(group)
        together = pairs(statistics, images, group) | {"few": few(group)}
        if group.is_main:
            judged = statistics.judged
            assert judged is not None
            np.savez(
                path,
                counts=[moments.count for moments in statistics.groups],
                means=torch.stack([moments.mean for moments in statistics.groups]).numpy(),
                scatters=torch.stack([moments.scatter for moments in statistics.groups]).numpy(),
                classes=judged.classes.numpy(),
                entropies=judged.entropies.numpy(),
                hits=judged.hits,
                **together,
            )
    return 0
