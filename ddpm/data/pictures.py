"""Encoded pictures: a folder of them, Parquet files, ZIP archives, LMDB."""

import hashlib
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ddpm.data.source import (
    EXTENSIONS,
    PARTS,
    STAGED_PICTURES,
    Numbered,
    PictureSource,
    Reading,
    Source,
    by_part,
    by_reason,
    entries,
    examples,
    files_identity,
    own_split,
    refuse,
    split_note,
)
from ddpm.errors import InputError, as_typed
from ddpm.runs import storage

# Pictures that are not read, so that none is left out with a note alone.
_UNREAD = (
    *(".apng", ".avif", ".dcm", ".dng", ".exr", ".gif", ".heic", ".heif", ".hif", ".jp2", ".jxl"),
    *(".cr2", ".cr3", ".arw", ".nef", ".psd", ".svg", ".tga", ".tif", ".tiff"),
)
_EDM = "dataset.json"
_MOST_BYTES = 1 << 28
_MEMORY_SHARE, _ROWS = 0.5, 256  # of Parquet: what is loaded whole, rows that are read at once


class FolderSource(PictureSource):
    """Pictures below `path`, sorted by path; unless label_key is None, sub-folders are classes.

    Folders train/ and val/ (or test/) are the split that is there, and the classes lie in them.
    """

    takes = "an image folder"
    options = (*PictureSource.options, "--classes")

    def __init__(self, path: Path, reading: Reading) -> None:
        self.name, self._root, self.reading = str(path), path, reading
        label_key, classes = reading.label_key, reading.classes
        split = own_split(_folders(path)) if classes is None else None
        self._parts, self._depth = split or (".",), 0 if split is None else 1
        files = _sorted_out(path)
        if classes is not None:
            files = self._of_classes(files, classes)
        elif split is not None:
            files = files.kept(lambda file: file.relative_to(path).parts[0] in split)
        by_part = [[f for f in files.pictures if path / part in f.parents] for part in self._parts]
        self._paths = [file for files_of_part in by_part for file in files_of_part]
        if not all(by_part):
            where = path / self._parts[by_part.index([])]
            refuse(
                [
                    *files.problems,
                    f"{where} holds no images ({', '.join(EXTENSIONS)}), no shards and no IDX "
                    f"files{'; ' if files.unread else ''}{_by_extension(path, files.unread)}",
                ]
            )
        self.num_samples = len(self._paths)
        self.names = paths = self._paths
        self.pictures = Numbered(len(paths), lambda row: paths[row].read_bytes())
        folders = _folders(path / self._parts[0])
        found = {self._class_of(file) for file in by_part[0]} - {""}
        self.has_labels = label_key is not None and bool(found)
        self.class_names = (classes or tuple(folders)) if self.has_labels else None
        problems = list(files.problems)
        if self.has_labels and classes is None:
            problems += self._class_problems(folders, found)
        refuse(problems)
        if split is not None:
            self.split = tuple(zip(split, map(len, by_part), strict=True))
            self.notes = (split_note(self.name, self.split),)
        if files.unread:
            self.notes += (f"{path}: {_by_extension(path, files.unread)}",)

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
        chosen = files.kept(lambda file: self._class_of(file) in classes)
        there = {self._class_of(file) for file in chosen.pictures}
        if missing := [name for name in classes if name not in there]:
            raise InputError(
                f"{self.name} has no pictures of {examples(missing)}; its folders are "
                f"{', '.join(_folders(self._root)) or 'none'}"
            )
        return chosen

    def _class_of(self, file: Path) -> str:
        """The class folder of a file; "" where it lies in none."""
        below = file.relative_to(self._root).parts[self._depth :]
        return below[0] if len(below) > 1 else ""

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        if self.class_names is None:
            return None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return np.array([numbers[self._class_of(path)] for path in self._paths], np.int64)

    def _class_problems(self, folders: list[str], found: set[str]) -> Iterator[str]:
        """Reasons why the folders below are no classes."""
        for part in map(Path, self._parts):
            where = self._root / part
            flat = sum(file.parent == where for file in self._paths)
            if flat:
                yield (
                    f"{where} holds {flat} images beside its class folders; move them into one, or "
                    "set LABEL_KEY to null for images without labels"
                )
            if unknown := [name for name in _folders(where) if name not in folders]:
                yield (
                    f"{where} has {len(unknown)} class folder(s) that {self._root / self._parts[0]}"
                    f" lacks: {examples(unknown)}; classes are those of the training images: move "
                    f"the others out of {where}, or name {self._root / self._parts[0]} alone"
                )
        if all(name.lower() in PARTS for name in folders):
            yield (
                f"{self.name} holds {', '.join(folders)}, which are parts of a data set and no "
                f"classes; name one of them, such as {self._root / folders[-1]}, or set LABEL_KEY "
                "to null for the images of all without labels, or pack them with --classes"
            )
        elif empty := [name for name in folders if name not in found]:
            yield (
                f"{self._root / self._parts[0]}: {len(empty)} class folder(s) without an image that"
                f" is read: {examples(empty)}; remove them, or give them images, so that classes "
                "keep their numbers"
            )


