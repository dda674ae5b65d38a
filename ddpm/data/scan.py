"""Scan of a tar shard as data from a stranger: its samples, where they lie, and what is wrong.

Members are streamed and never extracted, their names never become paths, nothing is unpickled.
Allowed are regular files named KEY.EXTENSION with the extensions below, consecutive members with
one KEY being a sample (the convention of WebDataset); everything else is a problem with the
shard's and the member's name.
"""

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import BinaryIO, NamedTuple, NoReturn

from ddpm.data import images
from ddpm.errors import as_typed

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
LABEL_EXTENSIONS = ("cls", "json")
MAX_MEMBER_BYTES = 1 << 28
_MAX_LABEL_BYTES, _MAX_NAME = 1 << 20, 100
_NAME = re.compile(r"[A-Za-z0-9_./-]+")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
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
    """A shard's samples in order, its size and SHA-256, and every reason not to use it.

    unlabelled: JSON members that name no class.
    """

    samples: list[Sample]
    size: int
    sha256: str
    problems: list[str]
    unlabelled: list[str]


class _Broken(tarfile.TarError):
    """Reading cannot go on behind this place of the archive."""


class _Member(tarfile.TarInfo):
    """A header, refused before tarfile believes its size (of extended headers too)."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        # tarfile takes signs, underscores and what follows a NUL; POSIX has octal digits.
        for number in (buf[148:156], *(() if buf[124] & 0x80 else (buf[124:136],))):
            if number.strip(b" \0").strip(b"01234567"):
                raise _Broken(f"is damaged: a member's header has the number {number!r}")
        if not 0 <= member.size <= MAX_MEMBER_BYTES:
            raise _Broken(f"{member.name}: {_too_large(member)}")
        return member

    @property
    def key(self) -> str:
        """The name up to the first dot of its last part."""
        folder, _, base = self.name.rpartition("/")
        stem = base.partition(".")[0]
        return f"{folder}/{stem}" if folder else stem

    @property
    def extension(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def scan_tar(stream: BinaryIO, name: str) -> Scan:
    """The samples of the tar shard in `stream`, a file; `name` stands in the problems."""
    samples: list[Sample] = []
    problems: list[str] = []
    unlabelled: list[str] = []
    keys: set[str] = set()

    def note(text: object) -> None:
        problems.append(f"{name}: {text}")

    try:
        for key, found in groupby(members(stream, note), key=lambda member: member.key):
            sample = _sample(stream, key, found, note, unlabelled)
            if key in keys:
                note(f"sample {key} is there twice")
            elif sample is not None:
                samples.append(sample)
            keys.add(key)
        if not samples and not problems:
            note("holds no samples")
    except tarfile.TarError as error:
        note(error)
    stream.seek(0)
    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    return Scan(
        samples=samples,
        size=stream.tell(),
        sha256=sha256,
        problems=problems,
        unlabelled=unlabelled,
    )


def members(
    stream: BinaryIO, note: Callable[[object], None], *, any_name: bool = False
) -> Iterator[_Member]:
    """The members that may be part of a sample. Raises TarError where the structure is lost.

    any_name: names do not matter, as they become no key of ours.
    """
    if stream.read(6).startswith(_COMPRESSED):
        raise _Broken("is compressed; unpack it first, so that samples can be read one by one")
    size = stream.seek(0, 2)
    stream.seek(0)
    with _opened(stream, size, "utf-8" if any_name else "ascii") as tar:
        while (member := _next(tar, size)) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            assert isinstance(member, _Member)
            if problem := _problem(member) or (None if any_name else _name_problem(member)):
                note(f"{member.name!r} {problem}")
            elif not member.isdir():
                yield member
        _check_end(stream, tar.offset, size)


def _opened(stream: BinaryIO, size: int, encoding: str) -> tarfile.TarFile:
    head = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    try:
        return tarfile.open(
            fileobj=stream, mode="r:", tarinfo=_Member, encoding=encoding, errors="surrogateescape"
        )
    except _Broken:
        raise
    except (tarfile.TarError, ValueError) as error:
        if head and not _is_header(head):
            raise _Broken(f"is no tar (it begins `{_readable(head[:10])}`)") from error
        _raise_broken(size, 0, error)


def _is_header(head: bytes) -> bool:
    """Whether a first block, perhaps damaged or cut off, was a member's header: by POSIX's mark
    or its checksum in octal digits; where it ends before both, by the NUL behind the name.
    """
    if len(head) < tarfile.BLOCKSIZE:
        return b"\0" in head
    return head[257:262] == b"ustar" or head[148:154].strip(b" \0").isdigit()


def _readable(data: bytes) -> str:
    return "".join(c if c.isprintable() else "?" for c in data.decode("ascii", "replace"))


def _next(tar: tarfile.TarFile, size: int) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except _Broken:
        raise
    except (tarfile.TarError, ValueError) as error:
        _raise_broken(size, tar.offset, error)


def _raise_broken(size: int, offset: int, error: Exception) -> NoReturn:
    if offset + tarfile.BLOCKSIZE > size:
        raise _Broken(f"is truncated: the file ends at byte {size}, inside a member") from error
    raise _Broken(f"is damaged: {error}") from error


def _check_end(stream: BinaryIO, offset: int, size: int) -> None:
    """tarfile ends in silence at the first header that it cannot read."""
    stream.seek(offset)
    mark = stream.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise _Broken(f"is truncated: it ends at byte {size} without an end-of-archive mark")
    if any(mark):
        raise _Broken("is damaged: a member's header does not match its checksum")
    while rest := stream.read(1 << 20):
        if any(rest):
            raise _Broken("has data behind the end-of-archive mark")


def _problem(member: tarfile.TarInfo) -> str | None:
    """The reason why a member may not be there."""
    if member.issparse() or any(key.startswith("GNU.sparse") for key in member.pax_headers):
        return "is a sparse file; only regular files are read"
    if member.size > MAX_MEMBER_BYTES:  # by an extended header
        return _too_large(member)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        return f"is {_KINDS.get(member.type, 'of an unknown kind')}; only regular files are read"
    return None


def _name_problem(member: tarfile.TarInfo) -> str | None:
    """The reason why a name may be no sample's key."""
    if member.name.startswith("/"):
        return "is an absolute path"
    if not member.isdir() and member.name.rpartition("/")[2].startswith((".", "/")):
        return "has no name before its extension"
    if ".." in member.name.split("/"):
        return "leads out of its folder with '..'"
    if not _NAME.fullmatch(member.name):
        return "has characters other than A-Z a-z 0-9 _ . / - in its name"
    return None


