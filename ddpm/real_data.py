"""The real images that samples are compared with: a data set, its split, and what identifies both.

Images come as the training sees them, without augmentation and random crops, as uint8 by rounding.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm import config as configuration
from ddpm import noise, shards
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.errors import InputError
from ddpm.features import Pixels
from ddpm.index import INDEX_FILE
from ddpm.noise import Stream
from ddpm.run_config import load_file, load_run
from ddpm.rundir import RunDirectory
from ddpm.sampling import to_uint8
from ddpm.starting import open_data
from ddpm.weights import CONFIG_FILE, locate

READ = 512
_SUBSET_ID = 1 << 42  # of the draw that picks images; those of data sets lie below

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RealData:
    """A data set with its split.

    name: for messages and the protocol.  facts: all that its images depend on.  folder: where what
    is computed from it is kept.
    """

    name: str
    data: Dataset
    facts: dict[str, Any]
    folder: Path
    train_ids: Ints
    validation_ids: Ints

    def ids(self, split: str) -> Ints:
        """The samples of "train" or "validation", ascending."""
        return self.train_ids if split == "train" else self.validation_ids

    def images(self, ids: Ints) -> Pixels:
        """uint8 (n, H, W, C)."""
        return to_uint8(self.data.read(torch.from_numpy(ids)).images).numpy()

    def batches(self, ids: Ints) -> Iterator[Pixels]:
        """The images by and by."""
        for start in range(0, len(ids), READ):
            yield self.images(ids[start : start + READ])

    def labels(self, ids: Ints) -> Ints | None:
        """The classes of samples, without reading them."""
        index = self.data.index
        labels = None if index is None or self.data.num_classes is None else index.labels
        return None if labels is None else labels[ids]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.data.image_shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None if self.data.index is None else self.data.index.class_names


def real_data(config: Config, data_dir: Path | None, cache: Path | None = None) -> RealData:
    """The data of a configuration.  data_dir: its shards, where they are known.

    cache: where computed things are kept; None is OUTPUT_DIR/metrics. Packs what is not packed yet.
    """
    folder = data_dir if data_dir is not None else shards.prepare(config).folder
    return as_real_data(config, open_data(config, folder), cache)


def as_real_data(config: Config, data: Dataset, cache: Path | None = None) -> RealData:
    """Data that have been opened as the configuration says."""
    options = asdict(config.DATASET.PREPROCESSING)
    facts = {
        "data_sha256": data.sha256,
        "image_shape": list(data.image_shape),
        "validation_fraction": config.DATASET.VALIDATION_FRACTION,
        "labels": config.DATASET.LABEL_KEY is not None,
        "crop": [options["CROP_SIZE"], options["CROP_POSITION"]],
    }
    train = np.sort(data.order(torch.arange(data.num_train)).numpy())
    everything = np.arange(data.num_train + data.num_validation)
    root = cache if cache is not None else Path(config.TRAINING.OUTPUT_DIR) / "metrics"
    return RealData(
        name=config.DATASET.NAME,
        data=data,
        facts=facts,
        folder=root / data.sha256[:16],
        train_ids=train,
        validation_ids=np.setdiff1d(everything, train, assume_unique=True),
    )


def data_of_run(run: Path, cache: Path | None = None) -> RealData:
    """The data that a run was trained on. Raises InputError when it is not what it was."""
    directory = RunDirectory(run)
    config, facts = directory.config(), directory.provenance
    place = Path(facts["data_dir"]) if "data_dir" in facts else None
    real = real_data(config, place if place and place.is_dir() else None, cache)
    known = facts.get("data_sha256", real.data.sha256)
    if known != real.data.sha256:
        raise InputError(
            f"{run} was trained on data {known[:8]}, {config.DATASET.PATH} is now "
            f"{real.data.sha256[:8]}; name the data with --against"
        )
    return real


def data_named(against: str, cache: Path | None = None) -> RealData:
    """The data that --against names: a YAML, a run directory, or whatever DATASET.PATH takes."""
    path = Path(against)
    if path.suffix in (".yaml", ".yml"):
        return real_data(load_file(path), None, cache)
    if (path / CONFIG_FILE).is_file():
        return data_of_run(locate(path)[0], cache)
    return real_data(*_described(against), cache)


def told_without_reading(named: str | Path) -> tuple[str, bool]:
    """Name of the data that `named` would be, and whether it has labels; packs and writes nothing.

    named: as for data_named.  Raises InputError with what headers and sizes show to be wrong.
    """
    path = Path(named)
    is_run = (path / CONFIG_FILE).is_file()
    if is_run or path.suffix in (".yaml", ".yml"):
        config = load_run(path) if is_run else load_file(path)
        if problems := shards.source_problems(config):
            raise InputError(problems)
        return config.DATASET.NAME, config.DATASET.LABEL_KEY is not None
    if not shards.is_shards(path):
        return _name_of(str(named)), open_with_labels(str(named)).has_labels
    if (path / INDEX_FILE).exists():
        return _name_of(str(named)), shards.open_index(path).num_classes is not None
    _, scans = shards.scan_folder(path)
    return _name_of(str(named)), scans[0].samples[0].label is not None


def _described(against: str) -> tuple[Config, Path]:
    """The configuration of data that came without one, and its shards."""
    if shards.is_shards(against):
        index = shards.refresh(Path(against))
        channels, size, has_labels = index.channels, index.smallest_size, index.num_classes
    else:
        source = open_with_labels(against)
        shape, has_labels = source.image_shape, source.has_labels
        if shape is None:  # only pixels tell; whether they agree is known once they are packed
            first = source.load(progress=True).images[0]
            shape = (first.shape[2], first.shape[0], first.shape[1])
        channels, size = shape[0], (shape[1], shape[2])
    plain = {
        "DATASET": {
            "NAME": _name_of(against),
            "PATH": against,
            "LABEL_KEY": "labels" if has_labels else None,
        },
        "TRAINING": {"INPUT_IMAGE_CHANNEL": channels, "INPUT_IMAGE_SIZE": list(size)},
    }
    config = configuration.from_dict(plain, source=f"--against {against}")
    index = shards.prepare(config)
    if index.image_shape is None:
        raise InputError(
            f"--against {against}: its images vary in size; name a YAML instead, whose "
            "DATASET.PREPROCESSING says how they are cropped"
        )
    return config, index.folder


def open_with_labels(path: str) -> shards.Source:
    """The source at a path, with its labels where it has any."""
    try:
        return shards.open_source(path, "labels")
    except InputError as first:
        try:
            return shards.open_source(path, None)
        except InputError:
            raise first from None


def subset(count: int, most: int) -> Ints:
    """At most so many of range(count), ascending: the same ones every time."""
    if count <= most:
        return np.arange(count)
    order = noise.permutation(0, Stream.EVAL, count, id=_SUBSET_ID).numpy()
    return np.sort(order[:most])


def _name_of(path: str) -> str:
    name = Path(path).name.partition(".")[0]
    safe = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)
    return safe.strip("_")[:64] or "data"
