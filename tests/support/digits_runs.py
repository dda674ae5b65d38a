"""Digits as real data, and a run of a very small network on them, for the tests of measures."""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from ddpm import config as configuration
from ddpm.config.schema import Config
from ddpm.data.index import open_index
from ddpm.diffusion.unet import UNet
from ddpm.metrics.reference import RealData, real_data
from ddpm.runs.directory import RunDirectory
from ddpm.training.step import TrainState
from ddpm.training.trainer import StepReport


def config_of(packed: Path, folder: Path, classes: int | None = 10, **sections: object) -> Config:
    """A configuration of 8x8 digits whose results go to `folder`."""
    return configuration.from_dict(
        {
            "DATASET": {"NAME": "digits", "PATH": str(packed)},
            "TRAINING": {
                "INPUT_IMAGE_SIZE": 8,
                "INPUT_IMAGE_CHANNEL": 1,
                "OUTPUT_DIR": str(folder),
                "NETWORK": {
                    "TIMESTEPS": 4,
                    "FIRST_CHANNEL": 8,
                    "CHANNEL_MULTIPLIER": [1],
                    "HAS_ATTENTION": [False],
                    "NUM_RES_BLOCKS": 1,
                    "TIME_EMB_DIM": 8,
                    "NUM_CLASSES": classes,
                },
            },
            **sections,
        }
    )


def real_digits(packed: Path, folder: Path) -> RealData:
    return real_data(config_of(packed, folder), packed)


def digits_run(packed: Path, folder: Path, classes: int | None = 10, **sections: object) -> Path:
    """A run directory with one checkpoint of random weights."""
    config = config_of(packed, folder, classes, **sections)
    sha256 = open_index(packed).sha256
    run = RunDirectory.find_or_name(config, sha256)
    run.start(config, data_sha256=sha256, data_dir=packed, threads=1, command=("train",))
    random = torch.Generator().manual_seed(0)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=random)
        for name, tensor in UNet(**configuration.network_arguments(config)).state_dict().items()
    }
    tensors = {"model": weights, "ema-0.999": weights, "optimizer": {}}
    run.record(StepReport(step=3, images=3, metrics={}, state=TrainState(step=3, tensors=tensors)))
    run.close()
    return run.path


def digit_images(count: int, noise: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 8, 8, 1) and labels: the first digits, with noise in grey values."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))[:count]
    x = np.rint(digits.images[order] * (255 / 16))[..., None]
    x += np.random.default_rng(seed + 1).integers(-noise, noise + 1, x.shape)
    return np.clip(x, 0, 255).astype(np.uint8), digits.target[order]
