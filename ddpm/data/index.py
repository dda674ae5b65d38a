"""The index of a folder of shards: its samples, where their bytes lie, and checksums of all.

index.json names the shards (samples, bytes, SHA-256) and what the images are; beside it,
samples-XXXXXXXX.npy holds one row a sample: offset and size of its image in the shard, CRC-32 of
these bytes, label. The number of a sample is its row. Opening reads the JSON and looks at file
sizes; the table is read, and checked, when first used.
"""

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.data import images
from ddpm.errors import InputError
from ddpm.runs import ImageBar, storage

INDEX_FILE = "index.json"
TABLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("label", "<i4")])
FORMAT = 1
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*\.tar")
_TABLE_NAME = re.compile(r"samples-[0-9a-f]{8}\.npy")
AGAIN = "pack it again, or index it again with `python launch/pack.py FOLDER`"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file of the folder."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What lies in a folder of shards.

    image_shape: (C, H, W); None when sizes vary.  smallest_size: the least height and the least
    width. dtype: "uint8", or "float32" with values in [0, 1].  num_classes: the highest label + 1
    or the number of class names; None without labels.  sha256: identity of the data (shards,
    samples, labels), wherever it lies. is_shuffled: the samples lie in random order.  recipe: what
    `pack` made the shards from; None for foreign ones.
    """

    folder: Path
    num_samples: int
    image_shape: tuple[int, int, int] | None
    smallest_size: tuple[int, int]
    channels: int
    dtype: str
    num_classes: int | None
    class_names: tuple[str, ...] | None
    shards: tuple[Shard, ...]
    is_shuffled: bool
    recipe: str | None
    table_file: str
    table_sha256: str
    sha256: str

    @cached_property
    def table(self) -> NDArray[np.void]:
        """One row of TABLE a sample, checked against its SHA-256. Raises InputError."""
        path = self.folder / self.table_file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {AGAIN}") from error
        if hashlib.sha256(content).hexdigest() != self.table_sha256:
            raise InputError(f"{path} is damaged (its SHA-256 is not the index's); {AGAIN}")
        # The content is what we wrote, so its layout needs no further check.
        return np.frombuffer(content, TABLE, self.num_samples, len(content) - self._table_bytes)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The number of each shard's first sample, and num_samples at the end."""
        return np.cumsum([0, *(shard.samples for shard in self.shards)])

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of every sample."""
        return None if self.num_classes is None else self.table["label"].astype(np.int64)

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def _table_bytes(self) -> int:
        return self.num_samples * TABLE.itemsize

    def place(self, sample: int) -> str:
        """Where a sample lies, for messages."""
        shard = int(np.searchsorted(self.starts, sample, side="right")) - 1
        offset = self.table["offset"][sample]
        return f"{self.folder / self.shards[shard].name}: sample {sample} at byte {offset}"

    def __str__(self) -> str:
        size = "x".join(map(str, self.image_shape[1:])) if self.image_shape else "varying size"
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        return (
            f"{self.folder}: {self.num_samples:,} images of {size}, {self.channels} "
            f"{'channel' if self.channels == 1 else 'channels'}, {classes}, "
            f"in {len(self.shards)} {'shard' if len(self.shards) == 1 else 'shards'} "
            f"({_megabytes(self.num_bytes)})"
        )


def open_index(folder: Path | str) -> Index:
    """The index in `folder`, every shard being there with its size. Raises InputError."""
    folder = Path(folder)
    path = folder / INDEX_FILE
    try:
        index = _from_json(folder, json.loads(path.read_text()))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not an index of shards ({error}); {AGAIN}") from error
    if problems := list(_file_problems(index)):
        raise InputError(problems)
    return index


def is_packed(folder: Path) -> bool:
    """Whether the shards in `folder` were written by `pack`, as far as the index can be read."""
    try:
        content = json.loads((folder / INDEX_FILE).read_text())
        return content["recipe"] is not None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def verify_shards(index: Index, *, progress: bool = False) -> None:
    """Reads every byte. Raises InputError naming each damaged shard and its damaged images."""
    problems = list(_file_problems(index))
    table = index.table
    with ImageBar("verifying", index.num_samples, is_shown=progress) as bar:
        for number, shard in enumerate(index.shards):
            rows = table[index.starts[number] : index.starts[number + 1]]
            path = index.folder / shard.name
            if path.is_file() and (damage := _damage(path, shard, rows)) is not None:
                first = int(index.starts[number])
                where = ", ".join(str(first + row) for row in damage[:10])
                more = f" and {len(damage) - 10} more" if len(damage) > 10 else ""
                hit = f"damaged images: {where}{more}" if damage else "outside the images"
                problems.append(f"{path} is damaged (its SHA-256 is not the index's); {hit}")
            bar.advance(shard.samples)
    if problems:
        raise InputError(problems)


def _damage(path: Path, shard: Shard, rows: NDArray[np.void]) -> list[int] | None:
    """Rows whose image bytes are damaged; None when the whole file is as it was."""
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() == shard.sha256:
            return None
        damaged = []
        for row, (offset, size, crc, _) in enumerate(rows.tolist()):
            stream.seek(offset)
            if zlib.crc32(stream.read(size)) != crc:
                damaged.append(row)
        return damaged


def _file_problems(index: Index) -> Iterator[str]:
    root = index.folder.resolve()
    sizes = {shard.name: shard.bytes for shard in index.shards}
    table_size = index._table_bytes
    for name in (*sizes, index.table_file):
        path = index.folder / name
        if not path.is_file():
            yield f"{path} is missing; {AGAIN}"
        elif not path.resolve().is_relative_to(root):
            yield f"{path} is a link out of its folder; copy the file there"
        elif name in sizes and path.stat().st_size != sizes[name]:
            yield f"{path} has {path.stat().st_size} bytes, the index says {sizes[name]}; {AGAIN}"
        elif name not in sizes and path.stat().st_size < table_size:
            yield f"{path} is truncated; {AGAIN}"
    for path in sorted(index.folder.glob("*.tar")):
        if path.name not in sizes:
            yield f"{path} is not in {INDEX_FILE}; {AGAIN}"


def data_sha256(shards: Sequence[Shard], table_sha256: str) -> str:
    content = [FORMAT, [[shard.samples, shard.sha256] for shard in shards], table_sha256]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _from_json(folder: Path, content: dict[str, Any]) -> Index:
    """The index in `content`; ValueError, KeyError or TypeError when it is not one."""
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
    shards = tuple(Shard(**shard) for shard in content.pop("shards"))
    shape, names = content["image_shape"], content["class_names"]
    fields = content | {
        "image_shape": None if shape is None else tuple(shape),
        "smallest_size": tuple(content["smallest_size"]),
        "class_names": None if names is None else tuple(names),
    }
    del fields["format"]
    index = Index(folder=folder, shards=shards, **fields)
    for shard in shards:
        if not SHARD_NAME.fullmatch(shard.name):
            raise ValueError(f"shard name {shard.name!r}")
    if not _TABLE_NAME.fullmatch(index.table_file):
        raise ValueError(f"table name {index.table_file!r}")
    if not 0 < index.num_samples == sum(shard.samples for shard in shards):
        raise ValueError("num_samples is not the sum over shards")
    if index.sha256 != data_sha256(shards, index.table_sha256):
        raise ValueError("it was edited: sha256 does not match")
    return index


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


# --------
# Headers of tar members: 512 bytes each (POSIX ustar, GNU sizes), and the records of pax.

BLOCK = 512


class Broken(Exception):
    """Reading cannot go on behind this place of the archive."""


class Member(NamedTuple):
    """What a header announces; kind is tar's type flag."""

    name: str
    size: int
    kind: bytes


