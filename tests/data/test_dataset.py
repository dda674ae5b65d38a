import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddpm.data import preparing
from ddpm.data.dataset import Batch, Dataset
from ddpm.data.index import Index, index_foreign, open_index
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from ddpm.errors import InputError
from tests.support.dataset_data import (
    RANDOM,
    Colour,
    bytes_of,
    damage,
    dataset_options,
    entropy,
    foreign_shard,
    make_colour,
    numbered,
    open_colour,
    pack,
)
from tests.support.shard_data import picture


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Colour:
    return make_colour(tmp_path_factory.mktemp("colour"))


def test_train_and_validation_are_apart_and_the_same_for_every_seed(digits: Path) -> None:
    index = open_index(digits)
    one, two = (Dataset(index, dataset_options(), (1, 8, 8), seed=seed) for seed in (0, 5))
    train = one.order(torch.arange(one.num_train))
    held = one.validation(10_000).ids
    assert one.num_train + one.num_validation == 1797 and len(held) == one.num_validation
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(1797))
    assert torch.equal(held, two.validation(10_000).ids)
    assert torch.equal(one.validation(7).ids, held[:7])
    assert one.validation(7).positions is None


def test_appended_shards_keep_the_old_split(tmp_path: Path) -> None:
    image = picture(np.zeros((4, 4), np.uint8))
    for number in range(3):
        foreign_shard(tmp_path, f"{number}", 50, number, image)
    before = Dataset(preparing.refresh(tmp_path), dataset_options(), (1, 4, 4), seed=0)
    held = set(before.validation(1000).ids.tolist())
    foreign_shard(tmp_path, "3", 50, 3, image)
    after = Dataset(preparing.refresh(tmp_path), dataset_options(), (1, 4, 4), seed=0)
    assert after.num_train + after.num_validation == 200
    assert {number for number in after.validation(1000).ids.tolist() if number < 150} == held


def shares(batch: int, workers: int, worker: int) -> slice:
    """A worker's part of the global batch; parts differ by at most one sample."""
    return slice(batch * worker // workers, batch * (worker + 1) // workers)


@pytest.fixture(scope="module")
def sorted_shards(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """40 shards of 400 samples, each of one class."""
    folder = tmp_path_factory.mktemp("sorted")
    for label in range(40):
        pixels = RANDOM.integers(0, 256, (16, 16, 3), np.uint8)
        pixels[0, 0, 0] = label
        foreign_shard(folder, f"{label:02d}", 400, label, picture(pixels))
    return index_foreign(folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [3])
def test_workers_and_resumes_read_their_share_once(sorted_shards: Index, workers: int) -> None:
    size, stop = 125, 57  # of 115 steps a pass: interrupted in the middle
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


def test_batches_hold_the_pixels_and_labels_of_their_samples(colour: Colour) -> None:
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


def test_samples_may_be_asked_for_twice_or_not_at_all(colour: Colour) -> None:
    data = open_colour(colour)
    ids = torch.tensor([17, 3, 17, 299, 16, 3])
    np.testing.assert_array_equal(bytes_of(data.read(ids).images), colour[1][ids.numpy()])
    assert data.read(torch.empty(0, dtype=torch.int64)).images.shape == (0, 3, 4, 4)


def test_float_images_keep_their_values(tmp_path: Path) -> None:
    pixels = RANDOM.random((20, 4, 4, 2))
    data = Dataset(pack(tmp_path, pixels), dataset_options(), (2, 4, 4), seed=0, cache=True)
    order = philox.permutation(0, Stream.ORDER, 20, id=1 << 41).numpy()
    for _ in range(2):
        images = data.read(torch.arange(20)).images
        wanted = torch.from_numpy(pixels[order].astype(np.float32)).permute(0, 3, 1, 2)
        assert torch.equal(images, wanted * 2 - 1)


def test_null_labels_are_none(colour: Colour) -> None:
    data = open_colour(colour, LABEL_KEY=None)
    assert data.num_classes is None and data.read(torch.arange(3)).labels is None


def test_neighbours_are_read_together(colour: Colour) -> None:
    index, _ = colour
    data = open_colour(colour)
    offsets, sizes = index.table["offset"], index.table["size"]
    data.read(torch.tensor([5, 3, 4]))  # side by side in the first shard
    assert data.bytes_read == offsets[5] + sizes[5] - offsets[3]
    before = data.bytes_read
    data.read(torch.tensor([15, 16, 40]))  # of two shards; one alone
    assert data.bytes_read - before == sizes[15] + sizes[16] + sizes[40]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_read_ahead_in_order(colour: Colour, threads: int) -> None:
    data, asked = open_colour(colour, seed=4), torch.arange(900).split(37)
    found = list(data.batches(asked, threads=threads))
    for batch, positions in zip(found, asked, strict=True):
        alone = data.read(data.order(positions), positions)
        assert torch.equal(batch.images, alone.images) and torch.equal(batch.ids, alone.ids)
    assert list(data.batches([])) == []


def reading_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("ddpm-read")]


def test_a_consumer_that_stops_leaves_no_thread(colour: Colour) -> None:
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
    with pytest.raises(InputError, match=r"shape \(30, 3, 8, 8\) look like \(N, C, H, W\)"):
        Dataset.from_arrays(np.zeros((30, 3, 8, 8), np.uint8))


class Items:
    """A data set with a length and items, as torch has them."""

    def __init__(self, *items: object) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> object:
        return self._items[number % len(self._items)]  # never IndexError


def test_data_of_torch_and_of_hugging_face_are_those_of_arrays() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    labels = np.arange(40) % 4
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    known = Dataset.from_arrays(pixels, labels, seed=3)
    rows = [
        {"img": Image.fromarray(p), "fine": int(n)} for p, n in zip(pixels, labels, strict=True)
    ]
    for found in (
        Dataset.from_torch(
            torch.utils.data.TensorDataset(tensors, torch.from_numpy(labels)), seed=3
        ),
        Dataset.from_torch(Items(*zip(map(Image.fromarray, pixels), labels, strict=True)), seed=3),
        Dataset.from_huggingface(Items(*rows), "img", "fine", seed=3),
    ):
        assert found.sha256 == known.sha256 and found.num_classes == 4
        positions = torch.arange(60)
        one, other = (d.read(d.order(positions), positions) for d in (found, known))
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    floats = Dataset.from_torch(Items(*(tensors / 255)))
    assert floats.num_classes is None and floats.image_shape == (3, 6, 5)
    for call, word in (
        (lambda: Dataset.from_torch(Items(pixels[0], pixels[0, :3])), "of one shape"),
        (lambda: Dataset.from_torch(Items(*(tensors / 127.5 - 1))), r"outside \[0, 1\]"),
        (lambda: Dataset.from_torch(Items((pixels[0], 1), pixels[0])), "neither images nor pairs"),
        (lambda: Dataset.from_torch(Items(Image.new("RGBA", (4, 4)))), "mode RGBA"),
        (lambda: Dataset.from_huggingface(Items(*rows), "image"), "there are: img, fine"),
        (lambda: Dataset.from_torch(Items()), "not of none"),
        (lambda: Dataset.from_torch(Items(*rows)), "items are dicts; give pairs"),
        (lambda: Dataset.from_torch(Items((pixels[0], "cat"))), "labels are no whole numbers"),
        (lambda: Dataset.from_torch(Items((pixels[0], None))), "labels are no whole numbers"),
        (lambda: Dataset.from_arrays(pixels[:0]), r"hold no pixels: their shape is \(0, 6, 5, 3\)"),
    ):
        with pytest.raises(InputError, match=word):
            call()
