"""A sweep folder of any size with known effects, written without a training: every file of a trial.

The x0-error of a trial is a falling curve times 10 ** (effect of its cell + draw of its seed), with
the same pairs for all, so that what a report says of it is known. References: the lines of the best
linear estimate, at twice the curve, and of memorisation, and real images.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from ddpm.config.identity import to_yaml
from ddpm.config.loading import from_dict
from ddpm.metrics.quality import QualityPoint, SamplePictures, store_quality
from ddpm.runs.pictures import grid as grid_of
from ddpm.runs.pictures import png
from tests.support.known_sweeps import PRED_TYPE, SCHEDULER, TIMESTEPS, around, point_of, points_of

LEARNING_RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
LEVELS = np.arange(-10, 13)
EFFECTS = {
    "velocity": 0.0,
    "image": 0.04,
    "noise": 0.08,
    "cosine": 0.0,
    "linear": 0.02,
    "cos6": 0.05,
}
STEPS = (5, 10, 20, 50, 100)


def config_of(cell: dict, seed: int, steps: int) -> dict:
    network = {
        "SCHEDULER": cell.get(SCHEDULER, "cosine"),
        "TIMESTEPS": cell.get(TIMESTEPS, 1000),
        "NUM_CLASSES": 10,
        "CHANNEL_MULTIPLIER": [1, 2],
        "HAS_ATTENTION": [False, False],
    }
    return {
        "DATASET": {"NAME": "digits", "PATH": "digits"},
        "TRAINING": {
            "INPUT_IMAGE_SIZE": 8,
            "INPUT_IMAGE_CHANNEL": 1,
            "PRED_TYPE": cell.get(PRED_TYPE, "velocity"),
            "SEED": seed,
            "HYPER_PARAMETERS": {
                "EPOCHS": 1,
                "STEPS_PER_EPOCH": steps,
                "BATCH_SIZE": 64,
                "WARMUP_STEPS": 0,
                "LEARNING_RATE": cell.get(LEARNING_RATE, 0.003),
            },
            "NETWORK": network,
        },
    }


def effect(cell: Mapping[str, object]) -> float:
    """log10 of the factor on the x0-error of a cell."""
    rate = cell.get(LEARNING_RATE, 1e-3)
    length = cell.get(TIMESTEPS, 1000)
    assert isinstance(rate, float) and isinstance(length, int)
    named = EFFECTS.get(str(cell.get(PRED_TYPE)), 0) + EFFECTS.get(str(cell.get(SCHEDULER)), 0)
    return named + 0.1 * abs(np.log10(rate / 1e-3)) + 0.05 * np.log10(1000 / length)


def make_sweep(
    output_dir: Path,
    grid: Mapping[str, Sequence[object]],
    seeds: Sequence[int],
    *,
    runs: int | None = None,
    rows: int = 60,
    shape: tuple[int, int, int] = (8, 8, 1),
    inline: int = 6,
    has_quality: bool = True,
    has_bits: bool = True,
    has_references: bool = False,
    failing: int = 0,
    factor: float = 1.0,
) -> Path:
    """Writes every trial of the grid; returns the sweep folder.

    runs: at most so many run directories, which trials then share.  failing: trials that failed.
    factor: on all errors; above 2 nothing was learned.
    """
    folder = output_dir / "sweeps" / "tiny"
    (folder / "ledger").mkdir(parents=True)
    cells = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    planned = []
    for number, (cell, seed) in enumerate(product(cells, seeds)):
        trial, place = f"{number:08x}", number if runs is None else number % runs
        run_dir = output_dir / "digits_8x8x1" / f"run_{place:08x}"
        if place == number:
            write_run(
                run_dir, cell, seed, number, rows, shape, inline, has_quality, has_bits, factor
            )
        outcome = {"trial": trial, "cell": cell, "seed": seed, "status": "done", "reason": None}
        outcome |= {"run_dir": str(run_dir.relative_to(output_dir))}
        outcome |= {"summary": summary_of(number, rows)}
        if number >= len(cells) * len(seeds) - failing:
            outcome |= {"status": "failed", "reason": f"step {number}: non-finite loss"}
        (folder / "ledger" / f"{trial}.json").write_text(json.dumps(outcome))
        planned.append({"trial": trial, "cell": cell, "seed": seed})
    facts = {"name": "tiny", "grid": grid, "seeds": list(seeds), "skipped": []}
    facts |= {"planned": planned, "question": "Which cell of a large grid denoises best?"}
    facts |= {"command": ["launch/sweep.py", "sweeps/tiny.yaml"]}
    (folder / "sweep.json").write_text(json.dumps(facts))
    if has_references:
        write_references(folder, shape)
    return folder


def write_references(folder: Path, shape: tuple[int, int, int]) -> None:
    linear = 0.6 / (1 + np.exp(LEVELS))
    lines = {"gaussian": linear.tolist(), "memorisation": (linear / 100).tolist()}
    facts = {"format": 1, "data_sha256": "0" * 64, "seed": 0, "pairs": 32, "num_train": 1000}
    (folder / "references.json").write_text(json.dumps(facts | lines | {"levels": LEVELS.tolist()}))
    images, labels = pictures(np.random.default_rng(0), shape)
    np.savez_compressed(folder / "references.npz", images=images, labels=labels)


def summary_of(number: int, rows: int) -> dict[str, object]:
    seconds = 60.0 + number % 7
    facts = {"steps": 10 * rows, "images_per_s": 1280 * rows / seconds, "seconds": seconds}
    facts |= {"core_seconds": seconds * 0.97, "peak_memory_bytes": (700 + number % 50) * 2**20}
    return facts | {"packed": True, "final_loss": 0.1}


def write_run(
    run_dir: Path,
    cell: Mapping[str, object],
    seed: int,
    number: int,
    rows: int,
    shape: tuple[int, int, int],
    inline: int,
    has_quality: bool,
    has_bits: bool,
    factor: float,
) -> None:
    """Everything a finished trial leaves."""
    run_dir.mkdir(parents=True)
    draws = np.random.default_rng(number)
    factor *= 10 ** (effect(cell) + 0.005 * draws.standard_normal())
    pairs = np.random.default_rng(0).lognormal(0, 0.3, (len(LEVELS), 32))
    mse = factor * (0.3 / (1 + np.exp(LEVELS)))[:, None] * pairs
    np.savez(run_dir / "evaluation.npz", levels=LEVELS, mse=mse, ids=np.arange(32))
    facts: dict[str, object] = {"seed": 0, "data_sha256": "0" * 64}
    bits: dict[str, object] = {
        "value": 4 + factor,
        "evaluation_error": 0.01,
        "terms": [1e-4, 3.0, 1.0],
    }
    facts |= {"bits_per_dim": bits | {"timesteps": [50, 20, 0]}} if has_bits else {}
    (run_dir / "evaluation.json").write_text(json.dumps(facts))
    (run_dir / "training_config.yaml").write_text(
        to_yaml(from_dict(config_of(dict(cell), seed, 40)))
    )
    (run_dir / "metrics.jsonl").write_text("".join(metrics(factor, rows, draws)))
    (run_dir / "provenance.json").write_text(json.dumps(provenance()))
    images, labels = pictures(draws, shape)
    np.savez_compressed(run_dir / "samples.npz", images=images, labels=labels)
    (run_dir / "inline_gen").mkdir()
    for k in range(1, inline + 1):
        step = 10 * rows * k // inline
        path = run_dir / "inline_gen" / f"step-{step:08d}.png"
        path.write_bytes(png(grid_of(images[::2], 10)))
    if has_quality:
        write_quality(run_dir, factor, shape, draws)


def metrics(factor: float, rows: int, draws: np.random.Generator) -> list[str]:
    found = []
    for k in range(1, rows + 1):
        loss = factor * (0.1 + 1 / k) * draws.lognormal(0, 0.1)
        row = {"step": 10 * k, "images": 1280 * k, "loss": loss, "n_loss": loss}
        row |= {"i_loss": 2 * loss, "v_loss": 3 * loss}
        row |= {"time/seconds": 0.6, "time/core_seconds": 0.58, "time/images_per_s": 2000.0}
        if k % 10 == 0:
            row |= {"val_mean_log10_mse": np.log10(loss), "val_snr_weighted_mse": 4 * loss}
        found.append(json.dumps(row) + "\n")
    return found


def provenance() -> dict[str, object]:
    facts: dict[str, object] = {"git": {"commit": "ab12cd34" * 5, "dirty": False}, "torch": "2.13"}
    facts |= {"host": "node", "cpu": "a processor", "cores": 2, "gpus": [], "workers": 1}
    return facts | {"gpus_per_worker": 0, "command": "launch/sweep.py sweeps/tiny.yaml"}


def pictures(
    draws: np.random.Generator, shape: tuple[int, int, int], spread: float = 40
) -> tuple[np.ndarray, np.ndarray]:
    """40 blurred blobs, four of each of ten classes."""
    labels = np.arange(10).repeat(4)
    y, x = np.mgrid[: shape[0], : shape[1]]
    centre = (labels[:, None, None] + 0.5) * shape[1] / 10
    blob = np.exp(-((x - centre) ** 2 + (y - shape[0] / 2) ** 2) / (shape[0] / 3) ** 2)[..., None]
    noise = spread * draws.standard_normal((40, *shape))
    return np.clip(255 * blob + noise, 0, 255).astype(np.uint8), labels


def write_quality(
    run_dir: Path, factor: float, shape: tuple[int, int, int], draws: np.random.Generator
) -> None:
    """sample_quality.json and .npz: the better, the more steps."""
    points = tuple(_point(steps, factor * draws.lognormal(0, 0.02)) for steps in STEPS)
    images = np.stack([pictures(draws, shape, 200 / steps)[0][::2] for steps in STEPS])
    quality = points_of(*points, features="a small classifier", num=1000)
    store_quality(run_dir, quality, SamplePictures(images=images, labels=np.arange(10).repeat(2)))


def _point(steps: int, factor: float) -> QualityPoint:
    fid = factor * (4 + 60 / steps)
    numbers = {"fid": around(fid, 0.5), "kid": around(fid / 1000, 5e-4)}
    return point_of(steps, seconds=0.2 * steps, accuracy=around(1 - fid / 40, 0.02), **numbers)
