"""The reverse process as a strip of pictures or a GIF: what EXPORT_INTERM shows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.pictures import gif, grid, png
from ddpm.sampling import SampleState, to_uint8

MAX_IMAGES = 8
FRAMES = 10
SUFFIX = {"strip": ".png", "gif": ".gif"}


class Film:
    """Collects states of the first images; draw() tells `film.add` of each.

    num_steps: states of the whole walk.  every: steps between two frames; None: ten frames, evenly
    spaced. The last state, the image itself, is always the last frame.
    """

    def __init__(self, num_steps: int, every: int | None = None) -> None:
        count = min(FRAMES, num_steps)
        if every is None:
            self._wanted = {round((k + 1) * num_steps / count) for k in range(count)}
        else:
            self._wanted = {*range(every, num_steps, every), num_steps}
        self._step = 0
        self._frames: list[tuple[Tensor, Tensor]] = []

    def add(self, ids: Tensor, state: SampleState) -> None:
        """One state of a batch; those of later batches than the first are passed over."""
        if int(ids[0]) != 0:
            return
        self._step += 1
        if self._step in self._wanted:
            self._frames.append((_bytes(state.x_t), _bytes(state.x0_hat)))

    def file(self, num_images: int, form: str) -> bytes:
        """The bytes of the picture of the first images; form: "strip" (PNG) or "gif"."""
        if form == "gif":
            return gif([grid(x_t[:num_images].numpy()) for x_t, _ in self._frames])
        return png(self.strip(num_images))

    def strip(self, num_images: int) -> NDArray[np.uint8]:
        """Two rows an image, time from left to right: x_t, and below it the x0 it is taken for."""
        strips = torch.stack([torch.stack(frame) for frame in self._frames])  # (F, 2, n, H, W, C)
        strips = strips[:, :, :num_images].permute(2, 1, 0, 3, 4, 5)  # (n, 2, F, H, W, C)
        return grid(strips.flatten(0, 2).numpy(), columns=len(self._frames))


def _bytes(x: Tensor) -> Tensor:
    return to_uint8(x[:MAX_IMAGES].nan_to_num()).cpu()
