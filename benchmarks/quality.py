"""How good the digits of a sweep's networks are, judged from outside.

    python benchmarks/quality.py training_outputs/sweeps/pred_types [--num 500]

Of every finished trial: class-conditional DDIM samples (50 steps, EMA weights, x0 clipped). A
support-vector classifier trained on the real training digits says how many it recognises as the
wanted class. Since class means alone would all be recognised, two ratios to held-out digits stand
beside it, best at 1: the spread of pixels within a class, and the distance to the nearest training
digit (which a network that only remembers would bring down to 0).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.svm import SVC

from ddpm.data import open_data
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.batches import draw_images
from ddpm.sampling.loading import load_network
from ddpm.sampling.samplers import SamplerOptions
from ddpm.sweep.ledger import Ledger


def real_digits(run_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out digits of a run as (n, D) of 0..255, each followed by its labels."""
    run = RunDirectory(run_dir)
    data = open_data(run.config(), Path(run.provenance["data_dir"]))
    parts = (data.read(data.order(torch.arange(data.num_train))), data.validation(10**6))
    found = []
    for part in parts:
        assert part.labels is not None
        pixels = (part.images + 1) * 127.5
        found += [pixels.permute(0, 2, 3, 1).flatten(1).round().numpy(), part.labels.numpy()]
    return tuple(found)


def samples(run_dir: Path, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples (num, D) of 0..255 and the classes they were asked for."""
    model = load_network(run_dir)
    channels, (height, width) = model.network.in_channels, model.network.image_size
    labels = torch.arange(num) % (model.network.num_classes or 1)
    sampler = SamplerOptions(pred_type=model.pred_type, num_steps=50, clip_denoise=True)
    images = draw_images(
        model.network,
        model.schedule,
        num,
        (channels, height, width),
        sampler,
        labels=labels,
        batch_size=min(num, 250),
    )
    return images.reshape(num, -1).astype(np.float64), labels.numpy()


def spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of a pixel within a class, mean over pixels and classes."""
    return float(np.mean([images[labels == k].std(axis=0).mean() for k in np.unique(labels)]))


def nearest(images: np.ndarray, train: np.ndarray) -> float:
    """Mean distance to the nearest training image."""
    return float(np.mean([np.sqrt(((train - one) ** 2).sum(1).min()) for one in images]))


def main() -> int:
    """Print the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="a sweep's folder, with its ledger")
    parser.add_argument("--num", type=int, default=500, help="samples of each trial")
    args = parser.parse_args()
    done = [o for o in Ledger(args.sweep / "ledger").outcomes().values() if o.status == "done"]
    if not done:
        parser.error(f"{args.sweep} has no finished trial")
    train, train_labels, held_out, held_out_labels = real_digits(Path(done[0].run_dir))
    judge = SVC(C=10).fit(train, train_labels)
    own = judge.score(held_out, held_out_labels)
    real_spread, real_nearest = spread(held_out, held_out_labels), nearest(held_out, train)
    table = Table("cell", "recognised", "spread", "nearest", title=str(args.sweep.name))
    for outcome in sorted(done, key=lambda o: o.name):
        images, labels = samples(Path(outcome.run_dir), args.num)
        error = np.sqrt((p := judge.score(images, labels)) * (1 - p) / args.num)
        table.add_row(
            outcome.name,
            f"{100 * p:.1f} ±{100 * error:.1f} %",
            f"{spread(images, labels) / real_spread:.3f}",
            f"{nearest(images, train) / real_nearest:.3f}",
        )
    Console().print(table)
    print(
        f"{args.num} samples a cell, ± one standard error; the classifier recognises "
        f"{100 * own:.1f} % of {len(held_out)} held-out digits"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
