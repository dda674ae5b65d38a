"""Draws units of a series, one after the other: the network is loaded once, each batch is called at
the one size of the series, and image i sits in slot i % B of batch i // B whoever draws it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm import durable, spans, tasks, units
from ddpm.distributed import device_of
from ddpm.errors import DdpmError, InputError, Interrupted, LockedError, StorageError
from ddpm.image_generator import ImageGenerator
from ddpm.request import Request, read_request
from ddpm.rundir import RunDirectory
from ddpm.series import REQUEST, Series, digest, recipe_of
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
        left = spans.cut(spans.difference(wanted, self.series.present()), self.series.unit)
        with _Writer() as writer:

            def attempt(span: Span, wait_s: float) -> bool:
                return self._try(span, writer, should_stop, on_begin, on_end, wait_s=wait_s)

            busy = [span for span in left if not attempt(span, 0.0)]
            for span in busy:  # somebody else drew them meanwhile, or was killed over it
                attempt(span, float("inf"))

    def _try(
        self,
        span: Span,
        writer: "_Writer",
        should_stop: Callable[[], bool],
        on_begin: Callable[[Span], object],
        on_end: Callable[[Span], object],
        *,
        wait_s: float,
    ) -> bool:
        """Draw a unit and have it written, unless another process is at it; False if one is."""
        drawn: list[_Drawn] = []
        is_stopped = False
        with ExitStack() as held:
            try:
                held.enter_context(
                    _locked(self.series.lock_of(span), f"images {span}", wait_s, should_stop)
                )
            except LockedError:
                return False
            for left in spans.difference([span], self.series.present()):
                on_begin(left)
                one = self._unit(left, should_stop)
                drawn += [one] if one.span.stop > one.span.start else []
                if is_stopped := one.span != left:
                    break
            writer.finish()  # at most one unit waits: memory stays what it is
            writer.start(partial(self._write, drawn, on_end, held.pop_all()))
        if is_stopped:
            raise Interrupted("stopped; the same command draws what is left")
        return True

    def _unit(self, span: Span, should_stop: Callable[[], bool]) -> "_Drawn":
        """A unit drawn, or as many of its batches as there was time for."""
        size, pieces = self.batch_size(), []
        end = span.start
        while end < span.stop and not should_stop():
            first = end // size * size
            pixels = self._batch(first, size)
            stop = min(span.stop, first + size)
            pieces.append(pixels[end - first : stop - first])
            self._on_batch(stop - end)
            end = stop
        labels = tasks.labels_of(self.generator.request, torch.arange(span.start, end))
        return _Drawn(
            span=Span(span.start, end),
            pixels=np.concatenate(pieces) if pieces else None,
            labels=None if labels is None else labels.tolist(),
            facts=self._facts(size),
        )

    def _batch(self, first: int, size: int) -> NDArray[np.uint8]:
        try:
            return self.generator.batch(first, size)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise DdpmError(
                f"{self.series.folder}: its images are drawn {size} at a time, for which this "
                "device has too little memory; take one with more, or begin anew in another "
                f"IMAGE_GENERATION.GEN_SAVE_DIR with --batch-size {max(1, size // 2)}"
            ) from error

    def _facts(self, batch_size: int) -> dict[str, object]:
        """What a manifest says beside the images themselves."""
        recipe = self.series.recipe
        return {
            "recipe": self.series.digest,
            "weights_sha256": recipe["weights_sha256"],
            "sampler": recipe["sampler"],
            "seed": self.generator.request.seed,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "device": self.device,
        }

    def _write(
        self, drawn: Sequence["_Drawn"], on_end: Callable[[Span], object], held: ExitStack
    ) -> None:
        """Write what was drawn of one unit, then let go of it."""
        with held:
            for one in drawn:
                assert one.pixels is not None
                units.write(self.series.shards, one.span, one.pixels, one.labels, one.facts)
                on_end(one.span)

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


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A unit that is to be written.  pixels: (N, H, W, C); None where it has no images."""

    span: Span
    pixels: NDArray[np.uint8] | None
    labels: list[int] | None
    facts: dict[str, object]


class _Writer:
    """Writes one unit while the next is drawn: encoding takes its time where a GPU draws. What
    fails shows in the next call, or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        self._last = self._pool.submit(write)

    def finish(self) -> None:
        """Wait for what was started last."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.finish()
        finally:
            self._pool.shutdown()


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
            if not _is_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise DdpmError(
        "the memory is not enough to draw a single image; take a device with more, or smaller "
        "images (IMAGE_GENERATION.NEW_IMAGE_SIZE)"
    )


def _is_memory(error: Exception) -> bool:
    is_named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_named or any(words in str(error) for words in _NO_MEMORY)


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
