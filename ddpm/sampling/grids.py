"""Sample grids: some images of a network while it trains, and sample_images() for a fitted model.

DDIM, eta 0, x0 clipped, at most 50 steps: nothing but the network differs between two grids.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.diffusion import NoiseSchedule, UNet
from ddpm.runs import columns_by_class, grid, npz, png, storage
from ddpm.sampling.batches import draw_images
from ddpm.sampling.denoise import Network
from ddpm.sampling.loading import load_network
from ddpm.sampling.samplers import SamplerOptions

# The grids of a sweep have one size, so most are drawn in one piece.
GRID_BATCH = 64


class Model(Protocol):
    """A trained network and its process, as sample_images() needs them."""

    @property
    def ema_network(self) -> nn.Module:
        """The network that images are drawn from."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule it was trained with."""

    @property
    def pred_type(self) -> str:
        """Its prediction."""

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W); None: as the network says."""


def sample_images(
    model: Model,
    num_images: int,
    labels: Sequence[int] | Tensor | None = None,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Images of a model, uint8 (N, H, W, C): DDIM, eta 0, at most 50 steps, x0 clipped to [-1, 1].

    labels: a class each; None is the null class. Image i depends on (model, seed, i, labels[i]).
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; give at least 1")
    if labels is not None and len(labels) != num_images:
        raise ValueError(f"{len(labels)} labels for {num_images} images; give one each")
    options = SamplerOptions(
        pred_type=model.pred_type,
        num_steps=min(50, model.schedule.num_timesteps),
        clip_denoise=True,
        seed=seed,
    )
    network = model.ema_network
    was_training = network.training
    network.eval()
    try:
        return draw_images(
            network,
            model.schedule,
            num_images,
            _shape_of(model),
            options,
            labels=None if labels is None else torch.as_tensor(labels, dtype=torch.int64),
        )
    finally:
        network.train(was_training)


def _shape_of(model: Model) -> tuple[int, int, int]:
    network = model.ema_network
    if model.image_shape is not None:
        return model.image_shape
    if isinstance(network, UNet):
        return (network.in_channels, *network.image_size)
    raise ValueError("the size of the images is not known before fit(); fit the model first")


def sample_grid(network: Network, schedule: NoiseSchedule, config: Config) -> NDArray[np.uint8]:
    """Sample grid of a run, uint8 (N, H, W, C): as many of INLINE_GEN.NUMS as fill whole rows.

    DDIM, eta 0, x0 clipped, EVALUATION.SEED, classes in rows: nothing but the network depends on
    the cell of a sweep, so grids of all cells may be laid side by side.  network: in eval mode.
    """
    inline = config.TRAINING.INLINE_GEN
    labels = grid_labels(config)
    count = inline.NUMS if labels is None else len(labels)
    return draw_images(
        network,
        schedule,
        count,
        configuration.image_shape(config),
        grid_sampler(config, schedule),
        labels=labels,
        batch_size=min(count, GRID_BATCH),
    )


def grid_sampler(config: Config, schedule: NoiseSchedule) -> SamplerOptions:
    """Sampler of images while training: DDIM, eta 0, x0 clipped, EVALUATION.SEED."""
    return SamplerOptions(
        pred_type=config.TRAINING.PRED_TYPE,
        **configuration.sampling_steps(config.TRAINING.INLINE_GEN, schedule.num_timesteps),
        clip_denoise=True,
        seed=config.EVALUATION.SEED,
    )


def grid_labels(config: Config) -> Tensor | None:
    """Labels of the sample grid, a class a row, where there are classes."""
    num_classes, nums = config.TRAINING.NETWORK.NUM_CLASSES, config.TRAINING.INLINE_GEN.NUMS
    if num_classes is None:
        return None
    columns = columns_by_class(nums, num_classes)
    return torch.arange(min(num_classes, nums)).repeat_interleave(columns)


def save_samples(run_dir: Path, config: Config) -> Path:
    """samples.npz and samples.png in a run directory: the grid of its newest EMA network.

    samples.npz: images uint8 (N, H, W, C), labels int64 (N,), -1 without classes.
    """
    model = load_network(run_dir)
    images, labels = sample_grid(model.network, model.schedule, config), grid_labels(config)
    numbers = np.full(len(images), -1) if labels is None else labels.numpy()
    columns = columns_by_class(len(images), config.TRAINING.NETWORK.NUM_CLASSES)
    storage.write_bytes(run_dir / "samples.png", png(grid(images, columns)))
    path = run_dir / "samples.npz"
    storage.write_bytes(path, npz(images=images, labels=numbers))
    return path
