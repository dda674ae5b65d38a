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
from ddpm.method import Method
from ddpm.request import BATCH_SIZE
from ddpm.sampling import SampleState, sample_steps, to_uint8
from ddpm.schedule import NoiseSchedule
from ddpm.tasks import PLAIN, Task

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
    task: Task = PLAIN,
    on_state: OnState | None = None,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.uint8]:
    """Images 0 .. num_images - 1, uint8 (N, H, W, C).

    image_shape: (C, H, W).  labels: (N,) int64; None: no classes, or all the null class.
    task: what is asked besides images.  on_state(ids, state): is told of each state.
    """
    device = device_of(network)
    images = []
    for start in range(0, num_images, batch_size):
        ids = torch.arange(start, start + batch_size, device=device)
        wanted = None if labels is None else labels.to(device)[ids % num_images]
        state = None
        for state in _steps(network, schedule, ids, image_shape, sampler, wanted, task):
            if on_state is not None:
                on_state(ids, state)
        assert state is not None
        images.append(to_uint8(_finite(state.x_t, ids)).cpu())
    return torch.cat(images)[:num_images].numpy()


def _steps(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: tuple[int, int, int],
    sampler: Sampler,
    labels: Tensor | None,
    task: Task,
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
        method=Method(resamples=task.resamples),
        constrain=task.constrain,
        start=task.start(ids),
        draws=task.draws,
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
