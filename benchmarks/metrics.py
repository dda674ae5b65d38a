"""What measuring samples costs.

python benchmarks/metrics.py memory      FID over 50,000 x 2,048 streamed features: peak memory
python benchmarks/metrics.py speed       10,000 digits from the command line: seconds
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ddpm.metrics.distances import Frechet
from ddpm.metrics.features import Extractor, Features, Moments, collect_features, random_groups

ROOT = Path(__file__).resolve().parent.parent


class Drawn(Extractor):
    """Features drawn instead of computed, as many numbers as Inception's."""

    name, sha256, description, batch_size, threads = "drawn", "0" * 64, "drawn", 512, None

    def __init__(self, dimension: int) -> None:
        self.dimension, self._random = dimension, torch.Generator().manual_seed(0)

    def batch(self, images: Tensor) -> Features:
        return Features(vectors=torch.randn(len(images), self.dimension, generator=self._random))


def memory(count: int, dimension: int) -> None:
    """Peak memory of this process when so many features have passed through FID."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    extractor, start = Drawn(dimension), time.monotonic()
    images = (np.zeros((512, 1, 1, 1), np.uint8)[: count - done] for done in range(0, count, 512))
    reference = Moments.of(torch.randn(2 * dimension, dimension, generator=extractor._random))
    statistics = collect_features(extractor, images, random_groups(count))
    streamed = time.monotonic() - start
    plain, infinite = Frechet(reference).fid(statistics.groups)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{count:,} x {dimension:,}: peak {peak:.2f} GB (before {before:.2f}), {streamed:.0f} s "
        f"streaming, {time.monotonic() - start - streamed:.0f} s for FID {plain.value:.3f}, at "
        f"infinity {infinite.value:.3f} ({infinite.low:.3f} to {infinite.high:.3f})"
    )


def speed() -> None:
    """The command on 10,000 images, classifier trained and not trained before, by one and two."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.integers(0, len(digits.target), 10_000)
    images = np.rint(digits.images[order] * (255 / 16))[..., None]
    images = np.clip(images + rng.integers(-20, 21, images.shape), 0, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.npz"
        np.savez(path, images=images, labels=digits.target[order])
        script = str(ROOT / "launch/evaluate.py")
        command = [sys.executable, script, str(path), "--against", "digits", "--workers"]
        for what, workers in (("first time", 1), ("again", 1), ("again", 2)):
            start = time.monotonic()
            subprocess.run(
                [*command, str(workers)], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            print(
                f"10,000 digits, classifier, {what}, {workers} worker(s): "
                f"{time.monotonic() - start:.1f} s (load {os.getloadavg()[0]:.0f})"
            )


def main() -> int:
    """One of the two; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("memory", "speed"))
    args = parser.parse_args()
    if args.what == "memory":
        memory(50_000, 2048)
    else:
        speed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
