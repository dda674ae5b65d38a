"""Sources: what shards are made from. A new kind is a file with a Source, and a line in `KINDS`.

    digits            scikit-learn's 1,797 handwritten digits of 8x8, v of 16 as round(255 v / 16)
    FILE.npy          images alone, as in an NPZ
    FILE.npz          `images` (N, H, W[, C]) uint8 or float in [0, 1]; LABEL_KEY: whole numbers
    *.tar.gz          CIFAR-10's binary version, or the folder in it
    *idx3-ubyte[.gz]  IDX images, their labels beside them; a folder of IDX: its training pair
    FILE.zip          pictures, and their classes in EDM's dataset.json
    *.parquet         encoded pictures and labels, as Hugging Face keeps them; a folder of these
    FOLDER            png, jpg, webp, bmp, ppm; sub-folders are classes, numbered by name; a flat
                      one has no labels

Opening a source looks at names, headers and sizes only, loading it reads and checks the pixels;
both report all problems at once, and in notes what is there and not read: nothing is left out in
silence. Pixels are (H, W, C), uint8, or float32 in [0, 1].
"""

import hashlib
import json
import os
import re
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

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
    ImageSequence,
    Loaded,
    Reading,
    Source,
    by_reason,
    counted,
    examples,
    files_identity,
    label_problems,
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
_EDM = "dataset.json"
_MOST_BYTES = 1 << 28
_THREADS = 4
_BATCH = 1024
_IDX_TRAINING = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")


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


class NpySource(ArraySource):
    """An NPY file of images alone, mapped where it lies."""

    takes = "an NPY file (.npy)"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.reading, self._path = str(path), reading, path
        try:
            with path.open("rb") as stream:
                self._header = images.array_header(stream)
            found = path.stat().st_size - self._header.header_bytes
            if found != self._header.data_bytes:
                raise ValueError(f"promises {self._header.data_bytes} bytes; {found} are there")
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: {error}") from error
        self._take((self._header.shape, self._header.dtype))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(Path(source), reading) if source.endswith(".npy") else None

    def identity(self) -> str:
        return files_identity([self._path])

    def _read(self, part: int) -> NDArray:
        head = self._header
        flat = np.memmap(self._path, head.dtype, "r", head.header_bytes)
        return flat.reshape(head.shape, order="F" if head.is_fortran else "C")


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
            if others := [e.name for e in entries(path) if e not in opened._paths]:
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


class PictureSource(Source):
    """Encoded pictures, each with a name for messages.  pictures: their bytes, by number."""

    names: Sequence[object]
    pictures: ImageSequence
    _numbers: NDArray | None = None  # whole numbers, by picture

    def labels(self) -> NDArray[np.int64] | None:
        if self._numbers is None:
            return None
        _refuse(f"{self.name}: {problem}" for problem in label_problems(self._numbers))
        return self._numbers.astype(np.int64)

    def load(self, *, progress: bool = False) -> Loaded:
        """Decodes every picture once: all broken ones are known before anything is written."""
        labels = self.labels()  # before the minutes of decoding
        with ImageBar("checking", self.num_samples, is_shown=progress) as bar:
            outcomes = []
            for outcome in self._outcomes(range(self.num_samples), _decoded):
                outcomes.append(outcome)
                bar.advance()
        headers = self._usable(self.names, outcomes)
        return Loaded(
            images=_Decoded(self),
            labels=labels,
            notes=counted(self.name, [one.changes for one in headers]),
        )

    def headers(self, limit_s: float) -> list[images.ImageHeader]:
        """Size and type of the pictures, in evenly spaced rounds, of as many as the seconds allow.

        Raises InputError with the problems that these show, before any is decoded.
        """
        rounds = -(-self.num_samples // _BATCH)
        numbers: list[int] = []
        outcomes: list[images.ImageHeader | str] = []
        until = time.monotonic() + limit_s
        for first in range(rounds):
            if numbers and time.monotonic() > until:
                break
            some = range(first, self.num_samples, rounds)
            numbers += some
            outcomes += self._outcomes(some, images.header)
        return self._usable([self.names[number] for number in numbers], outcomes)

    def _usable(
        self, names: Sequence[object], outcomes: list[images.ImageHeader | str]
    ) -> list[images.ImageHeader]:
        """The headers of pictures. Raises InputError with what cannot be used."""
        broken = [(n, one) for n, one in zip(names, outcomes, strict=True) if isinstance(one, str)]
        _refuse(by_reason(broken))
        headers = [one for one in outcomes if not isinstance(one, str)]
        _refuse(_channel_problems(names, [one.channels for one in headers]))
        return headers

    def _outcomes(
        self,
        numbers: Sequence[int],
        look: Callable[[bytes, images.Conversions], images.ImageHeader],
    ) -> Iterator[images.ImageHeader | str]:
        """The header of each picture, or why it cannot be used; decoders release the interpreter,
        so threads help.
        """

        def outcome(number: int) -> images.ImageHeader | str:
            try:
                return look(self.pictures[number], self.reading.conversions)
            except (ValueError, OSError) as error:
                return str(error)

        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(numbers), _BATCH):
                yield from pool.map(outcome, numbers[start : start + _BATCH])


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise InputError(found)