def parse(block: bytes) -> Member:
    """The member that a header block announces. Raises Broken when it is damaged."""
    stored = _octal(block[148:156])
    if stored != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise Broken("is damaged: a member's header does not match its checksum")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    size_field = block[124:136]
    is_binary = size_field[0] & 0x80
    size = int.from_bytes(size_field[1:], "big") if is_binary else _octal(size_field)
    return Member(name, size, block[156:157])


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0") or b"0"
    # int() alone would take signs, underscores and prefixes.
    if digits.strip(b"01234567"):
        raise Broken(f"is damaged: a member's header has the number {field!r}")
    return int(digits, 8)


def _text(text: bytes) -> str:
    return text.partition(b"\0")[0].decode("ascii", "replace")


def pax_records(data: bytes) -> dict[str, str]:
    """The records of a pax header, `LENGTH KEY=VALUE\\n` each."""
    records, rest = {}, data
    while rest:
        length, _, _ = rest.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(rest):
            raise Broken("is damaged: a member's extended header cannot be read")
        key, _, value = rest[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("ascii", "replace")] = value.decode("ascii", "replace")
        rest = rest[int(length) :]
    return records


# --------
# Reads a tar shard as data from a stranger: the samples it holds, where, and what is wrong.
#
# Members are streamed and never extracted, their names never become paths, nothing is unpickled.
# Allowed are regular files named KEY.EXTENSION with the extensions below, consecutive members with
# one KEY being a sample (the convention of WebDataset); everything else is a problem with the shard's
# and the member's name. All bytes are hashed on the way.

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
LABEL_EXTENSIONS = ("cls", "json")
MAX_MEMBER_BYTES = 1 << 28
MAX_LABEL = 1_000_000
_MAX_LABEL_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_REGULAR = (b"0", b"\0")
_DIRECTORY = b"5"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"K": "a long link",
}


