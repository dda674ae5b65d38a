"""The class score by its closed forms, from one class to all, without the bias of few images."""

import numpy as np
import pytest
import torch

from ddpm.metrics.evaluation import class_score
from ddpm.metrics.features import Judged


def judged(p: np.ndarray) -> Judged:
    """What 16 groups saw of images with class probabilities (n, K)."""
    groups = [torch.from_numpy(p[k::16]) for k in range(16)]
    entropies = [-(g * g.clamp(min=1e-12).log()).sum() for g in groups]
    return Judged(
        counts=torch.tensor([len(g) for g in groups], dtype=torch.float64),
        entropies=torch.stack(entropies),
        classes=torch.stack([g.sum(dim=0) for g in groups]),
        hits=None,
    )


def test_sure_and_even_is_the_number_of_classes_and_all_alike_is_one() -> None:
    # rows of 80: every group has every class equally often
    sure = np.eye(5)[np.repeat(np.arange(5), 16).tolist() * 10]
    assert class_score(judged(sure)).value == pytest.approx(5.0, rel=1e-9)
    alike = np.tile([0.7, 0.2, 0.1], (160, 1))
    assert class_score(judged(alike)).value == pytest.approx(1.0, abs=1e-9)


def test_the_bias_of_few_images_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    found = [class_score(judged(np.eye(10)[rng.integers(0, 10, 160)])).value for _ in range(200)]
    # of 160 images the plain score is 9 / 320 of 10 too small
    assert abs(np.mean(found) - 10) < 0.3 * 10 * 9 / 320
