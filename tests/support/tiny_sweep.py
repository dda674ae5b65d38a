"""A sweep folder made of small real trainings: linear denoisers of scikit-learn's digits.

Each cell trains one matrix for each of twelve noise levels by gradient descent, and writes
the files a trial leaves: configuration, metrics, evaluation, samples, provenance and ledger entry.
"""

import io
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ddpm.config.identity import to_yaml
from ddpm.config.loading import from_dict
from ddpm.data.dataset import Batch, Dataset
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from ddpm.diffusion.process import convert, diffuse, target_for, timesteps
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.metrics.validation import levels_of, measure_x0_error, write_evaluation, write_references

PRED_TYPE, SCHEDULER = "TRAINING.PRED_TYPE", "TRAINING.NETWORK.SCHEDULER"
TIMESTEPS = "TRAINING.NETWORK.TIMESTEPS"
LEARNING_RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
GRID = {SCHEDULER: ["linear", "cosine", "cos6"], PRED_TYPE: ["noise", "image", "velocity"]}
SPACES = {"n_loss": "noise", "i_loss": "image", "v_loss": "velocity"}


class LinearDenoiser(nn.Module):
    """An affine map of x_t for each of `bins` equal ranges of time, with a bias for each class."""

    def __init__(self, size: int, seed: int, bins: int = 12) -> None:
        super().__init__()
        draws = philox.normal(seed, Stream.INIT, torch.arange(bins), (size, size))
        self.weight = nn.Parameter(draws * 0.05)
        self.bias = nn.Parameter(torch.zeros(bins, 10, size))

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        place = (time * len(self.weight)).long().clamp_max(len(self.weight) - 1)
        labels = torch.zeros_like(place) if labels is None else labels
        flat = torch.einsum("nij,nj->ni", self.weight[place], x_t.flatten(1))
        return (flat + self.bias[place, labels]).reshape(x_t.shape)


def digits() -> Dataset:
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return Dataset.from_arrays(pixels, bunch.target)


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


