"""Preparation of DATASET.PATH: its shards, packed or indexed where needed, and checked.

Shards are used where they lie (foreign ones are indexed in place); any other source is packed once
into OUTPUT_DIR/shards/{digest of source and options}. Checks need no torch, webdataset or
scikit-learn.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ddpm.config import Config, DatasetSection, image_shape
from ddpm.data.images import ImageHeader
from ddpm.data.index import (
    INDEX_FILE,
    Index,
    index_foreign,
    is_index,
    is_packed,
    open_index,
    scan_folder,
    shard_paths,
)
from ddpm.data.packing import pack, plan_packing
from ddpm.data.source import DIGITS, PictureSource, Source, note
from ddpm.data.source_kinds import open_source
from ddpm.errors import InputError, as_typed

if TYPE_CHECKING:
    from ddpm.data.dataset import Dataset

# From so many expected samples on, a side of the split is empty with a chance below 1e-27.
_SURELY_FILLED = 64
_LOOK_S, _MOST_SCANNED = 5, 1 << 29  # of a check: seconds at pictures, bytes of foreign shards


def prepare(config: Config) -> Index:
    """The index of the data that DATASET.PATH names, packed or indexed now if it never was.

    Several processes may call it at once: one packs, the others wait. Raises InputError.
    """
    path = config.DATASET.PATH
    if is_shards(path):
        folder = Path(path)
        has_index = (folder / INDEX_FILE).exists()
        return open_index(folder) if has_index else index_foreign(folder)
    source, folder = _place(config)
    return pack(source, folder)


def found(config: Config) -> Index | None:
    """The index that prepare() would give; None where it has still to be made. Writes nothing."""
    path = config.DATASET.PATH
    folder = Path(path) if is_shards(path) else _place(config)[1]
    return open_index(folder) if (folder / INDEX_FILE).exists() else None


def open_data(config: Config, folder: Path) -> "Dataset":
    """Packed shards as this configuration reads them; InputError with all that does not fit."""
    from ddpm.data.dataset import Dataset  # brings torch

    index = open_index(folder)
    problems = check(config, index)
    if problems:
        raise InputError(problems)
    return Dataset(
        index,
        config.DATASET,
        image_shape(config),
        seed=config.TRAINING.SEED,
        cache=config.DATASET.CACHE == "memory",
    )


def _place(config: Config) -> tuple[Source, Path]:
    """The source that DATASET.PATH names, and the folder that it is packed into."""
    source = open_source(config.DATASET.PATH, config.DATASET.LABEL_KEY)
    return source, _folder_of(source, config.TRAINING.OUTPUT_DIR)


def _folder_of(source: Source, output: str) -> Path:
    plan = plan_packing(source)
    return Path(output) / "shards" / plan.recipe[:16]


def refresh(folder: Path) -> Index:
    """The index of a folder of shards; that of foreign ones is made anew when shards came or went.

    Raises InputError where shards that we packed are not as they were.
    """
    if not (folder / INDEX_FILE).exists():
        return index_foreign(folder)
    try:
        return open_index(folder)
    except InputError:
        if is_packed(folder):
            raise
        return index_foreign(folder)


def is_shards(path: str | Path) -> bool:
    """Whether a path is a folder of shards, indexed or not, rather than a source to pack."""
    folder = Path(path)
    if str(path) == DIGITS or not folder.is_dir():
        return False
    return is_index(folder / INDEX_FILE) or any(folder.glob("*.tar"))


def check(config: Config, index: Index) -> list[str]:
    """Problems of training on the data with this configuration, one line each."""
    problems = [
        *_shape_problems(config, index.channels, [index.smallest_size]),
        *_class_problems(config, index.num_classes is not None),
        *_label_problems(config, index.labels),
        *_split_problems(config, index.num_samples, index.held_out is not None),
    ]
    return [f"DATASET.PATH {index.folder}: {problem}" for problem in problems]


def source_problems(*configs: Config) -> list[str]:
    """Problems of the data that names, headers and sizes show, each once; writes nothing.

    What is not read, and crops that keep little, are noted. Pictures and foreign shards are looked
    into as far as that takes seconds.
    """
    found: dict[str, None] = {}
    for config in configs:
        found |= dict.fromkeys(_problems(config))
    _opened.cache_clear()  # what is there may be another thing the next time
    return list(found)


def _problems(config: Config) -> list[str]:
    path = config.DATASET.PATH
    try:
        if is_shards(path):
            index = found(config)
            return _shards_problems(Path(path)) if index is None else check(config, index)
        options = config.DATASET.LABEL_KEY, config.TRAINING.OUTPUT_DIR
        source, seen, index = _opened(path, *options)
        return check(config, index) if index else _unpacked_problems(config, source, seen)
    except InputError as error:
        return [f"DATASET.PATH: {problem}" for problem in error.problems]
    except PermissionError as error:
        return [f"DATASET.PATH: {error.filename} may not be read by you; ask its owner to share it"]


@cache
def _opened(
    path: str, label_key: str | None, output: str
) -> tuple[Source, list[ImageHeader], Index | None]:
    """A source of pictures with what their headers say, or the index of its shards; else alone."""
    source = open_source(path, label_key)
    note(source.notes)
    if not isinstance(source, PictureSource):
        return source, [], None
    folder = _folder_of(source, output)
    if (folder / INDEX_FILE).exists():
        return source, [], open_index(folder)
    seen = source.headers(_LOOK_S)
    if len(seen) < source.num_samples:
        note([f"{path}: looked at {len(seen):,} of {source.num_samples:,} pictures in {_LOOK_S} s"])
    return source, seen, None


def _shards_problems(folder: Path) -> list[str]:
    """Problems of foreign shards without an index."""
    paths = shard_paths(folder)
    if sum(path.stat().st_size for path in paths) > _MOST_SCANNED:
        note([f"{folder}: these shards have no index yet; `{as_typed('pack', folder)}` makes it"])
    else:
        scan_folder(folder)
    return []


def _unpacked_problems(config: Config, source: Source, seen: list[ImageHeader]) -> list[str]:
    problems = [
        *_class_problems(config, source.has_labels),
        *_split_problems(config, source.num_samples, bool(source.split)),
    ]
    if source.image_shape is not None:
        channels, *size = source.image_shape
        problems += _shape_problems(config, channels, [(size[0], size[1])])
    elif seen:
        sizes = [(one.height, one.width) for one in seen]
        problems += _shape_problems(config, seen[0].channels, sizes)
    unreadable: tuple[str, ...] = ()
    # Names bound the class numbers, which spares scikit-learn's digits their import.
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    if classes is not None and len(source.class_names or ()) not in range(1, classes + 1):
        try:
            problems += _label_problems(config, source.labels())
        except InputError as error:
            unreadable = error.problems
    return [
        *(f"DATASET.PATH {source.name}: {problem}" for problem in problems),
        *(f"DATASET.PATH: {problem}" for problem in unreadable),
    ]


def _shape_problems(
    config: Config, channels: int, sizes: Sequence[tuple[int, int]]
) -> Iterator[str]:
    """sizes: (height, width) of the images, or their least height and least width alone."""
    own, height, width = image_shape(config)
    if channels != own:
        yield (
            f"images have {channels} channel(s) but TRAINING.INPUT_IMAGE_CHANNEL is {own}; "
            f"give {channels}"
        )
    preprocessing = config.DATASET.PREPROCESSING
    if preprocessing.RESIZE:
        return
    crop = preprocessing.CROP_SIZE
    crop_size = (height, width) if crop is None else (crop, crop)
    key = "TRAINING.INPUT_IMAGE_SIZE" if crop is None else "DATASET.PREPROCESSING.CROP_SIZE"
    smallest = min(high for high, _ in sizes), min(wide for _, wide in sizes)
    if smallest[0] < crop_size[0] or smallest[1] < crop_size[1]:
        small = sum(high < crop_size[0] or wide < crop_size[1] for high, wide in sizes)
        some = f"{small:,} of {len(sizes):,} images are smaller; " if len(sizes) > 1 else ""
        yield (
            f"images have only {smallest[0]}x{smallest[1]} pixels but {key} crops "
            f"{crop_size[0]}x{crop_size[1]}; {some}give a CROP_SIZE of at most {min(smallest)}, "
            "what is cropped is resized to INPUT_IMAGE_SIZE, or DATASET.PREPROCESSING.RESIZE=true "
            "to resize all that fits"
        )
        return
    kept = crop_size[0] * crop_size[1]
    if little := sum(2 * kept < high * wide for high, wide in sizes):
        largest = max(sizes, key=lambda size: size[0] * size[1])
        note(
            [
                f"{config.DATASET.PATH}: a crop of {crop_size[0]}x{crop_size[1]} keeps less than "
                f"half of {little:,} image(s) (found: {smallest[0]}x{smallest[1]} to "
                f"{largest[0]}x{largest[1]}); DATASET.PREPROCESSING.RESIZE=true resizes all that "
                "fits, CROP_SIZE a part of it"
            ]
        )


def _class_problems(config: Config, has_labels: bool) -> Iterator[str]:
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    if classes is not None and not has_labels:
        yield (
            f"has no labels but TRAINING.NETWORK.NUM_CLASSES is {classes}; "
            "give labelled data, or null for an unconditional network"
        )


def _label_problems(config: Config, labels: NDArray[np.int64] | None) -> Iterator[str]:
    """Labels that are no class of the network."""
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    if classes is None or labels is None:
        return
    beyond = np.flatnonzero(labels >= classes)
    if len(beyond):
        yield (
            f"{len(beyond)} label(s) are outside 0..{classes - 1}, the first is "
            f"{labels[beyond[0]]} of sample {beyond[0]}, but TRAINING.NETWORK.NUM_CLASSES is "
            f"{classes}; give at least {int(labels.max()) + 1}"
        )


def _split_problems(config: Config, num_samples: int, is_split: bool) -> Iterator[str]:
    """is_split: the data come with a split of their own."""
    fraction = config.DATASET.VALIDATION_FRACTION
    if is_split:
        if fraction != DatasetSection.VALIDATION_FRACTION:
            yield (
                f"comes with images for validation, but DATASET.VALIDATION_FRACTION is {fraction}; "
                "leave it out, or name the folder of the training images"
            )
        return
    if num_samples * min(fraction, 1.0 - fraction) >= _SURELY_FILLED:
        return
    # Only data this small needs the split itself, and torch for it.
    from ddpm.data.order import is_validation

    count = int(is_validation(num_samples, fraction).sum())
    if count == 0 and fraction > 0:
        yield (
            f"of {num_samples} samples none falls to validation with "
            f"DATASET.VALIDATION_FRACTION {fraction}; give a larger share, 0, or more data"
        )
    if count == num_samples:
        yield (
            f"all {num_samples} samples fall to validation with DATASET.VALIDATION_FRACTION "
            f"{fraction}; give a smaller share or more data"
        )