class FolderSource(PictureSource):
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
            _refuse(
                [
                    *files.problems,
                    f"{path} holds no images ({', '.join(EXTENSIONS)}), no shards and no IDX "
                    f"files{'; ' if files.unread else ''}{_by_extension(path, files.unread)}",
                ]
            )
        self.num_samples = len(self._paths)
        self.names, self.pictures = self._paths, _OfFiles(self._paths)
        parts = [file.relative_to(path).parts for file in self._paths]
        found = {names[0] for names in parts if len(names) > 1}
        folders = sorted({entry.name for entry in entries(path) if entry.is_dir()})
        self.has_labels = label_key is not None and bool(found)
        self.class_names = (classes or tuple(folders)) if self.has_labels else None
        problems = list(files.problems)
        if self.has_labels and classes is None:
            problems += self._class_problems(folders, found, sum(len(n) == 1 for n in parts))
        _refuse(problems)
        if files.unread:
            self.notes = (f"{path}: {_by_extension(path, files.unread)}",)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(Path(source), reading) if Path(source).is_dir() else None

    def identity(self) -> str:
        return files_identity(self._paths, self._root)

    def labels(self) -> NDArray[np.int64] | None:
        return self._labels

    def _of_classes(self, files: "_Files", classes: tuple[str, ...]) -> "_Files":
        """The files in the folders of these classes. Raises InputError where one has no picture."""
        if twice := [name for name in classes if classes.count(name) > 1]:
            raise InputError(f"--classes names {twice[0]} twice; give each once")
        inside = [file for file in files.pictures if self._class_of(file) in classes]
        there = {self._class_of(file) for file in inside}
        if missing := [name for name in classes if name not in there]:
            raise InputError(
                f"{self.name} has no pictures of {examples(missing)}; its folders are "
                f"{', '.join(e.name for e in entries(self._root) if e.is_dir()) or 'none'}"
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


def _channel_problems(paths: Sequence[object], channels: Sequence[int]) -> list[str]:
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


class _OfFiles:
    """The bytes of files, each read as it is taken."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> bytes:
        return self._paths[number].read_bytes()


class _Decoded:
    """The pictures of a source, each decoded as it is taken."""

    def __init__(self, source: PictureSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.num_samples

    def __getitem__(self, number: int) -> images.Pixels:
        source = self._source
        try:
            return images.decode(source.pictures[number], source.reading.conversions)
        except (ValueError, OSError) as error:  # it was whole when it was checked
            raise InputError(f"{source.names[number]}: {error}") from error


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without the litter of systems."""
    entries = sorted(folder.iterdir())
    return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _LITTER]