class Sample(NamedTuple):
    """One sample of a shard: where the bytes of its image lie, their CRC-32, and what they are."""

    key: str
    offset: int
    size: int
    crc: int
    label: int | None
    header: images.ImageHeader


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A shard's samples in order, its size and SHA-256, and every reason not to use it."""

    samples: list[Sample]
    size: int
    sha256: str
    problems: list[str]


@dataclass
class _Open:
    """The sample whose members are being read."""

    key: str
    members: set[str] = field(default_factory=set)
    image: tuple[str, int, int, int, images.ImageHeader] | None = None
    labels: dict[str, int] = field(default_factory=dict)


def scan_tar(stream: BinaryIO, name: str) -> Scan:
    """What the tar shard in `stream` holds; `name` stands in the problems. Reads it once, whole."""
    scanner = _Scanner(stream, name)
    try:
        scanner.read_members()
    except Broken as error:
        scanner.problems.append(f"{name}: {error}")
    return scanner.result()


class _Scanner:
    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.position, self.hash = 0, hashlib.sha256()
        self.problems: list[str] = []
        self.samples: list[Sample] = []
        self.keys: set[str] = set()
        self.open: _Open | None = None

    def read_members(self) -> None:
        """Walks over all members; raises Broken where the structure itself is lost."""
        if (start := self.stream.read(BLOCK)).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
            raise Broken("is compressed; unpack it first, so that samples can be read one by one")
        self._count(start)
        block, long_name = self._whole(start), None
        while any(block):
            member = parse(block)
            if member.size > MAX_MEMBER_BYTES:
                shown = long_name or member.name
                raise Broken(
                    f"{shown}: says it has {member.size} bytes; at most {MAX_MEMBER_BYTES} are read"
                )
            offset, data = self.position, self._payload(member.size)
            if member.kind in b"xgL":
                long_name = self._extended(member, data) or long_name
            else:
                self._member(member._replace(name=long_name or member.name), offset, data)
                long_name = None
            block = self._whole(self._read(BLOCK))
        self._finish_sample()
        while rest := self._read(1 << 20):
            if any(rest):
                raise Broken("has data behind the end-of-archive mark")
        if not self.samples and not self.problems:
            raise Broken("holds no samples")

    def result(self) -> Scan:
        return Scan(
            samples=self.samples,
            size=self.position,
            sha256=self.hash.hexdigest(),
            problems=self.problems,
        )

    def _read(self, count: int) -> bytes:
        data = self.stream.read(count)
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        self.position += len(data)
        self.hash.update(data)

    def _whole(self, block: bytes) -> bytes:
        if len(block) != BLOCK:
            raise Broken(
                f"is truncated: it ends at byte {self.position} without an end-of-archive mark"
            )
        return block

    def _payload(self, size: int) -> bytes:
        padded = -(-size // BLOCK) * BLOCK
        data = self._read(padded)
        if len(data) != padded:
            raise Broken(f"is truncated: the file ends at byte {self.position}, inside a member")
        return data[:size]

    def _extended(self, member: Member, data: bytes) -> str | None:
        """The name that an extension member gives to the next one."""
        if member.kind == b"L":
            return data.rstrip(b"\0").decode("ascii", "replace")
        records = pax_records(data)
        if any(key.startswith("GNU.sparse") for key in records) or "size" in records:
            raise Broken("holds a sparse or oversized member; pack the files anew with plain tar")
        return records.get("path") if member.kind == b"x" else None

    def _member(self, member: Member, offset: int, data: bytes) -> None:
        if problem := _name_problem(member):
            self.problems.append(f"{self.name}: {member.name!r} {problem}")
            return
        if member.kind == _DIRECTORY:
            return
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = (f"{folder}/{stem}" if folder else stem), extension.lower()
        if self.open is None or self.open.key != key:
            self._finish_sample()
            self.open = _Open(key)
        try:
            self._take(self.open, extension, offset, data)
        except ValueError as error:
            self.problems.append(f"{self.name}: {member.name}: {error}")

    def _take(self, sample: _Open, extension: str, offset: int, data: bytes) -> None:
        if extension in sample.members:
            raise ValueError("is there twice")
        sample.members.add(extension)
        if extension in IMAGE_EXTENSIONS:
            if sample.image is not None:
                raise ValueError(f"is a second image beside {sample.key}.{sample.image[0]}")
            crc = zlib.crc32(data)
            sample.image = (extension, offset, len(data), crc, _checked_header(extension, data))
        elif extension in LABEL_EXTENSIONS:
            label = _label(extension, data)
            if label is not None:
                sample.labels[extension] = label
        else:
            allowed = ", ".join((*IMAGE_EXTENSIONS, *LABEL_EXTENSIONS))
            raise ValueError(f"has an extension that is not read; allowed are {allowed}")

    def _finish_sample(self) -> None:
        sample, self.open = self.open, None
        if sample is None:
            return
        place = f"{self.name}: sample {sample.key}"
        if sample.key in self.keys:
            self.problems.append(f"{place} is there twice")
        elif len(set(sample.labels.values())) > 1:
            self.problems.append(f"{place} has two labels: {sample.labels}")
        elif sample.image is not None:
            _, offset, size, crc, header = sample.image
            label = next(iter(sample.labels.values()), None)
            self.samples.append(Sample(sample.key, offset, size, crc, label, header))
        elif not sample.members & set(IMAGE_EXTENSIONS):
            self.problems.append(f"{place} has no image")
        self.keys.add(sample.key)


def _name_problem(member: Member) -> str | None:
    if member.kind not in (*_REGULAR, _DIRECTORY):
        return f"is {_KINDS.get(member.kind, 'of an unknown kind')}; only regular files are read"
    if member.name.startswith("/"):
        return "is an absolute path"
    if member.kind != _DIRECTORY and member.name.rpartition("/")[2].startswith((".", "/")):
        return "has no name before its extension"
    if ".." in member.name.split("/"):
        return "leads out of its folder with '..'"
    if not _NAME.fullmatch(member.name):
        return "has characters other than A-Z a-z 0-9 _ . / - in its name"
    return None


def _checked_header(extension: str, data: bytes) -> images.ImageHeader:
    if (extension == "npy") != data.startswith(images.NPY_MAGIC) and data:
        raise ValueError(f"is not what its extension .{extension} says")
    header = images.header(data)
    if extension == "npy":
        images.decode(
            data
        )  # its values are cheap to check; those of pictures cannot be out of range
    return header


def _label(extension: str, data: bytes) -> int | None:
    """The class in a label member; None where a JSON member names none."""
    if len(data) > _MAX_LABEL_BYTES:
        raise ValueError(f"has {len(data)} bytes; a label has few")
    if extension == "cls":
        text = data.strip()
        if not text.isdigit():
            raise ValueError(
                f"label {text[:40].decode('ascii', 'replace')!r} is not a whole number from 0"
            )
        label: object = int(text[:20])
    else:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("is not readable JSON") from None
        label = content.get("label") if isinstance(content, dict) else None
    if label is None:
        return None
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= MAX_LABEL:
        raise ValueError(f"label {label!r} is not a whole number from 0 to {MAX_LABEL}")
    return label


# --------
# Makes the index of a folder of shards: our own, or foreign ones, which stay as they are.

MAX_PROBLEMS = 200
LOCK_FILE = "pack.lock"
_NO_LABEL = -1
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Fewer label changes than this share of what random order would have: the shards are sorted.
_SORTED_BELOW = 0.5
_log = logging.getLogger(__name__)


def index_foreign(folder: Path | str, *, progress: bool = False) -> Index:
    """Indexes the tar shards in `folder` in place: writes index.json beside them, changes nothing.

    Samples are numbered in the order of the shards' names, so shards appended behind the others
    leave all numbers, and with them the split into training and validation, as they were.
    Raises InputError with all problems of all shards, naming shard and member.
    """
    folder = Path(folder)
    paths, scans = scan_folder(folder, progress=progress)
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"{folder} is read-only, and the index of foreign shards is written beside them; "
            "copy the shards into a folder of yours"
        )
    with storage.lock(folder / LOCK_FILE, f"the shards in {folder}", wait_s=float("inf")):
        storage.clean_temporaries(folder)
        index = write_index(folder, [path.name for path in paths], scans, is_shuffled=False)
    if _is_sorted(index.labels):
        _log.warning(
            "%s: the shards are sorted by class; batches mix samples from many shards to make up "
            "for it, which reads slower than shards in random order (pack them anew for that)",
            folder,
        )
    return index


