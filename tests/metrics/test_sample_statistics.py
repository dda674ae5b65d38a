"""Images dealt into groups: evenly, the same way every time, each group like a draw of them all."""

import numpy as np
import torch

from ddpm.metrics.features import GROUPS, collect, deal
from tests.support.moments_process import Known, images_of


def test_groups_are_of_one_size_and_the_same_every_time() -> None:
    dealt = deal(1003)
    assert set(np.bincount(dealt)) <= {1003 // GROUPS, 1003 // GROUPS + 1}
    assert (dealt == deal(1003)).all()


def test_sorted_images_are_spread_over_all_groups() -> None:
    labels = np.sort(np.arange(3200) % 10)
    table = np.zeros((GROUPS, 10))
    np.add.at(table, (deal(3200), labels), 1)
    assert table.min() >= 5  # of 20 expected


def test_classes_dealt_in_turn_are_in_every_group_alike() -> None:
    labels = np.arange(1600) % 10
    table = np.zeros((GROUPS, 10))
    np.add.at(table, (deal(1600, labels), labels), 1)
    assert (table == 10).all()


def test_features_are_kept_of_so_many_and_no_more_and_moments_of_all() -> None:
    x, dealt = images_of(500, 6), deal(500)
    few = collect(Known(6), [x[:200], x[200:]], dealt, kept=50)
    everything = collect(Known(6), [x], dealt)
    assert few.kept.shape == (50, 6) and few.count == everything.count == 500
    assert everything.kept.shape == (500, 6)
    assert torch.allclose(few.whole().scatter, everything.whole().scatter, rtol=1e-9)
    assert [len(block) for block in everything.blocks()] == np.bincount(dealt).tolist()


def test_hits_are_the_images_told_as_their_class() -> None:
    x = images_of(300, 6)
    told = (x[:, 0, 0, 0] >= 128).astype(np.int64)
    labels = told.copy()
    labels[:30] = 1 - labels[:30]
    judged = collect(Known(6), [x], deal(300), labels=labels).judged
    assert judged is not None and judged.hits == 270
    assert judged.counts.sum() == 300