def _folders(folder: Path) -> list[str]:
    """The folders in a folder, by name."""
    return [entry.name for entry in entries(folder) if entry.is_dir()]


@dataclass(frozen=True)
class _Files:
    """The files of a folder: pictures, what else lies there, and reasons not to use the folder."""

    pictures: list[Path]
    unread: list[Path]
    problems: list[str]

    def kept(self, is_wanted: Callable[[Path], bool]) -> "_Files":
        """The wanted pictures; the others are not read."""
        wanted = [file for file in self.pictures if is_wanted(file)]
        rest = [file for file in self.pictures if not is_wanted(file)]
        return _Files(wanted, [*self.unread, *rest], self.problems)


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
    with path.open("rb") as stream:
        return _begins_as_picture(stream.read(12))


def _begins_as_picture(start: bytes) -> bool:
    """Whether bytes begin as a PNG, JPEG, WebP or BMP does."""
    return start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM")) or start[8:12] == b"WEBP"


def _by_extension(folder: Path, unread: Sequence[Path]) -> str:
    """Files that are not read: their number, and of each extension how many and three of them."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in unread:
        kinds[path.suffix.lower() or "without extension"].append(path.relative_to(folder))
    parts = [f"{len(ones):,} {kind} ({examples(ones)})" for kind, ones in sorted(kinds.items())]
    return f"{len(unread):,} file(s) not read: {', '.join(parts)}" if unread else ""


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


class ParquetSource(PictureSource):
    """Parquet files as Hugging Face's datasets keeps them: a column of encoded pictures (bytes, or
    {bytes, path}) and one of whole numbers.

    Pictures that memory does not hold are laid down in `Reading.stage`: row groups are read whole.
    """

    takes = "Parquet files (.parquet)"
    options = (*PictureSource.options, "--image-key")

    def __init__(
        self, paths: list[Path], reading: Reading, name: str, held_out: Sequence[Path] = ()
    ) -> None:
        import pyarrow
        import pyarrow.parquet

        self.name, self.reading, self._paths = name, reading, [*paths, *held_out]
        try:
            schema = pyarrow.parquet.read_schema(paths[0])
            there = schema.names
            key = _first((reading.image_key,) if reading.image_key else ("image", "img"), there)
            label = None
            if reading.label_key is not None:
                usual = reading.label_key == "labels"
                label = _first(("labels", "label") if usual else (reading.label_key,), there)
            keys = [one for one in (key, label) if one is not None]
            self.pictures = self._pictures_of(key)
            self._counts = [
                sum(pyarrow.parquet.read_metadata(path).num_rows for path in part)
                for part in (paths, held_out)
            ]
            if label is not None:
                numbers = pyarrow.parquet.read_table(self._paths, columns=[label]).column(label)
                if not pyarrow.types.is_integer(numbers.type):
                    raise ValueError(f"column {label!r} is {numbers.type}; give whole numbers")
                if count := numbers.null_count:
                    raise ValueError(f"{count:,} labels of column {label!r} are null; give numbers")
                self._numbers = numbers.to_numpy()
        except (ValueError, OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{name}: {error}") from error
        self.num_samples, self.has_labels = len(self.pictures), label is not None
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
            parts = by_part(path, files)
            read = [file for part in parts.values() for file in part]
            taken = [*parts.values(), []]
            opened = cls(taken[0], reading, source, taken[1])
            if None not in parts:
                opened.split = tuple(zip(map(str, parts), opened._counts, strict=True))
                opened.notes = (split_note(source, opened.split), *opened.notes)
            if others := [f"{e.name}{'/' * e.is_dir()}" for e in there if e not in read]:
                line = f"{path}: {len(others):,} file(s) or folder(s) not read: {examples(others)}"
                opened.notes += (line,)
            return opened
        return cls([path], reading, source) if path.suffix == ".parquet" else None

    def _pictures_of(self, key: str) -> Numbered:
        import pyarrow.parquet

        needed = sum(_column_bytes(path, key) for path in self._paths)
        available = psutil.virtual_memory().available
        if needed <= _MEMORY_SHARE * available:
            table = pyarrow.parquet.read_table(self._paths, columns=[key], memory_map=True)
            # Chunks stay apart: one of binary holds 2 GiB at most.
            column = _encoded(table.column(key), key)
            return Numbered(len(column), lambda row: column[row].as_py())
        if self.reading.stage is None:
            typed = as_typed("pack", self.name, "OUT_DIR")
            raise ValueError(
                f"column {key!r} needs {needed:,} bytes of memory, {available:,} are available; "
                f"pack it first, which takes disk instead: `{typed}`"
            )
        ends, laid_down = [0], self.reading.stage / STAGED_PICTURES

        def write(sink: storage.Sink) -> None:
            for path in self._paths:
                with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
                    for batch in file.iter_batches(_ROWS, columns=[key]):
                        for value in _encoded(batch.column(0), key):
                            sink.write(value.as_py())
                            ends.append(sink.tell())

        storage.make_folder(self.reading.stage)
        storage.require_space(self.reading.stage, needed)
        storage.write_file(laid_down, write)
        places = np.array(ends, np.int64)

        def read(row: int) -> bytes:
            with laid_down.open("rb") as stream:
                stream.seek(int(places[row]))
                return stream.read(int(places[row + 1] - places[row]))

        return Numbered(len(places) - 1, read)

    def identity(self) -> str:
        content = files_identity(self._paths)
        keys = [self.reading.label_key, self.reading.image_key]
        return hashlib.sha256(json.dumps([content, keys]).encode()).hexdigest()


def _encoded(column: Any, key: str) -> Any:
    """The bytes of a column of pictures. Raises ValueError."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pyarrow.compute.struct_field(column, "bytes")
    if not pyarrow.types.is_binary(column.type) and not pyarrow.types.is_large_binary(column.type):
        raise ValueError(f"column {key!r} is {column.type}; give encoded pictures")
    if column.null_count:
        raise ValueError(f"{column.null_count:,} pictures of column {key!r} are empty")
    return column


