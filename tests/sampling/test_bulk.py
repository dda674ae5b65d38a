"""Images in bulk: each index exactly once, with the same bytes however it came about."""

import json
import os
import random
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cluster import submit_images
from ddpm.cluster.submit_images import check
from ddpm.data import images
from ddpm.data import index as indexing
from ddpm.errors import DdpmError, InputError, Interrupted, StorageError
from ddpm.runs import storage
from ddpm.runs.checkpoint import folder_of
from ddpm.sampling.bulk import (
    BulkCheck,
    BulkFolder,
    check_bulk,
    describe,
    manifest_of,
    name_of,
    parse_name,
    several,
    shard_of,
    units,
)
from ddpm.sampling.bulk_sampler import BulkSampler, batch_sizes, largest_that_fits
from ddpm.sampling.generation import ImageGenerator, OnState
from ddpm.sampling.request import BulkOptions, SampleRequest, read_request
from tests.support.bulk_data import Bulk, files_of
from tests.support.small_run import STEP, make_run, save


@pytest.fixture
def bulk(run: Path, tmp_path: Path) -> Bulk:
    return Bulk(run, tmp_path / "out", {"GEN_TASK": "class_cond"})


@pytest.fixture(scope="module")
def undisturbed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> BulkFolder:
    """30 images in units of 8, drawn at once."""
    place = tmp_path_factory.mktemp("undisturbed") / "out"
    return Bulk(run, place, {"GEN_TASK": "class_cond"}).draw(30)


def test_ranges_are_told_with_their_last_number() -> None:
    assert describe([range(64, 100), range(0, 50), range(50, 51)]) == "0-50, 64-99"
    many = [range(3 * k, 3 * k + 1) for k in range(20)]
    assert describe(many).endswith("33-33, and 8 more")
    assert all(parse_name(name_of(unit)) == unit for unit in many)
    assert units(20, 8) == [range(8), range(8, 16), range(16, 20)]
    for text in ("0000000000-0000000000", "0-5", "0000000000-0000000005.tar", "index"):
        assert parse_name(text) is None


# Exactly once, the same bytes


@pytest.mark.slow
def test_images_in_bulk_are_those_of_the_small_way(bulk: Bulk, undisturbed: BulkFolder) -> None:
    request = read_request(bulk.run, [*bulk.overrides, "IMAGE_GENERATION.NUM_GEN_IMAGES=30"])
    small = ImageGenerator(request)
    drawn = files_of(undisturbed)
    assert sorted(drawn) == list(range(30))
    expected = small.batch(0, 4)
    for index in range(4):
        assert (images.decode(drawn[index][0]) == expected[index]).all()
    assert [drawn[index][1] for index in range(30)] == [index % 3 for index in range(30)]


@pytest.mark.slow
@pytest.mark.parametrize("first", [13, 16])
def test_more_images_draw_the_rest_only_and_are_the_same(
    bulk: Bulk, undisturbed: BulkFolder, first: int
) -> None:
    """The last unit is drawn again where it was cut short; nothing is left of the short one."""
    before = files_of(bulk.draw(first))
    whole = [unit for unit in bulk.series.present() if len(unit) == 8]
    there = {shard_of(bulk.series.shards, unit): 0 for unit in whole}
    there = {path: path.stat().st_mtime_ns for path in there}
    series = bulk.draw(30)
    assert all(path.stat().st_mtime_ns == written for path, written in there.items())
    assert len(list(series.shards.iterdir())) == 2 * len(units(30, 8))
    assert sorted(before) == list(range(first))
    assert series.folder.name == undisturbed.folder.name
    for path in undisturbed.shards.iterdir():
        assert (series.shards / path.name).read_bytes() == path.read_bytes()
    assert check_bulk(series, 30, progress=False).is_whole


class Recording(ImageGenerator):
    """Knows which batches it was asked for."""

    def __init__(self, request: SampleRequest) -> None:
        super().__init__(request)
        self.asked: list[tuple[int, int]] = []

    def batch(self, first: int, size: int, **more: OnState | None) -> np.ndarray:
        self.asked.append((first, size))
        return super().batch(first, size, **more)


