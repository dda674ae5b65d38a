"""Sources: what shards are made from. A new kind is a file with a Source, and a line in `KINDS`.

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *.tar.gz          CIFAR-10's binary version, or the folder in it
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FOLDER            png, jpg, webp, bmp, ppm; sub-folders are classes, numbered by name; a flat
                      one has no labels

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once, and in notes what is there and not read: nothing is left out in
silence. Pixels are (H, W, C), uint8, or float32 in [0, 1].
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.data.arrays import (
    CIFAR_RECORD,
    cifar_parts,
    idx_shape,
    open_npz,
    read_cifar,
    read_idx,
)
from ddpm.data.source import (
    DIGITS,
    ArraySource,
    Loaded,
    Reading,
    Source,
    by_reason,
    counted,
    examples,
    files_identity,
)
from ddpm.errors import InputError
from ddpm.runs import ImageBar

_JPEG, _PPM = (".jpg", ".jpeg", ".jpe", ".jfif"), (".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = (".png", *_JPEG, ".webp", ".bmp", *_PPM)
# Pictures that are not read, so that none is left out with a note alone.
_UNREAD = (
    *(".apng", ".avif", ".dcm", ".dng", ".exr", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jxl"),
    *(".cr2", ".cr3", ".arw", ".nef", ".psd", ".svg", ".tga", ".tif", ".tiff"),
)
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "lost+found")
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")
_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
_THREADS = 4
_BATCH = 1024


class NpzSource(ArraySource):
    """An NPZ file with `images` and, unless label_key is None, labels under that key."""

    takes = "an NPZ file (.npz)"

    def __init__(self, path: Path, reading: Reading) -> None:
        label_key, self.reading = reading.label_key, reading
        self.name, self._path, self.has_labels = str(path), path, label_key is not None
        try:
            members = open_npz(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        keys = [reading.image_key or "images"] + ([label_key] if label_key is not None else [])
        there = ", ".join(members) or "nothing"
        advice = {label_key: "; name another with LABEL_KEY, or null for images without labels"}
        if missing := [key for key in keys if key not in members]:
            lines = [
                f"{path} has no array {k!r}, it has: {there}{advice.get(k, '')}" for k in missing
            ]
            raise InputError(lines)
        self._members = [members[key] for key in keys]
        if others := [key for key in members if key not in keys]:
            self.notes = (f"{path}: {len(others)} array(s) not read: {examples(others)}",)
        self._take(*((member.header.shape, member.header.dtype) for member in self._members))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        return cls(path, reading) if path.suffix == ".npz" and path.is_file() else None

    @cached_property
    def _content(self) -> str:
        return files_identity([self._path])

    def identity(self) -> str:
        key = self.reading.label_key
        if key in ("labels", None):
            return self._content
        # Other labels of the same file are other data.
        return hashlib.sha256(f"{self._content} {key}".encode()).hexdigest()

    def _read(self, part: int) -> NDArray:
        try:
            return self._members[part].read()
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error


class IdxSource(ArraySource):
    """An IDX file of images and, unless label_key is None, the labels file beside it."""

    takes = "an IDX file (*-idx3-ubyte, *.gz)"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.has_labels = str(path), reading.label_key is not None
        self.reading, self._paths = reading, [path]
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
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        if path.is_dir():
            pair = next((found for name in _IDX_TRAINING if (found := _idx_file(path, name))), None)
            if pair is None:
                return None
            opened = cls(pair, reading)
            if others := [e.name for e in _entries(path) if e not in opened._paths]:
                opened.notes = (
                    f"{path}: {len(others)} file(s) not read: {examples(others)}; name another "
                    "file of images to pack that",
                )
            return opened
        return cls(path, reading) if "idx" in path.name else None

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

    def __init__(self, reading: Reading) -> None:
        self.name, self.has_labels, self.reading = DIGITS, reading.label_key is not None, reading
        self._take(((1797, 8, 8), np.dtype(np.uint8)))
        self.class_names = tuple("0123456789") if self.has_labels else None

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(reading) if source == DIGITS else None

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


class CifarSource(ArraySource):
    """The training images of CIFAR-10's binary version: the archive, or the folder in it.

    A record is the class, a byte, and 32 x 32 red, then green, then blue values.
    """

    takes = "CIFAR-10's cifar-10-binary.tar.gz"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.reading, self._path = str(path), reading, path
        self.has_labels = reading.label_key is not None
        try:
            self._parts, names, others = cifar_parts(path)
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        self.class_names = names if self.has_labels else None
        if others:
            self.notes = (f"{path}: {len(others)} file(s) not read: {examples(others)}",)
        count = sum(size for _, size in self._parts) // CIFAR_RECORD
        self._take(((count, 32, 32, 3), np.dtype(np.uint8)))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        is_archive = path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar"))
        is_folder = path.is_dir() and any(
            (path / f"data_batch_1{end}").is_file() for end in (".bin", "")
        )
        return cls(path, reading) if is_archive or is_folder else None

    def identity(self) -> str:
        if self._path.is_file():
            return files_identity([self._path])
        return files_identity([self._path / name for name, _ in self._parts], self._path)

    @cached_property
    def _records(self) -> NDArray[np.uint8]:
        try:
            return read_cifar(self._path, self._parts)
        except (ValueError, OSError) as error:
            raise InputError(f"{self.name}: {error}") from error

    def _read(self, part: int) -> NDArray:
        if part:  # the labels
            return self._records[:, 0]
        planes = self._records[:, 1:].reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1)


def _idx_file(folder: Path, name: str) -> Path | None:
    """The IDX file of this name in `folder`, gzipped or not."""
    return next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").is_file()), None)


class FolderSource(Source):
    """Pictures below `path`, sorted by path; unless label_key is None, sub-folders are classes."""

    takes = "an image folder"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self._root, self.reading = str(path), path, reading
        label_key, classes = reading.label_key, reading.classes
        files = _sorted_out(path)
        if classes is not None:
            files = self._of_classes(files, classes)
        self._paths = files.pictures
        if not self._paths:
            self._refuse(
                [
                    *files.problems,
                    f"{path} holds no images ({', '.join(EXTENSIONS)}), no shards and no IDX "
                    f"files{'; ' if files.unread else ''}{_by_extension(path, files.unread)}",
                ]
            )
        self.num_samples = len(self._paths)
        parts = [file.relative_to(path).parts for file in self._paths]
        found = {names[0] for names in parts if len(names) > 1}
        folders = sorted({entry.name for entry in _entries(path) if entry.is_dir()})
        self.has_labels = label_key is not None and bool(found)
        self.class_names = (classes or tuple(folders)) if self.has_labels else None
        problems = list(files.problems)
        if self.has_labels and classes is None:
            problems += self._class_problems(folders, found, sum(len(n) == 1 for n in parts))
        self._refuse(problems)
        if files.unread:
            self.notes = (f"{path}: {_by_extension(path, files.unread)}",)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(Path(source), reading) if Path(source).is_dir() else None

    def identity(self) -> str:
        return files_identity(self._paths, self._root)

    def labels(self) -> NDArray[np.int64] | None:
        return self._labels

    def load(self, *, progress: bool = False) -> Loaded:
        """Decodes every picture once: all broken ones are known before anything is written."""
        with ImageBar("checking", self.num_samples, is_shown=progress) as bar:
            outcomes = []
            for outcome in self._outcomes(self._paths, _decoded):
                outcomes.append(outcome)
                bar.advance()
        headers = self._usable(outcomes)
        return Loaded(
            images=_Pictures(self._paths, self.reading.conversions),
            labels=self._labels,
            notes=counted(self.name, [one.changes for one in headers]),
        )

    def headers(self, most: int) -> list[images.ImageHeader]:
        """Size and type of at most so many pictures, evenly spaced. Raises InputError with the
        problems that these show, before any is decoded.
        """
        step = max(1, -(-self.num_samples // most))
        return self._usable(list(self._outcomes(self._paths[::step], images.header)), step)

    def _usable(
        self, outcomes: list[images.ImageHeader | str], step: int = 1
    ) -> list[images.ImageHeader]:
        """The headers of every step-th picture. Raises InputError with what cannot be used."""
        paths = self._paths[::step]
        broken = [(p, one) for p, one in zip(paths, outcomes, strict=True) if isinstance(one, str)]
        self._refuse(by_reason(broken))
        headers = [one for one in outcomes if not isinstance(one, str)]
        self._refuse(_channel_problems(paths, [one.channels for one in headers]))
        return headers

    def _outcomes(
        self,
        paths: Sequence[Path],
        look: Callable[[bytes, images.Conversions], images.ImageHeader],
    ) -> Iterator[images.ImageHeader | str]:
        """The header of each picture, or why it cannot be used; decoders release the interpreter,
        so threads help.
        """

        def outcome(path: Path) -> images.ImageHeader | str:
            try:
                return look(path.read_bytes(), self.reading.conversions)
            except (ValueError, OSError) as error:
                return str(error)

        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(paths), _BATCH):
                yield from pool.map(outcome, paths[start : start + _BATCH])

    def _of_classes(self, files: "_Files", classes: tuple[str, ...]) -> "_Files":
        """The files in the folders of these classes. Raises InputError where one has no picture."""
        if twice := [name for name in classes if classes.count(name) > 1]:
            raise InputError(f"--classes names {twice[0]} twice; give each once")
        inside = [file for file in files.pictures if self._class_of(file) in classes]
        there = {self._class_of(file) for file in inside}
        if missing := [name for name in classes if name not in there]:
            raise InputError(
                f"{self.name} has no pictures of {examples(missing)}; its folders are "
                f"{', '.join(e.name for e in _entries(self._root) if e.is_dir()) or 'none'}"
            )
        rest = [file for file in files.pictures if file not in set(inside)]
        return _Files(inside, [*files.unread, *rest], files.problems)

    def _class_of(self, file: Path) -> str:
        parts = file.relative_to(self._root).parts
        return parts[0] if len(parts) > 1 else ""

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        if self.class_names is None:
            return None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return np.array([numbers[self._class_of(path)] for path in self._paths], np.int64)

    def _class_problems(self, folders: list[str], found: set[str], flat: int) -> Iterator[str]:
        """Reasons why the folders below are no classes."""
        if flat:
            yield (
                f"{self.name} holds {flat} images beside its class folders; move them into one, or "
                "set LABEL_KEY to null for images without labels"
            )
        if all(name.lower() in _PARTS for name in folders):
            yield (
                f"{self.name} holds {', '.join(folders)}, which are parts of a data set and no "
                f"classes; name one of them, such as {self._root / folders[-1]}, or set LABEL_KEY "
                "to null for the images of all without labels, or pack them with --classes"
            )
        elif empty := [name for name in folders if name not in found]:
            yield (
                f"{self.name}: {len(empty)} class folder(s) without an image that is read: "
                f"{examples(empty)}; remove them, or give them images, so that classes keep their "
                "numbers"
            )

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class _Files:
    """The files of a folder: pictures, what else lies there, and reasons not to use the folder."""

    pictures: list[Path]
    unread: list[Path]
    problems: list[str]


def _sorted_out(folder: Path) -> _Files:
    """Every file below a folder by what becomes of it; litter of systems is none of these."""
    pictures, unread, refused = [], [], []
    for path in _files(folder):
        kind = path.suffix.lower()
        if not path.is_file():
            refused.append((path, "no regular file, or a link that leads nowhere; remove it"))
        elif kind in _UNREAD:
            refused.append((path, f"{kind} is not read; save it as PNG"))
        elif kind in EXTENSIONS or (not kind and _is_picture(path)):
            pictures.append(path)
        else:
            unread.append(path)
    return _Files(pictures, unread, by_reason(refused, "files"))


def _is_picture(path: Path) -> bool:
    """Whether a file without an extension begins as a PNG, JPEG, WebP or BMP does."""
    with path.open("rb") as stream:
        start = stream.read(12)
    return start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM")) or start[8:] == b"WEBP"


def _by_extension(folder: Path, unread: Sequence[Path]) -> str:
    """Files that are not read: their number, and of each extension how many and three of them."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in unread:
        kinds[path.suffix.lower() or "without extension"].append(path.relative_to(folder))
    parts = [f"{len(ones):,} {kind} ({examples(ones)})" for kind, ones in sorted(kinds.items())]
    return f"{len(unread):,} file(s) not read: {', '.join(parts)}" if unread else ""


