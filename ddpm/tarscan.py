"""Reads a tar shard as data from a stranger: the samples it holds, where, and what is wrong.

Members are streamed and never extracted, their names never become paths, nothing is unpickled.
Allowed are regular files named KEY.EXTENSION with the extensions below, consecutive members with
one KEY being a sample (the convention of WebDataset); everything else is a problem with the shard's
and the member's name. All bytes are hashed on the way.
"""

import hashlib
import json
import re
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from ddpm import images
from ddpm.tarheader import BLOCK, Broken, Member, parse, pax_records

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
