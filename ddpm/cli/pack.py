"""Images -> WebDataset shards with an index; or checks and indexes shards that are there.

Needs no torch until it packs.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ddpm.cli.options import command_line
from ddpm.errors import InputError, as_typed

if TYPE_CHECKING:
    from ddpm.data import Loaded, Source

_EXAMPLES = """\
sources:
  digits            scikit-learn's 1,797 handwritten digits of 8x8
  FILE.npz          `images` (N, H, W[, C]), uint8 or float in [0, 1], and labels under --label-key
  FILE.npy          images alone
  FILE.zip          pictures, and their classes in EDM's dataset.json
  IDX               FILE-idx3-ubyte[.gz], or a folder of them: its training pair is packed
  FOLDER            png, jpg, webp, bmp, ppm; one sub-folder a class, or flat
  FILE.parquet      encoded pictures (image, img) and label, as Hugging Face keeps them; or a folder
  cifar10 FILE      CIFAR-10's cifar-10-binary.tar.gz, into data/cifar10 unless OUT_DIR is given
  SHARDS            a folder of .tar shards, without OUT_DIR: indexed where they lie
  SHARDS OUT_DIR    others' shards packed anew: also compressed, FILE.tar, URL/{000..099}.tar; URLs
                    begin with https://, s3://, gs://, az:// or hf://
  ANY OUT.zip       the ZIP of EDM's dataset tool instead of shards

examples:
  ddpm pack digits shards/digits
  ddpm pack images.npz shards/cells --label-key cell_type
  ddpm pack fields.npy shards/fields --scale channels
  ddpm pack photos shards/photos --label-key null --dry-run
  ddpm pack /usr/share/datasets/fashion-mnist shards/fashion_mnist --verify
  ddpm pack shards/fashion_mnist --verify
  ddpm pack cifar10 cifar-10-binary.tar.gz
  ddpm pack photos shards/photos --classes cat,dog --resize 64 --filter lanczos
  ddpm pack photos --resize 64 --preview photos.png
  ddpm pack 'https://example.org/birds-{000..099}.tar' shards/birds --image-key jpg

Run the same command again to continue an interrupted packing.
exit codes: 0 done, 2 bad input (all problems are listed), 5 storage, 75 interrupted
"""


_CIFAR = "cifar10"
_OPTIONS = ("image_key", "classes", "alpha", "grey", "bit_depth", "scale", "resize", "filter")


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm pack`."""
    made = command_line("pack", __doc__, _EXAMPLES)
    made.add_argument("source", metavar="SOURCE", help="what to pack, see below")
    made.add_argument("out_dir", metavar="OUT_DIR", nargs="?", help="folder for the shards")
    made.add_argument("named_out", nargs="?", help=argparse.SUPPRESS)  # of `cifar10 FILE OUT_DIR`
    read = made.add_argument_group("what is read")
    read.add_argument(
        "--label-key",
        default="labels",
        metavar="KEY",
        help="key of the labels in the NPZ; null packs images without labels (default: labels)",
    )
    read.add_argument(
        "--image-key", metavar="KEY", help="of the images, where there are several or another name"
    )
    read.add_argument(
        "--classes", metavar="A,B", help="class folders, in the order of their numbers; no others"
    )
    change = made.add_argument_group("conversions, each counted; without them nothing is changed")
    change.add_argument(
        "--alpha",
        choices=("white", "black", "drop"),
        help="colour behind what is transparent; drop = the colours as they are stored",
    )
    change.add_argument("--grey", choices=("rgb",), help="grey pictures become RGB")
    change.add_argument(
        "--bit-depth",
        choices=("8", "float"),
        help="16-bit grey pictures: rounded to 8 bits, or kept as floats",
    )
    change.add_argument(
        "--scale",
        choices=("channels",),
        help="float arrays in any units: each channel from its lowest and highest value to [0, 1]; "
        "samples are drawn in these units again",
    )
    change.add_argument(
        "--resize",
        metavar="SIDE",
        help="side, or HEIGHTxWIDTH: the largest part of that shape in the middle, resized",
    )
    change.add_argument(
        "--filter",
        choices=("nearest", "box", "bilinear", "bicubic", "lanczos"),
        help="of --resize (default: bicubic)",
    )
    made.add_argument(
        "--samples-per-shard", type=int, metavar="N", help="default: shards of about 32 MiB"
    )
    made.add_argument(
        "--preview", metavar="PNG", help="draw 64 images, as the network will see them, and labels"
    )
    made.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    made.add_argument("--verify", action="store_true", help="check every byte of the shards")
    return made


def main(argv: list[str] | None = None) -> int:
    """Packs, indexes or verifies as the command line says."""
    asked = parser().parse_args(argv)
    from ddpm.data import preparing

    if asked.source == _CIFAR and asked.out_dir is not None:
        asked.source, asked.out_dir = asked.out_dir, asked.named_out or f"data/{_CIFAR}"
        _require_cifar(Path(asked.source))
    elif asked.source == _CIFAR:
        raise InputError("cifar10 needs its FILE, cifar-10-binary.tar.gz: `ddpm pack cifar10 FILE`")
    elif asked.named_out is not None:
        raise InputError(f"{asked.named_out}: give SOURCE and OUT_DIR, no third path")
    if asked.preview and not asked.preview.endswith(".png"):
        raise InputError(f"--preview is {asked.preview}; give a name that ends in .png")
    if asked.preview and not (folder := Path(asked.preview).parent).is_dir():
        raise InputError(f"folder {folder} of --preview does not exist; make it")
    if _is_zip(asked):
        is_given = {
            "--verify": asked.verify,
            "--samples-per-shard": asked.samples_per_shard is not None,
        }
        if of_shards := [name for name in is_given if is_given[name]]:
            raise InputError(f"{', '.join(of_shards)}: of shards, not of a ZIP; leave it out")

    if asked.out_dir is None and not asked.preview and preparing.is_shards(asked.source):
        if given := [f"--{name.replace('_', '-')}" for name in _OPTIONS if getattr(asked, name)]:
            raise InputError(
                f"{', '.join(given)} changes nothing of shards that stay where they are; give "
                "OUT_DIR to pack them anew"
            )
        _use(Path(asked.source), is_dry=asked.dry_run, verify=asked.verify)
    elif asked.out_dir is None and not asked.preview:
        raise InputError("OUT_DIR is missing: the folder for the shards")
    elif asked.out_dir is None or asked.dry_run:
        with TemporaryDirectory() as stage:
            _look(asked, _source(asked, Path(stage) / "shards"))
    else:
        _pack(asked)
    return 0


