"""A worker as a process, for test_moments: its share of keyed features, reduced over all workers.

Arguments: images, dimensions, file for rank 0's result (NPZ). Under torchrun's variables.
"""

import sys

import numpy as np
import torch

from ddpm.distributed import process_group, share
from ddpm.features import Extractor, Features
from ddpm.sample_statistics import collect, deal

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


def main() -> None:
    count, dimension, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    images, labels = images_of(count, dimension), np.arange(count) % 2
    with process_group() as group:
        mine = share(count, group.rank, group.size)
        statistics = collect(
            Known(dimension),
            (images[part : part + 100] for part in range(mine.start, mine.stop, 100))
            if group.size == 1
            else (images[mine.start : mine.stop],),
            deal(count),
            labels=labels,
            first=mine.start,
        )
        statistics.reduce_(group)
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
            )


if __name__ == "__main__":
    main()
