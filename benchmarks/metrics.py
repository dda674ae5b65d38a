"""What measuring samples costs, and how often its intervals hold the truth.

    python benchmarks/metrics.py memory      FID over 50,000 x 2,048 streamed features: peak memory
    python benchmarks/metrics.py speed       10,000 digits from the command line: seconds
    python benchmarks/metrics.py coverage    intervals of FID, KID and the others, by simulation

Coverage draws features whose distribution is known, many times, and counts how often the 95 %
interval of each draw holds the number that infinitely many images would give.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor

from ddpm import estimates
from ddpm.estimates import Estimate
from ddpm.features import Extractor, Features
from ddpm.fid import fid, frechet_distance
from ddpm.kid import kid
from ddpm.manifold import manifold
from ddpm.moments import Moments
from ddpm.sample_statistics import collect, deal

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
    statistics = collect(extractor, images, deal(count))
    streamed = time.monotonic() - start
    plain, infinite = fid(statistics.groups, reference)
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


Draw = Callable[[int, int], Tensor]
REFERENCE = 10**6 + 1  # the seed of the reference


def gaussian(dimension: int, shift: float, scale: float, power: float = 0.0) -> Draw:
    """n vectors of a seed: correlated normal, or with `power` the exponential of it: skewed."""
    mix = torch.eye(dimension, dtype=torch.float64) + torch.randn(
        dimension, dimension, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    ) / (dimension**0.5)

    def draw(n: int, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(n, dimension, generator=random, dtype=torch.float64)
        return (torch.exp(power * x) if power else x) @ mix * scale + shift

    return draw


def fid_coverage(dimension: int, n: int, draw: Draw, trials: int) -> list[str]:
    """How often the interval at infinity holds the distance of 10^6 vectors."""
    reference = Moments.of(draw(3000, REFERENCE))
    many = Moments.empty(dimension)
    for seed in range(10):
        many.add(draw(100_000, 10**7 + seed))
    truth = frechet_distance(many, reference)
    found = []
    for seed in range(trials):
        x = draw(n, seed)
        found.append(fid([Moments.of(x[k::16]) for k in range(16)], reference)[1])
    return line(f"FID at infinity, D = {dimension}, n = {n}", found, truth)


def line(what: str, found: list[Estimate], truth: float) -> list[str]:
    """A row of the table: how often the truth is inside, and above or below."""
    inside = float(np.mean([one.covers(truth) for one in found]))
    above = float(np.mean([truth > one.high for one in found]))
    below = float(np.mean([truth < one.low for one in found]))
    error = float(np.sqrt(inside * (1 - inside) / len(found)))
    value = float(np.mean([one.value for one in found]))
    sides = f"{100 * above:.1f} / {100 * below:.1f} %"
    share = f"{100 * inside:.1f} ±{100 * error:.1f} %"
    return [what, str(len(found)), f"{truth:.4g}", f"{value:.4g}", share, sides]


def against(reference: Draw, draw: Draw) -> Draw:
    """Draws whose reference is of another distribution."""
    return lambda n, seed: reference(n, seed) if seed == REFERENCE else draw(n, seed)


def coverage(trials: int) -> None:
    """The table of all intervals."""
    table = Table("interval", "trials", "truth", "mean", "inside", "truth above / below")
    for dimension, n in ((16, 200), (32, 160), (32, 500), (32, 2000), (64, 1000)):
        alike = gaussian(dimension, 0.0, 1.0)
        other = against(alike, gaussian(dimension, 0.2, 1.1))
        for draw, what in ((alike, "alike"), (other, "apart")):
            row = fid_coverage(dimension, n, draw, trials)
            table.add_row(f"{row[0]}, {what}", *row[1:])
    skewed = gaussian(16, 0.0, 1.0, power=0.6)
    row = fid_coverage(16, 1000, skewed, trials)
    table.add_row(f"{row[0]}, skewed", *row[1:])
    for row in others(trials):
        table.add_row(*row)
    Console(width=120).print(table)


def others(trials: int) -> list[list[str]]:
    """KID, precision, density, coverage, order."""
    draw, far = gaussian(16, 0.0, 1.0), gaussian(16, 0.1, 1.1)

    def blocks(x: Tensor) -> list[Tensor]:
        return [x[k::16] for k in range(16)]

    halves = [kid(blocks(x[:500]), blocks(x[500:])) for x in (draw(1000, s) for s in range(trials))]
    apart = [kid(blocks(far(500, s)), blocks(draw(500, 10**6 + s))) for s in range(trials)]
    rows = [
        line("KID of two halves, n = 500", halves, 0.0),
        line("KID apart, n = 500", apart, float(np.mean([one.value for one in apart]))),
    ]
    reference, groups = draw(500, 10**6), torch.arange(320) % 16
    found = [manifold(far(320, s), groups, reference) for s in range(trials)]
    for name in ("precision", "density", "coverage"):
        numbers = [getattr(one, name) for one in found]
        truth = float(np.mean([one.value for one in numbers]))
        rows.append(line(f"{name}, n = 320 against 500", numbers, truth))
    rng = np.random.default_rng(0)
    fresh = [estimates.order(rng.gamma(3, 1, 300), rng.gamma(3, 1, 200)) for _ in range(trials)]
    return [*rows, line("nearer than held out, n = 300 and 200", fresh, 0.5)]


def main() -> int:
    """One of the three; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("memory", "speed", "coverage"))
    parser.add_argument("--trials", type=int, default=400, help="of every line of coverage")
    args = parser.parse_args()
    if args.what == "memory":
        memory(50_000, 2048)
    elif args.what == "speed":
        speed()
    else:
        coverage(args.trials)
    return 0


if __name__ == "__main__":
    sys.exit(main())