def _is_zip(asked: argparse.Namespace) -> bool:
    return asked.out_dir is not None and Path(asked.out_dir).suffix == ".zip"


def _require_cifar(path: Path) -> None:
    """Raises InputError for what is there and no CIFAR-10."""
    from ddpm.data import is_cifar

    if path.exists() and not is_cifar(path):
        raise InputError(
            f"{path} is not CIFAR-10's binary archive (it has no data_batch_1.bin); to pack it as "
            f"it is: `{as_typed('pack', path, 'OUT_DIR')}`"
        )


def _use(folder: Path, *, is_dry: bool, verify: bool) -> None:
    from ddpm.data import open_index, preparing, scan_folder, verify_shards

    if is_dry:
        _, scans = scan_folder(folder)
        samples = sum(len(scan.samples) for scan in scans)
        print(f"{folder}: {samples:,} images in {len(scans)} shard(s); nothing was written")
        return
    index = open_index(folder) if verify else preparing.refresh(folder)
    if verify:
        verify_shards(index)
    print(f"{index}{'; every byte is as it was indexed' if verify else ''}")


def _source(asked: argparse.Namespace, stage: Path) -> "Source":
    """The source, read as the command line says."""
    from ddpm.data import images, open_source

    if asked.filter and not asked.resize:
        raise InputError("--filter is of --resize; give it too")
    return open_source(
        asked.source,
        None if asked.label_key.lower() == "null" else asked.label_key,
        image_key=asked.image_key,
        classes=tuple(asked.classes.split(",")) if asked.classes else None,
        conversions=images.Conversions(
            alpha=asked.alpha,
            grey=asked.grey,
            bit_depth=asked.bit_depth,
            size=_size(asked.resize) if asked.resize else None,
            resample=asked.filter or "bicubic",
        ),
        scale=asked.scale,
        stage=stage,
    )


def _look(asked: argparse.Namespace, source: "Source") -> None:
    """Checks everything, and draws some of it where that is asked for."""
    from ddpm.data import packing

    is_zip = _is_zip(asked)
    loaded = packing.load_for_edm(source, Path(asked.out_dir)) if is_zip else source.load()
    for line in (*source.notes, *loaded.notes):
        print(line)
    if asked.preview:
        _draw(asked.preview, source, loaded)
    if is_zip:
        print(
            f"would pack {source.num_samples:,} images of {source.name} into {asked.out_dir}; "
            "nothing was written"
        )
    elif asked.out_dir is not None:
        plan = packing.plan_packing(source, asked.samples_per_shard)
        print(
            f"would pack {source.num_samples:,} images of {source.name} into "
            f"{len(plan.shards)} shard(s) in {asked.out_dir}; nothing was written"
        )


def _draw(place: str, source: "Source", loaded: "Loaded") -> None:
    from ddpm.data import packing
    from ddpm.runs import png, storage

    path = Path(place)
    storage.write_bytes(path, png(packing.preview(source, loaded)))
    number = source.num_samples
    drawn = min(number, packing.PREVIEWED)
    print(f"{path}: {f'{drawn} of' if drawn < number else 'all'} {number:,} images")


def _pack(asked: argparse.Namespace) -> None:
    from ddpm.data import INDEX_FILE, packing, verify_shards

    out = Path(asked.out_dir)
    if _is_zip(asked):
        with TemporaryDirectory() as stage:
            _pack_zip(asked, _source(asked, Path(stage) / "shards"), out)
        return
    if not (out / INDEX_FILE).exists():
        packing.require_place(out, asked.source)  # before anything is fetched
    with packing.stage(out) as place:
        source = _source(asked, place)
        if asked.preview:
            _draw(asked.preview, source, source.load())
        index = packing.pack(source, out, samples_per_shard=asked.samples_per_shard)
    if asked.verify:
        verify_shards(index)
    print(f"{index}{'; every byte was read back' if asked.verify else ''}")


def _pack_zip(asked: argparse.Namespace, source: "Source", out: Path) -> None:
    from ddpm.data import packing

    loaded = packing.load_for_edm(source, out)
    if asked.preview:
        _draw(asked.preview, source, loaded)
    packing.write_edm_zip(source, loaded, out)
    height, width, channels = loaded.images[0].shape
    labels, names = loaded.labels, source.class_names or ()
    highest = 0 if labels is None else int(labels.max()) + 1
    classes = "no labels" if labels is None else f"{max(highest, len(names))} classes"
    print(
        f"{out}: {source.num_samples:,} images of {height}x{width}, {channels} "
        f"channel{'' if channels == 1 else 's'}, {classes}, written as EDM's dataset tool does"
    )


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `64` or `48x64`."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= 8192 for side in sides):
        raise InputError(f"--resize is {text!r}; give a side such as 64, or 48x64, up to 8192")
    return int(sides[0]), int(sides[-1])
