"""Run with one checkpoint of a very small network: 8x8 images, three channels, classes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm import config as configuration
from ddpm.config.schema import Config
from ddpm.diffusion.unet import UNet
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.generation import Generated
from ddpm.training.step import TrainState
from ddpm.training.trainer import StepReport

STEP = 7


def make_config(
    folder: Path, training: Mapping[str, object] | None = None, **network: object
) -> Config:
    return configuration.from_dict(
        {
            "DATASET": {"NAME": "made", "PATH": "nowhere"},
            "TRAINING": {
                "INPUT_IMAGE_SIZE": 8,
                "OUTPUT_DIR": str(folder),
                "EMA_DECAYS": [0.9, 0.99],
                "INLINE_GEN": {"NUMS": 7},
                "NETWORK": {
                    "TIMESTEPS": 12,
                    "FIRST_CHANNEL": 8,
                    "CHANNEL_MULTIPLIER": [1, 2],
                    "HAS_ATTENTION": [False, True],
                    "NUM_RES_BLOCKS": 1,
                    "TIME_EMB_DIM": 8,
                    "NUM_CLASSES": 3,
                    **network,
                },
                **(training or {}),
            },
            "IMAGE_GENERATION": {"NUM_GEN_IMAGES": 5, "NUM_STEPS": 4, "DDIM_ETA": 0.0},
        }
    )


def weights(config: Config, seed: int) -> dict[str, Tensor]:
    """Weights that let every layer speak, the zero-initialised ones too."""
    network = UNet(**configuration.network_arguments(config))
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.15 * torch.randn(tensor.shape, generator=random)
        for name, tensor in network.state_dict().items()
    }


def make_run(folder: Path, training: Mapping[str, object] | None = None, **network: object) -> Path:
    """A run directory with one checkpoint, as training leaves it."""
    config = make_config(folder, training, **network)
    run = RunDirectory.find_or_name(config, "0" * 64)
    run.start(config, data_sha256="0" * 64, data_dir=folder, threads=1, command=("train",))
    parts = ("model", "ema-0.9", "ema-0.99")
    tensors = {part: weights(config, seed) for seed, part in enumerate(parts)}
    sigma_data = 0.75 if "edm" in (config.TRAINING.PRED_TYPE, config.TRAINING.LOSS_SPACE) else None
    state = TrainState(step=STEP, tensors=tensors | {"optimizer": {}}, sigma_data=sigma_data)
    run.record(StepReport(step=STEP, images=STEP, metrics={}, state=state))
    run.close()
    return run.path


def images_of(generated: Generated) -> np.ndarray:
    with np.load(generated.images, allow_pickle=False) as arrays:
        return arrays["images"]


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def overrides(**keys: object) -> list[str]:
    return [f"IMAGE_GENERATION.{key}={value}" for key, value in keys.items()]
