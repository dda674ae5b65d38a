"""Dataset: the split, the endless order, batches of images in [-1, 1].

A batch is read by its samples' numbers: those that lie side by side in a shard come with one read,
everything else is not touched. So a worker reads its share and a resumed run what is left, and
nothing about reading needs saving. The bytes of every image are checked against their CRC-32.
"""

import logging
import os
import threading
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.config import schema
from ddpm.data import images
from ddpm.data.images import Pixels
from ddpm.data.index import Index
from ddpm.data.order import Order, is_validation
from ddpm.data.source import ArraySource, ImageSequence
from ddpm.diffusion import Stream, philox
from ddpm.errors import InputError, StorageError, as_typed

_LOG = logging.getLogger("ddpm.store")
_OPEN_SHARDS = 256
_FREE_SHARE = 0.25
_AHEAD = 4
_CORNERS = {
    "top_left": (0.0, 0.0),
    "top_right": (0.0, 1.0),
    "bottom_left": (1.0, 0.0),
    "bottom_right": (1.0, 1.0),
}
NUM_DRAWS = 4  # random words of an image: crop, vertical and horizontal; two for the augmentation

Ints = NDArray[np.int64]


class Preprocessor:
    """DATASET.PREPROCESSING: crop, resize, flip or turn.

    Crops CROP_SIZE (null: INPUT_IMAGE_SIZE; RESIZE: the largest part of its shape), resizes to
    INPUT_IMAGE_SIZE where that differs, then flips or turns. Chance comes as random words, drawn by
    position in the endless order.

    size: (H, W) of the result.  is_random: something depends on the random words.  is_random_crop:
    the crop does.
    """

    def __init__(self, options: schema.Preprocessing, size: tuple[int, int]) -> None:
        crop = options.CROP_SIZE
        self.size = size
        self._crop_size = size if crop is None else (crop, crop)
        self._takes_largest = options.RESIZE
        self._corner = _CORNERS.get(options.CROP_POSITION)
        self._kind = options.AUGMENT_TYPE if options.AUGMENT else None
        self.is_random_crop = options.CROP_TYPE == "random"
        self.is_random = self.is_random_crop or self._kind is not None

    def frame(self, pixels: Pixels, draws: NDArray[np.int64] | None) -> Pixels:
        """One image (H', W', C) cropped, resized: (H, W, C).  draws: (4,); None: CROP_POSITION."""
        height, width = self._crop_size
        if self._takes_largest:
            height, width = images.largest_part(pixels.shape, self.size)
        top, left = self._place(pixels.shape[0] - height, pixels.shape[1] - width, draws)
        return images.resize(pixels[top : top + height, left : left + width], self.size)

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


class MemoryStore:
    """Images in memory, by number."""

    bytes_read = 0

    def __init__(self, pixels: ImageSequence) -> None:
        self._pixels = pixels

    def frames(self, ids: Ints, preprocessor: Preprocessor, draws: Ints | None) -> Pixels:
        """Images (n, H, W, C) by number; preprocessor and draws change nothing."""
        # Arrays are as large as the batches, so there is nothing to crop.
        return np.stack([self._pixels[number] for number in ids.tolist()])

    def close(self) -> None:
        """Memory goes with the store."""


