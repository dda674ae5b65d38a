"""What the samples of a network are worth while it trains: FID, KID and class accuracy.

Each worker draws its share of EVALUATION.SAMPLES images and extracts their features; sums are
added, the features that KID compares pass by, and no worker waits for more than a share. The images
are those of the sample grids: DDIM, eta 0, x0 clipped, EVALUATION.SEED, classes in turn, batches of
one size. A number that would mean nothing, of too few images, is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.distributed import Group
from ddpm.errors import InputError
from ddpm.features import Extractor
from ddpm.fid import IMAGES_PER_DIMENSION, fid
from ddpm.generate import grid_sampler
from ddpm.kernel_means import KernelReference
from ddpm.kid import BLOCK_LEAST, kid_against
from ddpm.moments import Moments
from ddpm.real_data import as_real_data
from ddpm.reference_statistics import OpenInception, open_extractor, reference
from ddpm.run_rules import FID_SAMPLES
from ddpm.sample_statistics import GROUPS, collect_together, deal
from ddpm.schedule import NoiseSchedule
from ddpm.slots import draw_batch, num_calls

KID_IMAGES = GROUPS * BLOCK_LEAST
# Images are drawn in the batches in which features are extracted: both keep their bits.
BATCH = Extractor.batch_size


class SampleValidation:
    """Measures networks against the training images of `data`; all workers call it together."""

    def __init__(
        self,
        config: Config,
        schedule: NoiseSchedule,
        data: Dataset,
        group: Group,
        inception: OpenInception | None = None,
    ) -> None:
        self._config, self._schedule, self._group = config, schedule, group
        self._real, self._inception = as_real_data(config, data), inception
        self._known: _Known | None = None
        self._require_enough()

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """val_fid_infinity and val_kid, and val_class_accuracy where classes were asked for."""
        known = self._known = self._known or self._opened()
        extractor, count, labels = known.extractor, self._config.EVALUATION.SAMPLES, self._labels()
        statistics = collect_together(
            extractor,
            lambda places: self._drawn(network, places, labels),
            deal(count, labels),
            self._group,
            labels=labels if extractor.knows_labels else None,
        )
        found = {}
        if min(count, known.moments.count) >= IMAGES_PER_DIMENSION * extractor.dimension:
            estimate = fid(statistics.groups, known.moments, self._group)[1]
            found["val_fid_infinity"] = estimate.value
        if min(*statistics.kept_counts, *known.kernels.sizes) >= BLOCK_LEAST:
            found["val_kid"] = kid_against(statistics.blocks(), known.kernels).value
        if statistics.judged is not None and statistics.judged.hits is not None:
            found["val_class_accuracy"] = statistics.judged.hits / count
        return found

    def _require_enough(self) -> None:
        """Raises InputError where BEST could never be measured."""
        options, train = self._config.EVALUATION, len(self._real.train_ids)
        least = {"fid_infinity": FID_SAMPLES[options.FEATURES or "pixels"], "kid": KID_IMAGES}
        if train < least.get(options.BEST or "", 0):
            raise InputError(
                f"EVALUATION.BEST is {options.BEST}, which needs {least[options.BEST or '']} "
                f"training images with FEATURES {options.FEATURES}, and {self._real.name} has "
                f"{train}; give BEST mean_log10_mse"
            )

    def _opened(self) -> "_Known":
        """Made at the first call. What is trained is trained by rank 0; the others read it."""
        options = self._config.EVALUATION
        weights = None if options.WEIGHTS is None else Path(options.WEIGHTS)
        if not self._group.is_main:
            self._group.wait()
        extractor = open_extractor(
            options.FEATURES or "pixels", self._real, weights, self._inception
        )
        if self._group.is_main:
            self._group.wait()
        found = reference(self._real, "train", extractor, self._group)
        return _Known(
            extractor=extractor,
            moments=found.moments,
            kernels=KernelReference.of(found.blocks(), self._group),
        )

    def _labels(self) -> NDArray[np.int64] | None:
        classes = self._config.TRAINING.NETWORK.NUM_CLASSES
        return None if classes is None else np.arange(self._config.EVALUATION.SAMPLES) % classes

    def _drawn(
        self, network: nn.Module, places: range, labels: NDArray[np.int64] | None
    ) -> Iterator[NDArray[np.uint8]]:
        """The images at these places, whole batches; the last one without what fills it up."""
        count, sampler = self._config.EVALUATION.SAMPLES, grid_sampler(self._config, self._schedule)
        for first in range(places.start, places.stop, BATCH):
            ids = torch.arange(first, first + BATCH, device=self._group.device)
            wanted = None if labels is None else torch.from_numpy(labels[ids.cpu() % count])
            pixels = draw_batch(
                network,
                self._schedule,
                ids,
                configuration.image_shape(self._config),
                sampler,
                labels=None if wanted is None else wanted.to(ids.device),
            )
            yield pixels[: count - first]


def passes(config: Config, schedule: NoiseSchedule) -> int:
    """Images that go through the network at one evaluation; none where no FEATURES are given."""
    if config.EVALUATION.FEATURES is None:
        return 0
    batches = -(-config.EVALUATION.SAMPLES // BATCH)
    return batches * BATCH * num_calls(grid_sampler(config, schedule), schedule)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What samples are compared by, and the training images as it sees them."""

    extractor: Extractor
    moments: Moments
    kernels: KernelReference
