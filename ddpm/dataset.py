"""Reading shards: the split, the endless order, batches of images in [-1, 1].

A batch is read by its samples' numbers: those that lie side by side in a shard come with one read,
everything else is not touched. So a worker reads its share and a resumed run what is left, and
nothing about reading needs saving. The bytes of every image are checked against their CRC-32.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import schema
from ddpm.index import Index
from ddpm.order import Order, is_validation
from ddpm.preprocess import Preprocessor, to_model_space
from ddpm.sources import ArraySource
from ddpm.store import MemoryStore, ShardStore, Store

_AHEAD = 4


class Batch(NamedTuple):
    """Samples as the trainer takes them.

    images: float32 (n, C, H, W) in [-1, 1].  labels: int64 (n,), None without labels.  ids: int64
    (n,), the samples' numbers.  positions: int64 (n,) in the endless order; None outside of it.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    positions: Tensor | None

    def part(self, start: int, stop: int) -> "Batch":
        """Samples start .. stop - 1."""
        return self._each(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            change(self.images),
            None if self.labels is None else change(self.labels),
            change(self.ids),
            None if self.positions is None else change(self.positions),
        )


class Dataset:
    """Images of an index as a configuration's DATASET section wants them.

    image_shape: (C, H, W) of the batches.  seed: of order and augmentation; the split is the same
    for every seed.  cache: keep decoded images in memory while a quarter of it is free (not with
    random crops: what is kept is the crop).
    num_train, num_validation, num_classes (None: no labels), sha256 (of the data), bytes_read,
    index (None: arrays).
    """

    def __init__(
        self,
        index: Index,
        dataset: schema.Dataset,
        image_shape: tuple[int, int, int],
        *,
        seed: int,
        cache: bool = False,
    ) -> None:
        has_labels = dataset.LABEL_KEY is not None
        store = ShardStore(index)
        if cache:
            store.keep_decoded(image_shape)
        self._take(
            store,
            index.labels if has_labels else None,
            Preprocessor(dataset.PREPROCESSING, image_shape[1:], seed=seed),
            fraction=dataset.VALIDATION_FRACTION,
            starts=index.starts,
            is_shuffled=index.is_shuffled,
            seed=seed,
        )
        self.num_classes = index.num_classes if has_labels else None
        self.image_shape, self.sha256 = image_shape, index.sha256
        self.index: Index | None = index

    @classmethod
    def from_arrays(
        cls,
        images: NDArray,
        labels: NDArray | None = None,
        *,
        seed: int = 0,
        validation_fraction: float = 0.1,
    ) -> "Dataset":
        """A data set in memory: images (N, H, W[, C]) uint8 or float in [0, 1], labels (N,).

        Raises InputError for arrays that are no such thing.
        """
        source = ArraySource(np.asarray(images), labels)
        loaded = source.load()
        height, width = np.asarray(images).shape[1:3]
        self = cls.__new__(cls)
        self._take(
            MemoryStore(loaded.images),
            loaded.labels,
            Preprocessor(schema.Preprocessing(), (height, width), seed=seed),
            fraction=validation_fraction,
            starts=np.array([0, source.num_samples]),
            is_shuffled=False,
            seed=seed,
        )
        self.num_classes = None if loaded.labels is None else int(loaded.labels.max()) + 1
        assert source.image_shape is not None  # arrays have one shape
        self.image_shape, self.sha256 = source.image_shape, source.identity()
        self.index = None
        return self

    def _take(
        self,
        store: Store,
        labels: NDArray[np.int64] | None,
        preprocessor: Preprocessor,
        *,
        fraction: float,
        starts: NDArray[np.int64],
        is_shuffled: bool,
        seed: int,
    ) -> None:
        self._store, self._preprocessor = store, preprocessor
        self._labels = None if labels is None else torch.from_numpy(labels)
        held_out = is_validation(int(starts[-1]), fraction)
        self._validation_ids = torch.from_numpy(np.flatnonzero(held_out))
        self._order = Order(np.flatnonzero(~held_out), starts, seed=seed, is_shuffled=is_shuffled)
        self.num_train = len(self._order.train_ids)
        self.num_validation = len(self._validation_ids)

    @property
    def bytes_read(self) -> int:
        """Bytes read from shards so far."""
        return self._store.bytes_read

    def order(self, positions: Tensor) -> Tensor:
        """The samples at positions int64 (n,) of the endless order; pass = p // num_train."""
        return self._order.ids(torch.as_tensor(positions))

    def read(self, ids: Tensor, positions: Tensor | None = None) -> Batch:
        """The samples with these numbers, int64 (n,).

        positions: int64 (n,), where random crops and augmentation are drawn; None leaves both out.
        Raises InputError naming shard, byte and sample where the data is damaged.
        """
        ids = torch.as_tensor(ids)
        is_random = positions is not None and self._preprocessor.is_random
        draws = self._preprocessor.draws(torch.as_tensor(positions)) if is_random else None
        pixels = self._store.frames(ids.numpy(), self._preprocessor, draws)
        if draws is not None:
            pixels = self._preprocessor.augment(pixels, draws)
        labels = None if self._labels is None else self._labels[ids]
        return Batch(to_model_space(pixels), labels, ids, positions)

    def batches(self, positions: Iterable[Tensor], *, threads: int = 1) -> Iterator[Batch]:
        """The samples at each positions tensor in turn, read ahead by `threads` threads.

        An error comes where its batch would have come. Closing the iterator ends the threads.
        """
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="ddpm-read") as pool:
            try:
                for some in positions:
                    waiting.append(pool.submit(self._read_positions, torch.as_tensor(some)))
                    if len(waiting) > _AHEAD + threads - 1:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read_positions(self, positions: Tensor) -> Batch:
        return self.read(self.order(positions), positions)

    def validation_ids(self, limit: int) -> Tensor:
        """The numbers of the first `limit` validation samples, int64."""
        return self._validation_ids[:limit]

    def validation(self, limit: int) -> Batch:
        """The first `limit` validation samples, not augmented."""
        return self.read(self.validation_ids(limit))

    def read_from(self, folder: Path) -> None:
        """Reads the images from copies of the shards in `folder` from now on."""
        assert isinstance(self._store, ShardStore)  # arrays have no shards to copy
        self._store.read_from(folder)

    def close(self) -> None:
        """Closes the shards; reading opens them again."""
        self._store.close()
