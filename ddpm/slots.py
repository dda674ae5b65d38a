"""Drawing images in batches of one fixed size, so that an image does not depend on their number.

Image i sits in slot i % B of batch i // B, always. The last batch is filled with the images that
would come next, which are thrown away: convolution libraries may change bits with the batch size,
never with the other images of a batch. So 50 images and then 100 agree bit for bit in the first 50.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.errors import NonFiniteError
from ddpm.guidance import Network
from ddpm.request import BATCH_SIZE
from ddpm.sampling import Constrain, SampleState, sample_steps, to_uint8
from ddpm.schedule import NoiseSchedule

OnState = Callable[[Tensor, SampleState], None]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How images are drawn, whatever network draws them.

    steps: {"num_steps": n} or {"reverse_stride": k}, as config.sampling_steps gives it.
    """

    pred_type: str
    steps: Mapping[str, int]
    ddim_eta: float = 0.0
    guidance: float = 1.0
    clip_denoise: bool = False
    seed: int = 0


def draw(
    network: Network,
    schedule: NoiseSchedule,
    num_images: int,
    image_shape: tuple[int, int, int],
    sampler: Sampler,
    *,
    labels: Tensor | None = None,
    constrain: Constrain | None = None,
    on_state: OnState | None = None,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.uint8]:
    """Images 0 .. num_images - 1, uint8 (N, H, W, C).

    image_shape: (C, H, W).  labels: (N,) int64; None: no classes, or all the null class.
    constrain(x_s, s, ids): replaces every new state.  on_state(ids, state): is told of each.
    """
    device = device_of(network)
    images = []
    for start in range(0, num_images, batch_size):
        ids = torch.arange(start, start + batch_size, device=device)
        wanted = None if labels is None else labels.to(device)[ids % num_images]
        images.append(
            draw_batch(
                *(network, schedule, ids, image_shape, sampler),
                labels=wanted,
                constrain=constrain,
                on_state=on_state,
            )
        )
    return np.concatenate(images)[:num_images]


def draw_batch(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: tuple[int, int, int],
    sampler: Sampler,
    *,
    labels: Tensor | None = None,
    constrain: Constrain | None = None,
    on_state: OnState | None = None,
) -> NDArray[np.uint8]:
    """One batch of images by their numbers, each in its slot, uint8 (N, H, W, C); as in draw().

    ids: int64 (N,), on the network's device, as labels are.
    """
    state = None
    for state in _steps(network, schedule, ids, image_shape, sampler, labels, constrain):
        if on_state is not None:
            on_state(ids, state)
    assert state is not None
    return to_uint8(_finite(state.x_t, ids)).cpu().numpy()


def _steps(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: tuple[int, int, int],
    sampler: Sampler,
    labels: Tensor | None,
    constrain: Constrain | None,
) -> Iterator[SampleState]:
    return sample_steps(
        network,
        schedule,
        ids,
        image_shape,
        pred_type=sampler.pred_type,
        ddim_eta=sampler.ddim_eta,
        guidance=sampler.guidance,
        null_label=getattr(network, "null_label", None),
        labels=labels,
        seed=sampler.seed,
        clip_denoise=sampler.clip_denoise,
        constrain=constrain,
        num_steps=sampler.steps.get("num_steps"),
        reverse_stride=sampler.steps.get("reverse_stride", 1),
    )


def _finite(images: Tensor, ids: Tensor) -> Tensor:
    is_finite = images.isfinite().flatten(1).all(dim=1)
    if not bool(is_finite.all()):
        wrong = ids[~is_finite].tolist()
        raise NonFiniteError(
            f"image {wrong[0]} and {len(wrong) - 1} others are not finite; nothing was saved"
        )
    return images


def num_calls(sampler: Sampler, num_timesteps: int) -> int:
    """Reverse steps from pure noise to an image."""
    stride = sampler.steps.get("reverse_stride")
    return sampler.steps["num_steps"] if stride is None else -(-num_timesteps // stride)


def device_of(network: Network) -> torch.device:
    """Where a network's parameters are; the CPU for one without."""
    if not isinstance(network, nn.Module):
        return torch.device("cpu")
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
