import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import noise, schema, shards
from ddpm.dataset import Batch, Dataset
from ddpm.errors import InputError
from ddpm.index import Index
from ddpm.noise import Stream
from ddpm.order import RUN, Order, is_validation
from tests.tarmaking import npy, picture, write_tar

RANDOM = np.random.default_rng(0)


def dataset_options(**options: object) -> schema.Dataset:
    """A DATASET section; options of PREPROCESSING may be given by their own names."""
    names = schema.Preprocessing.__dataclass_fields__
    inner = {key: options.pop(key) for key in list(options) if key in names}
    return schema.Dataset(
        NAME="data", PATH="unused", PREPROCESSING=schema.Preprocessing(**inner), **options
    )


def pack(
    folder: Path, pixels: NDArray, labels: NDArray | None = None, per_shard: int = 16
) -> Index:
    source = shards.ArraySource(pixels, labels)
    return shards.pack(source, folder, samples_per_shard=per_shard, progress=False)


def numbered(count: int, size: int = 4) -> NDArray[np.uint8]:
    """Images that say their number in their first pixels."""
    pixels = RANDOM.integers(0, 256, (count, size, size, 3), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return pixels


def bytes_of(images: Tensor) -> NDArray[np.uint8]:
    """Images in model space as uint8 (n, H, W, C)."""
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, NDArray[np.uint8]]:
    """An index of 300 images of 4x4x3 in 19 shards, and its images by sample number."""
    pixels = numbered(300)
    index = pack(tmp_path_factory.mktemp("colour"), pixels, np.arange(300) % 7)
    order = noise.permutation(0, Stream.ORDER, 300, id=1 << 41).numpy()
    return index, pixels[order]


def open_colour(colour: tuple[Index, NDArray[np.uint8]], **options: object) -> Dataset:
    cache = bool(options.pop("cache", False))
    seed = int(str(options.pop("seed", 0)))
    return Dataset(colour[0], dataset_options(**options), (3, 4, 4), seed=seed, cache=cache)


# --- the order -----------------------------------------------------------------------------------


def make_order(counts: list[int], *, is_shuffled: bool, seed: int = 0, share: float = 0.1) -> Order:
    starts = np.cumsum([0, *counts])
    train = np.flatnonzero(~is_validation(int(starts[-1]), share))
    return Order(train, starts, seed=seed, is_shuffled=is_shuffled)


LAYOUTS = {
    "one shard": [5000],
    "even": [500] * 10,
    "uneven": [3000, 1, 40, 32, 900, 7],
    "with empty": [0, 700, 0, 300, 0],
    "tiny": [3, 2],
    "many": [10] * 400,
}


