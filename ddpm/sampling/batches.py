"""Images drawn in batches of one fixed size, so that an image does not depend on their number.

Image i sits in slot i % B of batch i // B, always. The last batch is filled with the images that
would come next, which are thrown away: convolution libraries may change bits with the batch size,
never with the other images of a batch. So 50 images and then 100 agree bit for bit in the first 50,
and image i is a function of (weights, seed, i, its label) alone, in grids while training, in a
run's samples, in what IMAGE_GENERATION asks for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data import images
from ddpm.diffusion import NoiseSchedule
from ddpm.distributed import device_of
from ddpm.errors import NonFiniteError
from ddpm.sampling.denoise import Network
from ddpm.sampling.film import to_floats, to_uint8
from ddpm.sampling.request import BATCH_SIZE
from ddpm.sampling.samplers import (
    SAMPLERS,
    Constrain,
    SamplerOptions,
    SampleState,
    WalkStart,
    sample_steps,
)

OnState = Callable[[Tensor, SampleState], None]


def draw_images(
    network: Network,
    schedule: NoiseSchedule,
    num_images: int,
    image_shape: tuple[int, int, int],
    options: SamplerOptions,
    *,
    labels: Tensor | None = None,
    start: Callable[[Tensor], WalkStart] | None = None,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.uint8]:
    """Images 0 .. num_images - 1, uint8 (N, H, W, C).

    image_shape: (C, H, W).  labels: (num_images,) int64; None: no classes, or all the null class;
    those of images that only fill the last batch begin anew.
    start: ids -> the first state of their walks; None is noise.
    """
    device = device_of(network)
    batches = []
    for first in range(0, num_images, batch_size):
        ids = torch.arange(first, first + batch_size, device=device)
        batch = draw_batch(
            network,
            schedule,
            ids,
            image_shape,
            options,
            labels=None if labels is None else labels.to(device)[ids % num_images],
            start=None if start is None else start(ids),
        )
        batches.append(batch)
    return np.concatenate(batches)[:num_images]


def draw_batch(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: tuple[int, int, int],
    options: SamplerOptions,
    *,
    labels: Tensor | None = None,
    guide: Network | None = None,
    constrain: Constrain | None = None,
    start: WalkStart | None = None,
    on_state: OnState | None = None,
    ranges: images.Ranges | None = None,
) -> NDArray[Any]:
    """One batch of images by their numbers, each in its slot, uint8 (N, H, W, C).

    ids: int64 (N,), on the network's device, as labels are.  guide: in eval mode, there too.
    ranges: of each channel, for floats in these units instead of bytes.
    on_state(ids, state): is told of each state.  The rest is as in sample_steps().
    """
    state = None
    for state in sample_steps(
        network,
        schedule,
        ids,
        image_shape,
        labels=labels,
        null_label=getattr(network, "null_label", None),
        guide=guide,
        constrain=constrain,
        start=start,
        **vars(options),
    ):
        if on_state is not None:
            on_state(ids, state)
    assert state is not None
    is_finite = state.x_t.isfinite().flatten(1).all(dim=1)
    if not bool(is_finite.all()):
        wrong = ids[~is_finite].tolist()
        raise NonFiniteError(
            f"{len(wrong)} of {len(ids)} images are not finite, first image {wrong[0]}; "
            "nothing was saved"
        )
    return (to_floats(state.x_t, ranges) if ranges else to_uint8(state.x_t).cpu()).numpy()


def num_calls(options: SamplerOptions, schedule: NoiseSchedule, *, begin: float = 1.0) -> int:
    """Predictions of an image from time `begin`, those of steps taken again counted too.

    Each is one call of the network; with guidance it is two, of the network and of its guide.
    """
    steps = len(options.levels(schedule, begin)) - 1
    return 1 + (steps - 1) * (1 + options.resamples) * SAMPLERS[options.sampler].calls
