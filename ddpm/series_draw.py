"""Draws units of a series, one after the other: the network is loaded once, each batch is called at
the one size of the series, and image i sits in slot i % B of batch i // B whoever draws it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from ddpm import durable, spans, tasks, units
from ddpm.errors import DdpmError, InputError, Interrupted, LockedError, StorageError
from ddpm.image_generator import ImageGenerator
from ddpm.request import Request, read_request
from ddpm.rundir import RunDirectory
from ddpm.series import REQUEST, Series, digest, recipe_of
from ddpm.slots import device_of
from ddpm.spans import Span
from ddpm.wish import whole_base

LARGEST = {"cpu": 64, "cuda": 512}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class _Enough(Exception):
    """One step of the reverse process has gone through."""


class Artist:
    """Draws images of a series in this process, with the threads its run was trained with.

    artist = Artist(series)
    artist.draw([Span(0, 512)], should_stop=lambda: False)

    """

    def __init__(
        self,
        series: Series,
        generator: ImageGenerator | None = None,
        *,
        on_batch: Callable[[int], object] = lambda images: None,
    ) -> None:
        self.series, self._on_batch = series, on_batch
        self.generator = generator or ImageGenerator(request_of(series))
        torch.set_num_threads(RunDirectory(self.generator.request.run).threads)
        found = recipe_of(self.generator.recipe())
        if digest(found) != series.digest:
            changed = sorted(k for k in found if found[k] != series.recipe.get(k))
            raise InputError(
                f"{series.folder}: what it is drawn from has changed since it was begun "
                f"({', '.join(changed)}); give the same again, or start another series"
            )
        self.device = device_of(self.generator.model.network).type

    def draw(
        self,
        wanted: Sequence[Span],
        *,
        should_stop: Callable[[], bool],
        on_begin: Callable[[Span], object] = lambda span: None,
        on_end: Callable[[Span], object] = lambda span: None,
    ) -> None:
        """Draw what of these images is missing, telling of each unit. Interrupted when it was asked
        to stop; every batch that was finished is kept.
        """
        busy = []
        for span in self._left(wanted):
            if not self._try(span, should_stop, on_begin, on_end, wait_s=0.0):
                busy.append(span)
        for span in busy:  # somebody else drew them meanwhile, or was killed over it
            self._try(span, should_stop, on_begin, on_end, wait_s=float("inf"))

    def _left(self, wanted: Sequence[Span]) -> list[Span]:
        return spans.cut(spans.difference(wanted, self.series.present()), self.series.unit)

    def _try(
        self,
        span: Span,
        should_stop: Callable[[], bool],
        on_begin: Callable[[Span], object],
        on_end: Callable[[Span], object],
        *,
        wait_s: float,
    ) -> bool:
        """Draw a unit unless another process is at it; False if one is."""
        try:
            with _locked(self.series.lock_of(span), f"images {span}", wait_s, should_stop):
                for left in spans.difference([span], self.series.present()):
                    on_begin(left)
                    self._unit(left, should_stop)
                    on_end(left)
        except LockedError:
            return False
        return True

    def _unit(self, span: Span, should_stop: Callable[[], bool]) -> None:
        """Draw and write a unit, or as many of its batches as there is time for."""
        size, drawn = self.batch_size(), []
        end = span.start
        while end < span.stop and not should_stop():
            first = end // size * size
            pixels = self.generator.batch(first, size)
            stop = min(span.stop, first + size)
            drawn.append(pixels[end - first : stop - first])
            self._on_batch(stop - end)
            end = stop
        if drawn:
            self._write(Span(span.start, end), np.concatenate(drawn))
        if end < span.stop:
            raise Interrupted("stopped; the same command draws what is left")

    def _write(self, span: Span, pixels: np.ndarray) -> None:
        labels = tasks.labels_of(self.generator.request, torch.arange(span.start, span.stop))
        recipe = self.series.recipe
        facts = {
            "recipe": self.series.digest,
            "weights_sha256": recipe["weights_sha256"],
            "sampler": recipe["sampler"],
            "seed": self.generator.request.seed,
            "batch_size": self.batch_size(),
            "threads": torch.get_num_threads(),
            "device": self.device,
        }
        rows = None if labels is None else labels.tolist()
        units.write(self.series.shards, span, pixels, rows, facts)

    def batch_size(self) -> int:
        """The one size of the series, found now where nobody has drawn before."""
        settled = self.series.batch_size
        if settled is None:
            largest = LARGEST.get(self.device, LARGEST["cpu"])
            found = largest_that_fits(self._probe, sizes(self.series.unit, largest))
            settled = self.series.settle_batch_size(found)
        return settled

    def _probe(self, size: int) -> None:
        """One step of the reverse process with so many images."""

        def enough(ids: torch.Tensor, state: object) -> None:
            raise _Enough

        try:
            self.generator.batch(0, size, on_state=enough)
        except _Enough:
            return


def sizes(unit: int, largest: int) -> list[int]:
    """The batch sizes to try: divisors of the unit, each at most half of the one before it."""
    found, limit = [], largest
    while limit >= 1:
        limit = next(size for size in range(min(limit, unit), 0, -1) if unit % size == 0)
        found.append(limit)
        limit //= 2
    return found


def largest_that_fits(probe: Callable[[int], None], candidates: Sequence[int]) -> int:
    """The first of these sizes that memory is enough for. DdpmError where none is."""
    for size in candidates:
        try:
            probe(size)
            return size
        except (MemoryError, RuntimeError) as error:
            is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not is_memory and not any(words in str(error) for words in _NO_MEMORY):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise DdpmError(
        "the memory is not enough to draw a single image; take a device with more, or smaller "
        "images (IMAGE_GENERATION.NEW_IMAGE_SIZE)"
    )


def request_of(series: Series) -> Request:
    """What the series draws, as its folder says it."""
    return whole_base(read_request(series.folder / REQUEST, ema=series.ema))


@contextmanager
def _locked(
    path: Path, what: str, wait_s: float, should_stop: Callable[[], bool]
) -> Iterator[None]:
    """Holds a unit, so that nobody draws it twice; without, where the file system has no locks:
    two who draw the same write the same.
    """
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(durable.lock(path, what, wait_s=min(wait_s, 1.0)))
            except StorageError:
                pass
            except LockedError:
                if should_stop():
                    raise Interrupted("stopped; the same command draws what is left") from None
                if wait_s <= 1.0:
                    raise
                continue
            break
        yield