def _channel_problems(paths: Sequence[Path], channels: Sequence[int]) -> list[str]:
    """The odd ones, when some pictures are grey and some in colour."""
    usual = 3 if 2 * sum(one == 3 for one in channels) >= len(channels) else 1
    odd = [path for path, one in zip(paths, channels, strict=True) if one != usual]
    own, others = ("grey", "RGB") if usual == 3 else ("RGB", "grey")
    if len(odd) < 2:
        return [f"{path} is {own}, most images are {others}; convert it" for path in odd]
    return [
        f"{len(odd):,} of {len(paths):,} pictures are {own}, most images are {others}; convert "
        f"them: {examples(odd)}"
    ]


class _Pictures:
    """Pictures, each decoded as it is taken."""

    def __init__(self, paths: list[Path], conversions: images.Conversions) -> None:
        self._paths, self._conversions = paths, conversions

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> images.Pixels:
        path = self._paths[number]
        try:
            return images.decode(path.read_bytes(), self._conversions)
        except (ValueError, OSError) as error:  # it was whole when it was checked
            raise InputError(f"{path}: {error}") from error


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without the litter of systems."""
    entries = sorted(folder.iterdir())
    return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _LITTER]


def _files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The files below `folder`, through links too, in an order that no file system changes."""
    state = folder.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        raise InputError(f"{folder} is a link to a folder that it lies in; remove it")
    for path in _entries(folder):
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path


