"""DATASET.PREPROCESSING: crop, resize, flip or turn.

A crop of CROP_SIZE (null: INPUT_IMAGE_SIZE) is taken, then resized to INPUT_IMAGE_SIZE where the
sizes differ (bicubic; shrinking widens the filter, so nothing aliases), then flipped or turned.
What is random is drawn by position in the endless order, so it differs between passes and does not
depend on workers; validation images are cropped at CROP_POSITION and not augmented.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import noise
from ddpm.images import Pixels, resize
from ddpm.noise import Stream
from ddpm.schema import Preprocessing

_CORNERS = {
    "top_left": (0.0, 0.0),
    "top_right": (0.0, 1.0),
    "bottom_left": (1.0, 0.0),
    "bottom_right": (1.0, 1.0),
}
_DRAWS = 4  # crop: vertical, horizontal; then two for the augmentation


class Preprocessor:
    """What is done to each image of a data set.

    size: (H, W) of the result.  is_random: something depends on the position.  is_random_crop:
    the crop does.
    """

    def __init__(self, options: Preprocessing, size: tuple[int, int], *, seed: int) -> None:
        crop = options.CROP_SIZE
        self.size, self._seed = size, seed
        self._crop_size = size if crop is None else (crop, crop)
        self._corner = _CORNERS.get(options.CROP_POSITION)
        self._kind = options.AUGMENT_TYPE if options.AUGMENT else None
        self.is_random_crop = options.CROP_TYPE == "random"
        self.is_random = self.is_random_crop or self._kind is not None

    def draws(self, positions: Tensor) -> NDArray[np.int64]:
        """The random words of each position, int64 (n, 4)."""
        return noise.words(self._seed, Stream.AUGMENT, positions, _DRAWS).numpy()

    def frame(self, pixels: Pixels, draws: NDArray[np.int64] | None) -> Pixels:
        """One image (H', W', C), cropped and resized: (H, W, C).  draws: (4,), None = no chance."""
        height, width = self._crop_size
        top, left = self._place(pixels.shape[0] - height, pixels.shape[1] - width, draws)
        return resize(pixels[top : top + height, left : left + width], self.size)

    def augment(self, batch: Pixels, draws: NDArray[np.int64]) -> Pixels:
        """Images (n, H, W, C), each flipped or turned as its draws (n, 4) say."""
        if self._kind is None:
            return batch
        batch = batch.copy()
        first, second = draws[:, 2] >> 31, draws[:, 3] >> 31  # fair coins
        if self._kind == "rot90":
            for turns in (1, 2, 3):
                chosen = 2 * first + second == turns
                batch[chosen] = np.rot90(batch[chosen], turns, axes=(1, 2))
            return batch
        if self._kind in ("horizontal_flip", "flip"):
            batch[first == 1] = batch[first == 1, :, ::-1]
        if self._kind in ("vertical_flip", "flip"):
            batch[second == 1] = batch[second == 1, ::-1]
        return batch

    def _place(self, high: int, wide: int, draws: NDArray[np.int64] | None) -> tuple[int, int]:
        """Top and left of the crop, when `high` and `wide` pixels are left over."""
        if min(high, wide) < 0:
            raise ValueError(f"is smaller than the crop of {self._crop_size} (height, width)")
        if self.is_random_crop and draws is not None:
            return int(draws[0]) * (high + 1) >> 32, int(draws[1]) * (wide + 1) >> 32
        if self._corner is None:
            return high // 2, wide // 2
        return int(self._corner[0] * high), int(self._corner[1] * wide)


def to_model_space(batch: Pixels) -> Tensor:
    """Images (n, H, W, C), uint8 or float in [0, 1], as float32 (n, C, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).to(torch.float32)
    return pixels.div_(127.5).sub_(1.0) if batch.dtype == np.uint8 else pixels.mul_(2.0).sub_(1.0)
