"""What the samples of a network are worth while it trains: FID and class accuracy, by all workers.

Each worker draws its share of EVALUATION.SAMPLES images and sums up their features; the sums are
added, so nothing but sums travels and no worker waits for more than a share. The images are those
of the sample grids: DDIM, eta 0, x0 clipped, EVALUATION.SEED, classes in turn, batches of one size.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.distributed import Group
from ddpm.features import Extractor
from ddpm.fid import fid
from ddpm.generate import grid_sampler
from ddpm.real_data import as_real_data
from ddpm.reference_statistics import (
    Reference,
    classifier_features,
    pixel_features,
    reference,
)
from ddpm.sample_statistics import collect, deal
from ddpm.schedule import NoiseSchedule
from ddpm.slots import draw_batch

BATCH = 64


class SampleValidation:
    """Measures networks against the training images of `data`; all workers call it together."""

    def __init__(
        self, config: Config, schedule: NoiseSchedule, data: Dataset, group: Group
    ) -> None:
        self._config, self._schedule, self._group = config, schedule, group
        self._real = as_real_data(config, data)
        self._known: tuple[Extractor, Reference] | None = None

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """val_fid_infinity, and val_class_accuracy where classes were asked for."""
        extractor, known = self._reference()
        count, labels = self._config.EVALUATION.SAMPLES, self._labels()
        batches = -(-count // BATCH)
        first, last = (
            batches * rank // self._group.size for rank in (self._group.rank, self._group.rank + 1)
        )
        statistics = collect(
            extractor,
            self._drawn(network, range(first, last), labels),
            deal(count, labels),
            labels=labels if extractor.knows_labels else None,
            first=first * BATCH,
            kept=0,
        )
        for moments in statistics.groups:
            moments.reduce_(self._group)
        found = {"val_fid_infinity": fid(statistics.groups, known.moments)[1].value}
        if labels is not None and extractor.knows_labels:
            judged = statistics.judged
            hits = torch.tensor(judged.hits if judged else 0, device=self._group.device)
            found["val_class_accuracy"] = int(self._group.sum_(hits)) / count
        return found

    def _reference(self) -> tuple[Extractor, Reference]:
        """Made at the first call: by rank 0, unless they are there; the others read them."""
        if self._known is None:
            if not self._group.is_main:
                self._group.wait()
            extractor: Extractor = (
                classifier_features(self._real)
                if self._config.EVALUATION.FEATURES == "classifier"
                else pixel_features(self._real)
            )
            self._known = extractor, reference(self._real, "train", extractor)
            if self._group.is_main:
                self._group.wait()
        return self._known

    def _labels(self) -> NDArray[np.int64] | None:
        classes = self._config.TRAINING.NETWORK.NUM_CLASSES
        return None if classes is None else np.arange(self._config.EVALUATION.SAMPLES) % classes

    def _drawn(
        self, network: nn.Module, batches: range, labels: NDArray[np.int64] | None
    ) -> Iterator[NDArray[np.uint8]]:
        """These batches of the images, the last one without what fills it up."""
        count, sampler = self._config.EVALUATION.SAMPLES, grid_sampler(self._config, self._schedule)
        for batch in batches:
            ids = torch.arange(batch * BATCH, (batch + 1) * BATCH, device=self._group.device)
            wanted = None if labels is None else torch.from_numpy(labels[ids.cpu() % count])
            pixels = draw_batch(
                network,
                self._schedule,
                ids,
                configuration.image_shape(self._config),
                sampler,
                labels=None if wanted is None else wanted.to(ids.device),
            )
            yield pixels[: count - batch * BATCH]