def _too_large(member: tarfile.TarInfo) -> str:
    return f"says it has {member.size} bytes; at most {MAX_MEMBER_BYTES} are read"


def _sample(
    stream: BinaryIO,
    key: str,
    members: Iterator[_Member],
    note: Callable[[object], None],
    unlabelled: list[str],
) -> Sample | None:
    """The sample of consecutive members with one key; None where it has a problem."""
    seen: set[str] = set()
    silent: list[str] = []
    labels: dict[str, int] = {}
    sample: Sample | None = None
    for member in members:
        extension = member.extension
        stream.seek(member.offset_data)
        data = stream.read(member.size)
        try:
            if extension in seen:
                raise ValueError("is there twice")
            seen.add(extension)
            if extension in IMAGE_EXTENSIONS:
                if len(seen.intersection(IMAGE_EXTENSIONS)) > 1:
                    raise ValueError(f"is a second image beside those of sample {key}")
                found = _checked_header(extension, data)
                crc = zlib.crc32(data)
                sample = Sample(key, member.offset_data, member.size, crc, None, found)
            elif extension in LABEL_EXTENSIONS:
                label = label_in(extension, data)
                if isinstance(label, str):
                    typed = as_typed("pack", "FOLDER", "OUT_DIR")
                    raise ValueError(
                        f"label {label!r} is not a whole number from 0; `{typed}` numbers names"
                    )
                if label is None:
                    silent.append(member.name)
                else:
                    labels[extension] = label
            else:
                allowed = ", ".join((*IMAGE_EXTENSIONS, *LABEL_EXTENSIONS))
                raise ValueError(f"has an extension that is not read; allowed are {allowed}")
        except ValueError as error:
            note(f"{member.name}: {error}")
    if len(set(labels.values())) > 1:
        note(f"sample {key} has two labels: {labels}")
        return None
    if not seen.intersection(IMAGE_EXTENSIONS):
        note(f"sample {key} has no image")
    unlabelled += [] if labels else silent
    return sample and sample._replace(label=next(iter(labels.values()), None))


def _checked_header(extension: str, data: bytes) -> images.ImageHeader:
    if (extension == "npy") != data.startswith(images.NPY_MAGIC) and data:
        raise ValueError(f"is not what its extension .{extension} says")
    if extension == "npy":
        images.decode(data)  # its values are cheap to check; pictures cannot be out of range
    return images.header(data)


def label_in(extension: str, data: bytes, field: str = "label") -> int | str | None:
    """The class in a label member, its number or its name; None where JSON has no such field."""
    if len(data) > _MAX_LABEL_BYTES:
        raise ValueError(f"has {len(data)} bytes; a label has few")
    if extension == "json":
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            raise ValueError("is not readable JSON") from None
        label: object = content.get(field) if isinstance(content, dict) else None
    else:
        label = _text(data).strip()
    if isinstance(label, str) and label.isascii() and label.isdigit():
        label = int(label[:20])
    is_number = isinstance(label, int) and not isinstance(label, bool)
    if label is None or (is_number and 0 <= label <= images.MAX_LABEL):  # type: ignore[operator]
        return label  # type: ignore[return-value]
    if isinstance(label, str) and _is_name(label):
        return label
    raise ValueError(
        f"label {str(label)[:40]!r} is not a whole number from 0 to {images.MAX_LABEL}, nor a name "
        f"of one line and at most {_MAX_NAME} letters"
    )


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None


def _is_name(label: str) -> bool:
    """Whether a text names a class. A number that is none of a class, -1 or 3.0, is no name."""
    try:
        float(label)
    except ValueError:
        return label.isprintable() and 0 < len(label) <= _MAX_NAME
    return False
