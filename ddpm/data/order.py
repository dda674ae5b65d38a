"""The endless order: which sample every position of training has. Position p is in pass p // n.

A pure function of (data, seed, position): not of the number of workers, nor of what was read
before. Each training sample is there once a pass.

The unit is a run, up to 32 consecutive training samples of one shard, so reading is sequential in
runs. A pass lays out its runs so that every shard is spread evenly over it: the runs of a shard
are put in random order, and the j-th of its r runs goes to (j + phase) / r of the pass, with one
random phase per shard. Where samples do not lie in random order (foreign shards, often sorted by
class), shards are cut into equal blocks, 64 or more in all, which are spread instead of shards;
the runs are taken in groups of whole rounds over the blocks (64 to 1,024 runs), and the samples of
a group are permuted among each other.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.diffusion import Stream, philox

RUN = 32
# The split is the same for every seed and stays when shards are appended.
SPLIT_SEED = 0
_GROUP_RUNS = (64, 1024)
_PASSES_KEPT = 2
_GROUPS_KEPT = 8
_GROUP_ID = 1 << 40  # ids of the draws that permute groups; runs lie below

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Pass:
    """The runs of one pass in order: where each starts in the pass, and in the training samples."""

    starts: Ints  # (R + 1,) positions within the pass
    first: Ints  # (R,) number of the run's first training sample
    groups: Ints  # (G + 1,) positions within the pass; empty when samples stay within their runs


def is_validation(num_samples: int, fraction: float) -> NDArray[np.bool_]:
    """Mask of the samples kept out of training: uniform(0, SPLIT, id) < fraction, for each id."""
    ids = torch.arange(num_samples)
    return (philox.uniform(SPLIT_SEED, Stream.SPLIT, ids) < fraction).numpy()


class Order:
    """The order of the training samples.

    train_ids: int64 (n,) ascending.  starts: (shards + 1,), the number of each shard's first
    sample, and the number of all.  is_shuffled: samples lie in random order in their shards.
    """

    def __init__(self, train_ids: Ints, starts: Ints, *, seed: int, is_shuffled: bool) -> None:
        self.train_ids, self._seed, self._is_shuffled = train_ids, seed, is_shuffled
        # Runs: cut anew at the first training sample of every shard.
        shard_starts = np.searchsorted(train_ids, starts)
        counts = np.diff(shard_starts)
        runs = -(-counts // RUN)
        shard = np.repeat(np.arange(len(runs)), runs)
        within = np.arange(len(shard)) - np.repeat(np.cumsum(runs) - runs, runs)
        self._first = shard_starts[shard] + within * RUN
        self._length = np.minimum(self._first + RUN, shard_starts[shard + 1]) - self._first
        cuts = 1 if is_shuffled else -(-_GROUP_RUNS[0] // max(1, int((runs > 0).sum())))
        self._block = shard * cuts + within * cuts // runs[shard]
        self._block_runs = np.bincount(self._block)
        self._lock = threading.Lock()
        self._passes: OrderedDict[int, _Pass] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], Ints] = OrderedDict()

    def ids(self, positions: Tensor) -> Tensor:
        """The sample at each position.  positions: int64 (n,), each >= 0.  Returns int64 (n,)."""
        passes, places = np.divmod(positions.numpy(), len(self.train_ids))
        ids = np.empty_like(places)
        with self._lock:  # threads that read ahead share what is kept of a pass
            for number in np.unique(passes):
                chosen = passes == number
                ids[chosen] = self._ids_of_pass(int(number), places[chosen])
        return torch.from_numpy(ids)

    def _ids_of_pass(self, number: int, places: Ints) -> Ints:
        one = self._pass(number)
        if len(one.groups):
            places = self._permuted(number, one, places)
        run = np.searchsorted(one.starts, places, side="right") - 1
        return self.train_ids[one.first[run] + places - one.starts[run]]

    def _permuted(self, number: int, one: _Pass, places: Ints) -> Ints:
        """The places that the samples at these places come from."""
        group = np.searchsorted(one.groups, places, side="right") - 1
        moved = np.empty_like(places)
        for g in np.unique(group):
            chosen, start = group == g, one.groups[g]
            length = int(one.groups[g + 1] - start)
            order = self._group(number, int(g), length)
            moved[chosen] = start + order[places[chosen] - start]
        return moved

    def _group(self, number: int, group: int, length: int) -> Ints:
        key = (number, group)
        if key not in self._groups:
            self._groups[key] = philox.permutation(
                self._seed, Stream.ORDER, length, step=number, id=_GROUP_ID + group
            ).numpy()
            _forget_oldest(self._groups, _GROUPS_KEPT)
        return self._groups[key]

    def _pass(self, number: int) -> _Pass:
        if number not in self._passes:
            self._passes[number] = self._lay_out(number)
            _forget_oldest(self._passes, _PASSES_KEPT)
        return self._passes[number]

    def _lay_out(self, number: int) -> _Pass:
        runs = torch.arange(len(self._block))
        words = philox.words(self._seed, Stream.ORDER, runs, 3, step=number).numpy()
        # Runs of a block in random order (their number breaks ties): rank j of r.
        by_block = np.lexsort((words[:, 1], words[:, 0], self._block))
        begins = np.cumsum(self._block_runs) - self._block_runs
        rank = np.empty(len(by_block), np.int64)
        rank[by_block] = np.arange(len(by_block)) - np.repeat(begins, self._block_runs)
        # The phase of a block is the third word of its first run.
        phase = words[np.minimum(begins, len(words) - 1), 2] * 2.0**-32
        place = (rank + phase[self._block]) / self._block_runs[self._block]
        order = np.argsort(place, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self._length[order])])
        return _Pass(starts, self._first[order], self._group_starts(starts))

    def _group_starts(self, starts: Ints) -> Ints:
        if self._is_shuffled:
            return np.empty(0, np.int64)
        blocks = int((self._block_runs > 0).sum())
        least, most = _GROUP_RUNS
        runs_a_group = min(most, -(-least // blocks) * blocks)
        num_runs = len(starts) - 1
        count = max(1, num_runs // runs_a_group)
        return starts[np.arange(count + 1) * num_runs // count]


def _forget_oldest(kept: OrderedDict, most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
