"""Source of images: the class that every kind implements, and the identity of its files."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

DIGITS = "digits"
# Sources up to this size are identified by their content, larger ones by names, sizes and times.
_HASHED_BYTES = 1 << 28
_HASHED_FILES = 1000


class ImageSequence(Protocol):
    """Images by number: arrays (H, W, C)."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Checked images, and labels from 0, int64 (N,), or None."""

    images: ImageSequence
    labels: NDArray[np.int64] | None


class Source(ABC):
    """Images that can be packed: `Kind(path, label_key)`, label_key None without labels.

    takes: what a path must be, in words.  name: for messages.  num_samples.  image_shape:
    (C, H, W), None when only the pixels tell.  has_labels.  class_names: by class number, where
    there are names.
    """

    name: str
    num_samples: int
    image_shape: tuple[int, int, int] | None = None
    has_labels: bool = False
    class_names: tuple[str, ...] | None = None
    takes: ClassVar[str]

    @classmethod
    @abstractmethod
    def opened(cls, source: str, label_key: str | None) -> "Source | None":
        """The source at a path, from its headers; None where that is of another kind.

        Raises InputError with the problems that headers show.
        """

    @abstractmethod
    def identity(self) -> str:
        """A hex digest that changes when the content does."""

    @abstractmethod
    def labels(self) -> NDArray[np.int64] | None:
        """The labels from 0, (N,), without the images; None without labels. Raises InputError."""

    @abstractmethod
    def load(self, *, progress: bool = False) -> Loaded:
        """The images and labels. Raises InputError with every problem in them."""


def files_identity(paths: Sequence[Path], root: Path | None = None) -> str:
    """A digest of files: of their content when small, else of their names, sizes and times."""
    states = [path.stat() for path in paths]
    names = [str(path.relative_to(root)) if root else path.name for path in paths]
    digest = hashlib.sha256()
    if len(paths) <= _HASHED_FILES and sum(state.st_size for state in states) <= _HASHED_BYTES:
        for name, path in zip(names, paths, strict=True):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(json.dumps([name, content]).encode())
    else:
        for name, state in zip(names, states, strict=True):
            digest.update(json.dumps([name, state.st_size, state.st_mtime_ns]).encode())
    return digest.hexdigest()