def train(
    network: nn.Module,
    schedule: NoiseSchedule,
    data: Dataset,
    pred_type: str,
    seed: int,
    steps: int,
) -> list[dict]:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    rows = []
    for step in range(steps):
        positions = torch.arange(step * 64, (step + 1) * 64)
        batch = data.read(data.order(positions))
        t = timesteps(seed, positions, schedule.num_timesteps)
        alpha, sigma = schedule.alpha_sigma_at(t)
        draws = philox.normal(seed, Stream.NOISE, positions, (1, 8, 8))
        x_t = diffuse(batch.images, draws, alpha, sigma).float()
        pred = network(x_t, t / schedule.num_timesteps, batch.labels)
        target = target_for(pred_type, batch.images, draws, alpha, sigma).float()
        loss = (pred - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 3:
            row = {"step": step + 1, "images": 64 * (step + 1), "loss": float(loss.detach())}
            rows.append(row | _losses(pred.detach(), x_t, batch, draws, alpha, sigma, pred_type))
    return rows


def _losses(
    pred: Tensor,
    x_t: Tensor,
    batch: Batch,
    draws: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    pred_type: str,
) -> dict[str, float]:
    found = {}
    for name, space in SPACES.items():
        got = convert(pred.double(), x_t.double(), alpha, sigma, pred_type, space)
        want = target_for(space, batch.images.double(), draws.double(), alpha, sigma)
        found[name] = float((got - want).square().mean())
    return found


def sample(network: nn.Module, schedule: NoiseSchedule, pred_type: str) -> tuple[Tensor, Tensor]:
    """40 images by 20 DDIM steps, four of each class."""
    labels = torch.arange(10).repeat(4)
    x_t = philox.normal(0, Stream.X_T, torch.arange(40), (1, 8, 8)).double()
    times = torch.linspace(1, 0, 21, dtype=torch.float64)
    with torch.no_grad():
        for now, then in zip(times[:-1], times[1:], strict=True):
            alpha, sigma = (one.expand(40) for one in schedule.alpha_sigma(now))
            pred = network(x_t.float(), now.float().expand(40), labels).double()
            x0 = convert(pred, x_t, alpha, sigma, pred_type, "image").clamp(-1, 1)
            eps = convert(x0, x_t, alpha, sigma, "image", "noise")
            after = [one.expand(40) for one in schedule.alpha_sigma(then)]
            x_t = diffuse(x0, eps, *after)
    images = ((x_t.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1), labels


def make_run(run_dir: Path, data: Dataset, cell: dict, seed: int, steps: int, num: int) -> dict:
    """Trains one cell into a run directory; returns its summary."""
    run_dir.mkdir(parents=True)
    pred_type = cell.get(PRED_TYPE, "velocity")
    schedule = NoiseSchedule(cell.get(SCHEDULER, "cosine"), cell.get(TIMESTEPS, 1000))
    network = LinearDenoiser(64, seed)
    rows = train(network, schedule, data, pred_type, seed, steps)
    error = measure_x0_error(
        network,
        schedule,
        data.validation(num),
        pred_type=pred_type,
        levels=levels_of(schedule),
        seed=0,
    )
    write_evaluation(
        run_dir,
        error,
        step=steps,
        weights="model",
        seed=0,
        schedule=schedule,
        data_sha256=data.sha256,
    )
    config = from_dict(config_of(cell, seed, steps))
    (run_dir / "training_config.yaml").write_text(to_yaml(config))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images, labels = sample(network, schedule, pred_type)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.numpy(), labels=labels.numpy())
    (run_dir / "samples.npz").write_bytes(buffer.getvalue())
    facts = {"git": {"commit": "ab12cd34" * 5, "dirty": False}, "torch": torch.__version__}
    facts |= {"host": "laptop", "cpu": "a processor", "cores": 2, "data_sha256": data.sha256}
    facts |= {"command": "launch/sweep.py sweeps/tiny.yaml", "gpus": []}
    (run_dir / "provenance.json").write_text(json.dumps(facts | {"attempts": [facts]}))
    return {
        "steps": steps,
        "images_per_s": 5000.0 + steps,
        "seconds": steps / 80,
        "core_seconds": steps / 85,
        "peak_memory_bytes": 3 * 2**27,
        "packed": True,
        "final_loss": rows[-1]["loss"],
    }


def make_sweep(
    output_dir: Path,
    grid: dict[str, list] | None = None,
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 40,
    num: int = 32,
) -> Path:
    """Trains every cell of the grid and writes the sweep folder; returns it."""
    data, grid = digits(), GRID if grid is None else grid
    folder = output_dir / "sweeps" / "tiny"
    (folder / "ledger").mkdir(parents=True)
    planned = []
    cells = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    for number, (seed, cell) in enumerate(product(seeds, cells)):
        trial = f"{number:08x}"
        run_dir = output_dir / "digits_8x8x1" / f"run_{trial}"
        summary = make_run(run_dir, data, cell, seed, steps, num)
        outcome = {"trial": trial, "cell": cell, "seed": seed, "status": "done", "reason": None}
        outcome |= {"run_dir": str(run_dir.relative_to(output_dir)), "summary": summary}
        (folder / "ledger" / f"{trial}.json").write_text(json.dumps(outcome))
        planned.append({"trial": trial, "cell": cell, "seed": seed})
    facts = {"name": "tiny", "grid": grid, "seeds": list(seeds), "skipped": [], "planned": planned}
    facts |= {"question": "Which prediction type and schedule denoise digits best?"}
    facts |= {"command": ["launch/sweep.py", "sweeps/tiny.yaml"]}
    (folder / "sweep.json").write_text(json.dumps(facts))
    write_references(folder, data, seed=0, num=num)
    return folder
