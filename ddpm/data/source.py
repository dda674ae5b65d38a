"""Source of images: the class of every kind; arrays and encoded pictures, checked as one."""

import hashlib
import json
import logging
import re
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddpm.data.images import (
    MAX_LABEL,
    STRICT,
    Conversions,
    ImageHeader,
    Pixels,
    Ranges,
    decode,
    header,
    to_unit,
)
from ddpm.errors import InputError
from ddpm.runs import ImageBar

DIGITS = "digits"
# Sources up to this size are identified by their content, larger ones by names, sizes and times.
_HASHED_BYTES = 1 << 28
_HASHED_FILES = 1000
_EXAMPLES = 3
_THREADS = 4
_BATCH = 1024
_VERBS = {"has": "have", "is": "are"}
_JPEG, _PPM = (".jpg", ".jpeg", ".jpe", ".jfif"), (".ppm", ".pgm", ".pbm", ".pnm")
EXTENSIONS = (".png", *_JPEG, ".webp", ".bmp", *_PPM)
_TRAIN = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "test", "testing")  # as they are preferred
PARTS = (*_TRAIN, *_HELD_OUT)
STAGED_PICTURES = "pictures"  # in `Reading.stage`, of one reading: no other takes them
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "lost+found")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_noted: set[str] = set()


Shape = tuple[int, ...]
_IMAGES, _LABELS = 0, 1


