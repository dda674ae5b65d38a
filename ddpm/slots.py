"""Drawing images in batches of one fixed size, so that an image does not depend on their number.

Image i sits in slot i % B of batch i // B, always. The last batch is filled with the images that
would come next, which are thrown away: convolution libraries may change bits with the batch size,
never with the other images of a batch. So 50 images and then 100 agree bit for bit in the first 50.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.distributed import device_of
from ddpm.errors import NonFiniteError
from ddpm.guidance import Guiding, Network
from ddpm.method import Method
from ddpm.request import BATCH_SIZE
from ddpm.sampling import SampleState, sample_steps, to_uint8
from ddpm.schedule import NoiseSchedule
from ddpm.spacing import below, levels
from ddpm.tasks import PLAIN, Task
from ddpm.x0_variance import X0Variance

OnState = Callable[[Tensor, SampleState], None]


class _Options(TypedDict):
    """Arguments of sample_steps."""

    pred_type: str
    num_steps: int | None
    reverse_stride: int
    ddim_eta: float
    seed: int
    clip_denoise: bool
    guidance: float
    recompute_noise_after_clip: bool
    method: Method
    guiding: Guiding


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How images are drawn, whatever network draws them: all of it that their bytes depend on.

    steps: {"num_steps": n} or {"reverse_stride": k}, as config.sampling_steps gives it.
    name: one of SAMPLERS; ddim_eta is of ddim alone, x0_variance of analytic.
    guide_sha256: of the weights of the guide given to draw(); None: guided by the null class.
    """

    pred_type: str
    steps: Mapping[str, int]
    name: str = "ddim"
    ddim_eta: float = 0.0
    spacing: str = "trailing"
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    guide_sha256: str | None = None
    clip_denoise: bool = False
    dynamic_threshold: float | None = None
    recompute_noise: bool = True
    resamples: int = 0
    x0_variance: X0Variance | None = None
    seed: int = 0

    @property
    def method(self) -> Method:
        return Method(
            sampler=self.name,
            spacing=self.spacing,
            dynamic_threshold=self.dynamic_threshold,
            resamples=self.resamples,
            x0_variance=self.x0_variance,
        )


def draw(
    network: Network,
    schedule: NoiseSchedule,
    num_images: int,
    image_shape: tuple[int, int, int],
    sampler: Sampler,
    *,
    labels: Tensor | None = None,
    guide: Network | None = None,
    task: Task = PLAIN,
    on_state: OnState | None = None,
    batch_size: int = BATCH_SIZE,
) -> NDArray[np.uint8]:
    """Images 0 .. num_images - 1, uint8 (N, H, W, C).

    image_shape: (C, H, W).  labels: (N,) int64; None: no classes, or all the null class.
    guide: the network to be guided away from, on the network's device; in eval mode.
    task: what is asked besides images.  on_state(ids, state): is told of each state.
    """
    device = device_of(network)
    images = []
    for first in range(0, num_images, batch_size):
        ids = torch.arange(first, first + batch_size, device=device)
        wanted = None if labels is None else labels.to(device)[ids % num_images]
        images.append(
            draw_batch(
                *(network, schedule, ids, image_shape, sampler),
                labels=wanted,
                guide=guide,
                task=task,
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
    guide: Network | None = None,
    task: Task = PLAIN,
    on_state: OnState | None = None,
) -> NDArray[np.uint8]:
    """One batch of images by their numbers, each in its slot, uint8 (N, H, W, C); as in draw().

    ids: int64 (N,), on the network's device, as labels are.
    """
    if (guide is None) != (sampler.guide_sha256 is None):
        raise ValueError("a sampler with guide_sha256 and a guide go together; give both or none")
    states = sample_steps(
        network,
        schedule,
        ids,
        image_shape,
        labels=labels,
        null_label=getattr(network, "null_label", None),
        constrain=task.constrain,
        start=task.start(ids),
        draws=task.draws,
        **_options(sampler, guide),
    )
    state = None
    for state in states:
        if on_state is not None:
            on_state(ids, state)
    assert state is not None
    return to_uint8(_finite(state.x_t, ids)).cpu().numpy()


def _options(sampler: Sampler, guide: Network | None) -> _Options:
    """The arguments of sample_steps that are the same for every batch."""
    return _Options(
        pred_type=sampler.pred_type,
        num_steps=sampler.steps.get("num_steps"),
        reverse_stride=sampler.steps.get("reverse_stride", 1),
        ddim_eta=sampler.ddim_eta,
        seed=sampler.seed,
        clip_denoise=sampler.clip_denoise,
        guidance=sampler.guidance,
        recompute_noise_after_clip=sampler.recompute_noise,
        method=sampler.method,
        guiding=Guiding(
            interval=sampler.guidance_interval, rescale=sampler.guidance_rescale, guide=guide
        ),
    )


def _finite(images: Tensor, ids: Tensor) -> Tensor:
    is_finite = images.isfinite().flatten(1).all(dim=1)
    if not bool(is_finite.all()):
        wrong = ids[~is_finite].tolist()
        raise NonFiniteError(
            f"image {wrong[0]} and {len(wrong) - 1} others are not finite; nothing was saved"
        )
    return images


def num_calls(sampler: Sampler, schedule: NoiseSchedule, *, begin: float = 1.0) -> int:
    """Reverse steps from time `begin` to an image, those taken again counted too."""
    path = levels(
        schedule,
        spacing=sampler.spacing,
        num_steps=sampler.steps.get("num_steps"),
        reverse_stride=sampler.steps.get("reverse_stride", 1),
        between=sampler.method.between,
    )
    walk = below(path, begin)
    steps = len(walk) - 1
    return steps + (steps - 1) * sampler.resamples