def scan_folder(folder: Path, *, progress: bool = False) -> tuple[list[Path], list[Scan]]:
    """The foreign shards in `folder` and what each holds. Raises InputError with all problems."""
    paths = shard_paths(folder)
    scans = []
    with ImageBar("indexing", None, is_shown=progress) as bar:
        for path in paths:
            with path.open("rb") as stream:
                scans.append(scan_tar(stream, str(path)))
            bar.advance(len(scans[-1].samples))
    if problems := [problem for found in scans for problem in found.problems]:
        raise InputError(limited(problems))
    return paths, scans


def shard_paths(folder: Path) -> list[Path]:
    """The tar files of a folder of foreign shards. Raises InputError where some cannot be used."""
    root = folder.resolve()
    problems, paths = [], []
    for path in sorted(folder.iterdir()):
        if path.name.endswith(_COMPRESSED):
            problems.append(f"{path} is compressed; unpack it to .tar")
        elif path.suffix == ".tar":
            if not SHARD_NAME.fullmatch(path.name):
                problems.append(f"{path}: a shard's name has only A-Z a-z 0-9 _ . + = @ -")
            elif not path.is_file() or not path.resolve().is_relative_to(root):
                problems.append(f"{path} is not a file in this folder; copy it there")
            paths.append(path)
    if problems or not paths:
        raise InputError(problems or f"{folder} holds no .tar shards")
    return paths


