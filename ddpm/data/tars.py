"""Shards of others, here or remote, to be packed anew: tar files in WebDataset's layout.

    FOLDER, FILE.tar[.gz|.bz2|.xz], NAME-{0000..0099}.tar
    https://..., s3://..., gs://..., az://..., hf://datasets/...: one, or several by braces

Members of a shard with one name up to the first dot of its last part are a sample, wherever they
lie in it: an image, a label, and others that are counted. An image is decoded by its own bytes;
nothing is unpickled, no name becomes a path, no URL a command. webdataset's own reader ends without
an error where a tar is damaged in its middle, so it is checked here as shards are that are used
where they lie.

What is remote or compressed is first laid down in `Reading.stage`, each shard whole or not at all,
so an interrupted packing goes on with what was fetched.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import tarfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from ddpm.data.images import Ranges
from ddpm.data.scan import label_in, members
from ddpm.data.source import (
    EXTENSIONS,
    Numbered,
    PictureSource,
    Reading,
    Source,
    beside,
    by_part,
    by_reason,
    entries,
    examples,
    refuse,
    split_note,
)
from ddpm.errors import InputError, StorageError, as_typed
from ddpm.runs import ImageBar, storage

_ENDS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_REMOTE = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_LABELS = ("cls", "label", "labels")
_MOST_SHARDS = 100_000
# Real pictures do not shrink; beyond this a file is made to fill the disk.
_BOMB_RATIO, _BOMB_BYTES = 200, 1 << 26
_SHARE = 0.9  # of the free disk
_PIECE = 1 << 20
_THREADS, _TIMEOUT_S, _TRIES, _PAUSE_S = 4, 60, 3, 1.0


class _Place(NamedTuple):
    """The bytes of a member: number of its shard, offset, size."""

    shard: int
    offset: int
    size: int


_Sample = dict[str, _Place]  # by extension


class TarSource(PictureSource):
    """Images of foreign shards, which only packing reads."""

    takes = "WebDataset shards (.tar, .tar.gz; https://, s3://, gs://, az://, hf://)"
    options = (*PictureSource.options, "--image-key")

    def __init__(self, source: str, reading: Reading) -> None:
        self.name, self.reading = shown(source), reading
        if reading.stage is None:
            raise InputError(
                f"{self.name}: shards of others are packed first: `{as_typed('pack')} SOURCE "
                "OUT_DIR` (a folder of plain .tar may be named as it is)"
            )
        urls = _urls(source)
        self.class_names, parts, self._ranges = _as_packed(Path(source))
        if not parts:
            there = entries(Path(source)) if Path(source).is_dir() else []
            ours = re.compile(r"index\.json|pack\.lock|samples-[0-9a-f]{8}\.npy")
            others = [e for e in there if str(e) not in urls and not ours.fullmatch(e.name)]
            self.notes = beside(Path(source), others)
            parts = by_part(self.name, urls, lambda url: shown(url).rpartition("/")[2])
        self._urls = [url for part in parts.values() for url in part]
        self._paths = _laid_down(self._urls, reading.stage)
        problems: list[str] = []
        nameless: list[str] = []
        by_shard = []
        for number, (path, url) in enumerate(zip(self._paths, self._urls, strict=True)):
            before = len(problems)
            by_shard.append(_samples(number, path, shown(url), problems, nameless))
            if len(problems) > before and path.parent == reading.stage:
                storage.remove(path)  # a copy that the next try would only refuse again
        refuse(problems)
        self.names = [
            f"{shown(url)}: {key!r}"
            for url, samples in zip(self._urls, by_shard, strict=True)
            for key in samples
        ]
        self._samples = [sample for samples in by_shard for sample in samples.values()]
        self.num_samples = len(self._samples)
        if not self.num_samples:
            raise InputError(f"{self.name} holds no samples")
        images = self._image_ends()
        places = [one[end] for one, end in zip(self._samples, images, strict=True)]
        self.pictures = Numbered(len(places), lambda row: _read(self._paths, places[row]))
        unread = Counter(end for sample in self._samples for end in sample) - Counter(images)
        label = self._label_end(unread)
        self.has_labels = label is not None
        if label is not None:
            self._numbers = self._read_labels(*label)
            del unread[label[0]]
        if not self.has_labels:
            self.class_names = None
        if nameless:
            unread["of no sample"] = len(nameless)
        self._say(parts, [len(samples) for samples in by_shard], unread, urls)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        if not path.is_dir():
            return cls(source, reading) if shown(source).lower().endswith(_ENDS) else None
        has_others = any(e.is_dir() or e.suffix.lower() in EXTENSIONS for e in entries(path))
        is_taken = any(path.glob("*.tar")) or (_shards_of(path) and not has_others)
        return cls(source, reading) if is_taken else None

    def identity(self) -> str:
        return self._content

    @cached_property
    def _content(self) -> str:
        digest = hashlib.sha256(f"{self.reading.label_key} {self.reading.image_key}".encode())
        for path in self._paths:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _image_ends(self) -> list[str]:
        """The extension of each sample's image. Raises InputError where that is unclear."""
        wanted, found, problems = self.reading.image_key, [], []
        for name, sample in zip(self.names, self._samples, strict=True):
            ends = [end for end in sample if _is_image(end) or end == wanted]
            if wanted is not None:
                ends = [end for end in ends if wanted in (end, end.rpartition(".")[0])]
            if len(ends) == 1:
                found += ends
            elif ends:
                problems.append((name, f"has several images, {', '.join(ends)}; name --image-key"))
            else:
                there = ", ".join(sample)
                what = "no image" if wanted is None else f"no image {wanted!r}"
                problems.append((name, f"has {what}: only {there}"))
        refuse(by_reason(problems, "samples"))
        return found

    def _label_end(self, there: Mapping[str, int]) -> tuple[str, str] | None:
        """The extension of the labels and the field in JSON; None without labels."""
        key = self.reading.label_key
        if key is None:
            return None
        keys = _LABELS if key == "labels" else (key,)
        if end := next((one for one in keys if one in there and one != "json"), None):
            return end, ""
        first = {end: self._first(end) for end in ("json", "txt") if end in there}
        try:
            for field in keys if "json" in first else ():
                if self._label(first["json"], "json", field) is not None:
                    return "json", field
        except ValueError as error:
            name = self.names[first["json"]]
            raise InputError(f"{name}: {error}; or give --label-key null") from error
        if key == "labels" and "txt" in first:  # of whole numbers; else they may be captions
            with suppress(ValueError):
                if isinstance(self._label(first["txt"], "txt", ""), int):
                    return "txt", ""
        if key != "labels":
            raise InputError(
                f"{self.name}: samples have no label {key!r}, as a member or in .json; their other "
                f"members are {', '.join(sorted(there)) or 'none'}; give --label-key null for "
                "images without labels"
            )
        return None

    def _first(self, end: str) -> int:
        return next(n for n, sample in enumerate(self._samples) if end in sample)

    def _read_labels(self, end: str, field: str) -> NDArray[np.int64]:
        """The class of each sample; names are numbered in their sorted order, and counted."""
        labels: list[int | str] = []
        problems = []
        for number, name in enumerate(self.names):
            try:
                label = self._label(number, end, field)
                if label is None:
                    raise ValueError(f"has no label in .{end}, others do")
                labels.append(label)
            except ValueError as error:
                problems.append((name, str(error)))
        refuse(by_reason(problems, "samples"))
        counts = Counter(sorted(label for label in labels if isinstance(label, str)))
        if not counts:
            return np.array(labels, np.int64)
        if numbers := [n for n, label in enumerate(labels) if isinstance(label, int)]:
            raise InputError(
                f"{self.name}: .{end} has names of classes, but {len(numbers):,} numbers: "
                f"{examples([self.names[n] for n in numbers])}; name another with --label-key"
            )
        if 2 * len(counts) > len(labels):
            raise InputError(
                f"{self.name}: .{end} has {len(counts):,} different texts in {len(labels):,} "
                "samples: captions, not classes; name another with --label-key, or null"
            )
        self.class_names = tuple(counts)
        found = examples([f"{name!r} of {count:,}" for name, count in counts.items()])
        self.notes += (f"{self.name}: {len(counts):,} classes by name: {found}",)
        place = {name: number for number, name in enumerate(counts)}
        return np.array([place[label] for label in labels], np.int64)  # type: ignore[index]

    def _label(self, number: int, end: str, field: str) -> int | str | None:
        place = self._samples[number].get(end)
        return None if place is None else label_in(end, _read(self._paths, place), field)

    def _say(
        self,
        parts: Mapping[str | None, list[str]],
        counts: Sequence[int],
        unread: Counter[str],
        urls: Sequence[str],
    ) -> None:
        """The split, and what is not read."""
        if None not in parts:
            train = len(next(iter(parts.values())))
            numbers = sum(counts[:train]), sum(counts[train:])
            self.split = tuple(zip(map(str, parts), numbers, strict=True))
            self.notes += (split_note(self.name, self.split),)
        if not self.has_labels and self.reading.label_key is not None:
            texts = "; --label-key txt takes texts as names of classes" if unread["txt"] else ""
            self.notes += (
                f"{self.name}: no labels (.cls, or label in .json): images without classes{texts}",
            )
        if unread:
            kinds = ", ".join(f"{count:,} {end}" for end, count in sorted(unread.items()))
            self.notes += (f"{self.name}: {unread.total():,} member(s) not read: {kinds}",)
        if others := [shown(url) for url in urls if url not in self._urls]:
            self.notes += (f"{self.name}: {len(others):,} shard(s) not read: {examples(others)}",)


