"""What is made of a whole series: a picture of its first images, and NPZ or PNG files of them all.

Images go from the shards into the files one unit at a time, so memory does not grow with their
number.
"""

import os
import secrets
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from ddpm import durable, images, storage, units
from ddpm.imagebar import ImageBar
from ddpm.pictures import grid, png
from ddpm.series import Series

PICTURE = "grid.png"
MAX_PICTURED = 400


def exported(series: Series, num: int, stem: str, form: str, *, is_fresh: bool) -> list[Path]:
    """The picture, and what --format asks for.

    is_fresh: images were drawn just now; else files that are there stay.
    """
    made = [picture(series, num)]
    if form == "npz":
        path = series.folder / f"{stem}.npz"
        made.append(path if path.exists() and not is_fresh else npz(series, num, stem))
    if form == "png":
        path = series.folder / stem
        made.append(path if path.exists() and not is_fresh else pngs(series, num, stem))
    return made


def picture(series: Series, num: int) -> Path:
    """A grid of the first images, at most 400."""
    first = [images.decode(data) for _, data, _ in islice(_all(series, num), MAX_PICTURED)]
    path = series.folder / PICTURE
    durable.write_bytes(path, png(grid(np.stack(first).astype(np.uint8))))
    return path


def npz(series: Series, num: int, stem: str) -> Path:
    """{stem}.npz as DDPM v3 has it: images uint8 (N, H, W, C), and labels where there are any."""
    channels, height, width = series.recipe["image_shape"]
    path = series.folder / f"{stem}.npz"

    def fill(sink: durable.Sink) -> None:
        labels: list[int] = []
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
            with (
                archive.open(_member("images.npy"), "w", force_zip64=True) as member,
                ImageBar("writing the NPZ", num, is_shown=True) as bar,
            ):
                _write_header(member, (num, height, width, channels), "|u1")
                for _, data, label in _all(series, num):
                    member.write(images.decode(data).tobytes())
                    labels += [] if label is None else [label]
                    bar.advance()
            if labels:
                with archive.open(_member("labels.npy"), "w") as member:
                    _write_header(member, (num,), "<i8")
                    member.write(np.array(labels, np.int64).tobytes())

    durable.write_file(path, fill)
    return path


def pngs(series: Series, num: int, stem: str) -> Path:
    """{stem}/: a PNG file an image (NPY where PNG cannot hold it), in a folder for each class."""
    folder = series.folder / stem
    durable.remove(folder)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    made: set[Path] = set()
    with ImageBar("writing files", num, is_shown=True) as bar:
        for index, data, label in _all(series, num):
            place = temporary if label is None else temporary / f"{label:04d}"
            if place not in made:
                durable.make_folder(place)
                made.add(place)
            extension = "npy" if data.startswith(images.NPY_MAGIC) else "png"
            _write(place / f"{index:010d}.{extension}", data)
            bar.advance()
    os.sync()  # all at once: a sync for each of many small files takes minutes
    durable.rename(temporary, folder)
    return folder


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise storage.failure(path, error, needed=len(data)) from error


def _all(series: Series, num: int) -> Iterator[tuple[int, bytes, int | None]]:
    """The first images in their order: (index, bytes of the file, label)."""
    for span in series.present():
        if span.start >= num:
            return
        for index, data, label in units.encoded(series.shards, span):
            if index < num:
                yield index, data, label


def _member(name: str) -> zipfile.ZipInfo:
    """With a fixed time: equal images give equal bytes."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _write_header(member: object, shape: tuple[int, ...], dtype: str) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