def _files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The files below `folder`, through links too, in an order that no file system changes."""
    state = folder.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        raise InputError(f"{folder} is a link to a folder that it lies in; remove it")
    for path in entries(folder):
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path


def _decoded(data: bytes, by: images.Conversions) -> images.ImageHeader:
    images.decode(data, by)
    return images.header(data, by)


class ParquetSource(PictureSource):
    """Parquet files as Hugging Face's datasets keeps them: a column of encoded pictures (bytes, or
    {bytes, path}) and one of whole numbers.
    """

    takes = "Parquet files (.parquet)"

    def __init__(self, paths: list[Path], reading: Reading, name: str) -> None:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet

        self.name, self.reading, self._paths = name, reading, paths
        try:
            schema = pyarrow.parquet.read_schema(paths[0])
            there = schema.names
            key = _first((reading.image_key,) if reading.image_key else ("image", "img"), there)
            label = None
            if reading.label_key is not None:
                usual = reading.label_key == "labels"
                label = _first(("labels", "label") if usual else (reading.label_key,), there)
            keys = [one for one in (key, label) if one is not None]
            table = pyarrow.parquet.read_table(paths, columns=keys, memory_map=True)
            column = table.column(key)
            if pyarrow.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
                column = pyarrow.compute.struct_field(column, "bytes")
            if not pyarrow.types.is_binary(column.type) and not pyarrow.types.is_large_binary(
                column.type
            ):
                raise ValueError(f"column {key!r} is {column.type}; give encoded pictures")
            if column.null_count:
                raise ValueError(f"{column.null_count:,} pictures of column {key!r} are empty")
            if label is not None:
                numbers = table.column(label)
                if not pyarrow.types.is_integer(numbers.type):
                    raise ValueError(f"column {label!r} is {numbers.type}; give whole numbers")
                if count := numbers.null_count:
                    raise ValueError(f"{count:,} labels of column {label!r} are null; give numbers")
                self._numbers = numbers.to_numpy()
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{name}: {error}") from error
        self.num_samples, self.has_labels = len(column), label is not None
        self.pictures = _OfColumn(column)
        self.names = [f"{name}: row {row}" for row in range(self.num_samples)]
        self.class_names = _class_names(schema.metadata, label) if label else None
        if others := [one for one in there if one not in keys]:
            self.notes = (f"{name}: {len(others)} column(s) not read: {examples(others)}",)
        if not self.num_samples:
            raise InputError(f"{name} holds no rows")

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        if path.is_dir():
            there = entries(path)
            files = [file for file in there if file.suffix == ".parquet" and file.is_file()]
            if not files:
                return None
            starts = {re.split("[^a-z]", file.name.lower())[0] for file in files}
            if len(parts := sorted(starts.intersection(_PARTS))) > 1:
                raise InputError(
                    f"{path} holds Parquet files of {', '.join(parts)}, which are parts of a data "
                    f"set; name one file, such as {files[-1]}, or a folder with those of one part"
                )
            opened = cls(files, reading, source)
            if others := [f"{e.name}{'/' * e.is_dir()}" for e in there if e not in files]:
                line = f"{path}: {len(others):,} file(s) or folder(s) not read: {examples(others)}"
                opened.notes += (line,)
            return opened
        return cls([path], reading, source) if path.suffix == ".parquet" else None

    def identity(self) -> str:
        content = files_identity(self._paths)
        keys = [self.reading.label_key, self.reading.image_key]
        return hashlib.sha256(json.dumps([content, keys]).encode()).hexdigest()


class _OfColumn:
    """The bytes of an Arrow column, by row; in its chunks, as one of binary holds 2 GiB at most."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: int) -> bytes:
        data: bytes = self._column[number].as_py()
        return data


