"""The same for measures that are no distances: each a line of the table."""

import numpy as np
import torch

from ddpm.metrics import intervals
from ddpm.metrics import manifold as memorisation
from ddpm.metrics.evaluation import class_score
from ddpm.metrics.features import ClassSums, random_groups
from ddpm.metrics.intervals import Interval
from ddpm.metrics.manifold import measure_manifold
from tests.support.interval_regimes import GROUPS, REFERENCE, Features, Line, counted

FRESH = 0.01  # of samples that are as far from the training images as held-out ones


def manifolds(trials: int) -> list[Line]:
    """Precision, density, coverage of 320 against 500, and recall over real images."""
    features, groups = Features(kind="normal", dimension=16), torch.arange(320) % GROUPS
    reference = torch.from_numpy(features.draw(500, REFERENCE))
    drawn = [torch.from_numpy(features.draw(320, seed, "far")) for seed in range(trials)]
    found = [measure_manifold(x, groups, reference) for x in drawn]
    lines = []
    for name in ("precision", "density", "coverage"):
        numbers: list[Interval] = [getattr(one, name) for one in found]
        truth = float(np.mean([one.value for one in numbers]))
        lines.append(counted(f"{name}, n = 320 against 500", numbers, truth))
    return [*lines, _recall(features, trials)]


def _recall(features: Features, trials: int) -> Line:
    """Over draws of the real images, for samples that stay."""
    samples, groups = torch.from_numpy(features.draw(320, REFERENCE, "far")), torch.arange(320)
    found = [
        measure_manifold(
            samples, groups % GROUPS, torch.from_numpy(features.draw(500, seed))
        ).recall
        for seed in range(trials)
    ]
    truth = float(np.mean([one.value for one in found]))
    return counted("recall, n = 320 against 500", found, truth)


def judgements(trials: int) -> list[Line]:
    """Class score and accuracy of 1,000 samples whose ten classes are in turn, and drawn."""
    lines = []
    for in_turn, how in ((True, "in turn"), (False, "drawn")):
        judged = [_judged(seed, 1000, in_turn) for seed in range(trials)]
        scores = [class_score(one) for one in judged]
        truth = float(np.exp(np.log(10) - _entropy()))
        lines.append(counted(f"class score, n = 1,000, classes {how}", scores, truth))
        hits = [intervals.proportion(one.hits, int(one.counts.sum())) for one in judged]
        lines.append(counted(f"class accuracy, n = 1,000, classes {how}", hits, _ACCURACY))
    return lines


# The probability of the class that is told: one of these, equally often.
_CERTAINTIES = np.array([0.55, 0.9, 0.99])
_ACCURACY = float(_CERTAINTIES.mean())


def _probabilities(top: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    p = np.repeat(((1 - certainty) / 9)[:, None], 10, axis=1)
    p[np.arange(len(top)), top] = certainty
    return p


def _entropy() -> float:
    """The mean over samples; a class is told right as often as it is sure of it."""
    p = _probabilities(np.zeros(3, np.int64), _CERTAINTIES)
    return float(-(p * np.log(p)).sum(axis=1).mean())


def _judged(seed: int, n: int, in_turn: bool) -> ClassSums:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10 if in_turn else rng.integers(0, 10, n)
    certainty = rng.choice(_CERTAINTIES, n)
    is_right = rng.random(n) < certainty
    top = np.where(is_right, labels, (labels + rng.integers(1, 10, n)) % 10)
    p = torch.from_numpy(_probabilities(top, certainty))
    groups = torch.from_numpy(random_groups(n, labels if in_turn else None))
    zeros = torch.zeros(GROUPS, dtype=torch.float64)
    return ClassSums(
        counts=zeros.index_add(0, groups, torch.ones(n, dtype=torch.float64)),
        entropies=zeros.index_add(0, groups, -(p * p.log()).sum(dim=1)),
        classes=torch.zeros(GROUPS, 10, dtype=torch.float64).index_add(0, groups, p),
        hits=int(is_right.sum()),
    )


def memories(trials: int) -> list[Line]:
    """Nearer than held out, and copies, of samples that are fresh."""
    rng = np.random.default_rng(0)
    lines = []
    for held_out in (100, 1000, 2000):
        pairs = [(rng.gamma(3, 1, 1000), rng.gamma(3, 1, held_out)) for _ in range(trials)]
        what = f"n = 1,000 and {held_out:,} held out"
        nearer = [intervals.order(*pair) for pair in pairs]
        lines.append(counted(f"nearer than held out, {what}", nearer, 0.5))
        copies = [memorisation.copies(*pair) for pair in pairs]
        lines.append(counted(f"copies, {what}", copies, FRESH))
    return lines
