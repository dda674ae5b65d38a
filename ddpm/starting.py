"""What a training starts from: its data, the network with its first weights, the schedule."""

from pathlib import Path

from torch import nn

from ddpm import config as configuration
from ddpm import shards
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.errors import InputError
from ddpm.loaded import load_network, misfits
from ddpm.schedule import NoiseSchedule
from ddpm.unet import UNet, init_weights


def open_data(config: Config, data_dir: Path) -> Dataset:
    """The packed shards in data_dir as this configuration reads them; InputError with all that does
    not fit.
    """
    index = shards.open_index(data_dir)
    problems = shards.check(config, index)
    if problems:
        raise InputError(problems)
    return Dataset(
        index,
        config.DATASET,
        configuration.image_shape(config),
        seed=config.TRAINING.SEED,
        cache=config.DATASET.CACHE == "memory",
    )


def build(config: Config) -> tuple[UNet, NoiseSchedule]:
    """The network with its keyed initial weights (or those TRAINED_H5 names) and the noise
    schedule.
    """
    network = UNet(**configuration.network_arguments(config))
    init_weights(network, config.TRAINING.SEED)
    if not config.TRAINING.IS_NEW_TRAIN:
        _start_from(network, config.TRAINING.TRAINED_H5 or "")
    return network, NoiseSchedule(**configuration.schedule_arguments(config))


def start_problems(config: Config) -> list[str]:
    """Why the weights of TRAINED_H5 cannot be started from; loads them where they are wanted.

    Raises StorageError where they are damaged, or the configuration they go with was edited.
    """
    if config.TRAINING.IS_NEW_TRAIN:
        return []
    try:
        build(config)
    except InputError as error:
        return list(error.problems)
    return []


def _start_from(network: nn.Module, source: str) -> None:
    """The weights of the run or checkpoint `source` put into the network; InputError when they do
    not fit.
    """
    try:
        weights = load_network(Path(source)).network.state_dict()
    except InputError as error:
        raise InputError([f"TRAINING.TRAINED_H5: {line}" for line in error.problems]) from error
    if unlike := misfits(network, weights):
        raise InputError(
            f"TRAINING.TRAINED_H5 is {source!r}, a network of another architecture: "
            f"{len(unlike)} parameters differ, {unlike[0]} first; "
            "give TRAINING.NETWORK the keys of that run's training_config.yaml"
        )
    network.load_state_dict(weights)
