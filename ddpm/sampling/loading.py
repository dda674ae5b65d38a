"""Trained networks read back from a run or one checkpoint; the network and the schedule that a
training starts with.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.diffusion import (
    LogSnrDensity,
    NoiseSchedule,
    UNet,
    init_weights,
    power_ema_name,
    weights_from_keras,
)
from ddpm.distributed import best_device
from ddpm.errors import InputError
from ddpm.runs import CONFIG_FILE, averages, checkpoint, load_run, read_keras, refuse_edited
from ddpm.sampling.request import RAW_WEIGHTS, Ema, PowerEma, locate_run, weights_name

T = TypeVar("T", bound=nn.Module)
LEAST_EFFECTIVE = 0.02  # of the draws, where losses are weighed
LEAST_INSIDE = 0.5  # of a training's noise levels, between the ends of its schedule
_EMA = re.compile(r"ema-(.+)\.safetensors")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network in eval mode with one set of its trained weights, and all it was trained with.

    name: which weights, "ema-0.999", "power-0.07" or "model".  folder: the checkpoint.
    sha256: of their file in it, or of all that they were made from.
    """

    network: UNet
    schedule: NoiseSchedule
    config: Config
    step: int
    name: str
    sha256: str
    folder: Path

    @property
    def ema_network(self) -> UNet:
        """The network images are drawn from."""
        return self.network

    @property
    def pred_type(self) -> str:
        return self.config.TRAINING.PRED_TYPE

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) it was trained on."""
        return configuration.image_shape(self.config)


def load_network(
    source: Path, ema: Ema | None = None, *, device: torch.device | None = None
) -> LoadedModel:
    """The network of a run's last checkpoint, or of the checkpoint `source` itself.

    ema: the decay of the averaged weights; None is the run's first, 0 the weights unaveraged. A
    PowerEma is made from the run's snapshots up to the checkpoint.
    device: None is the GPU where there is one. Raises InputError when `source` is no such thing,
    StorageError when the run's configuration was edited or no checkpoint is intact.
    """
    run, folder = locate_run(source)
    config = load_run(run)
    name = weights_name(config, ema)
    tracked = config.TRAINING.EMA_POWER if isinstance(ema, PowerEma) else ()
    parts = (RAW_WEIGHTS, name, *map(power_ema_name, tracked))
    if folder is None:
        found = checkpoint.latest(run / "checkpoints", parts=parts, set_aside=False)
    else:
        found = checkpoint.load(folder, parts)
    if found is None:
        raise InputError(f"{run} has no checkpoint yet; train it first, or name another run")
    refuse_edited(run, config, found.manifest)
    if isinstance(ema, PowerEma):
        averaged = averages.averaged(run, config, found, ema.sigma_rel)
        sha256 = averages.identity(run, config, found, ema.sigma_rel)
    elif name in found.tensors:
        averaged = found.tensors[name]
        sha256 = found.manifest["files"][f"{name}.safetensors"]["sha256"]
    else:
        there = sorted(match[1] for match in map(_EMA.fullmatch, found.manifest["files"]) if match)
        raise InputError(
            f"{found.folder} has no {name}; it has the EMA decays {', '.join(there) or 'none'}"
        )
    network = UNet(**configuration.network_arguments(config))
    weights = found.tensors[RAW_WEIGHTS] | averaged
    if unlike := misfits(network, weights):
        raise InputError(
            f"{found.folder} holds a network of another architecture than {run / CONFIG_FILE}: "
            f"{len(unlike)} parameters differ, {unlike[0]} first; name a checkpoint of that run"
        )
    network.load_state_dict(weights)
    process, sigma_data = configuration.schedule_arguments(config), found.state.get("sigma_data")
    return LoadedModel(
        network=for_drawing(network.to(device or best_device())),
        schedule=NoiseSchedule(**process, sigma_data=sigma_data),
        config=config,
        step=found.step,
        name=name,
        sha256=sha256,
        folder=found.folder,
    )


def for_drawing(network: T) -> T:
    """The network in eval mode, its weights in the order that convolutions are fastest with: the
    channels of a pixel side by side. It may differ in the last bits from the order it trains with.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


