"""Images in bulk drawn, unit by unit: image i in slot i % B of batch i // B, whoever draws it.

The network is loaded once and every batch is called at the one size that the folder has settled.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm import config as configuration
from ddpm.distributed import device_of
from ddpm.errors import DdpmError, InputError, Interrupted, StorageError
from ddpm.runs import RunDirectory, digest, storage
from ddpm.sampling.bulk import BulkFolder, manifest_of, total, units
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.request import (
    BULK_REQUEST,
    BulkOptions,
    SampleRequest,
    in_units,
    is_bulk_folder,
    read_request,
)
from ddpm.sampling.tasks import labels_of

# The same images, however many of them, in whatever batches, with a film or without.
_NOT_OF_THE_RECIPE = ("num_images", "batch_size", "film")
_JOBS, _UNITS_OF_A_JOB = 16, 4
_LEAST_UNIT, _LARGEST_UNIT, _UNIT_BYTES = 64, 4096, 1 << 27
_LARGEST_BATCH = {"cpu": 64, "cuda": 512}
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class BulkSampler:
    """Images of a request in bulk: the network read, all checked, nothing written yet.

        sampler = BulkSampler(read_request(run, bulk=BulkOptions(num=50_000)))
        folder = sampler.begin()
        sampler.draw(folder, folder.missing(sampler.request.num), should_stop=lambda: False)

    folder: where the images go.  unit: images of a unit.  begun: None while nobody has begun them.
    jobs: processes that will draw at once, for the default unit.
    Raises InputError with all that is wrong.
    """

    def __init__(self, request: SampleRequest, *, jobs: int | None = None) -> None:
        self.request, self.generator = request, ImageGenerator(request)
        recipe = self.generator.recipe()
        plain = {key: value for key, value in recipe.items() if key not in _NOT_OF_THE_RECIPE}
        self.recipe = json.loads(json.dumps(plain))
        stem = request.stem.replace(f"_gen_{request.num}x", "_gen_")
        folder = request.folder / f"{stem}_{digest(self.recipe)[:8]}"
        if is_bulk_folder(request.source):
            if BulkFolder.open(request.source).digest == digest(self.recipe):
                folder = request.source  # wherever it has been moved
        self.folder = folder.resolve()
        self.begun = BulkFolder.open(folder) if is_bulk_folder(folder) else None
        if self.begun is not None and (found := _clashes(request, self.begun)):
            raise InputError(found)
        self.unit = self.begun.unit if self.begun else _unit_of(request, jobs or _JOBS)

    @classmethod
    def of(cls, folder: Path) -> "BulkSampler":
        """The images of a folder that has been begun, as its files say it."""
        sampler, begun = cls(read_request(folder, bulk=BulkOptions())), BulkFolder.open(folder)
        if digest(sampler.recipe) != begun.digest:
            facts = sampler.recipe
            changed = sorted(key for key in facts if facts[key] != begun.recipe.get(key))
            raise InputError(
                f"{folder}: what it is drawn from has changed since it was begun "
                f"({', '.join(changed)}); give the same again, or begin in another folder"
            )
        return sampler

    def describe(self) -> str:
        """One line: what is drawn, of what."""
        request, model = self.request, self.generator.model
        task = f"{request.options.GEN_TASK}, seed {request.seed}"
        drawn = f"{request.num:,} images ({task}) of {model.folder} with {model.name}"
        return f"{drawn}{in_units(request.ranges)}"

    def missing(self) -> list[range]:
        """Units that lack images, by the names of the files."""
        if self.begun is None:
            return units(self.request.num, self.unit)
        return self.begun.missing(self.request.num)

    def require_room(self) -> None:
        """StorageError unless what is missing, and what will be made of all of it, has room."""
        request, bulk = self.request, self.request.bulk or BulkOptions()
        channels, height, width = request.image_shape
        # Most bytes of an image: its pixels, which may not compress, and tar's blocks.
        width *= 4 if request.ranges else 1
        each = channels * height * width + height + 2560
        count = total(self.missing()) + (0 if bulk.format == "shards" else request.num)
        free = storage.free_bytes(self.folder)
        if free is not None and free < count * each:
            raise StorageError(
                f"{self.folder}: {count} images need up to {count * each} bytes, {free} bytes "
                "free; free some space, ask for fewer, or choose another "
                "IMAGE_GENERATION.GEN_SAVE_DIR"
            )

    def begin(self) -> BulkFolder:
        """The folder made or found, with what jobs need to draw into it."""
        begun = BulkFolder.begin(self.folder, self.recipe, self.unit)
        options = self.request.options

        def absolute(path: str | None) -> str | None:
            return None if path is None else str(Path(path).resolve())

        pinned = replace(
            options,
            MODEL_PATH=str(self.generator.model.folder.resolve()),
            GEN_SAVE_DIR=absolute(options.GEN_SAVE_DIR),
            EXTERNAL_NPZ_INPUT=absolute(options.EXTERNAL_NPZ_INPUT),
        )
        config = replace(self.request.config, IMAGE_GENERATION=pinned)
        storage.write_text(begun.folder / BULK_REQUEST, configuration.to_yaml(config))
        if self.request.batch_size is not None:
            begun.settle_batch_size(self.request.batch_size)
        return begun

    def draw(
        self,
        folder: BulkFolder,
        wanted: Sequence[range],
        *,
        should_stop: Callable[[], bool],
        on_begin: Callable[[range], object] = lambda unit: None,
        on_end: Callable[[range], object] = lambda unit: None,
        on_batch: Callable[[int], object] = lambda images: None,
    ) -> None:
        """Draw those of the units that are not there, with the threads the run was trained with.

        A unit is written while the next is drawn: encoding takes its time where a GPU draws.
        on_batch(n): n more images are drawn. Raises Interrupted, between two batches, when asked to
        stop; the unit it was at is drawn anew by whoever goes on.
        """
        torch.set_num_threads(RunDirectory(self.request.run).threads)
        size = folder.batch_size or self._settle_batch_size(folder)
        last: Future[None] | None = None

        def write(unit: range, pixels: NDArray[Any]) -> None:
            labels = labels_of(self.request, torch.arange(unit.start, unit.stop))
            numbers = None if labels is None else labels.tolist()
            folder.write(unit, pixels, numbers, self._facts(size))
            on_end(unit)

        with ThreadPoolExecutor(1) as pool:
            for unit in wanted:
                if manifest_of(folder.shards, unit).exists():
                    continue  # somebody else drew it meanwhile
                on_begin(unit)
                batches = []
                for first in range(unit.start, unit.stop, size):
                    if should_stop():
                        raise Interrupted("stopped; the same command draws what is left")
                    batches.append(self._batch(first, size, folder))
                    on_batch(min(size, unit.stop - first))
                if last is not None:
                    last.result()  # at most one unit waits: memory stays what it is
                last = pool.submit(write, unit, np.concatenate(batches)[: len(unit)])
            if last is not None:
                last.result()
        folder.drop_superfluous()

    def _batch(self, first: int, size: int, folder: BulkFolder) -> NDArray[Any]:
        try:
            return self.generator.batch(first, size)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            raise DdpmError(
                f"{folder.folder}: its images are drawn {size} at a time, for which this device "
                "has too little memory; take one with more, or begin anew in another "
                f"IMAGE_GENERATION.GEN_SAVE_DIR with --batch-size {max(1, size // 2)}"
            ) from error

    def _facts(self, batch_size: int) -> dict[str, object]:
        """The part of a manifest that is the same for all units."""
        return {
            "recipe": digest(self.recipe),
            "weights_sha256": self.recipe["weights_sha256"],
            "sampler": self.recipe["sampler"],
            "seed": self.request.seed,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "device": device_of(self.generator.model.network).type,
        }

    def _settle_batch_size(self, folder: BulkFolder) -> int:
        """The one size of the folder, found now as nobody has drawn before."""
        device = device_of(self.generator.model.network).type
        largest = _LARGEST_BATCH.get(device, _LARGEST_BATCH["cpu"])
        found = largest_that_fits(self.generator.first_step, batch_sizes(self.unit, largest))
        return folder.settle_batch_size(found)


def _clashes(request: SampleRequest, begun: BulkFolder) -> list[str]:
    """Numbers that were settled otherwise when the folder was begun: its bits depend on them."""
    problems, settled, size = [], begun.batch_size, request.batch_size
    unit = request.bulk.unit if request.bulk else None
    if unit is not None and unit != begun.unit:
        problems.append(
            f"--unit is {unit}, but {begun.folder} was begun with units of {begun.unit}; "
            "leave --unit out"
        )
    if size is None:
        return problems
    if settled is not None and size != settled:
        problems.append(
            f"--batch-size is {size}, but the images in {begun.folder} are drawn "
            f"{settled} at a time, which decides their last bits; leave --batch-size out"
        )
    elif begun.unit % size:
        problems.append(
            f"--batch-size is {size}, but {begun.folder} was begun with units of "
            f"{begun.unit}; give a divisor of that"
        )
    return problems


def _unit_of(request: SampleRequest, jobs: int) -> int:
    """Images of a unit: a few units a job, of no more than 128 MiB of pixels; a power of two, or
    whole batches.
    """
    if request.bulk is not None and request.bulk.unit is not None:
        return request.bulk.unit
    channels, height, width = request.image_shape
    most = min(_LARGEST_UNIT, max(1, _UNIT_BYTES // (channels * height * width)))
    target = request.num // (jobs * _UNITS_OF_A_JOB)
    target = max(min(_LEAST_UNIT, most), min(target, most))
    if request.batch_size is not None:
        return max(1, target // request.batch_size) * request.batch_size
    return 1 << (target.bit_length() - 1)


def batch_sizes(unit: int, largest: int) -> list[int]:
    """Batch sizes to try: divisors of the unit, each at most half of the one before it."""
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