@pytest.mark.slow
def test_image_i_sits_in_slot_i_mod_b_of_batch_i_div_b(bulk: Bulk) -> None:
    """Wherever a unit begins and ends: bits may depend on the slot, on other machines than this."""
    series = bulk.draw(5)
    request = read_request(series.folder, bulk=BulkOptions())
    sampler = BulkSampler(request)
    sampler.generator = generator = Recording(request)
    sampler.draw(series, series.missing(22), should_stop=lambda: False)
    assert generator.asked == [(first, 4) for first in (0, 4, 8, 12, 16, 20)]


@pytest.mark.slow
def test_fewer_images_than_there_are_draw_nothing(bulk: Bulk) -> None:
    bulk.draw(20)
    before = files_of(bulk.series)
    assert files_of(bulk.draw(6)) == before and bulk.series.asked == 20


@pytest.mark.slow
def test_units_may_come_in_any_order_from_anybody(bulk: Bulk, undisturbed: BulkFolder) -> None:
    bulk.draw(1)
    missing = bulk.series.missing(30)
    random.Random(0).shuffle(missing)
    for unit in missing:
        BulkSampler.of(bulk.series.folder).draw(bulk.series, [unit], should_stop=lambda: False)
    assert files_of(bulk.series) == files_of(undisturbed)


@pytest.mark.slow
def test_a_stop_loses_the_unit_it_comes_in_and_no_other(
    bulk: Bulk, undisturbed: BulkFolder
) -> None:
    """After three batches, inside the second unit."""
    series, batches = bulk.draw(1), list[int]()
    with pytest.raises(Interrupted, match="the same command draws what is left"):
        BulkSampler.of(series.folder).draw(
            series,
            series.missing(30),
            should_stop=lambda: len(batches) == 3,
            on_batch=batches.append,
        )
    assert series.present() == [range(8)]
    assert files_of(bulk.draw(30)) == files_of(undisturbed)


@pytest.mark.slow
def test_other_recipes_have_folders_of_their_own_and_the_same_laws(
    run: Path, tmp_path: Path, undisturbed: BulkFolder
) -> None:
    keys: dict[str, object] = {"DDIM_ETA": 0.7, "RANDOM_SEED": 3}
    twice, once = Bulk(run, tmp_path / "a", keys), Bulk(run, tmp_path / "b", keys)
    twice.draw(7)
    twice.draw(20)
    once.draw(20)
    assert twice.series.folder.name == once.series.folder.name != undisturbed.folder.name
    assert files_of(twice.series) == files_of(once.series)


@pytest.mark.slow
def test_inpainting_keeps_its_folder_when_more_known_images_are_needed(
    run: Path, tmp_path: Path
) -> None:
    base = save(tmp_path / "base.npz", images=np.random.default_rng(0).random((9, 8, 8, 3)))
    keys = {"GEN_TASK": "channel_inpaint", "EXTERNAL_NPZ_INPUT": base, "FREEZE_CHANNEL": 1}
    keys |= {"RESAMPLES": 0}
    bulk = Bulk(run, tmp_path / "out", keys)
    bulk.draw(4)
    drawn = files_of(bulk.draw(12))
    known = np.load(base)["images"]
    for index, (data, _) in drawn.items():
        wanted = np.rint(known[index % 9, ..., 1] * 255)
        assert np.abs(images.decode(data)[..., 1] - wanted).max() <= 1


