"""What a network is worth while it trains: its error on validation images, measured by all workers.

Images go through the network in batches of one size, whoever measures them: numbers have the same
bits for any number of workers. The last batch is filled up with its last image.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.distributed import Group
from ddpm.evaluate import levels_of, metrics_of, x0_error
from ddpm.measures import X0Error
from ddpm.schedule import NoiseSchedule

BATCH = 16


def validation_metrics(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    data: Dataset,
    group: Group | None = None,
) -> dict[str, float]:
    """metrics_of() the first EVALUATION.NUM validation images; empty where there are none.

    group: workers that all call this; each measures its share and all get the numbers of all.
    """
    group = group or Group()
    ids = data.validation_ids(config.EVALUATION.NUM)
    if not len(ids):
        return {}
    was_training = network.training
    network.eval()
    try:
        own = _errors(network, schedule, config, data, _share(ids, group), group)
    finally:
        network.train(was_training)
    mse = _of_all(own, -(-len(ids) // BATCH), group)[:, : len(ids)]
    levels = np.asarray(levels_of(schedule), dtype=np.int64)
    return metrics_of(X0Error(levels=levels, mse=mse, ids=ids.numpy()))


def _share(ids: Tensor, group: Group) -> Tensor:
    """Every size-th batch from `rank` on, (batches, BATCH)."""
    batches = -(-len(ids) // BATCH)
    rows = torch.arange(batches * BATCH).clamp(max=len(ids) - 1).view(batches, BATCH)
    return ids[rows[group.rank :: group.size]]


def _errors(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    data: Dataset,
    ids: Tensor,
    group: Group,
) -> Tensor:
    """Squared errors, float64 (batches, L, BATCH), on the group's device."""
    levels = levels_of(schedule)
    found = torch.zeros(len(ids), len(levels), BATCH, dtype=torch.float64, device=group.device)
    for row, batch_ids in enumerate(ids):
        error = x0_error(
            network,
            schedule,
            data.read(batch_ids).to(group.device),
            pred_type=config.TRAINING.PRED_TYPE,
            levels=levels,
            seed=config.EVALUATION.SEED,
            labels=config.TRAINING.NETWORK.NUM_CLASSES is not None,
        )
        found[row] = torch.from_numpy(error.mse)
    return found


def _of_all(own: Tensor, batches: int, group: Group) -> np.ndarray:
    """The errors of all workers, (L, batches x BATCH), in the order of the images."""
    most = -(-batches // group.size)
    filled = own.new_zeros(most, *own.shape[1:])
    filled[: len(own)] = own
    parts = group.gather(filled)  # (size, most, L, BATCH); batch k is k // size of worker k % size
    ordered = parts.transpose(0, 1).flatten(0, 1)[:batches]  # (batches, L, BATCH)
    return ordered.transpose(0, 1).flatten(1).cpu().numpy()