def _first(keys: Sequence[str], there: Sequence[str]) -> str:
    """The first of the keys that is there; ValueError where none is."""
    found = next((key for key in keys if key in there), None)
    if found is None:
        raise ValueError(
            f"has no column {' or '.join(map(repr, keys))}, it has: {', '.join(there)}; name "
            "another with --image-key and --label-key, or null for images without labels"
        )
    return found


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names that Hugging Face's metadata gives the classes of a column."""
    try:
        info = json.loads((metadata or {})[b"huggingface"])
        return tuple(map(str, info["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


class ZipSource(PictureSource):
    """A ZIP of pictures as EDM's dataset tool writes it: dataset.json has [name, class] of each."""

    takes = "a ZIP of pictures with EDM's dataset.json (.zip)"

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self.reading, self._path = str(path), reading, path
        try:
            self._archive = zipfile.ZipFile(path)
            files = [one for one in self._archive.infolist() if not one.is_dir()]
            inside = [one for one in files if PurePath(one.filename).suffix.lower() in EXTENSIONS]
            described = next((one for one in files if one.filename == _EDM), None)
            labels = None
            if reading.label_key is not None and described is not None:
                labels = _edm_labels(self._archive, described)
        except (
            ValueError,
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
        ) as error:
            # RuntimeError: dataset.json is encrypted, or compressed otherwise than zipfile knows
            raise InputError(f"{path}: {error}") from error
        names = [one.filename for one in inside]
        _refuse(self._problems(files, inside, labels))
        self.num_samples, self.has_labels = len(names), labels is not None
        self.names = [f"{path}: {name}" for name in names]
        self.pictures = _OfArchive(self._archive, names)
        self._numbers = None if labels is None else np.array([labels[n] for n in names], np.int64)
        kept = {*names, _EDM} if labels is not None else set(names)
        if others := [one.filename for one in files if one.filename not in kept]:
            self.notes = (f"{path}: {len(others):,} file(s) not read: {examples(others)}",)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(Path(source), reading) if source.lower().endswith(".zip") else None

    def identity(self) -> str:
        return files_identity([self._path])

    def _problems(
        self,
        files: list[zipfile.ZipInfo],
        inside: list[zipfile.ZipInfo],
        labels: dict[str, int] | None,
    ) -> Iterator[str]:
        """Reasons not to use the archive."""
        if not inside:
            yield f"{self.name} holds no images ({', '.join(EXTENSIONS)})"
        if unread := [one for one in files if PurePath(one.filename).suffix.lower() in _UNREAD]:
            names = examples([one.filename for one in unread])
            yield f"{self.name}: {len(unread):,} pictures of kinds that are not read: {names}"
        if large := [one.filename for one in inside if one.file_size > _MOST_BYTES]:
            yield f"{self.name}: {large[0]} says it has more than {_MOST_BYTES} bytes"
        if locked := [one.filename for one in files if one.flag_bits & 1]:
            yield f"{self.name}: {locked[0]} is encrypted"
        inner = [one.filename for one in inside]
        if len(set(inner)) < len(inner):
            yield f"{self.name} holds a name twice"
        if labels is not None and (bare := [name for name in inner if name not in labels]):
            yield f"{self.name}: {len(bare):,} pictures have no label in {_EDM}: {examples(bare)}"


def _edm_labels(archive: zipfile.ZipFile, described: zipfile.ZipInfo) -> dict[str, int] | None:
    """The classes by name of EDM's dataset.json; None where it has none. Raises ValueError."""
    if described.file_size > _MOST_BYTES:
        raise ValueError(f"{_EDM} has {described.file_size} bytes")
    try:
        content = json.loads(archive.read(described))
    except RecursionError:
        raise ValueError(f"{_EDM} is nested too deeply; give a list of [name, class]") from None
    pairs = content.get("labels") if isinstance(content, dict) else None
    if pairs is None:
        return None
    if not isinstance(pairs, list):
        raise ValueError(f"{_EDM} has labels {str(pairs)[:60]}; give a list of [name, class]")
    labels: dict[str, int] = {}
    for pair in pairs:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or type(pair[1]) is not int
            or not 0 <= pair[1] < 1 << 63
        ):
            raise ValueError(f"{_EDM} has the label {str(pair)[:60]}; give [name, whole number]")
        labels[str(pair[0])] = pair[1]
    return labels


class _OfArchive:
    """The bytes of a ZIP's members, each read as it is taken."""

    def __init__(self, archive: zipfile.ZipFile, names: list[str]) -> None:
        self._archive, self._names = archive, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> bytes:
        try:
            return self._archive.read(self._names[number])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"is damaged in the archive: {error}") from error


# In the order in which they are tried.
KINDS: tuple[type[Source], ...] = (
    DigitsSource,
    NpzSource,
    NpySource,
    ParquetSource,
    ZipSource,
    CifarSource,
    IdxSource,
    FolderSource,
)


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
    reading, has_pictures = source.reading, isinstance(source, PictureSource)
    by = reading.conversions
    given = {
        "--image-key": reading.image_key is not None
        and not isinstance(source, NpzSource | ParquetSource),
        "--classes": reading.classes is not None and not isinstance(source, FolderSource),
        "--alpha": by.alpha is not None and not has_pictures,
        "--bit-depth": by.bit_depth is not None and not has_pictures,
    }
    if useless := [name for name, is_given in given.items() if is_given]:
        raise InputError(f"{', '.join(useless)} changes nothing of {source.name}; leave it out")