def misfits(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters that the network or the weights lack, or that differ in shape."""
    own = network.state_dict()
    return sorted(
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )


def build_network(config: Config) -> tuple[UNet, NoiseSchedule]:
    """The network with its keyed initial weights (or those TRAINED_H5 names) and the noise
    schedule.
    """
    network = UNet(**configuration.network_arguments(config))
    init_weights(network, config.TRAINING.SEED)
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    if not config.TRAINING.IS_NEW_TRAIN:
        training = config.TRAINING
        _start_from(network, schedule, training.PRED_TYPE, training.TRAINED_H5 or "")
    return network, schedule


def start_problems(config: Config) -> list[str]:
    """Reasons why a training cannot start: its density, and TRAINED_H5, whose weights are loaded
    where they are wanted.

    Raises StorageError where they are damaged, or the configuration they go with was edited.
    """
    found = density_problems(config)
    if config.TRAINING.IS_NEW_TRAIN:
        return found
    try:
        build_network(config)
    except InputError as error:
        found += error.problems
    return found


def density_problems(config: Config) -> list[str]:
    """A line where most of LOGSNR_DENSITY lies beyond the ends of the schedule, where no image is
    drawn, and one where losses WEIGHTED_AS another density have next to no draws.
    """
    training = config.TRAINING
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    drawn, found = training.LOGSNR_DENSITY, []
    levels: NoiseSchedule | LogSnrDensity = schedule
    if not training.draws_timesteps:
        low, high = schedule.logsnr_range
        named = f"TRAINING.LOGSNR_DENSITY is {drawn}"
        try:
            levels = LogSnrDensity(drawn, training.DENSITY_PARAMETERS)
        except ValueError as reason:
            return [f"{named} but {reason}; give other TRAINING.DENSITY_PARAMETERS"]
        if (inside := levels.mass(low, high)) < LEAST_INSIDE:
            found.append(
                f"{named} but only {inside:.0%} of it lies between log SNR {low:.1f} and "
                f"{high:.1f}, all that TRAINING.NETWORK.SCHEDULER {training.NETWORK.SCHEDULER} "
                "passes through; give other TRAINING.DENSITY_PARAMETERS, or another SCHEDULER or "
                "LOGSNR_SHIFT"
            )
    if training.WEIGHTED_AS is not None:
        named = f"TRAINING.WEIGHTED_AS is {training.WEIGHTED_AS}"
        logsnr = levels.logsnr_at(torch.arange(1, levels.num_timesteps + 1))
        try:
            weights = LogSnrDensity(training.WEIGHTED_AS).weights_of(logsnr)
        except ValueError as reason:
            return [*found, f"{named} but {reason}; give null, or another LOGSNR_DENSITY"]
        # Kish's effective number of draws, over all
        if (effective := 1 / float(weights.square().mean())) < LEAST_EFFECTIVE:
            found.append(
                f"{named} but LOGSNR_DENSITY {drawn} draws so rarely where that has its mass that "
                f"a batch would be worth {effective:.1%} of its images; give null, or a "
                "LOGSNR_DENSITY that is wider than it"
            )
    return found


def _start_from(network: UNet, schedule: NoiseSchedule, pred_type: str, source: str) -> None:
    """Weights of the run, checkpoint or Keras file `source` put into the network; InputError when
    they do not fit.
    """
    try:
        if configuration.is_keras_file(source):
            if pred_type in ("edm", "flow"):
                raise InputError(
                    f"{source} is a network of DDPM v3, which did not predict {pred_type}; give "
                    "TRAINING.PRED_TYPE noise, image or velocity"
                )
            layers, _ = read_keras(Path(source))
            network.load_state_dict(weights_from_keras(network, layers))
            return
        model = load_network(Path(source))
    except InputError as error:
        raise InputError([f"TRAINING.TRAINED_H5: {line}" for line in error.problems]) from error
    if model.schedule.time_input != schedule.time_input:
        raise InputError(
            f"TRAINING.TRAINED_H5 is {source!r}, whose network sees {model.schedule.time_input}, "
            f"but here it is {schedule.time_input}; give TRAINING.NETWORK.TIME_INPUT "
            f"{model.schedule.time_input}"
        )
    if model.network.keras_layers != network.keras_layers:
        raise InputError(
            f"TRAINING.TRAINED_H5 is {source!r}, whose TRAINING.NETWORK.KERAS_LAYERS is "
            f"{str(model.network.keras_layers).lower()}; give the same"
        )
    if (kind := model.pred_type) != pred_type and {kind, pred_type} & {"edm", "flow"}:
        raise InputError(
            f"TRAINING.TRAINED_H5 is {source!r}, whose TRAINING.PRED_TYPE is {kind}, but here it "
            f"is {pred_type}, and the two see their states on other scales; give PRED_TYPE {kind}"
        )
    weights = model.network.state_dict()
    if unlike := misfits(network, weights):
        raise InputError(
            f"TRAINING.TRAINED_H5 is {source!r}, a network of another architecture: "
            f"{len(unlike)} parameters differ, {unlike[0]} first; "
            "give TRAINING.NETWORK the keys of that run's training_config.yaml"
        )
    network.load_state_dict(weights)