@pytest.mark.parametrize("is_shuffled", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_training_sample_comes_exactly_once_a_pass(layout: str, is_shuffled: bool) -> None:
    order = make_order(LAYOUTS[layout], is_shuffled=is_shuffled)
    n = len(order.train_ids)
    ids = order.ids(torch.arange(5 * n)).view(5, n)
    for one in ids:
        np.testing.assert_array_equal(one.sort().values.numpy(), order.train_ids)
    if n > 50:
        assert not torch.equal(ids[0], ids[1])


@pytest.mark.parametrize("is_shuffled", [True, False])
def test_the_order_is_a_pure_function_of_seed_and_position(is_shuffled: bool) -> None:
    counts = [1000] * 5
    positions = torch.arange(3 * 4500)
    whole = make_order(counts, is_shuffled=is_shuffled).ids(positions)
    draw = torch.randperm(len(positions), generator=torch.Generator().manual_seed(1))
    for piece in draw.split(997):  # any positions, in any order, of several passes
        fresh = make_order(counts, is_shuffled=is_shuffled)
        assert torch.equal(fresh.ids(piece), whole[piece])
    other = make_order(counts, is_shuffled=is_shuffled, seed=1).ids(positions)
    assert not torch.equal(other, whole)


def test_a_shuffled_order_walks_in_runs_of_one_shard() -> None:
    counts = [700, 100, 1300, 33]
    order = make_order(counts, is_shuffled=True)
    n = len(order.train_ids)
    place = np.searchsorted(order.train_ids, order.ids(torch.arange(n)).numpy())
    runs = np.split(place, np.flatnonzero(np.diff(place) != 1) + 1)
    shard = np.searchsorted(np.cumsum(counts), order.train_ids, side="right")
    by_shard = np.bincount(shard)
    # Runs that happen to follow each other look like one.
    assert len(runs) <= sum(math.ceil(count / RUN) for count in by_shard)
    assert len(runs) > 0.9 * sum(math.ceil(count / RUN) for count in by_shard)
    starts = np.concatenate([[0], np.cumsum(by_shard)])
    for run in runs:
        first = shard[run[0]]
        assert (run[0] - starts[first]) % RUN == 0


@pytest.mark.parametrize("is_shuffled", [True, False])
def test_every_shard_is_spread_evenly_over_the_pass(is_shuffled: bool) -> None:
    counts = [640] * 20
    order = make_order(counts, is_shuffled=is_shuffled, share=0.0)
    ids = order.ids(torch.arange(12_800)).numpy()
    shard = ids // 640
    for part in np.split(shard, 5):
        np.testing.assert_allclose(np.bincount(part, minlength=20), 128, atol=2 * RUN)


def test_unshuffled_samples_are_mixed_beyond_their_runs() -> None:
    order = make_order([2000] * 8, is_shuffled=False)
    ids = order.ids(torch.arange(len(order.train_ids)))
    follows = (ids[1:] - ids[:-1] == 1).double().mean()
    assert follows < 0.01
    assert (make_order([2000] * 8, is_shuffled=True).ids(torch.arange(9000)).diff() == 1).any()


def test_a_pass_of_a_million_samples_is_laid_out_quickly() -> None:
    order = make_order([1000] * 1000, is_shuffled=True)
    begin = time.process_time()
    ids = order.ids(torch.arange(128))
    first = time.process_time() - begin
    begin = time.process_time()
    for step in range(100):
        order.ids(torch.arange(step * 128, (step + 1) * 128))
    assert len(ids.unique()) == 128
    assert first < 1.0 and time.process_time() - begin < 1.0


# --- the split -----------------------------------------------------------------------------------


def test_the_split_is_decided_by_the_sample_number() -> None:
    draws = noise.uniform(0, Stream.SPLIT, torch.arange(20_000)).numpy()
    for fraction in (0.0, 0.1, 0.5):
        np.testing.assert_array_equal(is_validation(20_000, fraction), draws < fraction)
    assert abs(is_validation(20_000, 0.1).mean() - 0.1) < 0.01


def test_train_and_validation_are_apart_and_the_same_for_every_seed(digits: Path) -> None:
    index = shards.open_index(digits)
    one, two = (Dataset(index, dataset_options(), (1, 8, 8), seed=seed) for seed in (0, 5))
    train = one.order(torch.arange(one.num_train))
    held = one.validation(10_000).ids
    assert one.num_train + one.num_validation == 1797 and len(held) == one.num_validation
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(1797))
    assert torch.equal(held, two.validation(10_000).ids)
    assert torch.equal(one.validation(7).ids, held[:7])
    assert one.validation(7).positions is None


def foreign_shard(folder: Path, name: str, samples: int, label: int, image: bytes) -> None:
    members: list[tuple[str, bytes]] = []
    for row in range(samples):
        members += [(f"{row:04d}.png", image), (f"{row:04d}.cls", str(label).encode())]
    write_tar(folder / f"{name}.tar", members)  # type: ignore[arg-type]


