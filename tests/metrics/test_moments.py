"""Streamed moments are those of all vectors at once, whatever parts, order or workers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.metrics.features import Moments, merged
from tests.support.tree import ROOT


def vectors(count: int, dimension: int = 7, seed: int = 0) -> torch.Tensor:
    """Far from zero, where naive sums of squares lose digits."""
    random = torch.Generator().manual_seed(seed)
    return 1000 + torch.randn(count, dimension, generator=random, dtype=torch.float64)


def close(one: Moments, two: Moments) -> bool:
    """Equal to 1e-9 relative."""
    return (
        one.count == two.count
        and torch.allclose(one.mean, two.mean, rtol=1e-9, atol=0)
        and bool((one.scatter - two.scatter).abs().max() <= 1e-9 * two.scatter.abs().max())
    )


def test_moments_are_numpys() -> None:
    x = vectors(300)
    moments = Moments.of(x)
    assert np.allclose(moments.mean, x.numpy().mean(axis=0), rtol=1e-13)
    expected = np.cov(x.numpy(), rowvar=False)
    assert np.abs(moments.covariance - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("sizes", [(300,), (1, 299), (100, 0, 150, 50), (1,) * 300])
def test_parts_merge_to_the_whole_in_any_order(sizes: tuple[int, ...]) -> None:
    x = vectors(300)
    parts = [Moments.of(part) if len(part) else Moments.empty(7) for part in x.split(list(sizes))]
    streamed = Moments.empty(7)
    for part in x.split(list(sizes)):
        streamed.add(part)
    assert close(streamed, Moments.of(x))
    assert close(merged(parts), Moments.of(x))
    assert close(merged(parts[::-1]), Moments.of(x))


def test_the_order_of_vectors_does_not_matter() -> None:
    x = vectors(500)
    shuffled = x[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    assert close(Moments.of(shuffled), Moments.of(x))


def test_what_was_merged_can_be_left_out_again() -> None:
    x = vectors(400)
    whole, part = Moments.of(x), Moments.of(x[100:150])
    assert close(whole.without(part), Moments.of(torch.cat([x[:100], x[150:]])))


def test_merging_leaves_the_parts_as_they_were() -> None:
    parts = [Moments.of(vectors(50, seed=seed)) for seed in range(3)]
    before = [part.mean.clone() for part in parts]
    merged(parts)
    assert all(torch.equal(part.mean, mean) for part, mean in zip(parts, before, strict=True))


def test_one_vector_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="needs two vectors"):
        _ = Moments.of(vectors(1)).covariance


def reduced(workers: int, path: Path) -> dict[str, np.ndarray]:
    """What rank 0 of so many processes has after the reduction."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "tests/support/moments_process.py", "1003", "24", str(path)]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=shared | {"RANK": str(rank)})
        for rank in range(workers)
    ]
    assert [process.wait(timeout=200) for process in started] == [0] * workers
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_one_two_and_four_workers_have_the_same_sums_and_numbers(tmp_path: Path) -> None:
    alone = reduced(1, tmp_path / "1.npz")
    assert alone["counts"].sum() == 1003
    for workers in (2, 4):
        together = reduced(workers, tmp_path / f"{workers}.npz")
        assert (together["counts"] == alone["counts"]).all()
        assert together["hits"] == alone["hits"]
        assert together.keys() == alone.keys()
        for key in alone:
            apart = np.abs(together[key] - alone[key]).max()
            assert apart <= 1e-9 * np.abs(alone[key]).max(), key
