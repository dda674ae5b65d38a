"""Classifier-free guidance: a class-conditional prediction, exaggerated (Ho & Salimans 2022).

    null + guidance (pred - null)

with null the prediction for the null class. guidance = 1 is the prediction itself, 0 the null one.
(The paper's w is guidance - 1.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def guided(
    network: Network,
    labels: Tensor | None,
    num_images: int,
    guidance: float,
    null_label: int | None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network with its labels, and guided where guidance is not 1: (x_t, time) -> prediction.

    Raises ValueError for labels that are not (num_images,), and for guidance without labels or
    without a null label.
    """
    if labels is not None and labels.shape != (num_images,):
        raise ValueError(f"labels is {tuple(labels.shape)}; give one for each of {num_images} ids")
    if guidance == 1.0:
        return lambda x_t, time: network(x_t, time, labels)
    if labels is None or null_label is None:
        raise ValueError(
            f"guidance is {guidance} but {'labels' if labels is None else 'null_label'} is missing;"
            " give both, or guidance 1"
        )
    null_labels = torch.full_like(labels, null_label)

    def both(x_t: Tensor, time: Tensor) -> Tensor:
        # Not one call of twice the size: libraries may change bits with the batch size.
        null, pred = network(x_t, time, null_labels), network(x_t, time, labels)
        null, pred = null.to(x_t.dtype), pred.to(x_t.dtype)
        return null + guidance * (pred - null)

    return both
