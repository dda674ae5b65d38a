"""Film: the states between noise and image of the first images drawn, as one picture or a GIF."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.data import images
from ddpm.runs import gif, grid, png
from ddpm.sampling.samplers import SampleState


def to_uint8(x: Tensor) -> Tensor:
    """Images as bytes: [-1, 1] to 0 .. 255, rounded; values outside are clamped.

    x: float (N, C, H, W).  Returns uint8 (N, H, W, C).  Raises ValueError for NaN.
    """
    levels = x.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    if bool(levels.isnan().any()):
        raise ValueError("images contain NaN")
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_floats(x: Tensor, ranges: images.Ranges) -> Tensor:
    """Images in the data's own units: [-1, 1] to the range of each channel; values outside are
    clamped.

    x: float (N, C, H, W).  Returns float32 (N, H, W, C) on the CPU.
    """
    unit = x.double().clamp(-1.0, 1.0).add(1.0).mul(0.5).permute(0, 2, 3, 1).cpu().numpy()
    return torch.from_numpy(images.from_unit(unit, ranges))


class Film:
    """The reverse process of the first images as a strip of pictures or a GIF, for EXPORT_INTERM.

    num_steps: states of the whole walk.  every: steps between two frames; None: ten frames, evenly
    spaced. The last state, the image itself, is always the last frame.
    """

    MAX_IMAGES = 8
    FRAMES = 10
    SUFFIX = {"strip": ".png", "gif": ".gif"}

    def __init__(self, num_steps: int, every: int | None = None) -> None:
        count = min(self.FRAMES, num_steps)
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
            self._frames.append((self._bytes(state.x_t), self._bytes(state.x0_hat)))

    def file(self, num_images: int, form: str) -> bytes:
        """Bytes of the picture of the first images; form: "strip" (PNG) or "gif"."""
        if form == "gif":
            return gif([grid(x_t[:num_images].numpy()) for x_t, _ in self._frames])
        return png(self.strip(num_images))

    def strip(self, num_images: int) -> NDArray[np.uint8]:
        """Two rows an image, time from left to right: x_t, and below it the x0 it is taken for."""
        strips = torch.stack([torch.stack(frame) for frame in self._frames])  # (F, 2, n, H, W, C)
        strips = strips[:, :, :num_images].permute(2, 1, 0, 3, 4, 5)  # (n, 2, F, H, W, C)
        return grid(strips.flatten(0, 2).numpy(), columns=len(self._frames))

    def _bytes(self, x: Tensor) -> Tensor:
        return to_uint8(x[: self.MAX_IMAGES].nan_to_num()).cpu()
