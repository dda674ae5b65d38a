"""Identity of a configuration, and its words in those of YAML, the network and the schedule."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import TypedDict, cast

import yaml

from ddpm.config.schema import (
    Config,
    ImageGeneration,
    InlineGen,
    NetworkSection,
    allowed,
    height_width,
    is_keras_file,
    is_machine,
    keys_under,
    plain,
    sections_under,
    show,
)


def to_dict(config: Config) -> dict[str, object]:
    """Every key, in nested dicts of YAML's types."""
    return cast(dict[str, object], _to_plain(config))


def _to_plain(value: object) -> object:
    if is_dataclass(value):
        return {each.name: _to_plain(getattr(value, each.name)) for each in fields(value)}
    return plain(value)


def to_yaml(config: Config) -> str:
    """Every key, as a YAML file that loads to the same configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=100)


def flat(config: Config) -> dict[str, object]:
    """Dotted key -> value in YAML's types."""
    return {key: plain(_value(config, key)) for key in keys_under(Config)}


def _value(config: Config, key: str) -> object:
    return reduce(getattr, key.split("."), cast(object, config))


# Values that meant "not given" before the default was null; every earlier run has them written.
_EARLIER_DEFAULTS = {"IMAGE_GENERATION.RESAMPLES": 0}


def identifying(config: Config) -> dict[str, object]:
    """The identity of a run: the keys that differ from their defaults, machine keys left out.

    A key added to the project later, at its default, leaves the identity of older runs as it was.
    """
    return {
        key: plain(_value(config, key))
        for key, field in keys_under(Config).items()
        if not is_machine(field)
        and _value(config, key) not in (field.default, _EARLIER_DEFAULTS.get(key, field.default))
    }


def config_sha256(config: Config) -> str:
    """SHA-256 of the identity, 64 hexadecimal digits."""
    return _sha256(identifying(config))


def run_id(config: Config, data_sha256: str) -> str:
    """8 hexadecimal digits that name a run: configuration and data, nothing of the machine."""
    return _sha256({"config": identifying(config), "data": data_sha256})[:8]


def _sha256(record: Mapping[str, object]) -> str:
    # Canonical JSON: keys sorted, no spaces, floats by their shortest exact form.
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def difference(a: Config, b: Config) -> list[str]:
    """The keys in which two configurations differ, as lines `KEY: a -> b`."""
    before, after = flat(a), flat(b)
    return [
        f"{key}: {show(before[key])} -> {show(after[key])}"
        for key in before
        if before[key] != after[key]
    ]


