"""What a classifier says of samples: how sure and how varied it is, and whether the class is right.

    score     exp(mean_x KL(p(y | x) || p(y))) = exp(H(mean p) - mean H(p))       Salimans 2016
              "inception score" with Inception's classes, "classifier score" with the data's own:
              from 1 (all alike) to the number of classes (each sure, all equally frequent)
    accuracy  share of class-conditional samples told as the class they were to be

A score of n images is too small by about (K - 1) / 2n, which the jackknife takes out.
"""

import numpy as np
import torch
from torch import Tensor

from ddpm import estimates
from ddpm.estimates import Estimate
from ddpm.sample_statistics import Judged


def score(judged: Judged) -> Estimate:
    """The inception or classifier score, by the jackknife over groups."""
    counts, entropies, classes = judged.counts, judged.entropies, judged.classes
    whole = _score(counts.sum(), entropies.sum(), classes.sum(dim=0))
    without = [
        _score(
            counts.sum() - counts[group],
            entropies.sum() - entropies[group],
            classes.sum(dim=0) - classes[group],
        )
        for group in range(len(counts))
    ]
    return estimates.jackknife(whole, np.array(without), int(counts.sum()), corrected=True)


def accuracy(judged: Judged) -> Estimate:
    """The share of samples told as their class, which must have been asked for."""
    assert judged.hits is not None
    return estimates.share(judged.hits, int(judged.counts.sum()))


def _score(count: Tensor, entropy: Tensor, classes: Tensor) -> float:
    p = classes / count
    marginal = -(p * p.clamp(min=1e-12).log()).sum()
    return float(torch.exp(marginal - entropy / count))
