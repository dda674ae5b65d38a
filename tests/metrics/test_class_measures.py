"""The class score by its closed forms, from one class to all, without the bias of few images."""

import numpy as np
import pytest
import torch

from ddpm.metrics import features
from ddpm.metrics.features import Judged


def judged(p: np.ndarray, hits: int | None = None) -> Judged:
    """What 16 groups saw of images with class probabilities (n, K)."""
    groups = [torch.from_numpy(p[k::16]) for k in range(16)]
    entropies = [-(g * g.clamp(min=1e-12).log()).sum() for g in groups]
    return Judged(
        counts=torch.tensor([len(g) for g in groups], dtype=torch.float64),
        entropies=torch.stack(entropies),
        classes=torch.stack([g.sum(dim=0) for g in groups]),
        hits=hits,
    )


def test_sure_and_even_is_the_number_of_classes_and_all_alike_is_one() -> None:
    # rows of 80: every group has every class equally often
    sure = np.eye(5)[np.repeat(np.arange(5), 16).tolist() * 10]
    assert features.score(judged(sure)).value == pytest.approx(5.0, rel=1e-9)
    alike = np.tile([0.7, 0.2, 0.1], (160, 1))
    assert features.score(judged(alike)).value == pytest.approx(1.0, abs=1e-9)


def test_the_bias_of_few_images_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    found = [features.score(judged(np.eye(10)[rng.integers(0, 10, 160)])).value for _ in range(200)]
    # of 160 images the plain score is 9 / 320 of 10 too small
    assert abs(np.mean(found) - 10) < 0.3 * 10 * 9 / 320


def test_accuracy_is_the_share_of_hits() -> None:
    found = features.accuracy(judged(np.eye(4)[np.arange(160) % 4], hits=120))
    assert (found.value, found.n) == (0.75, 160) and found.low < 0.75 < found.high
