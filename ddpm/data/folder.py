"""A folder of pictures as a source: one sub-folder a class, or flat."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.data.scan import limited
from ddpm.data.source import Loaded, Source, files_identity
from ddpm.errors import InputError
from ddpm.runs import ImageBar

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_UNREAD = (".avif", ".gif", ".heic", ".jp2", ".tif", ".tiff")
_THREADS = 4
_BATCH = 1024


class FolderSource(Source):
    """Pictures below `path`, sorted by path; unless label_key is None, sub-folders are classes."""

    takes = "an image folder"

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._root = str(path), path
        files = list(_files(path))
        if unread := [file for file in files if file.suffix.lower() in _UNREAD]:
            raise InputError(
                limited([f"{file}: {file.suffix} is not read; save it as PNG" for file in unread])
            )
        self._paths = [file for file in files if file.suffix.lower() in EXTENSIONS]
        folders = sorted({file.relative_to(path).parts[0] for file in self._in_folders()})
        self.has_labels = label_key is not None and bool(folders)
        self.class_names = tuple(folders) if self.has_labels else None
        self.num_samples = len(self._paths)
        if not self._paths:
            raise InputError(
                f"{path} holds no images ({', '.join(EXTENSIONS)}), no shards and no IDX files"
            )
        flat = self.num_samples - len(self._in_folders())
        if self.has_labels and flat:
            raise InputError(
                f"{path} holds {flat} images beside its class folders; move them into one, or set "
                "LABEL_KEY to null for images without labels"
            )

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        return cls(Path(source), label_key) if Path(source).is_dir() else None

    def identity(self) -> str:
        return files_identity(self._paths, self._root)

    def labels(self) -> NDArray[np.int64] | None:
        return self._labels

    def load(self, *, progress: bool = False) -> Loaded:
        """Decodes every picture once: all broken ones are known before anything is written."""
        problems: list[str] = []
        shapes: list[tuple[int, ...]] = []
        with ImageBar("checking", self.num_samples, is_shown=progress) as bar:
            for path, outcome in zip(self._paths, _outcomes(self._paths), strict=True):
                if isinstance(outcome, str):
                    problems.append(f"{path}: {outcome}")
                else:
                    shapes.append(outcome)
                bar.advance()
        if not problems:
            problems = self._channel_problems(shapes)
        if problems:
            raise InputError(limited(problems))
        return Loaded(images=_Pictures(self._paths), labels=self._labels)

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        if self.class_names is None:
            return None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        names = (path.relative_to(self._root).parts[0] for path in self._paths)
        return np.array([numbers[name] for name in names], np.int64)

    def _in_folders(self) -> list[Path]:
        return [path for path in self._paths if path.parent != self._root]

    def _channel_problems(self, shapes: list[tuple[int, ...]]) -> list[str]:
        """The odd ones, when some pictures are grey and some in colour."""
        channels = np.array([shape[2] for shape in shapes])
        usual = 3 if 2 * int((channels == 3).sum()) >= len(channels) else 1
        kinds = {1: "grey", 3: "RGB"}
        return [
            f"{self._paths[row]} is {kinds[int(channels[row])]}, most images are {kinds[usual]}; "
            "convert it"
            for row in np.flatnonzero(channels != usual)
        ]


class _Pictures:
    """Pictures, each decoded as it is taken."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> images.Pixels:
        path = self._paths[number]
        try:
            return images.decode(path.read_bytes())
        except (ValueError, OSError) as error:  # it was whole when it was checked
            raise InputError(f"{path}: {error}") from error


def _files(folder: Path) -> Iterator[Path]:
    """The files below `folder` in an order that does not depend on the file system."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _outcomes(paths: list[Path]) -> Iterator[tuple[int, ...] | str]:
    """_shape_or_reason of each path; decoders release the interpreter, so threads help."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _BATCH):
            yield from pool.map(_shape_or_reason, paths[start : start + _BATCH])


def _shape_or_reason(path: Path) -> tuple[int, ...] | str:
    """The shape of a picture (H, W, C), or why it cannot be used."""
    try:
        return images.decode(path.read_bytes()).shape
    except (ValueError, OSError) as error:
        return str(error)
