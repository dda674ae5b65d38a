from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data.dataset import Dataset
from ddpm.data.index import index_foreign
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from ddpm.errors import InputError
from tests.support.dataset_data import (
    Colour,
    bytes_of,
    damage,
    dataset_options,
    make_colour,
    numbered,
    open_colour,
    pack,
)
from tests.support.shard_data import npy, picture, write_tar


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Colour:
    return make_colour(tmp_path_factory.mktemp("colour"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "npy", "jpg"])
def test_no_damaged_byte_of_an_image_is_ever_trained_on(tmp_path: Path, kind: str) -> None:
    pixels = numbered(1, 16)[0]
    image = {
        "png": lambda: picture(pixels),
        "npy": lambda: npy(pixels),
        "jpg": lambda: picture(pixels, "JPEG"),
    }[kind]()
    write_tar(tmp_path / "a.tar", [(f"{row}.{kind}", image) for row in range(4)])
    index = index_foreign(tmp_path)
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
    monkeypatch.setattr("ddpm.data.dataset._OPEN_SHARDS", 3)
    pixels = numbered(60)
    index = pack(tmp_path, pixels, per_shard=4)
    data = Dataset(index, dataset_options(), (3, 4, 4), seed=0)
    order = philox.permutation(0, Stream.ORDER, 60, id=1 << 41).numpy()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        images = data.read(torch.arange(60)).images
        np.testing.assert_array_equal(bytes_of(images), pixels[order])
    assert len(list(Path("/proc/self/fd").iterdir())) - before == 3
    data.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"AUGMENT": True, "AUGMENT_TYPE": "flip"}])
def test_the_cache_changes_nothing_but_what_is_read(
    colour: Colour, options: dict[str, object]
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


def test_the_cache_stops_where_memory_ends(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm.data.dataset._FREE_SHARE", 1.1)
    cached = open_colour(colour, cache=True)
    first = cached.read(torch.arange(20)).images
    read = cached.bytes_read
    assert torch.equal(cached.read(torch.arange(20)).images, first)
    assert cached.bytes_read == 2 * read


def test_random_crops_are_not_frozen_by_the_cache(colour: Colour) -> None:
    options = dataset_options(CROP_TYPE="random", CROP_SIZE=2)
    one, two = (Dataset(colour[0], options, (3, 2, 2), seed=0, cache=c) for c in (False, True))
    ids, seen = torch.arange(20), set()
    for pass_number in range(3):
        positions = ids + pass_number * one.num_train
        images = one.read(ids, positions).images
        assert torch.equal(images, two.read(ids, positions).images)
        seen.add(images.numpy().tobytes())
    assert len(seen) == 3