def shown(url: str) -> str:
    """A URL without user, password and query, which may be secrets."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_pattern(source: str) -> bool:
    """Whether a source is no single path: a URL, or braces."""
    return "://" in source or ("{" in source and not Path(source).exists())


def _is_image(end: str) -> bool:
    return f".{end.rpartition('.')[2]}" in (*EXTENSIONS, ".npy")


def _shards_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(_ENDS)]


def _as_packed(
    folder: Path,
) -> tuple[tuple[str, ...] | None, dict[str | None, list[str]], Ranges | None]:
    """Class names, shards by their part, and the ranges of scaled channels, of a folder that we
    packed; else nothing.
    """
    parts: dict[str | None, list[str]] = {}
    try:
        content = json.loads((folder / "index.json").read_text())
        if content["recipe"] is None:
            return None, {}, None
        for shard in content["shards"]:
            parts.setdefault(shard.get("split"), []).append(str(folder / shard["name"]))
        names = content["class_names"]
        ranges = content.get("ranges")
        return (
            None if names is None else tuple(map(str, names)),
            parts,
            ranges and tuple((float(low), float(high)) for low, high in ranges),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, {}, None


def _urls(source: str) -> list[str]:
    """The shards that a source names, in order. Raises InputError."""
    if Path(source).is_dir():
        return [str(path) for path in _shards_of(Path(source))]
    urls = [source]
    if "{" in source and not Path(source).exists():
        from braceexpand import braceexpand

        try:
            urls = []
            for url in braceexpand(source):
                urls.append(url)
                if len(urls) > _MOST_SHARDS:
                    raise InputError(f"{shown(source)} names more than {_MOST_SHARDS:,} shards")
        except ValueError as error:
            raise InputError(f"{shown(source)}: its braces do not close") from error
    known = ("http", "https", *_REMOTE)
    for url in urls:
        scheme = url.partition("://")[0]
        if "://" in url and scheme not in known:
            raise InputError(f"{shown(url)}: {scheme}:// is not read; give {', '.join(known)}")
        if scheme in ("http", "https") and "@" in urlsplit(url).netloc:
            raise InputError(f"{shown(url)}: give no password in a URL; a signed one is taken")
    if missing := [url for url in urls if "://" not in url and not Path(url).is_file()]:
        raise InputError(f"{len(missing):,} shard(s) do not exist: {examples(missing)}")
    return urls


def _laid_down(urls: Sequence[str], stage: Path) -> list[Path]:
    """A plain tar on a disk for each shard."""
    paths = []
    with (
        ImageBar("fetching shards", len(urls), is_shown=len(urls) > 1) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for path in pool.map(lambda url: _plain(url, stage), urls):
            paths.append(path)
            bar.advance()
    return paths


def _plain(url: str, stage: Path) -> Path:
    """The shard itself where it is plain and here, else its copy in the stage."""
    if "://" not in url:
        with Path(url).open("rb") as stream:
            if stream.read(2) not in _OPENERS:
                return Path(url)
    for left in reversed(range(_TRIES)):
        try:
            return _copied(url, stage)
        except (InputError, StorageError):
            raise
        except Exception as error:  # libraries of object stores raise what they like
            if not left or not _may_pass(error):
                raise InputError(f"{shown(url)}: {_reason(error, url)}") from None
            time.sleep(_PAUSE_S)
    raise AssertionError


def _may_pass(error: Exception) -> bool:
    """Whether another try may do better."""
    if isinstance(error, HTTPError):
        return error.code >= 500
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


def _reason(error: Exception, url: str) -> str:
    """The words of an error, without what the URL may hold of secrets."""
    text = str(error).replace(url, shown(url)).partition("\n")[0]
    if query := urlsplit(url).query:
        text = text.replace(query, "...")
    return text[:200] or type(error).__name__


def _copied(url: str, stage: Path) -> Path:
    """The copy of a shard, unpacked; one that is there already is not fetched again."""
    with _opened(url) as (raw, version):
        digest = hashlib.sha256(f"{shown(url)} {version}".encode()).hexdigest()[:24]
        path = stage / f"{digest}.tar"
        if path.is_file():
            return path
        if (stage.parent / "index.json").exists():
            raise InputError(
                f"{stage.parent} holds packed shards already; nothing was fetched; choose a new "
                "folder to pack these"
            )
        storage.make_folder(stage)
        buffered = io.BufferedReader(cast(Any, raw), _PIECE)
        opener = _OPENERS.get(buffered.peek(2)[:2])
        stream = cast(BinaryIO, opener(buffered) if opener else buffered)
        room = int(_SHARE * (storage.free_bytes(stage) or 1 << 62))

        def write(sink: storage.Sink) -> None:
            try:
                while piece := stream.read(_PIECE):
                    sink.write(piece)
                    if sink.tell() > room:
                        raise InputError(f"{shown(url)} does not fit: {room:,} bytes are free")
                    if sink.tell() > _BOMB_BYTES + _BOMB_RATIO * raw.count:
                        raise InputError(f"{shown(url)} expands like a zip bomb")
            except (zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                raise InputError(f"{shown(url)} is damaged: {error}") from error

        storage.write_file(path, write)
    return path


class _Counted(io.RawIOBase):
    """A stream that counts its bytes, and raises OSError where it ends before its size."""

    count = 0

    def __init__(self, stream: Any, size: int | None) -> None:
        self._stream, self._size = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        if not data and self._size is not None and self.count != self._size:
            raise OSError(f"ended after {self.count:,} of {self._size:,} bytes")
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


@contextmanager
def _opened(url: str) -> Iterator[tuple[_Counted, str]]:
    """The bytes of a shard, and what tells this version of it from another."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in ("http", "https"):
        with urlopen(url, timeout=_TIMEOUT_S) as answer:
            size, head = answer.length, answer.headers
            version = f"{size} {head.get('ETag') or head.get('Last-Modified')}"
            yield _Counted(answer, size), version
    elif scheme:
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise InputError(
                f"{shown(url)}: {scheme}:// needs the package {_REMOTE[scheme]}: "
                "pip install 'ddpm[remote]'"
            ) from error
        info = files.info(path)
        marks = (info.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "created"))
        version = f"{info['size']} {next((mark for mark in marks if mark), None)}"
        with files.open(path, "rb") as stream:
            yield _Counted(stream, info["size"]), version
    else:
        state = Path(url).stat()
        with Path(url).open("rb") as local:
            yield _Counted(local, state.st_size), f"{state.st_size} {state.st_mtime_ns}"


def _samples(
    number: int, path: Path, name: str, problems: list[str], nameless: list[str]
) -> dict[str, _Sample]:
    """The samples of a shard by key.  problems: what is wrong with it.  nameless: other members."""
    found: dict[str, _Sample] = defaultdict(dict)
    with path.open("rb") as stream:
        try:
            for member in members(
                stream, lambda text: problems.append(f"{name}: {text}"), any_name=True
            ):
                key, end = member.key, member.extension
                if not end or not key or key.endswith("/"):
                    if not member.name.rpartition("/")[2].startswith("._"):  # litter of macOS
                        nameless.append(member.name)
                elif end in found[key]:
                    problems.append(f"{name}: {member.name!r} is there twice")
                else:
                    found[key][end] = _Place(number, member.offset_data, member.size)
        except tarfile.TarError as error:
            problems.append(f"{name} {error}")
    return found


def _read(paths: Sequence[Path], place: _Place) -> bytes:
    with paths[place.shard].open("rb") as stream:
        stream.seek(place.offset)
        return stream.read(place.size)