class ImageSequence(Protocol):
    """Images by number: arrays (H, W, C)."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Any: ...


class Numbered:
    """Images by number, each given by a function as it is taken."""

    def __init__(self, count: int, read: Callable[[int], Any]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Any:
        return self._read(number)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Checked images, and labels from 0, int64 (N,), or None.

    notes: pictures that were not taken as they are stored, one line each.  ranges: of channels that
    were scaled to [0, 1].
    """

    images: ImageSequence
    labels: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()
    ranges: Ranges | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The parts of a source that are read, and the conversions.

    label_key: key of the labels; None for images without.  image_key: key of the images; None for
    the usual one.  classes: class folders, in the order of their numbers; None for all, by name.
    scale: channels maps each channel of float arrays from its lowest and highest value to [0, 1].
    stage: folder for copies of shards that are remote or compressed; None where only headers count.
    """

    label_key: str | None = "labels"
    image_key: str | None = None
    classes: tuple[str, ...] | None = None
    conversions: Conversions = STRICT
    scale: Literal["channels"] | None = None
    stage: Path | None = None


class Source(ABC):
    """Images that can be packed.

    takes: what a path must be, in words.  name: for messages.  num_samples.  image_shape:
    (C, H, W), None when only the pixels tell.  has_labels.  class_names: by class number, where
    there are names.  notes: files and arrays that are there and not read, one line each.  split:
    the images of each part, (name, number), where the data come split; those of the first part, for
    training, come first.  options: those of the command line that mean something to the kind.
    """

    name: str
    num_samples: int
    image_shape: tuple[int, int, int] | None = None
    has_labels: bool = False
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    split: tuple[tuple[str, int], ...] = ()
    reading: Reading = Reading()
    takes: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def opened(cls, source: str, reading: Reading) -> "Source | None":
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
    def load(self) -> Loaded:
        """The images and labels. Raises InputError with every problem in them."""


def note(lines: Iterable[str]) -> None:
    """Says what a user should know, each line once in a process."""
    for line in lines:
        if line not in _noted:
            _noted.add(line)
            _log.warning("%s", line)


def beside(folder: Path, others: Sequence[Path]) -> tuple[str, ...]:
    """A note on what lies in a folder of shards and is none."""
    names = examples([one.name for one in others])
    line = f"{folder}: {len(others):,} not read beside the shards: {names}"
    return (line,) if others else ()


def own_split(names: Iterable[str]) -> tuple[str, str] | None:
    """Of parts of a data set, that for training and that for validation; None without both."""
    by_word = {name.lower(): name for name in sorted(names)}
    train = next((by_word[word] for word in _TRAIN if word in by_word), None)
    held_out = next((by_word[word] for word in _HELD_OUT if word in by_word), None)
    return (train, held_out) if train and held_out else None


def by_part(
    place: object, files: Sequence[T], name: Callable[[T], str] = lambda file: Path(str(file)).name
) -> dict[str | None, list[T]]:
    """Files by the part of the data that their names begin with; {None: files} without parts.

    Beside files for training, those of no part (`extra-0001`) are left out. Raises InputError for
    several parts of which none is for training.
    """
    by_start: dict[str, list[T]] = defaultdict(list)
    for file in files:
        by_start[re.split("[^a-z]", name(file).lower())[0]].append(file)
    parts = [start for start in sorted(by_start) if start in PARTS]
    if split := own_split(parts):
        return {part: by_start[part] for part in split}
    if len(parts) > 1:
        raise InputError(
            f"{place} holds files of {', '.join(parts)}, which are parts of a data set; name one "
            f"file, such as {name(files[-1])}, or a folder with those of one part"
        )
    return {None: by_start[parts[0]] if parts and parts[0] in _TRAIN else list(files)}


def split_note(name: str, split: Sequence[tuple[str, int]]) -> str:
    """The parts that data come in, in words."""
    found = " and ".join(f"{number:,} images of {part}" for part, number in split)
    return f"{name}: {found}, the split that is there; no DATASET.VALIDATION_FRACTION is drawn"


def is_held_out(part: str) -> bool:
    """Whether a part is for validation."""
    return part.lower() in _HELD_OUT


def examples(names: Sequence[object]) -> str:
    """At most three names, and how many more there are."""
    more = len(names) - _EXAMPLES
    shown = ", ".join(map(str, names[:_EXAMPLES]))
    return f"{shown} and {more:,} more" if more > 0 else shown


def by_reason(found: Iterable[tuple[object, str]], what: str = "pictures") -> list[str]:
    """A line for each reason, with its number of files and three of them; `PATH: REASON` of one.

    Reasons are the same up to their first colon.
    """
    groups: dict[str, list[tuple[object, str]]] = defaultdict(list)
    for path, reason in found:
        groups[reason.partition(":")[0]].append((path, reason))
    return [
        f"{ones[0][0]}: {ones[0][1]}"
        if len(ones) == 1
        else f"{len(ones):,} {what}: {_of_many(ones[0][1])}: {examples([p for p, _ in ones])}"
        for ones in groups.values()
    ]


def _of_many(reason: str) -> str:
    """The reason, `has ...` or `is ...` of one, with the verb of several."""
    verb, _, rest = reason.partition(" ")
    return f"{_VERBS.get(verb, verb)} {rest}".rstrip()


class ArraySource(Source):
    """Arrays: images (N, H, W[, C]) uint8 or float in [0, 1], labels (N,) whole numbers or None."""

    takes = "arrays"

    def __init__(
        self,
        images: NDArray,
        labels: NDArray | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> None:
        self.name, self.has_labels = name, labels is not None
        self.class_names = tuple(class_names) if class_names and self.has_labels else None
        self._arrays = [np.asarray(a) for a in (images, labels) if a is not None]
        self._take(*((array.shape, array.dtype) for array in self._arrays))

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return None  # has no path

    def identity(self) -> str:
        digest = hashlib.sha256()
        for array in self._arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def labels(self) -> NDArray[np.int64] | None:
        if not self.has_labels:
            return None
        labels = self._read(_LABELS).reshape(-1)
        self._refuse(label_problems(labels))
        return labels.astype(np.int64)

    def load(self) -> Loaded:
        arrays: list[NDArray] = []
        broken: list[str] = []
        for part in (_IMAGES, _LABELS)[: 1 + self.has_labels]:
            try:
                arrays.append(self._read(part))
            except InputError as error:
                broken += error.problems
        if broken:
            raise InputError(broken)
        images, labels = arrays[0], arrays[1].reshape(-1) if self.has_labels else None
        if images.ndim == 3:
            images = images[..., None]  # (N, H, W, 1)
        ranges: Ranges | None = None
        problems: list[str] = []
        notes: tuple[str, ...] = ()
        if self.reading.scale:
            ranges, problems = _ranges(images)
            found = [f"{low:g} to {high:g}" for low, high in ranges]
            notes = (f"{self.name}: channels scaled to [0, 1], from {examples(found)}",)
        elif images.dtype != np.uint8:
            problems = _float_problems(images)
        self._refuse(problems + ([] if labels is None else label_problems(labels)))
        changes = self.reading.conversions
        numbers = None if labels is None else labels.astype(np.int64)
        if changes == STRICT and images.dtype == np.uint8:
            return Loaded(images=images, labels=numbers)
        _, height, width, channels = images.shape
        dtype = "uint8" if images.dtype == np.uint8 else "float32"
        first = ImageHeader(height=height, width=width, channels=channels, dtype=dtype)
        notes += counted(self.name, [changes.header(first).changes] * len(images))

        def converted(row: int) -> NDArray:
            image = np.asarray(images[row])
            image = image if image.dtype == np.uint8 else image.astype(np.float32)
            return changes.apply(to_unit(image, ranges) if ranges else image)

        pixels = Numbered(len(images), converted)
        return Loaded(images=pixels, labels=numbers, notes=notes, ranges=ranges)

    def _read(self, part: int) -> NDArray:
        """The images or the labels, as they are. Raises InputError."""
        return self._arrays[part]

    def _take(self, images: tuple[Shape, np.dtype], *labels: tuple[Shape, np.dtype]) -> None:
        """Takes the shape from what headers promise. Raises InputError when that cannot be."""
        problems = [f"images {problem}" for problem in _image_problems(*images)]
        if self.reading.scale and images[1] == np.uint8:
            problems.append("images are uint8, which --scale does not change; leave it out")
        for promised in labels:
            found = _label_shape_problems(*promised, count=images[0][0] if images[0] else 0)
            problems += [f"labels {problem}" for problem in found]
        self._refuse(problems)
        count, height, width, channels = (*images[0], 1)[:4]
        kind = "uint8" if images[1] == np.uint8 else "float32"
        header = ImageHeader(height=height, width=width, channels=channels, dtype=kind)
        self.num_samples = count
        self.image_shape = self.reading.conversions.header(header).shape

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            raise InputError([f"{self.name}: {problem}" for problem in problems])


class PictureSource(Source):
    """Encoded pictures, each with a name for messages.  pictures: their bytes, by number."""

    options: ClassVar[tuple[str, ...]] = ("--alpha", "--bit-depth")
    names: Sequence[object]
    pictures: ImageSequence
    _numbers: NDArray | None = None  # whole numbers, by picture
    _ranges: Ranges | None = None  # of channels that had been scaled before

    def labels(self) -> NDArray[np.int64] | None:
        if self._numbers is None:
            return None
        refuse(f"{self.name}: {problem}" for problem in label_problems(self._numbers))
        return self._numbers.astype(np.int64)

    def load(self) -> Loaded:
        """Decodes every picture once: all broken ones are known before anything is written."""
        labels = self.labels()  # before the minutes of decoding
        with ImageBar("checking", self.num_samples, is_shown=True) as bar:
            outcomes = []
            for outcome in self._outcomes(range(self.num_samples), _decoded):
                outcomes.append(outcome)
                bar.advance()
        headers = self._usable(self.names, outcomes)
        return Loaded(
            images=Numbered(self.num_samples, self._pixels),
            labels=labels,
            notes=counted(self.name, [one.changes for one in headers]),
            ranges=self._ranges,
        )

    def _pixels(self, number: int) -> Pixels:
        try:
            return decode(self.pictures[number], self.reading.conversions)
        except (ValueError, OSError) as error:  # it was whole when it was checked
            raise InputError(f"{self.names[number]}: {error}") from error

    def headers(self, limit_s: float) -> list[ImageHeader]:
        """Size and type of the pictures, in evenly spaced rounds, of as many as the seconds allow.

        Raises InputError with the problems that these show, before any is decoded.
        """
        rounds = -(-self.num_samples // _BATCH)
        numbers: list[int] = []
        outcomes: list[ImageHeader | str] = []
        until = time.monotonic() + limit_s
        for first in range(rounds):
            if numbers and time.monotonic() > until:
                break
            some = range(first, self.num_samples, rounds)
            numbers += some
            outcomes += self._outcomes(some, header)
        return self._usable([self.names[number] for number in numbers], outcomes)

    def _usable(
        self, names: Sequence[object], outcomes: list[ImageHeader | str]
    ) -> list[ImageHeader]:
        """The headers of pictures. Raises InputError with what cannot be used."""
        broken = [(n, one) for n, one in zip(names, outcomes, strict=True) if isinstance(one, str)]
        refuse(by_reason(broken))
        headers = [one for one in outcomes if not isinstance(one, str)]
        refuse(_mixed_problems(names, headers))
        return headers

    def _outcomes(
        self,
        numbers: Sequence[int],
        look: Callable[[bytes, Conversions], ImageHeader],
    ) -> Iterator[ImageHeader | str]:
        """The header of each picture, or why it cannot be used; decoders release the interpreter,
        so threads help.
        """

        def outcome(number: int) -> ImageHeader | str:
            try:
                return look(self.pictures[number], self.reading.conversions)
            except (ValueError, OSError) as error:
                return str(error)

        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(numbers), _BATCH):
                yield from pool.map(outcome, numbers[start : start + _BATCH])


def refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise InputError(found)


def _kind(header: ImageHeader) -> str:
    words = {1: "grey", 3: "RGB"}.get(header.channels, f"of {header.channels} channels")
    return words if header.dtype == "uint8" else f"{words}, floats"


def _mixed_problems(paths: Sequence[object], headers: Sequence[ImageHeader]) -> list[str]:
    """The odd ones, when some pictures are grey and some in colour."""
    kinds = [_kind(header) for header in headers]
    numbers = Counter(sorted(kinds))  # RGB before grey, where there are as many
    others = max(numbers, key=numbers.__getitem__)
    odd = [path for path, kind in zip(paths, kinds, strict=True) if kind != others]
    own = " or ".join(kind for kind in numbers if kind != others)
    if len(odd) < 2:
        return [f"{path} is {own}, most images are {others}; convert it" for path in odd]
    return [
        f"{len(odd):,} of {len(paths):,} pictures are {own}, most images are {others}; convert "
        f"them: {examples(odd)}"
    ]


def _decoded(data: bytes, by: Conversions) -> ImageHeader:
    decode(data, by)
    return header(data, by)


def counted(name: str, changes: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """A line for each change of images, with their number."""
    numbers = Counter(change for ones in changes for change in ones)
    return tuple(f"{name}: {number:,} image(s) {what}" for what, number in numbers.items())


def _image_problems(shape: Shape, dtype: np.dtype) -> list[str]:
    """Reasons why an array cannot be images (N, H, W[, C])."""
    problems = []
    if len(shape) in (3, 4) and 0 in shape:
        problems.append(f"hold no pixels: their shape is {shape}")
    elif len(shape) not in (3, 4):
        problems.append(f"have shape {shape}; give (N, H, W) or (N, H, W, C)")
    elif len(shape) == 4 and shape[1] in (1, 3, 4) and shape[3] > 4:
        problems.append(f"of shape {shape} look like (N, C, H, W); give (N, H, W, C)")
    if dtype != np.uint8 and dtype.kind != "f":
        problems.append(f"are {dtype}; give uint8, or floats in [0, 1]")
    return problems


def _label_shape_problems(shape: Shape, dtype: np.dtype, *, count: int) -> list[str]:
    """Reasons why an array cannot be the labels of `count` images."""
    problems = []
    if shape not in ((count,), (count, 1)):
        problems.append(f"have shape {shape}; give one label an image, ({count},)")
    if dtype.kind not in "iu":
        problems.append(f"are {dtype}; give whole numbers from 0")
    return problems


def label_problems(labels: NDArray) -> list[str]:
    """Labels that are no class numbers."""
    problems = []
    for wrong, what in ((labels < 0, "below 0"), (labels > MAX_LABEL, f"above {MAX_LABEL}")):
        if count := int(wrong.sum()):
            first = int(wrong.argmax())
            problems.append(
                f"{count} labels are {what}, the first is {labels[first]} of image {first}"
            )
    return problems


def _extremes(images: NDArray) -> tuple[NDArray, NDArray]:
    """The lowest and the highest value of every channel of every image, (N, C), in float32; read
    piece by piece.
    """
    step = max(1, (1 << 22) // max(1, images[0].size))
    pieces = (images[start : start + step] for start in range(0, len(images), step))
    with np.errstate(invalid="ignore", over="ignore"):
        # Down the columns first: a reduction over few channels at a time is 30 times slower.
        columns = [(p.min(axis=1).min(axis=1), p.max(axis=1).max(axis=1)) for p in pieces]
        low, high = (np.concatenate(ends).astype(np.float32) for ends in zip(*columns, strict=True))
    return low, high


def _float_problems(images: NDArray) -> list[str]:
    """Images with values outside [0, 1]."""
    low, high = _extremes(images)
    wrong = np.flatnonzero(~((low.min(axis=1) >= 0) & (high.max(axis=1) <= 1)))  # NaN is wrong too
    if not len(wrong):
        return []
    first = int(wrong[0])
    return [
        f"{len(wrong)} float images have values outside [0, 1], the first is image {first} with "
        f"{low[first].min():g} to {high[first].max():g}; scale them (packing: --scale channels), "
        "or give uint8"
    ]


def _ranges(images: NDArray) -> tuple[Ranges, list[str]]:
    """The lowest and the highest value of each channel, and reasons not to scale by them."""
    low, high = _extremes(images)
    problems = []
    is_wrong = ~(np.isfinite(low) & np.isfinite(high)).all(axis=1)
    if count := int(is_wrong.sum()):
        first = int(is_wrong.argmax())
        problems = [f"{count} images have values that are not finite, the first is image {first}"]
    ranges = tuple(zip(low.min(axis=0).tolist(), high.max(axis=0).tolist(), strict=True))
    problems += [
        f"channel {number} is {least:g} everywhere; leave it out"
        for number, (least, most) in enumerate(ranges)
        if least == most
    ]
    return ranges, problems


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, by name, without the litter of systems."""
    entries = sorted(folder.iterdir())
    return [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _LITTER]


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