class ShardStore:
    """Images in shards, by number, framed (cropped and resized) as they are read.

    Threads may read at the same time.
    """

    bytes_read = 0

    def __init__(self, index: Index) -> None:
        self._index = index
        self._table, self._starts = index.table, index.starts
        self._paths = [index.folder / shard.name for shard in index.shards]
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._kept: NDArray[Any] | None = None
        self._is_kept = np.zeros(0, bool)
        # Not a method: that would keep the store alive.
        weakref.finalize(self, _close_all, self._files)

    def frames(self, ids: Ints, preprocessor: Preprocessor, draws: Ints | None) -> Pixels:
        """Images (n, H, W, C) by number.  draws: (n, 4), of random crops."""
        if preprocessor.is_random_crop:  # what is kept would be another crop
            return self._decoded(ids, preprocessor, draws)
        kept = np.zeros(len(ids), bool)
        inside = np.flatnonzero(ids < len(self._is_kept))
        kept[inside] = self._is_kept[ids[inside]]
        if self._kept is not None and kept.all():
            return self._kept[ids]
        missing = self._decoded(ids[~kept], preprocessor, None)
        if self._kept is None:
            return missing
        frames = np.empty((len(ids), *self._kept.shape[1:]), self._kept.dtype)
        frames[kept], frames[~kept] = self._kept[ids[kept]], missing
        if psutil.virtual_memory().available < _FREE_SHARE * psutil.virtual_memory().total:
            return frames
        new = np.flatnonzero(~kept & (ids < len(self._kept)))
        self._kept[ids[new]] = frames[new]
        self._is_kept[ids[new]] = True  # last: another thread must not see it before the image
        return frames

    def keep_decoded(self, image_shape: tuple[int, int, int]) -> None:
        """Keeps decoded images from here on, while a quarter of the machine's memory is free."""
        channels, height, width = image_shape
        dtype = np.dtype(self._index.dtype)
        most = psutil.virtual_memory().total // (channels * height * width * dtype.itemsize)
        count = min(self._index.num_samples, most)
        # The system gives the memory page by page, as images come.
        self._kept = np.empty((count, height, width, channels), dtype)
        self._is_kept = np.zeros(count, bool)

    def read_from(self, folder: Path) -> None:
        """Reads the copies of the shards in `folder` from here on; a copy that turns out damaged or
        gone is removed, and its shard read where the index lies.
        """
        self._paths = [folder / shard.name for shard in self._index.shards]

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        _close_all(self._files)

    def _decoded(self, ids: Ints, preprocessor: Preprocessor, draws: Ints | None) -> NDArray[Any]:
        if not len(ids):
            return np.empty((0, *preprocessor.size, self._index.channels), self._index.dtype)
        frames: dict[int, Pixels] = {}
        for place, data in self._bytes(ids):
            try:
                pixels = images.decode(data)
                frames[place] = preprocessor.frame(pixels, None if draws is None else draws[place])
            except ValueError as error:
                raise InputError(f"{self._index.place(int(ids[place]))}: {error}") from error
        return np.stack([frames[place] for place in range(len(ids))])

    def _bytes(self, ids: Ints) -> Iterator[tuple[int, bytes]]:
        """(place in ids, bytes of the image) of every sample, in the order of the shards."""
        ascending = np.argsort(ids, kind="stable")
        shards = np.searchsorted(self._starts, ids[ascending], side="right") - 1
        is_apart = (np.diff(ids[ascending]) > 1) | (np.diff(shards) > 0)
        for run in np.split(ascending, np.flatnonzero(is_apart) + 1):
            if len(run):
                yield from self._run(ids, run.tolist())

    def _run(self, ids: Ints, places: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Samples that lie side by side in one shard, with one read."""
        shard = int(np.searchsorted(self._starts, ids[places[0]], side="right")) - 1
        path, original = self._paths[shard], self._index.folder / self._index.shards[shard].name
        try:
            images = self._images(path, ids[places])
        except (InputError, StorageError) as error:
            if path == original:
                raise
            self._paths[shard] = original
            _LOG.warning("a copy is not used any more, its shard is read in place: %s", error)
            with suppress(OSError):
                path.unlink()
            images = self._images(original, ids[places])
        return zip(places, images, strict=True)

    def _images(self, path: Path, ids: Ints) -> list[bytes]:
        """The bytes of samples that lie side by side in the shard at `path`, checked."""
        rows = self._table[ids]
        begin = int(rows["offset"][0])
        data = self._read(path, begin, int(rows["offset"][-1] + rows["size"][-1]) - begin)
        found = []
        for sample, (offset, size, crc, _) in zip(ids.tolist(), rows.tolist(), strict=True):
            image = data[offset - begin : offset - begin + size]
            if zlib.crc32(image) != crc:
                raise InputError(
                    f"{path}: sample {sample} at byte {offset} is damaged (its CRC-32 is not the "
                    f"index's); find all damage with `{as_typed('pack')} FOLDER --verify`"
                )
            found.append(image)
        return found

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        try:
            file, is_kept = self._file(path)
            try:
                data = _pread(file, offset, size)
            finally:
                if not is_kept:
                    os.close(file)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read at byte {offset}: {error}") from error
        with self._lock:
            self.bytes_read += len(data)
        return data

    def _file(self, path: Path) -> tuple[int, bool]:
        """A shard, and whether it stays open; beyond a number of them the caller closes it."""
        with self._lock:
            if path not in self._files:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) >= _OPEN_SHARDS:
                    return file, False
                self._files[path] = file
            return self._files[path], True


def _pread(file: int, offset: int, size: int) -> bytes:
    """Reads until `size` bytes are there or the file ends; one call may give less."""
    pieces = []
    while size > 0 and (piece := os.pread(file, size, offset)):
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return b"".join(pieces)


def _close_all(files: dict[Path, int]) -> None:
    while files:
        with suppress(OSError, KeyError):
            os.close(files.popitem()[1])


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
        dataset: schema.DatasetSection,
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
            Preprocessor(dataset.PREPROCESSING, image_shape[1:]),
            held_out=_held_out(index, dataset.VALIDATION_FRACTION),
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
            Preprocessor(schema.Preprocessing(), (height, width)),
            held_out=is_validation(source.num_samples, validation_fraction),
            starts=np.array([0, source.num_samples]),
            is_shuffled=False,
            seed=seed,
        )
        self.num_classes = None if loaded.labels is None else int(loaded.labels.max()) + 1
        assert source.image_shape is not None  # arrays have one shape
        self.image_shape, self.sha256 = source.image_shape, source.identity()
        self.index = None
        return self

    @classmethod
    def from_torch(
        cls,
        dataset: ImageSequence,
        *,
        seed: int = 0,
        validation_fraction: float = 0.1,
    ) -> "Dataset":
        """The images of a torch.utils.data.Dataset, or its pairs (image, label), in memory.

        image: of Pillow; an array (H, W[, C]); a tensor (C, H, W); uint8 or float in [0, 1], so
        before any normalisation.  Raises InputError where they differ in shape.
        """
        items = [dataset[number] for number in range(len(dataset))]
        if any(isinstance(item, dict) for item in items):
            raise InputError("items are dicts; give pairs (image, label), or use from_huggingface")
        pairs = [item if isinstance(item, tuple | list) else (item,) for item in items]
        images = [_as_array(pair[0]) for pair in pairs]
        shapes = sorted({image.shape for image in images})
        if len(shapes) != 1:
            found = ", ".join(map(str, shapes[:3])) or "none"
            raise InputError(f"images of one shape are taken, not of {found}; resize them")
        numbers = [len(pair) for pair in pairs]
        if len(set(numbers)) > 1 or numbers[0] > 2:
            raise InputError("items are neither images nor pairs (image, label)")
        try:
            labels = np.array([int(pair[1]) for pair in pairs]) if numbers[0] == 2 else None
        except (TypeError, ValueError):
            raise InputError("labels are no whole numbers; give 0, 1, ... by class") from None
        return cls.from_arrays(
            np.stack(images), labels, seed=seed, validation_fraction=validation_fraction
        )

    @classmethod
    def from_huggingface(
        cls,
        dataset: ImageSequence,
        image: str = "image",
        label: str | None = "label",
        *,
        seed: int = 0,
        validation_fraction: float = 0.1,
    ) -> "Dataset":
        """The rows of a split of Hugging Face's datasets, in memory: its columns image and label.

        label: None for images without.  Raises InputError as from_torch does.
        """
        rows = [dataset[number] for number in range(len(dataset))]
        keys = [image] if label is None else [image, label]
        if rows and (missing := [key for key in keys if key not in rows[0]]):
            raise InputError(f"no column {missing[0]!r}, there are: {', '.join(rows[0])}")
        pairs = [tuple(row[key] for key in keys) for row in rows]
        return cls.from_torch(pairs, seed=seed, validation_fraction=validation_fraction)

    def _take(
        self,
        store: MemoryStore | ShardStore,
        labels: NDArray[np.int64] | None,
        preprocessor: Preprocessor,
        *,
        held_out: NDArray[np.bool_],
        starts: NDArray[np.int64],
        is_shuffled: bool,
        seed: int,
    ) -> None:
        self._store, self._preprocessor, self._seed = store, preprocessor, seed
        self._labels = None if labels is None else torch.from_numpy(labels)
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
        draws = None
        if is_random:
            positions = torch.as_tensor(positions)
            draws = philox.words(self._seed, Stream.AUGMENT, positions, NUM_DRAWS).numpy()
        pixels = self._store.frames(ids.numpy(), self._preprocessor, draws)
        if draws is not None:
            pixels = self._preprocessor.augment(pixels, draws)
        labels = None if self._labels is None else self._labels[ids]
        return Batch(_to_model_space(pixels), labels, ids, positions)

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


def _as_array(image: object) -> NDArray:
    """An image (H, W[, C]) of Pillow, an array, or a tensor (C, H, W)."""
    if isinstance(image, Tensor):
        return (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    if getattr(image, "mode", "L") not in ("L", "RGB"):
        raise InputError(f"an image has mode {image.mode}; convert it to L or RGB")  # type: ignore[attr-defined]
    return np.asarray(image)


def _held_out(index: Index, fraction: float) -> NDArray[np.bool_]:
    """Mask of the samples for validation: those of the data's own split, else drawn."""
    own = index.held_out
    return is_validation(index.num_samples, fraction) if own is None else own


def _to_model_space(batch: Pixels) -> Tensor:
    """Images (n, H, W, C), uint8 or float in [0, 1], as float32 (n, C, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).to(torch.float32)
    return pixels.div_(127.5).sub_(1.0) if batch.dtype == np.uint8 else pixels.mul_(2.0).sub_(1.0)
