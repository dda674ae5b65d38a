import math
import time

import numpy as np
import pytest
import torch

from ddpm.data.order import RUN, is_validation
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from tests.support.dataset_data import RANDOM, entropy, make_order

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


@pytest.mark.slow
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


def test_the_split_is_decided_by_the_sample_number() -> None:
    draws = philox.uniform(0, Stream.SPLIT, torch.arange(20_000)).numpy()
    for fraction in (0.0, 0.1, 0.5):
        np.testing.assert_array_equal(is_validation(20_000, fraction), draws < fraction)
    assert abs(is_validation(20_000, 0.1).mean() - 0.1) < 0.01