def test_appended_shards_keep_the_old_split(tmp_path: Path) -> None:
    image = picture(np.zeros((4, 4), np.uint8))
    for number in range(3):
        foreign_shard(tmp_path, f"{number}", 50, number, image)
    before = Dataset(shards.refresh(tmp_path), dataset_options(), (1, 4, 4), seed=0)
    held = set(before.validation(1000).ids.tolist())
    foreign_shard(tmp_path, "3", 50, 3, image)
    after = Dataset(shards.refresh(tmp_path), dataset_options(), (1, 4, 4), seed=0)
    assert after.num_train + after.num_validation == 200
    assert {number for number in after.validation(1000).ids.tolist() if number < 150} == held


# --- workers -------------------------------------------------------------------------------------


def shares(batch: int, workers: int, worker: int) -> slice:
    """A worker's part of the global batch; parts differ by at most one sample."""
    return slice(batch * worker // workers, batch * (worker + 1) // workers)


def entropy(labels: NDArray[np.int64]) -> float:
    """Bits of the class frequencies in a batch."""
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


@pytest.fixture(scope="module")
def sorted_shards(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """40 shards of 1,000 samples, each of one class."""
    folder = tmp_path_factory.mktemp("sorted")
    for label in range(40):
        pixels = RANDOM.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[0, 0, 0] = label
        foreign_shard(folder, f"{label:02d}", 1000, label, picture(pixels))
    return shards.index_foreign(folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [3])
def test_workers_and_resumes_read_their_share_once(sorted_shards: Index, workers: int) -> None:
    size, stop = 125, 137  # of 288 steps a pass: interrupted in the middle
    options = dataset_options()

    def fresh() -> Dataset:
        return Dataset(sorted_shards, options, (3, 16, 16), seed=3)

    alone = fresh()
    steps = alone.num_train // size
    asked = torch.arange(steps * size).view(steps, size)
    read: dict[int, list[Tensor]] = {step: [] for step in range(steps)}
    labels: dict[int, list[Tensor]] = {step: [] for step in range(steps)}
    for worker in range(workers):
        total = 0
        for part in (range(stop), range(stop, steps)):
            data = fresh()  # the second one resumes: it knows the step, nothing else
            mine = (asked[step][shares(size, workers, worker)] for step in part)
            for step, batch in zip(part, data.batches(mine), strict=True):
                assert batch.labels is not None
                read[step].append(batch.ids)
                labels[step].append(batch.labels)
                np.testing.assert_array_equal(bytes_of(batch.images)[:, 0, 0, 0], batch.labels)
            total += data.bytes_read
            data.close()
        assert total <= 1.25 / workers * sorted_shards.num_bytes
        assert total <= 1.25 / workers * int(sorted_shards.table["size"].sum())
    for step, parts in read.items():
        assert torch.equal(torch.cat(parts), alone.order(asked[step]))
    everything = torch.cat([torch.cat(parts) for parts in read.values()])
    assert len(everything.unique()) == len(everything)
    ours = np.mean([entropy(torch.cat(parts).numpy()) for parts in labels.values()])
    free = np.mean([entropy(RANDOM.integers(0, 40, size)) for _ in range(500)])
    assert ours >= 0.95 * free


@pytest.mark.parametrize(
    ("num_shards", "classes", "batch"), [(40, 10, 125), (1, 10, 125), (300, 300, 256), (20, 2, 32)]
)
def test_batches_of_class_sorted_shards_are_mixed(
    num_shards: int, classes: int, batch: int
) -> None:
    each = 40_000 // num_shards
    order = make_order([each] * num_shards, is_shuffled=False)
    label = np.arange(num_shards * each) * classes // (num_shards * each)
    steps = len(order.train_ids) // batch
    ids = order.ids(torch.arange(steps * batch)).view(steps, batch).numpy()
    ours = np.array([entropy(label[row]) for row in ids])
    free = np.array([entropy(RANDOM.integers(0, classes, batch)) for _ in range(2000)])
    assert ours.mean() >= 0.95 * free.mean()
    assert np.quantile(ours, 0.01) >= 0.95 * np.quantile(free, 0.01), "no batch is much worse"


# --- pixels --------------------------------------------------------------------------------------


def test_batches_hold_the_pixels_and_labels_of_their_samples(
    colour: tuple[Index, NDArray[np.uint8]],
) -> None:
    index, pixels = colour
    data = open_colour(colour)
    assert (data.num_classes, data.image_shape, data.sha256) == (7, (3, 4, 4), index.sha256)
    positions = torch.arange(2 * data.num_train)[5::11]
    batch = data.read(data.order(positions), positions)
    assert batch.images.dtype == torch.float32 and batch.images.is_contiguous()
    assert batch.images.shape == (len(positions), 3, 4, 4)
    wanted = torch.from_numpy(pixels[batch.ids.numpy()]).permute(0, 3, 1, 2)
    assert torch.equal(batch.images, wanted.float() / 127.5 - 1.0)
    assert batch.labels is not None and index.labels is not None
    np.testing.assert_array_equal(batch.labels.numpy(), index.labels[batch.ids.numpy()])
    assert batch.positions is not None and torch.equal(batch.positions, positions)


def test_samples_may_be_asked_for_twice_or_not_at_all(
    colour: tuple[Index, NDArray[np.uint8]],
) -> None:
    data = open_colour(colour)
    ids = torch.tensor([17, 3, 17, 299, 16, 3])
    np.testing.assert_array_equal(bytes_of(data.read(ids).images), colour[1][ids.numpy()])
    assert data.read(torch.empty(0, dtype=torch.int64)).images.shape == (0, 3, 4, 4)


def test_float_images_keep_their_values(tmp_path: Path) -> None:
    pixels = RANDOM.random((20, 4, 4, 2))
    data = Dataset(pack(tmp_path, pixels), dataset_options(), (2, 4, 4), seed=0, cache=True)
    order = noise.permutation(0, Stream.ORDER, 20, id=1 << 41).numpy()
    for _ in range(2):
        images = data.read(torch.arange(20)).images
        wanted = torch.from_numpy(pixels[order].astype(np.float32)).permute(0, 3, 1, 2)
        assert torch.equal(images, wanted * 2 - 1)


def test_null_labels_are_none(colour: tuple[Index, NDArray[np.uint8]]) -> None:
    data = open_colour(colour, LABEL_KEY=None)
    assert data.num_classes is None and data.read(torch.arange(3)).labels is None


def test_neighbours_are_read_together(colour: tuple[Index, NDArray[np.uint8]]) -> None:
    index, _ = colour
    data = open_colour(colour)
    offsets, sizes = index.table["offset"], index.table["size"]
    data.read(torch.tensor([5, 3, 4]))  # side by side in the first shard
    assert data.bytes_read == offsets[5] + sizes[5] - offsets[3]
    before = data.bytes_read
    data.read(torch.tensor([15, 16, 40]))  # of two shards; one alone
    assert data.bytes_read - before == sizes[15] + sizes[16] + sizes[40]


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_read_ahead_in_order(
    colour: tuple[Index, NDArray[np.uint8]], threads: int
) -> None:
    data, asked = open_colour(colour, seed=4), torch.arange(900).split(37)
    found = list(data.batches(asked, threads=threads))
    for batch, positions in zip(found, asked, strict=True):
        alone = data.read(data.order(positions), positions)
        assert torch.equal(batch.images, alone.images) and torch.equal(batch.ids, alone.ids)
    assert list(data.batches([])) == []


def reading_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("ddpm-read")]


def test_a_consumer_that_stops_leaves_no_thread(
    colour: tuple[Index, NDArray[np.uint8]],
) -> None:
    data = open_colour(colour)
    endless = (torch.arange(k, k + 8) for k in itertools.count())
    batches = data.batches(endless)
    next(batches)
    assert reading_threads()
    assert next(endless)[0] < 20, "read ahead, but not without end"
    batches.close()  # type: ignore[attr-defined]
    assert not reading_threads()


def test_an_error_comes_where_its_batch_would_have_come(tmp_path: Path) -> None:
    index = pack(tmp_path, numbered(64), per_shard=64)
    data = Dataset(index, dataset_options(VALIDATION_FRACTION=0.0), (3, 4, 4), seed=0)
    bad = int(data.order(torch.tensor([40])))
    damage(index, bad)
    found: list[Batch] = []
    with pytest.raises(InputError, match=f"sample {bad} "):
        for batch in data.batches(torch.arange(64).split(8)):
            found.append(batch)
    assert len(found) == 5 and not reading_threads()

    def failing() -> Iterator[Tensor]:
        yield torch.arange(4)
        raise RuntimeError("the positions themselves")

    with pytest.raises(RuntimeError, match="themselves"):
        list(data.batches(failing()))
    assert not reading_threads()


# --- damage --------------------------------------------------------------------------------------


def damage(index: Index, sample: int, byte: int = 0) -> Path:
    """Flips a bit of a sample's image; returns the shard."""
    shard = int(np.searchsorted(index.starts, sample, side="right")) - 1
    path = index.folder / index.shards[shard].name
    content = bytearray(path.read_bytes())
    content[int(index.table["offset"][sample]) + byte] ^= 4
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["png", "npy", "jpg"])
def test_no_damaged_byte_of_an_image_is_ever_trained_on(tmp_path: Path, kind: str) -> None:
    pixels = numbered(1, 16)[0]
    image = {
        "png": lambda: picture(pixels),
        "npy": lambda: npy(pixels),
        "jpg": lambda: picture(pixels, "JPEG"),
    }[kind]()
    write_tar(tmp_path / "a.tar", [(f"{row}.{kind}", image) for row in range(4)])
    index = shards.index_foreign(tmp_path)
    data = Dataset(index, dataset_options(), (3, 16, 16), seed=0)
    for byte in range(0, len(image), 7):
        path = damage(index, 2, byte)
        with pytest.raises(InputError) as caught:
            data.read(torch.arange(4))
        offset = index.table["offset"][2]
        assert all(word in str(caught.value) for word in (str(path), "sample 2", f"byte {offset}"))
        data.read(torch.tensor([0, 1, 3]))
        damage(index, 2, byte)
    assert len(data.read(torch.arange(4)).ids) == 4


