"""Arrays as a source of shards: in memory, in NPZ and IDX files, scikit-learn's digits."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm import arrayfiles
from ddpm.arraychecks import (
    Header,
    Told,
    float_problems,
    image_problems,
    label_problems,
    label_shape_problems,
)
from ddpm.errors import InputError
from ddpm.source import Loaded, Source, files_identity

DIGITS = "digits"


class ArraySource(Source):
    """Arrays: images (N, H, W[, C]) uint8 or float in [0, 1], labels (N,) whole numbers or None."""

    def __init__(
        self,
        images: NDArray,
        labels: NDArray | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name = name
        self._images, self._labels = np.asarray(images), labels
        self.has_labels = labels is not None
        self.class_names = tuple(class_names) if class_names and self.has_labels else None
        told = [self._labels] if self._labels is not None else []
        self._read_shape(self._images, *(np.asarray(label) for label in told))

    def _read_shape(self, images: Told, labels: Told | None = None) -> None:
        """Takes the shape from the headers. Raises InputError when they cannot be a data set's."""
        problems = [f"{self.name}: images {problem}" for problem in image_problems(images)]
        if labels is not None:
            found = label_shape_problems(labels, len(images.shape) and images.shape[0])
            problems += [f"{self.name}: labels {problem}" for problem in found]
        if problems:
            raise InputError(problems)
        count, height, width, channels = (*images.shape, 1)[:4]
        self.num_samples, self.image_shape = count, (channels, height, width)

    def identity(self) -> str:
        arrays = [self._images] + ([] if self._labels is None else [np.asarray(self._labels)])
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def labels(self) -> NDArray[np.int64] | None:
        return self._checked_labels(self._labels)

    def load(self, *, progress: bool = False) -> Loaded:
        return self._checked(self._images, self._labels)

    def _checked_labels(self, labels: NDArray | None) -> NDArray[np.int64] | None:
        if labels is None:
            return None
        flat = np.asarray(labels).reshape(-1)
        if problems := label_problems(flat):
            raise InputError([f"{self.name}: {problem}" for problem in problems])
        return flat.astype(np.int64)

    def _checked(self, images: NDArray, labels: NDArray | None) -> Loaded:
        problems = [] if images.dtype == np.uint8 else list(float_problems(images))
        checked = None if labels is None else np.asarray(labels).reshape(-1)
        if checked is not None:
            problems += label_problems(checked)
        if problems:
            raise InputError([f"{self.name}: {problem}" for problem in problems])
        if images.ndim == 3:
            images = images[..., None]  # (N, H, W, 1)
        pixels = images if images.dtype == np.uint8 else _Floats(images)
        return Loaded(images=pixels, labels=None if checked is None else checked.astype(np.int64))


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._path = str(path), path
        self.has_labels = label_key is not None
        try:
            members = arrayfiles.open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = ["images"] + ([label_key] if label_key is not None else [])
        there = ", ".join(members) or "nothing"
        advice = {label_key: "; name another with LABEL_KEY, or null for images without labels"}
        if missing := [key for key in keys if key not in members]:
            raise InputError(
                [
                    f"{path} has no array {key!r}, it has: {there}{advice.get(key, '')}"
                    for key in missing
                ]
            )
        self._members = [members[key] for key in keys]
        self._read_shape(*self._members)

    @cached_property
    def _content(self) -> str:
        return files_identity([self._path])

    def identity(self) -> str:
        return self._content

    def labels(self) -> NDArray[np.int64] | None:
        try:
            return self._checked_labels(self._members[1].read() if self.has_labels else None)
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error

    def load(self, *, progress: bool = False) -> Loaded:
        try:
            arrays = [member.read() for member in self._members]
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error
        return self._checked(arrays[0], arrays[1] if self.has_labels else None)


class IdxSource(ArraySource):
    """An IDX file of images and, unless label_key is None, the labels file beside it."""

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self.has_labels = str(path), label_key is not None
        self._paths = [path]
        if self.has_labels:
            stem = path.name.removesuffix(".gz").replace("images", "labels")
            labels = idx_file(path.parent, stem.replace("idx3", "idx1").replace("idx4", "idx1"))
            if labels is None or labels == path:
                raise InputError(
                    f"{path} has no labels file beside it; put one there, "
                    "or set LABEL_KEY to null for images without labels"
                )
            self._paths.append(labels)
        told, problems = [], []
        for file in self._paths:
            try:
                told.append(Header(arrayfiles.idx_shape(file), np.dtype(np.uint8)))
            except (ValueError, OSError) as error:
                problems.append(f"{file} {error}")
        if problems:
            raise InputError(problems)
        self._read_shape(*told)

    def identity(self) -> str:
        return files_identity(self._paths)

    def labels(self) -> NDArray[np.int64] | None:
        try:
            labels = arrayfiles.read_idx(self._paths[1]) if self.has_labels else None
        except ValueError as error:
            raise InputError(f"{self._paths[1]} {error}") from error
        return self._checked_labels(labels)

    def load(self, *, progress: bool = False) -> Loaded:
        arrays, problems = [], []
        for file in self._paths:
            try:
                arrays.append(arrayfiles.read_idx(file))
            except ValueError as error:
                problems.append(f"{file} {error}")
        if problems:
            raise InputError(problems)
        return self._checked(arrays[0], arrays[1] if self.has_labels else None)


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits."""

    def __init__(self, label_key: str | None) -> None:
        self.name, self.num_samples, self.image_shape = DIGITS, 1797, (1, 8, 8)
        self.has_labels = label_key is not None
        self.class_names = tuple("0123456789") if self.has_labels else None

    def identity(self) -> str:
        return hashlib.sha256(DIGITS.encode()).hexdigest()

    def labels(self) -> NDArray[np.int64] | None:
        return self.load().labels

    def load(self, *, progress: bool = False) -> Loaded:
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Whole numbers 0..16 in float64; np.rint rounds halves to even, but 255 v / 16 has none.
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return self._checked(pixels, digits.target if self.has_labels else None)


class _Floats:
    """Float images, each made float32 as it is taken."""

    def __init__(self, images: NDArray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        return np.asarray(self._images[number], np.float32)


def idx_file(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in `folder`, gzipped or not."""
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)
