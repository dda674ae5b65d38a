"""Sources: what shards are made from. A new kind is a file with a Source, and a line in `KINDS`.

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FOLDER            png, jpg, jpeg, webp, bmp; sub-folders are classes, numbered by name; a flat
                      one has no labels

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once. Pixels are (H, W, C), uint8, or float32 in [0, 1].
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.data.arrays import idx_shape, open_npz, read_idx
from ddpm.data.source import DIGITS, ArraySource, Loaded, Source, files_identity
from ddpm.errors import InputError
from ddpm.runs import ImageBar

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_UNREAD = (".avif", ".gif", ".heic", ".jp2", ".tif", ".tiff")
_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
_THREADS = 4
_BATCH = 1024


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    takes = "an NPZ file (.npz)"

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._path, self.has_labels = str(path), path, label_key is not None
        try:
            members = open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = ["images"] + ([label_key] if label_key is not None else [])
        there = ", ".join(members) or "nothing"
        advice = {label_key: "; name another with LABEL_KEY, or null for images without labels"}
        if missing := [key for key in keys if key not in members]:
            lines = [
                f"{path} has no array {k!r}, it has: {there}{advice.get(k, '')}" for k in missing
            ]
            raise InputError(lines)
        self._members = [members[key] for key in keys]
        self._take(*((member.header.shape, member.header.dtype) for member in self._members))

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        path = Path(source)
        return cls(path, label_key) if path.suffix == ".npz" and path.is_file() else None

    @cached_property
    def _content(self) -> str:
        return files_identity([self._path])

    def identity(self) -> str:
        return self._content

    def _read(self, part: int) -> NDArray:
        try:
            return self._members[part].read()
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error


class IdxSource(ArraySource):
    """An IDX file of images and, unless label_key is None, the labels file beside it."""

    takes = "an IDX file (*-idx3-ubyte, *.gz)"

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self.has_labels = str(path), label_key is not None
        self._paths = [path]
        if self.has_labels:
            stem = path.name.removesuffix(".gz").replace("images", "labels")
            labels = _idx_file(path.parent, stem.replace("idx3", "idx1").replace("idx4", "idx1"))
            if labels is None or labels == path:
                raise InputError(
                    f"{path} has no labels file beside it; put one there, "
                    "or set LABEL_KEY to null for images without labels"
                )
            self._paths.append(labels)
        promised, problems = [], []
        for file in self._paths:
            try:
                promised.append((idx_shape(file), np.dtype(np.uint8)))
            except (ValueError, OSError) as error:
                problems.append(f"{file} {error}")
        if problems:
            raise InputError(problems)
        self._take(*promised)

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        path = Path(source)
        if path.is_dir():
            pair = next((found for name in _IDX_TRAINING if (found := _idx_file(path, name))), None)
            return cls(pair, label_key) if pair else None
        return cls(path, label_key) if "idx" in path.name else None

    def identity(self) -> str:
        return files_identity(self._paths)

    def _read(self, part: int) -> NDArray:
        try:
            return read_idx(self._paths[part])
        except ValueError as error:
            raise InputError(f"{self._paths[part]} {error}") from error


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits."""

    takes = f"`{DIGITS}`"

    def __init__(self, label_key: str | None) -> None:
        self.name, self.num_samples, self.image_shape = DIGITS, 1797, (1, 8, 8)
        self.has_labels = label_key is not None
        self.class_names = tuple("0123456789") if self.has_labels else None

    @classmethod
    def opened(cls, source: str, label_key: str | None) -> Source | None:
        return cls(label_key) if source == DIGITS else None

    def identity(self) -> str:
        return hashlib.sha256(DIGITS.encode()).hexdigest()

    def _read(self, part: int) -> NDArray:
        # The file that sklearn.datasets.load_digits() reads, without its seconds of imports.
        found = find_spec("sklearn")
        if found is None or not found.origin:
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
        if part:  # the labels
            return table[:, -1].astype(np.int64)
        # Whole numbers 0..16 in float64; np.rint rounds halves to even, but 255 v / 16 has none.
        return np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in `folder`, gzipped or not."""
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)


class FolderSource(Source):
    """Pictures below `path`, sorted by path; unless label_key is None, sub-folders are classes."""

    takes = "an image folder"

    def __init__(self, path: Path, label_key: str | None) -> None:
        self.name, self._root = str(path), path
        files = list(_files(path))
        if unread := [file for file in files if file.suffix.lower() in _UNREAD]:
            raise InputError(
                [f"{file}: {file.suffix} is not read; save it as PNG" for file in unread]
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
            raise InputError(problems)
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


# In the order in which they are tried.
KINDS: tuple[type[Source], ...] = (DigitsSource, NpzSource, IdxSource, FolderSource)


def open_source(source: str | os.PathLike[str], label_key: str | None = "labels") -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show."""
    path = Path(source)
    known = f"give {', '.join(kind.takes for kind in KINDS)}, or a folder of shards"
    if str(source) != DIGITS and not path.exists():
        raise InputError(f"{path} does not exist; {known}")
    for kind in KINDS:
        if (opened := kind.opened(str(source), label_key)) is not None:
            return opened
    raise InputError(f"{path} is no source of images; {known}")