def test_a_shard_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    index = pack(tmp_path, numbered(20), per_shard=20)
    data = Dataset(index, dataset_options(), (3, 4, 4), seed=0)
    path = tmp_path / index.shards[0].name
    path.write_bytes(path.read_bytes()[: int(index.table["offset"][10])])
    data.read(torch.arange(10))
    with pytest.raises(InputError, match="sample 10 "):
        data.read(torch.arange(20))


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.store._OPEN_SHARDS", 3)
    pixels = numbered(60)
    index = pack(tmp_path, pixels, per_shard=4)
    data = Dataset(index, dataset_options(), (3, 4, 4), seed=0)
    order = noise.permutation(0, Stream.ORDER, 60, id=1 << 41).numpy()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        images = data.read(torch.arange(60)).images
        np.testing.assert_array_equal(bytes_of(images), pixels[order])
    assert len(list(Path("/proc/self/fd").iterdir())) - before == 3
    data.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"AUGMENT": True, "AUGMENT_TYPE": "flip"}])
def test_the_cache_changes_nothing_but_what_is_read(
    colour: tuple[Index, NDArray[np.uint8]], options: dict[str, object]
) -> None:
    plain = open_colour(colour, **options)
    cached = open_colour(colour, **options, cache=True)
    for positions in (*torch.arange(900).split(100), torch.arange(50, 200)):
        one, two = (data.read(data.order(positions), positions) for data in (plain, cached))
        assert torch.equal(one.images, two.images)
    read = cached.bytes_read
    cached.read(cached.order(torch.arange(2000)), torch.arange(2000))
    assert cached.bytes_read == read < plain.bytes_read
    assert torch.equal(plain.validation(30).images, cached.validation(30).images)