def _decoded(data: bytes, by: images.Conversions) -> images.ImageHeader:
    images.decode(data, by)
    return images.header(data, by)


# In the order in which they are tried.
KINDS: tuple[type[Source], ...] = (DigitsSource, NpzSource, CifarSource, IdxSource, FolderSource)


def open_source(
    source: str | os.PathLike[str],
    label_key: str | None = "labels",
    *,
    image_key: str | None = None,
    classes: tuple[str, ...] | None = None,
    conversions: images.Conversions = images.STRICT,
) -> Source:
    """The source at a path, or `digits`. Raises InputError with the problems that headers show."""
    path = Path(source)
    known = f"give {', '.join(kind.takes for kind in KINDS)}, or a folder of shards"
    if str(source) != DIGITS and not path.exists():
        raise InputError(f"{path} does not exist; {known}")
    if str(source) != DIGITS and not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder; {known}")
    reading = Reading(
        label_key=label_key, image_key=image_key, classes=classes, conversions=conversions
    )
    for kind in KINDS:
        if (opened := kind.opened(str(source), reading)) is not None:
            _require_used(opened)
            return opened
    raise InputError(f"{path} is no source of images; {known}")


def _require_used(source: Source) -> None:
    """Raises InputError for an option that means nothing to a kind of source."""
    reading, is_folder = source.reading, isinstance(source, FolderSource)
    by = reading.conversions
    given = {
        "--image-key": reading.image_key is not None and not isinstance(source, NpzSource),
        "--classes": reading.classes is not None and not is_folder,
        "--alpha": by.alpha is not None and not is_folder,
        "--bit-depth": by.bit_depth is not None and not is_folder,
    }
    if useless := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{', '.join(useless)} changes nothing of {source.name}; leave it out")