def image_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of the images trained on."""
    height, width = height_width(config.TRAINING.INPUT_IMAGE_SIZE)
    return config.TRAINING.INPUT_IMAGE_CHANNEL, height, width


class NetworkArguments(TypedDict):
    """The arguments of UNet."""

    image_size: tuple[int, int]
    in_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    has_attention: tuple[bool, ...]
    num_res_blocks: int
    block_size: int
    norm_groups: int
    num_heads: int
    time_emb_dim: int
    dropout: float
    kernel_size: int
    use_cross_attention: bool
    num_classes: int | None
    class_emb_dim: int | None
    checkpoint_activations: bool
    keras_layers: bool


class ScheduleArguments(TypedDict):
    """The arguments of NoiseSchedule."""

    name: str
    num_timesteps: int
    logsnr_shift: float
    zero_terminal_snr: bool
    time_input: str


def network_arguments(config: Config) -> NetworkArguments:
    """The configuration's words as the network's."""
    network = config.TRAINING.NETWORK
    channels, height, width = image_shape(config)
    return NetworkArguments(
        image_size=(height, width),
        in_channels=channels,
        model_channels=network.FIRST_CHANNEL,
        channel_mult=network.CHANNEL_MULTIPLIER,
        has_attention=network.HAS_ATTENTION,
        num_res_blocks=network.NUM_RES_BLOCKS,
        block_size=network.BLOCK_SIZE,
        norm_groups=network.NORM_GROUPS,
        num_heads=network.NUM_HEADS,
        time_emb_dim=network.TIME_EMB_DIM,
        dropout=network.DROPOUT_RATE,
        kernel_size=network.KERNEL_SIZE,
        use_cross_attention=network.USE_CROSS_ATTENTION,
        num_classes=network.NUM_CLASSES,
        class_emb_dim=network.CLASS_EMB_DIM,
        checkpoint_activations=network.CHECKPOINT_ACTIVATIONS,
        keras_layers=_keras_layers(config),
    )


def _keras_layers(config: Config) -> bool:
    """KERAS_LAYERS, or whether the weights to start from are of Keras."""
    training = config.TRAINING
    if training.NETWORK.KERAS_LAYERS is not None:
        return training.NETWORK.KERAS_LAYERS
    return not training.IS_NEW_TRAIN and is_keras_file(training.TRAINED_H5 or "")


def schedule_arguments(config: Config) -> ScheduleArguments:
    """The configuration's words as the noise schedule's."""
    network = config.TRAINING.NETWORK
    of_pred_type = {"edm": "logsnr", "flow": "flow"}.get(config.TRAINING.PRED_TYPE)
    of_time = "timestep" if _keras_layers(config) else of_pred_type or "time"
    is_of_schedule = config.TRAINING.draws_timesteps
    return ScheduleArguments(
        name=network.SCHEDULER,
        num_timesteps=network.TIMESTEPS,
        logsnr_shift=network.LOGSNR_SHIFT,
        zero_terminal_snr=network.ZERO_TERMINAL_SNR,
        time_input=network.TIME_INPUT or (of_time if is_of_schedule else of_pred_type or "logsnr"),
    )


class SamplingSteps(TypedDict, total=False):
    """Steps of sample(), by one of two keys."""

    reverse_stride: int
    num_steps: int


def sampling_steps(section: ImageGeneration | InlineGen, num_timesteps: int) -> SamplingSteps:
    """{"reverse_stride": k} or {"num_steps": n} for sample(); both keys null: min(50, T) steps."""
    if section.REVERSE_STRIDE is not None:
        return {"reverse_stride": section.REVERSE_STRIDE}
    num_steps = section.NUM_STEPS if isinstance(section, ImageGeneration) else None
    return {"num_steps": min(50, num_timesteps) if num_steps is None else num_steps}


def architecture_tag(config: Config) -> str:
    """The network in a few words, a folder's name: `unet32x1-2_attn01_res2_cls10`.

    Base width x multipliers, attention by level, blocks a level; then what is not the default.
    """
    network = config.TRAINING.NETWORK
    words = [
        f"unet{network.FIRST_CHANNEL}x{'-'.join(map(str, network.CHANNEL_MULTIPLIER))}",
        "attn" + "".join(str(int(attends)) for attends in network.HAS_ATTENTION),
        f"res{network.NUM_RES_BLOCKS}",
    ]
    default = NetworkSection()
    for name, word in _TAG_WORDS.items():
        value = getattr(network, name)
        if value != getattr(default, name):
            words.append(word if value is True else f"{word}{value}")
    return "_".join(words)


_TAG_WORDS = {
    "BLOCK_SIZE": "block",
    "NORM_GROUPS": "groups",
    "NUM_HEADS": "heads",
    "TIME_EMB_DIM": "time",
    "DROPOUT_RATE": "drop",
    "KERNEL_SIZE": "kernel",
    "USE_CROSS_ATTENTION": "cross",
    "NUM_CLASSES": "cls",
    "CLASS_EMB_DIM": "clsdim",
    "KERAS_LAYERS": "keras",
}


def generation_problems(config: Config) -> list[str]:
    """Problems of a configuration that draws images, looked at only when images are drawn."""
    generation, channels = config.IMAGE_GENERATION, config.TRAINING.INPUT_IMAGE_CHANNEL
    images = ("EXTERNAL_NPZ_INPUT", "an NPZ file with the base images")
    channel = ("FREEZE_CHANNEL", f"the known channel, from 0 to {channels - 1}")
    needed = {
        "channel_inpaint": (images, channel),
        "inpaint": (images,),
        "sdedit": (images,),
    }
    return [
        f"IMAGE_GENERATION.GEN_TASK is {generation.GEN_TASK} but {name} is null; give {what}"
        for name, what in needed.get(generation.GEN_TASK, ())
        if getattr(generation, name) is None
    ]


def explain() -> str:
    """A Markdown table of every key: type, default, what is allowed, what it means."""
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, field in keys_under(Config).items():
        section, _, name = key.rpartition(".")
        default = "required" if field.is_required() else f"`{show(field.default)}`"
        words = allowed(sections_under(Config)[section], name)
        lines.append(f"| `{key}` | {default} | {words} | {field.description} |")
    return "\n".join(lines) + "\n"