def test_the_cache_stops_where_memory_ends(
    colour: tuple[Index, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddpm.store._FREE_SHARE", 1.1)
    cached = open_colour(colour, cache=True)
    first = cached.read(torch.arange(20)).images
    read = cached.bytes_read
    assert torch.equal(cached.read(torch.arange(20)).images, first)
    assert cached.bytes_read == 2 * read


def test_random_crops_are_not_frozen_by_the_cache(
    colour: tuple[Index, NDArray[np.uint8]],
) -> None:
    options = dataset_options(CROP_TYPE="random", CROP_SIZE=2)
    one, two = (Dataset(colour[0], options, (3, 2, 2), seed=0, cache=c) for c in (False, True))
    for pass_number in range(3):
        positions = torch.arange(20) + pass_number * one.num_train
        ids = torch.arange(20)
        assert torch.equal(one.read(ids, positions).images, two.read(ids, positions).images)


# --- preprocessing -------------------------------------------------------------------------------

CORNERS = {
    "center": (2, 1),
    "top_left": (0, 0),
    "top_right": (0, 3),
    "bottom_left": (5, 0),
    "bottom_right": (5, 3),
}


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, NDArray[np.uint8]]:
    """One image of 9x7."""
    pixels = RANDOM.integers(0, 256, (1, 9, 7, 3), np.uint8)
    return pack(tmp_path_factory.mktemp("tall"), pixels), pixels[0]


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize("is_explicit", [False, True])
def test_crop_positions(
    tall: tuple[Index, NDArray[np.uint8]], position: str, is_explicit: bool
) -> None:
    options = dataset_options(CROP_POSITION=position, CROP_SIZE=4 if is_explicit else None)
    data = Dataset(tall[0], options, (3, 4, 4), seed=0)
    top, left = CORNERS[position]
    found = bytes_of(data.read(torch.tensor([0])).images)[0]
    np.testing.assert_array_equal(found, tall[1][top : top + 4, left : left + 4])


def test_random_crops_take_every_place_and_depend_on_the_position_alone(
    tall: tuple[Index, NDArray[np.uint8]],
) -> None:
    data = Dataset(tall[0], dataset_options(CROP_TYPE="random"), (3, 4, 4), seed=0)
    positions = torch.arange(1000)
    found = bytes_of(data.read(torch.zeros(1000, dtype=torch.int64), positions).images)
    windows = {
        tall[1][top : top + 4, left : left + 4].tobytes(): 0
        for top in range(6)
        for left in range(4)
    }
    for image in found:
        windows[image.tobytes()] += 1
    counts = np.array(list(windows.values()))
    assert len(counts) == 24 and counts.min() > 15 and counts.max() < 80
    some = torch.tensor([900, 3, 77])
    again = bytes_of(data.read(torch.zeros(3, dtype=torch.int64), some).images)
    np.testing.assert_array_equal(again, found[some.numpy()])
    centre = bytes_of(data.read(torch.tensor([0])).images)[0]
    np.testing.assert_array_equal(centre, tall[1][2:6, 1:5])


def test_a_crop_of_another_size_is_resized(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:8, 0:8] * 8
    ramp = np.stack([rows, columns, rows * 0 + 200], axis=2)
    for number, pixels in enumerate((ramp.astype(np.uint8), ramp / 255)):
        index = pack(tmp_path / f"{number}", pixels[None])
        for side in (4, 16):
            data = Dataset(index, dataset_options(CROP_SIZE=8), (3, side, side), seed=0)
            image = (data.read(torch.tensor([0])).images[0] + 1) * 127.5  # (C, H, W)
            assert image.shape == (3, side, side)
            torch.testing.assert_close(image[2], torch.full((side, side), 200.0), atol=0.5, rtol=0)
            centres = (torch.arange(side) + 0.5) * 8 / side - 0.5
            inner = slice(side // 4, -side // 4)
            wanted = (8 * centres)[inner, None].expand(-1, side)[:, inner]
            torch.testing.assert_close(image[0][inner, inner], wanted.float(), atol=1.0, rtol=0)


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((1, 64, 64), np.uint8)
    stripes[:, :, ::2] = 255
    index = pack(tmp_path, stripes)
    data = Dataset(index, dataset_options(CROP_SIZE=64), (1, 16, 16), seed=0)
    assert data.read(torch.tensor([0])).images.abs().max() < 0.2  # grey, not black or white


FLIPS: dict[str, list[Callable[[NDArray], NDArray]]] = {
    "horizontal_flip": [lambda a: a, lambda a: a[:, ::-1]],
    "vertical_flip": [lambda a: a, lambda a: a[::-1]],
    "flip": [lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1], lambda a: a[::-1, ::-1]],
    "rot90": [lambda a, k=k: np.rot90(a, k) for k in range(4)],  # type: ignore[misc]
}


@pytest.mark.parametrize("kind", FLIPS)
def test_augmentations_are_equally_likely_and_drawn_by_position(
    colour: tuple[Index, NDArray[np.uint8]], kind: str
) -> None:
    data = open_colour(colour, AUGMENT=True, AUGMENT_TYPE=kind, cache=True)
    same, positions = torch.zeros(2000, dtype=torch.int64), torch.arange(2000)
    found = bytes_of(data.read(same, positions).images)
    original = colour[1][0]
    outcomes = {np.ascontiguousarray(turn(original)).tobytes(): 0 for turn in FLIPS[kind]}
    assert len(outcomes) == len(FLIPS[kind])
    for image in found:
        outcomes[image.tobytes()] += 1
    expected = 2000 / len(outcomes)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in outcomes.values())
    some = torch.tensor([1999, 4, 1000])
    again = bytes_of(data.read(same[:3], some).images)
    np.testing.assert_array_equal(again, found[some.numpy()])
    other = open_colour(colour, AUGMENT=True, AUGMENT_TYPE=kind, seed=1)
    assert not np.array_equal(bytes_of(other.read(same, positions).images), found)


