"""The reverse process as a film strip: what EXPORT_INTERM shows between noise and image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.pictures import grid
from ddpm.sampling import SampleState, to_uint8

MAX_IMAGES = 8
MAX_FRAMES = 10


class Film:
    """Collects evenly spaced states of the first images; draw() tells `film.add` of each."""

    def __init__(self, num_steps: int) -> None:
        count = min(MAX_FRAMES, num_steps)
        # The last state is the image itself.
        self._wanted = {round((k + 1) * num_steps / count) for k in range(count)}
        self._step = 0
        self._frames: list[tuple[Tensor, Tensor]] = []

    def add(self, ids: Tensor, state: SampleState) -> None:
        """One state of a batch; those of later batches than the first are passed over."""
        if int(ids[0]) != 0:
            return
        self._step += 1
        if self._step in self._wanted:
            self._frames.append((_bytes(state.x_t), _bytes(state.x0_hat)))

    def picture(self, num_images: int) -> NDArray[np.uint8]:
        """Two rows an image, time from left to right: x_t, and below it the x0 it is taken for."""
        strips = torch.stack([torch.stack(frame) for frame in self._frames])  # (F, 2, n, H, W, C)
        strips = strips[:, :, :num_images].permute(2, 1, 0, 3, 4, 5)  # (n, 2, F, H, W, C)
        return grid(strips.flatten(0, 2).numpy(), columns=len(self._frames))


def _bytes(x: Tensor) -> Tensor:
    return to_uint8(x[:MAX_IMAGES].nan_to_num()).cpu()