@pytest.mark.slow
def test_two_who_draw_at_once_do_no_harm(bulk: Bulk, undisturbed: BulkFolder) -> None:
    series = bulk.draw(1)
    threads = [
        threading.Thread(
            target=BulkSampler.of(series.folder).draw,
            args=(series, series.missing(30)),
            kwargs={"should_stop": lambda: False},
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files_of(series) == files_of(undisturbed)
    assert check_bulk(series, 30, progress=False).is_whole


# Holes


def delete_manifest(series: BulkFolder, span: range) -> None:
    manifest_of(series.shards, span).unlink()


def delete_shard(series: BulkFolder, span: range) -> None:
    shard_of(series.shards, span).unlink()


def truncate(series: BulkFolder, span: range) -> None:
    path = shard_of(series.shards, span)
    path.write_bytes(path.read_bytes()[:-1000])


def flip(series: BulkFolder, span: range) -> None:
    path = shard_of(series.shards, span)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def tear_manifest(series: BulkFolder, span: range) -> None:
    path = manifest_of(series.shards, span)
    path.write_bytes(path.read_bytes()[:40])


def foreign(series: BulkFolder, span: range) -> None:
    path = manifest_of(series.shards, span)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": "0" * 64}))


def of_others(series: BulkFolder, span: range) -> None:
    """The manifest and the shard of other images under this unit's names."""
    for place in (manifest_of, shard_of):
        place(series.shards, span).write_bytes(place(series.shards, range(8)).read_bytes())


def left_over(series: BulkFolder, span: range) -> None:
    """As a kill leaves it between the shard and its manifest, and in the middle of a write."""
    delete_manifest(series, span)
    (series.shards / f".{name_of(span)}.tar.0123abcd.tmp").write_bytes(b"half")
    os.utime(series.shards / f".{name_of(span)}.tar.0123abcd.tmp", (0, 0))


DAMAGES: list[Callable[[BulkFolder, range], None]]
DAMAGES = [delete_manifest, delete_shard, truncate, flip, tear_manifest]
DAMAGES += [foreign, of_others, left_over]


@pytest.mark.slow
def test_holes_are_found_and_they_alone_are_drawn_again(bulk: Bulk) -> None:
    num = 8 * (1 + len(DAMAGES))
    series = bulk.draw(num)
    before, (intact, *holes) = files_of(series), series.present()
    whole = {place(series.shards, intact) for place in (shard_of, manifest_of)}
    written = {path: path.stat().st_ino for path in whole}
    for damage, hole in zip(DAMAGES, holes, strict=True):
        damage(series, hole)
    verdict = check_bulk(series, num, progress=False)
    assert not verdict.is_whole and verdict.missing == holes
    assert f"missing: {num - 8} images: 8-{num - 1}" in verdict.lines()
    assert files_of(bulk.draw(num)) == before
    assert {path: path.stat().st_ino for path in whole} == written
    assert check_bulk(series, num, progress=False).is_whole
    assert not list(series.shards.glob(".*.tmp"))


@pytest.mark.slow
def test_labels_that_are_not_the_shards_own_are_seen(bulk: Bulk) -> None:
    series = bulk.draw(8)
    path = manifest_of(series.shards, range(8))
    changed = json.loads(path.read_text())
    changed["labels"][3] = 2
    path.write_text(json.dumps(changed))
    (line,) = check_bulk(series, 8, progress=False).damaged
    assert line.startswith("images 0-7: ") and "other images or labels" in line


@pytest.mark.slow
def test_images_that_two_units_hold_are_told_and_one_of_them_goes(
    bulk: Bulk, undisturbed: BulkFolder
) -> None:
    """As launches for other numbers left them when a unit could be drawn in parts."""
    series = bulk.draw(30)
    extra = range(10, 14)
    manifest = series.read_manifest(range(8, 16))
    pixels = np.stack([images.decode(files_of(series)[i][0]) for i in range(10, 14)])
    facts = {"recipe": series.digest, "seed": manifest["seed"]}
    series.write(extra, pixels, [1, 2, 0, 1], facts)
    verdict = check_bulk(series, 30, progress=False)
    assert not verdict.is_whole and verdict.twice == [extra]
    assert f"twice: images 10-13 ({name_of(extra)})" in verdict.lines()
    assert files_of(bulk.draw(30)) == files_of(undisturbed)


# What is settled once


def test_the_batch_size_is_found_by_halving() -> None:
    tried: list[int] = []

    def probe(size: int) -> None:
        tried.append(size)
        if size > 10:
            raise torch.OutOfMemoryError("CUDA out of memory") if size > 20 else MemoryError
        if size == 3:
            raise RuntimeError("something else")

    assert largest_that_fits(probe, batch_sizes(128, 64)) == 8 and tried == [64, 32, 16, 8]
    assert batch_sizes(100, 64) == [50, 25, 10, 5, 2, 1] and batch_sizes(4, 64) == [4, 2, 1]
    for unit in range(1, 200):
        assert all(unit % size == 0 for size in batch_sizes(unit, 64))
    with pytest.raises(RuntimeError, match="something else"):
        largest_that_fits(probe, [3])
    with pytest.raises(DdpmError, match="not enough to draw a single image"):
        largest_that_fits(probe, [30, 15])


@pytest.mark.slow
def test_a_device_too_small_for_the_batch_that_was_settled_says_so(bulk: Bulk) -> None:
    class Small(ImageGenerator):
        def batch(self, first: int, size: int, **options: object) -> np.ndarray:
            raise torch.OutOfMemoryError("CUDA out of memory")

    series = bulk.draw(8)
    request = read_request(series.folder, bulk=BulkOptions())
    sampler = BulkSampler(request)
    sampler.generator = Small(request)
    with pytest.raises(DdpmError, match="drawn 4 at a time, for which this device has too little"):
        sampler.draw(series, [range(8, 16)], should_stop=lambda: False)


@pytest.mark.slow
def test_the_batch_size_is_settled_by_the_first_who_draws(bulk: Bulk) -> None:
    series = bulk.draw(30, batch_size=None)
    assert series.batch_size == 8, "the largest of at most 64 that divides the unit"
    assert series.settle_batch_size(4) == 8
    for span in series.present():
        assert series.read_manifest(span)["batch_size"] == 8
    with pytest.raises(InputError, match=r"--batch-size is 4, but .* drawn 8 at a time"):
        bulk.draw(40, batch_size=4)
    with pytest.raises(InputError, match="was begun with units of 8; leave --unit out"):
        bulk.draw(40, batch_size=None, unit=16)
    assert len(files_of(bulk.draw(40, batch_size=8))) == 40


@pytest.mark.slow
def test_other_weights_are_not_drawn_into_the_same_folder(tmp_path: Path) -> None:
    """A checkpoint that has changed since the series was begun is refused by who draws for it."""
    run = make_run(tmp_path)
    mine = Bulk(run, tmp_path / "out")
    series = mine.draw(4)
    recipe = json.loads((series.folder / "recipe.json").read_text())
    (series.folder / "recipe.json").write_text(json.dumps(recipe | {"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"has changed since it was begun \(weights_sha256\)"):
        BulkSampler.of(series.folder)


def test_a_folder_belongs_to_one_recipe(bulk: Bulk) -> None:
    series = bulk.draw(4)
    assert BulkFolder.begin(series.folder, series.recipe, 99) == series
    with pytest.raises(InputError, match="holds images of another recipe"):
        BulkFolder.begin(series.folder, {**series.recipe, "step": 8}, 8)


def test_jobs_draw_what_the_folder_says(bulk: Bulk) -> None:
    series = bulk.draw(4)
    request = BulkSampler.of(series.folder).request
    assert request.checkpoint == folder_of(bulk.run / "checkpoints", STEP).resolve()
    assert request.options.GEN_TASK == "class_cond" and request.seed == 0


@pytest.mark.slow
def test_a_series_goes_on_from_its_own_folder(bulk: Bulk, undisturbed: BulkFolder) -> None:
    """Also where that was moved."""
    series = bulk.draw(10)
    moved = series.folder.rename(bulk.out.parent / "moved")
    request = read_request(moved, bulk=BulkOptions(num=30))
    assert submit_images.run(*check(request, None), should_stop=lambda: False) == 0
    assert files_of(BulkFolder.open(moved)) == files_of(undisturbed) and not list(
        bulk.out.iterdir()
    )


# Bad input


@pytest.mark.slow
def test_no_room_is_told_before_anything_is_written(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(storage.SystemCalls):
        @staticmethod
        def statvfs(path: Path) -> object:
            return type("Room", (), {"f_bavail": 100, "f_frsize": 1024})

    monkeypatch.setattr(storage, "system", Full())
    with pytest.raises(StorageError, match=r"1000 images need up to \d+ bytes, 102400 bytes free"):
        bulk.draw(1000)
    assert not bulk.out.exists()
    bulk.draw(30)


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_drawing_and_leaves_holes_only(
    bulk: Bulk, undisturbed: BulkFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units are written while the next is drawn; the failure is not lost for that."""
    series, written = bulk.draw(1), []
    sampler = BulkSampler.of(series.folder)

    class Full(storage.SystemCalls):
        @staticmethod
        def write(descriptor: int, data: memoryview) -> int:
            if len(written) == 2:
                raise OSError(28, "No space left on device")
            return os.write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "system", Full())
        with pytest.raises(StorageError, match="No space left on device"):
            sampler.draw(
                series, series.missing(30), should_stop=lambda: False, on_end=written.append
            )
    assert series.present() == written and len(written) == 2
    assert files_of(bulk.draw(30)) == files_of(undisturbed)


# What is made of them


def streamed(path: Path, name: str) -> bytes:
    """Data of an array that is read as guided-diffusion's evaluator does: a stream of the archive,
    whose header must be of a version that numpy has readers for, and in C order.
    """
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        assert not is_fortran and len(shape) == 4 and shape[3] == 3 and dtype == np.uint8
        return member.read()


@pytest.mark.slow
def test_npz_and_png_are_the_images_of_the_shards(bulk: Bulk) -> None:
    series = bulk.draw(11, format="npz")
    pixels = {i: images.decode(data) for i, (data, _) in files_of(series).items()}
    picture = images.decode((series.folder / "grid.png").read_bytes())
    assert (picture[2:34:4, 2:34:4] == pixels[0]).all()
    with np.load(series.folder / "ddim_eta0.0_steps4_gen_11x8x8x3.npz") as arrays:
        assert arrays.files == ["images", "labels"]
        assert arrays["images"].dtype == np.uint8 and arrays["labels"].dtype == np.int64
        assert (arrays["images"] == np.stack([pixels[i] for i in range(11)])).all()
        assert arrays["labels"].tolist() == [i % 3 for i in range(11)]
    bulk.draw(11, format="adm")
    adm = series.folder / "ddim_eta0.0_steps4_gen_11x8x8x3_adm.npz"
    with np.load(adm, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (11, 8, 8, 3)
        assert (arrays["arr_0"] == np.stack([pixels[i] for i in range(11)])).all()
        assert arrays["arr_1"].tolist() == [i % 3 for i in range(11)]
    assert streamed(adm, "arr_0") == np.stack([pixels[i] for i in range(11)]).tobytes()
    bulk.draw(11, format="png")
    folder = series.folder / "ddim_eta0.0_steps4_gen_11x8x8x3"
    found = sorted(folder.rglob("*.png"))
    assert [str(path.relative_to(folder)) for path in found] == sorted(
        f"{i % 3:04d}/{i:010d}.png" for i in range(11)
    )
    for path in found:
        assert (images.decode(path.read_bytes()) == pixels[int(path.stem)]).all()
    assert not list(series.folder.glob(".*.tmp"))


@pytest.mark.slow
def test_the_shards_are_a_data_set(bulk: Bulk) -> None:
    """Any WebDataset reader reads them, ours too; labels and order are the images' own."""
    import webdataset

    series = bulk.draw(30)
    index = indexing.index_foreign(series.shards)
    assert index.num_samples == 30 and index.num_classes == 3
    assert index.labels is not None and index.labels.tolist() == [i % 3 for i in range(30)]
    urls = sorted(str(path) for path in series.shards.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:010d}" for i in range(30)]


def test_images_of_two_channels_are_arrays(tmp_path: Path) -> None:
    """As PNG has no such pictures."""
    pixels = np.arange(2 * 8 * 8 * 2, dtype=np.uint8).reshape(2, 8, 8, 2)
    series, unit = BulkFolder.begin(tmp_path / "out", {"image_shape": [2, 8, 8]}, 2), range(6, 8)
    series.write(unit, pixels, None, {"recipe": series.digest})
    assert series.check(unit)["labels"] is None
    found = [(index, images.decode(data)) for index, data, _ in series.images(unit)]
    assert [index for index, _ in found] == [6, 7]
    assert all((image == pixels[index - 6]).all() for index, image in found)


def test_one_of_a_kind_is_said_in_the_singular() -> None:
    check = BulkCheck(num=8, units=1, missing=[], damaged=[], twice=[], devices=["cpu"])
    assert "8 of 8 images in 1 unit, each" in check.lines()[-1]
    assert (several(1, "shard"), several(1200, "shard")) == ("1 shard", "1,200 shards")
