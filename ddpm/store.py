"""Where images come from when they are read by number: shards, memory, and what is kept decoded."""

import logging
import os
import threading
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ddpm import images
from ddpm.errors import InputError, StorageError
from ddpm.images import Pixels
from ddpm.index import Index
from ddpm.preprocess import Preprocessor
from ddpm.source import ImageSequence

_LOG = logging.getLogger("ddpm.store")
_OPEN_SHARDS = 256
_FREE_SHARE = 0.25

Ints = NDArray[np.int64]


class Store(ABC):
    """Images by number, framed (cropped and resized) as they are read."""

    bytes_read = 0

    @abstractmethod
    def frames(self, ids: Ints, preprocessor: Preprocessor, draws: Ints | None) -> Pixels:
        """Images (n, H, W, C) by number.  draws: (n, 4), of random crops."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the system lent; reading borrows it again."""


class MemoryStore(Store):
    """Images that are in memory."""

    def __init__(self, pixels: ImageSequence) -> None:
        self._pixels = pixels

    def frames(self, ids: Ints, preprocessor: Preprocessor, draws: Ints | None) -> Pixels:
        # Arrays are as large as the batches, so there is nothing to crop.
        return np.stack([self._pixels[number] for number in ids.tolist()])

    def close(self) -> None:
        """Memory goes with the store."""


class ShardStore(Store):
    """Images in shards. Threads may read at the same time."""

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
        """From now on keeps decoded images, while a quarter of the machine's memory is free."""
        channels, height, width = image_shape
        dtype = np.dtype(self._index.dtype)
        most = psutil.virtual_memory().total // (channels * height * width * dtype.itemsize)
        count = min(self._index.num_samples, most)
        # The system gives the memory page by page, as images come.
        self._kept = np.empty((count, height, width, channels), dtype)
        self._is_kept = np.zeros(count, bool)

    def read_from(self, folder: Path) -> None:
        """From now on reads the copies of the shards in `folder`; one that turns out damaged or
        gone is thrown away, and its shard read where the index lies.
        """
        self._paths = [folder / shard.name for shard in self._index.shards]

    def close(self) -> None:
        _close_all(self._files)

    def _decoded(self, ids: Ints, preprocessor: Preprocessor, draws: Ints | None) -> NDArray[Any]:
        frames: list[Pixels] = [_EMPTY] * len(ids)
        for place, data in self._bytes(ids):
            try:
                pixels = images.decode(data)
                frames[place] = preprocessor.frame(pixels, None if draws is None else draws[place])
            except ValueError as error:
                raise InputError(f"{self._index.place(int(ids[place]))}: {error}") from error
        return np.stack(frames) if frames else _none_of(self._index, preprocessor)

    def _bytes(self, ids: Ints) -> Iterator[tuple[int, bytes]]:
        """(place in ids, bytes of the image) of every sample, in the order of the shards."""
        ascending = np.argsort(ids, kind="stable")
        shards = np.searchsorted(self._starts, ids[ascending], side="right") - 1
        is_apart = (np.diff(ids[ascending]) > 1) | (np.diff(shards) > 0)
        for span in np.split(ascending, np.flatnonzero(is_apart) + 1):
            if len(span):
                yield from self._span(ids, span.tolist())

    def _span(self, ids: Ints, places: Sequence[int]) -> Iterator[tuple[int, bytes]]:
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
                    "index's); find all damage with `python launch/pack.py FOLDER --verify`"
                )
            found.append(image)
        return found

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        try:
            file = self._file(path)
            try:
                data = _pread(file, offset, size)
            finally:
                if self._files.get(path) != file:
                    os.close(file)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read at byte {offset}: {error}") from error
        with self._lock:
            self.bytes_read += len(data)
        return data

    def _file(self, path: Path) -> int:
        """An open shard; beyond a number of them, one that the caller closes."""
        with self._lock:
            if path not in self._files:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._files) >= _OPEN_SHARDS:
                    return file
                self._files[path] = file
            return self._files[path]


_EMPTY: Pixels = np.empty((0, 0, 0), np.uint8)


def _none_of(index: Index, preprocessor: Preprocessor) -> Pixels:
    return np.empty((0, *preprocessor.size, index.channels), index.dtype)


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