def limited(problems: Sequence[str]) -> list[str]:
    """The first of many problems, and how many there are."""
    shown = list(problems[:MAX_PROBLEMS])
    more = len(problems) - len(shown)
    return [*shown, f"... and {more} problems more"] if more else shown


def write_index(
    folder: Path,
    names: Sequence[str],
    scans: Sequence[Scan],
    *,
    class_names: tuple[str, ...] | None = None,
    is_shuffled: bool,
    recipe: str | None = None,
) -> Index:
    """Writes the index of scanned shards. Raises InputError where they contradict each other."""
    samples = [sample for scan in scans for sample in scan.samples]
    if problems := _contradictions(folder, names, scans):
        raise InputError(problems)
    shards = tuple(
        Shard(name=name, samples=len(scan.samples), bytes=scan.size, sha256=scan.sha256)
        for name, scan in zip(names, scans, strict=True)
    )
    shapes = {sample.header.shape for sample in samples}
    table = _table(samples)
    before = set(folder.glob("samples-*.npy"))
    table_file, table_sha256 = _write_table(folder, table)
    has_labels = samples[0].label is not None
    highest = int(table["label"].max()) + 1
    index = Index(
        folder=folder,
        num_samples=len(samples),
        image_shape=shapes.pop() if len(shapes) == 1 else None,
        smallest_size=(
            min(sample.header.height for sample in samples),
            min(sample.header.width for sample in samples),
        ),
        channels=samples[0].header.channels,
        dtype=samples[0].header.dtype,
        num_classes=max(highest, len(class_names or ())) if has_labels else None,
        class_names=class_names if has_labels else None,
        shards=shards,
        is_shuffled=is_shuffled,
        recipe=recipe,
        table_file=table_file,
        table_sha256=table_sha256,
        sha256=data_sha256(shards, table_sha256),
    )
    storage.write_json(folder / INDEX_FILE, _to_json(index))
    for old in before - {folder / table_file}:
        storage.remove(old)
    return index


