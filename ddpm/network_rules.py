"""Rules over the network, the noise schedule and the image size."""

from ddpm.rules import Pair, RuleText, height_width, rule

_NETWORK = "TRAINING.NETWORK."
_SIZE = "TRAINING.INPUT_IMAGE_SIZE"


@rule(_NETWORK + "HAS_ATTENTION", _NETWORK + "CHANNEL_MULTIPLIER")
def attention_per_level(has_attention: tuple[bool, ...], multiplier: tuple[int, ...]) -> RuleText:
    if len(has_attention) == len(multiplier):
        return None
    return (
        f"{_NETWORK}HAS_ATTENTION has {len(has_attention)} entries but CHANNEL_MULTIPLIER has "
        f"{len(multiplier)}; give one true/false per level"
    )


@rule(_NETWORK + "NORM_GROUPS", _NETWORK + "FIRST_CHANNEL")
def groups_divide_widths(groups: int, first: int) -> RuleText:
    # Every width is a multiple of FIRST_CHANNEL, which is the width of the first normalisation.
    if first % groups == 0:
        return None
    return (
        f"{_NETWORK}NORM_GROUPS is {groups} but FIRST_CHANNEL is {first}; "
        "give a number of groups that divides it, and so every width"
    )


@rule(
    _NETWORK + "NUM_HEADS",
    _NETWORK + "FIRST_CHANNEL",
    _NETWORK + "CHANNEL_MULTIPLIER",
    _NETWORK + "HAS_ATTENTION",
)
def heads_divide_widths(
    heads: int, first: int, multiplier: tuple[int, ...], has_attention: tuple[bool, ...]
) -> RuleText:
    widths = [first * m for m, attends in zip(multiplier, has_attention, strict=False) if attends]
    uneven = [width for width in widths if width % heads]
    if not uneven:
        return None
    return (
        f"{_NETWORK}NUM_HEADS is {heads} but the attention is {uneven[0]} channels wide; "
        "give a number of heads that divides every width that attends"
    )


@rule(_NETWORK + "USE_CROSS_ATTENTION", _NETWORK + "HAS_ATTENTION")
def cross_attention_has_a_place(is_used: bool, has_attention: tuple[bool, ...]) -> RuleText:
    if not is_used or any(has_attention):
        return None
    return (
        f"{_NETWORK}USE_CROSS_ATTENTION is true but HAS_ATTENTION is false at every level; "
        "give at least one level attention"
    )


@rule(_NETWORK + "BLOCK_SIZE", _SIZE)
def block_divides_image(block: int, size: int | Pair) -> RuleText:
    height, width = height_width(size)
    if height % block == 0 and width % block == 0:
        return None
    return (
        f"{_NETWORK}BLOCK_SIZE is {block} but images are {height}x{width}; give a divisor of both"
    )


@rule(_SIZE, _NETWORK + "CHANNEL_MULTIPLIER", _NETWORK + "BLOCK_SIZE")
def image_is_large_enough(size: int | Pair, multiplier: tuple[int, ...], block: int) -> RuleText:
    height, width = height_width(size)
    if height % block or width % block:
        return None
    return _too_small(_SIZE, (height, width), multiplier, block)


@rule("IMAGE_GENERATION.NEW_IMAGE_SIZE", _NETWORK + "CHANNEL_MULTIPLIER", _NETWORK + "BLOCK_SIZE")
def new_image_is_large_enough(
    size: int | None, multiplier: tuple[int, ...], block: int
) -> RuleText:
    if size is None:
        return None
    if size % block:
        return (
            f"IMAGE_GENERATION.NEW_IMAGE_SIZE is {size} but {_NETWORK}BLOCK_SIZE is {block}; "
            "give a multiple of it"
        )
    return _too_small("IMAGE_GENERATION.NEW_IMAGE_SIZE", (size, size), multiplier, block)


def _too_small(key: str, size: Pair, multiplier: tuple[int, ...], block: int) -> RuleText:
    least = 2 ** (len(multiplier) - 1) * block
    if min(size) >= least:
        return None
    return (
        f"{key} is {size[0]}x{size[1]} but {len(multiplier)} levels with BLOCK_SIZE {block} need "
        f"at least {least} pixels a side; give fewer levels or larger images"
    )


@rule(_NETWORK + "TIME_EMB_DIM")
def time_embedding_is_even(dim: int) -> RuleText:
    if dim % 2 == 0:
        return None
    return f"{_NETWORK}TIME_EMB_DIM is {dim}; give an even number: half are sines, half cosines"


@rule(_NETWORK + "KERNEL_SIZE")
def kernel_is_odd(size: int) -> RuleText:
    if size % 2:
        return None
    return f"{_NETWORK}KERNEL_SIZE is {size}; give an odd number: an even kernel shifts the image"


@rule(_NETWORK + "TIMESTEPS", _NETWORK + "SCHEDULER", is_impossible=True)
def iddpm_linear_needs_timesteps(timesteps: int, scheduler: str) -> RuleText:
    if scheduler != "iddpm_linear" or timesteps > 20:
        return None
    return (
        f"{_NETWORK}TIMESTEPS is {timesteps} but SCHEDULER iddpm_linear reaches beta >= 1 at 20 or "
        "fewer; give more than 20 timesteps or SCHEDULER linear"
    )


@rule(
    _NETWORK + "ZERO_TERMINAL_SNR",
    "TRAINING.PRED_TYPE",
    "TRAINING.LOSS_SPACE",
    is_impossible=True,
)
def noise_needs_signal(is_zero: bool, pred_type: str, loss_space: str | None) -> RuleText:
    if not is_zero or "noise" not in (pred_type, loss_space or pred_type):
        return None
    key = "PRED_TYPE" if pred_type == "noise" else "LOSS_SPACE"
    return (
        f"TRAINING.{key} is noise but {_NETWORK}ZERO_TERMINAL_SNR is true, where the noise says "
        "nothing about the image at t = T; give velocity or image"
    )


@rule(_NETWORK + "ZERO_TERMINAL_SNR", _NETWORK + "TIMESTEPS", is_impossible=True)
def zero_terminal_snr_needs_two(is_zero: bool, timesteps: int) -> RuleText:
    if not is_zero or timesteps > 1:
        return None
    return (
        f"{_NETWORK}ZERO_TERMINAL_SNR is true but TIMESTEPS is 1: the only timestep would carry no "
        "image; give at least 2"
    )


NETWORK_RULES = (
    attention_per_level,
    groups_divide_widths,
    heads_divide_widths,
    cross_attention_has_a_place,
    block_divides_image,
    image_is_large_enough,
    new_image_is_large_enough,
    time_embedding_is_even,
    kernel_is_odd,
    iddpm_linear_needs_timesteps,
    noise_needs_signal,
    zero_terminal_snr_needs_two,
)
