"""A training over three nodes is the training of one node."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.jobs import Train, Undisturbed, assert_same, losses, run_of


def test_three_nodes_follow_the_loss_of_one(
    undisturbed: Undisturbed, figure: Callable[[str], None]
) -> None:
    one, three = losses(undisturbed(1)), losses(undisturbed(3))
    apart = max(abs(a - b) / abs(a) for a, b in zip(one[:50], three[:50], strict=True))
    figure(f"relative difference of the loss over 50 steps: {apart:.1e}")
    assert apart <= 1e-5


def test_three_nodes_see_the_samples_noise_and_timesteps_of_one(undisturbed: Undisturbed) -> None:
    """With exact numerics the weights have the same bits at its end: one other sample, draw or
    timestep in any of them would show.
    """
    assert_same(undisturbed(3, "exact"), undisturbed(1, "exact"))


@pytest.mark.slow
def test_a_job_may_come_back_with_another_number_of_nodes(
    undisturbed: Undisturbed, train: Train, folder: Path
) -> None:
    """Begun on one node and cancelled, continued on two: the bits of one node alone."""
    changed = {"TRAINING.NUMERICS": "exact"}
    first = train(folder, "--nodes=1", changed=changed)
    first.wait_for_rows(folder, 20)
    first.cancel()
    assert first.end()[0] == "CANCELLED"
    train(folder, "--nodes=2", changed=changed).completes()
    assert_same(run_of(folder), undisturbed(1, "exact"))