def _table(samples: Sequence[Sample]) -> NDArray[np.void]:
    labels = (_NO_LABEL if sample.label is None else sample.label for sample in samples)
    rows = [
        (sample.offset, sample.size, sample.crc, label)
        for sample, label in zip(samples, labels, strict=True)
    ]
    return np.array(rows, TABLE)


def _write_table(folder: Path, table: NDArray[np.void]) -> tuple[str, str]:
    """Name and SHA-256 of the table's file; named by its content, so old and new never mix."""
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    name = f"samples-{digest[:8]}.npy"
    written = storage.write_file(
        folder / name, lambda sink: np.lib.format.write_array(sink, table, allow_pickle=False)
    )
    return name, written.sha256


def _contradictions(folder: Path, names: Sequence[str], scans: Sequence[Scan]) -> list[str]:
    """Samples that differ from the first in what all of a data set must share."""
    first = next(sample for scan in scans for sample in scan.samples)
    expected = _traits(first)
    problems = []
    for name, scan in zip(names, scans, strict=True):
        for sample in scan.samples:
            for trait, other in zip(_traits(sample), expected, strict=True):
                if trait != other:
                    place = f"{folder / name}: sample {sample.key}"
                    problems.append(f"{place} has {trait}; the first sample has {other}")
    return problems


def _traits(sample: Sample) -> tuple[str, str, str]:
    """What all samples of a folder must share."""
    label = "no label" if sample.label is None else "a label"
    return label, f"{sample.header.channels} channels", f"{sample.header.dtype} pixels"


def _to_json(index: Index) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "num_samples": index.num_samples,
        "image_shape": index.image_shape,
        "smallest_size": index.smallest_size,
        "channels": index.channels,
        "dtype": index.dtype,
        "num_classes": index.num_classes,
        "class_names": index.class_names,
        "is_shuffled": index.is_shuffled,
        "recipe": index.recipe,
        "sha256": index.sha256,
        "table_file": index.table_file,
        "table_sha256": index.table_sha256,
        "shards": [vars(shard) for shard in index.shards],
    }


def _is_sorted(labels: NDArray[np.int64] | None) -> bool:
    """Whether neighbours share their class far more often than in random order."""
    if labels is None:
        return False
    shares = np.bincount(labels) / len(labels)
    expected = (1.0 - float((shares**2).sum())) * (len(labels) - 1)
    return float((labels[1:] != labels[:-1]).sum()) < _SORTED_BELOW * expected
