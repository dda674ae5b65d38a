"""A training over several nodes is the training of one node.

In exact numerics to the bit, which every test here that compares with `undisturbed` shows: one
other sample, draw or timestep in any step would change its weights.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.jobs import Train, assert_same, losses, run_of

pytestmark = pytest.mark.slow


def test_three_nodes_follow_the_loss_of_one(
    train: Train, folder: Path, figure: Callable[[str], None]
) -> None:
    """In fast numerics, whose sums have another order."""
    runs = []
    for nodes in (1, 3):
        root = folder / str(nodes)
        train(root, f"--nodes={nodes}", changed={"TRAINING.NUMERICS": "fast"}).completes()
        runs.append(losses(run_of(root)))
    apart = max(abs(one - three) / abs(one) for one, three in zip(*runs, strict=True))
    figure(f"relative difference of the loss over {len(runs[0])} steps: {apart:.1e}")
    assert apart <= 1e-5


def test_a_job_may_come_back_with_another_number_of_nodes(
    undisturbed: Path, train: Train, folder: Path
) -> None:
    """Begun on one node and cancelled, continued on two: the bits of one node alone."""
    first = train(folder)
    first.wait_for_rows(folder, 20)
    first.cancel()
    assert first.end()[0] == "CANCELLED"
    train(folder, "--nodes=2").completes()
    assert_same(run_of(folder), undisturbed)