def _column_bytes(path: Path, key: str) -> int:
    """The bytes of a column in memory, as the file's footer says."""
    import pyarrow.parquet

    found = pyarrow.parquet.read_metadata(path)
    parts = (
        found.row_group(group).column(number)
        for group in range(found.num_row_groups)
        for number in range(found.num_columns)
    )
    return sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.partition(".")[0] == key
    )


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
        refuse(self._problems(files, inside, labels))
        self.num_samples, self.has_labels = len(names), labels is not None
        self.names = [f"{path}: {name}" for name in names]
        self.pictures = Numbered(len(names), lambda row: self._read(names[row]))
        self._numbers = None if labels is None else np.array([labels[n] for n in names], np.int64)
        kept = {*names, _EDM} if labels is not None else set(names)
        if others := [one.filename for one in files if one.filename not in kept]:
            self.notes = (f"{path}: {len(others):,} file(s) not read: {examples(others)}",)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        return cls(Path(source), reading) if source.lower().endswith(".zip") else None

    def identity(self) -> str:
        return files_identity([self._path])

    def _read(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"is damaged in the archive: {error}") from error

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


class LmdbSource(PictureSource):
    """The encoded pictures of an LMDB, as LSUN comes: keys are names, there are no labels."""

    takes = "an LMDB (folder with data.mdb, or .mdb)"

    def __init__(self, path: Path, reading: Reading) -> None:
        import lmdb

        self.name, self.reading = str(path), reading
        self._file = path / "data.mdb" if path.is_dir() else path
        if reading.label_key not in ("labels", None):
            raise InputError(f"{path}: an LMDB of pictures has no labels; give --label-key null")
        try:
            data = _opened_lmdb(self._file)
            with data.begin(buffers=True) as read:
                pairs = read.cursor()
                found = [(bytes(key), _begins_as_picture(bytes(v[:12]))) for key, v in pairs]
        except lmdb.Error as error:
            raise InputError(f"{path} is not a readable LMDB: {error}") from error
        keys = [key for key, is_picture in found if is_picture]
        self.num_samples = len(keys)
        if not keys:
            raise InputError(f"{path} holds no encoded pictures among its {len(found):,} values")
        self.names = [f"{path}: {key!r}" for key in keys]

        def value(row: int) -> bytes:
            with data.begin() as read:
                return bytes(read.get(keys[row]))

        self.pictures = Numbered(len(keys), value)
        if others := [repr(key) for key, is_picture in found if not is_picture]:
            self.notes = (f"{path}: {len(others):,} value(s) not read: {examples(others)}",)

    @classmethod
    def opened(cls, source: str, reading: Reading) -> Source | None:
        path = Path(source)
        is_lmdb = path.suffix in (".mdb", ".lmdb") and path.is_file()
        return cls(path, reading) if is_lmdb or (path / "data.mdb").is_file() else None

    def identity(self) -> str:
        return files_identity([self._file])


_lmdbs: dict[Path, tuple[int, Any]] = {}


def _opened_lmdb(file: Path) -> Any:
    """The environment of a file; a process may have one open once."""
    import lmdb

    place, time = file.resolve(), file.stat().st_mtime_ns
    if place not in _lmdbs or _lmdbs[place][0] != time:
        if place in _lmdbs:
            _lmdbs.pop(place)[1].close()
        options = {"readonly": True, "lock": False, "readahead": False, "create": False}
        _lmdbs[place] = time, lmdb.open(str(place), subdir=False, **options)
    return _lmdbs[place][1]