def test_validation_images_are_never_augmented(colour: tuple[Index, NDArray[np.uint8]]) -> None:
    options: dict[str, object] = {"AUGMENT_TYPE": "rot90", "CROP_TYPE": "random"}
    batch = open_colour(colour, AUGMENT=True, **options).validation(100)
    np.testing.assert_array_equal(bytes_of(batch.images), colour[1][batch.ids.numpy()])
    off = open_colour(colour, AUGMENT=False, AUGMENT_TYPE="rot90")
    positions = torch.arange(100)
    found = off.read(positions, positions)
    np.testing.assert_array_equal(bytes_of(found.images), colour[1][:100])


# --- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [numbered(200), numbered(200)[..., 0], numbered(200) / 255])
def test_arrays_are_a_data_set_too(pixels: NDArray) -> None:
    labels = np.arange(200) % 3
    data = Dataset.from_arrays(pixels, labels, seed=2, validation_fraction=0.2)
    assert data.num_classes == 3 and data.image_shape == (pixels[0].size // 16, 4, 4)
    assert data.num_train + data.num_validation == 200 and data.num_validation > 20
    batch = next(iter(data.batches([torch.arange(data.num_train)])))
    assert len(batch.ids.unique()) == data.num_train and not torch.equal(
        batch.ids, batch.ids.sort().values
    )
    scale = 1 if pixels.dtype == np.uint8 else 255
    wanted = (pixels * scale).reshape(200, 4, 4, -1)[batch.ids.numpy()].round().astype(np.uint8)
    np.testing.assert_array_equal(bytes_of(batch.images), wanted)
    assert batch.labels is not None
    np.testing.assert_array_equal(batch.labels.numpy(), labels[batch.ids.numpy()])
    assert data.sha256 != Dataset.from_arrays(pixels[::-1], labels).sha256
    assert data.bytes_read == 0


def test_bad_arrays_are_refused_in_words() -> None:
    with pytest.raises(InputError, match="outside"):
        Dataset.from_arrays(np.full((4, 4, 4), 2.0))
    with pytest.raises(InputError, match="one label an image"):
        Dataset.from_arrays(np.zeros((4, 4, 4), np.uint8), np.zeros(3, int))
