"""A U-Net as the UNet2DModel of diffusers that computes the same, its schedule as a DDPMScheduler.

Levels, blocks and attention are the same under other names. Three things differ:

- Timesteps there are indices i = 0 ... T - 1, our t = i + 1, and the network is given the index.
  So its "learned" embedding, a table of T rows, holds what ours sees at each: any TIME_INPUT.
- A row is as wide as the first level. Where the sinusoids are wider, the row is i in binary, and
  the two layers after it look the time embedding up: with c_k in {-1, 1}^b the digits of k,

      hidden_k = SiLU(s (c_k . c_i - b + 1)) = s for k = i, and less than 1e-11 else;  s = 32

  and the second layer's column k is the embedding of k over s. Other layers are widened by zeros.
- A label goes into the network, or into the bias of the time embedding, for one class alone.

diffusers itself is not needed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.diffusion.layers import Attention, sinusoids
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import Stage, UNet

_SHARPNESS = 32.0
_LONGEST_LOOKUP = 4096  # it has T^2 weights
_PREDICTIONS = {"noise": "epsilon", "image": "sample", "velocity": "v_prediction"}
_NAMES = (
    (r"^stem", "conv_in"),
    (r"^norm", "conv_norm_out"),
    (r"^head", "conv_out"),
    (r"^encoder\.(\d+)\.down", r"down_blocks.\1.downsamplers.0"),
    (r"^decoder\.(\d+)\.up", r"up_blocks.\1.upsamplers.0"),
    (r"^encoder\.(\d+)\.stages", r"down_blocks.\1"),
    (r"^decoder\.(\d+)\.stages", r"up_blocks.\1"),
    (r"^middle", "mid_block"),
    (r"(\.\d+)\.block\.", r".resnets\1."),
    (r"(\.\d+)\.attention\.", r".attentions\1."),
    (r"\.emb\.", ".time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"attention\.query\.", "to_q."),
    (r"attention\.out\.", "to_out.0."),
)


def unet2d_problems(network: UNet, schedule: NoiseSchedule, pred_type: str) -> list[str]:
    """Reasons why no UNet2DModel and DDPMScheduler do the same, in the words of a configuration."""
    section, levels, steps = "TRAINING.NETWORK", len(network.encoder), schedule.num_timesteps
    (height, width), halvings = network.image_size, 2 ** (levels - 1)
    stem, widths, attentions = network.stem.out_channels, _widths(network), _attentions(network)
    heads = max((each.num_heads for each in attentions), default=1)
    head_widths = sorted({each.query.out_features // each.num_heads for each in attentions})
    digits, dim = (steps - 1).bit_length(), network.time_embedding.dim
    reasons = (
        (
            pred_type not in _PREDICTIONS,
            f"TRAINING.PRED_TYPE is {pred_type}, whose network is given a scaled state; their "
            f"pipelines give the state itself, for {', '.join(_PREDICTIONS)}",
        ),
        (
            network.block_size != 1,
            f"{section}.BLOCK_SIZE is {network.block_size}; UNet2DModel takes single pixels",
        ),
        (
            network.stem.kernel_size != (3, 3),
            f"{section}.KERNEL_SIZE is {network.stem.kernel_size[0]}; that of UNet2DModel is 3",
        ),
        (
            network.use_cross_attention,
            f"{section}.USE_CROSS_ATTENTION is true; UNet2DModel attends to positions alone",
        ),
        (
            stem != widths[0],
            f"{section}.CHANNEL_MULTIPLIER begins with {widths[0] // stem}; the first convolution "
            "of UNet2DModel is as wide as its first level, which is 1",
        ),
        (
            any(each.query.out_features != each.out.out_features for each in attentions),
            f"{section}.NUM_HEADS is {heads} with KERAS_LAYERS, each as wide as the layer; those "
            "of UNet2DModel share its width",
        ),
        (
            heads > 1 and len(head_widths) > 1,
            f"{section}.NUM_HEADS is {heads}, so heads are {' and '.join(map(str, head_widths))} "
            "wide; those of UNet2DModel are of one width at all levels",
        ),
        (
            bool(height % halvings or width % halvings),
            f"TRAINING.INPUT_IMAGE_SIZE is {height}x{width}; UNet2DModel doubles its size on the "
            f"way up, so {levels} levels need multiples of {halvings}",
        ),
        (
            dim > stem and (digits > stem or steps > _LONGEST_LOOKUP),
            f"{section}.TIMESTEPS is {steps} and TIME_EMB_DIM {dim} is over FIRST_CHANNEL {stem}: "
            f"UNet2DModel then knows a timestep by its {digits} binary digits, one in a channel, "
            f"and up to {_LONGEST_LOOKUP:,} timesteps",
        ),
    )
    return [text for is_so, text in reasons if is_so]


def unet2d_config(network: UNet, schedule: NoiseSchedule, label: int | None) -> dict[str, Any]:
    """Configuration of the UNet2DModel of unet2d_weights()."""
    attentions, classes = _attentions(network), network.num_classes
    attends = [stage.attention is not None for stage in _first_stages(network)]
    head_width = None  # None: one head, as wide as its layer
    if any(each.num_heads > 1 for each in attentions):
        head_width = attentions[0].out.out_features // attentions[0].num_heads
    height, width = network.image_size
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": network.in_channels,
        "out_channels": network.in_channels,
        "time_embedding_type": "learned",
        "num_train_timesteps": schedule.num_timesteps,
        "time_embedding_dim": _embedding_width(network, schedule),
        "down_block_types": ["AttnDownBlock2D" if has else "DownBlock2D" for has in attends],
        "up_block_types": ["AttnUpBlock2D" if has else "UpBlock2D" for has in attends[::-1]],
        "add_attention": attends[-1],
        "block_out_channels": _widths(network),
        "layers_per_block": network.num_res_blocks,
        "downsample_padding": 0 if network.keras_layers else 1,  # 0: as Keras pads even sizes
        "dropout": network.dropout,
        "attention_head_dim": head_width,
        "norm_num_groups": network.norm.num_groups,
        "norm_eps": network.norm.eps,
        "num_class_embeds": None if classes is None or label is not None else classes + 1,
    }


@torch.no_grad()
def unet2d_weights(
    network: UNet, schedule: NoiseSchedule, label: int | None = None
) -> dict[str, Tensor]:
    """Weights of the UNet2DModel that predicts for (x_t, t - 1) as network does for x_t.

    label: a class, or num_classes for none, that it always draws; None: it takes labels where
    network does.  The network has none of unet2d_problems() and is on the CPU.
    """
    dim, classes = _embedding_width(network, schedule), network.class_embedding
    tensors = dict(_renamed(network.state_dict()))
    for name in tensors:
        if name.endswith("time_emb_proj.weight"):
            tensors[name] = _to_width(tensors[name], dim)
    tensors |= _time_embedding(network, schedule, dim)
    if classes is not None:
        assert network.num_classes is not None
        vectors = _to_width(classes(torch.arange(network.num_classes + 1)), dim)
        if label is None:
            tensors["class_embedding.weight"] = vectors
        else:
            tensors["time_embedding.linear_2.bias"] += vectors[label]
    layout = torch.contiguous_format
    return {name: each.detach().clone(memory_format=layout) for name, each in tensors.items()}


def scheduler_config(schedule: NoiseSchedule, pred_type: str, *, clips: bool) -> dict[str, Any]:
    """Configuration of the DDPMScheduler, which DDIMScheduler takes too: beta_t = 1 - abar_t /
    abar_(t-1), trailing timesteps, the variance of the posterior.
    """
    abar = schedule.alphas_cumprod
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.num_timesteps,
        "trained_betas": (1 - abar[1:] / abar[:-1]).tolist(),
        "prediction_type": _PREDICTIONS[pred_type],
        "timestep_spacing": "trailing",
        "variance_type": "fixed_small",
        "clip_sample": clips,
    }


def _time_embedding(network: UNet, schedule: NoiseSchedule, dim: int) -> dict[str, Tensor]:
    """The table, whose rows are timesteps 1 to T, and the two layers after it."""
    ours, room = network.time_embedding, network.stem.out_channels
    steps = torch.arange(1, schedule.num_timesteps + 1)
    time = schedule.network_time(steps.double() / len(steps), schedule.logsnr_at(steps)).float()
    if ours.dim <= room:
        table = sinusoids(time, ours.dim, rounds_as_keras=ours.rounds_as_keras)
        first, first_bias = ours.hidden.weight.data, ours.hidden.bias.data
        last, last_bias = ours.out.weight.data, ours.out.bias.data
    else:
        digits = (len(steps) - 1).bit_length()
        table = (2 * ((steps[:, None] - 1) >> torch.arange(digits) & 1) - 1).float()  # (T, digits)
        # not F.pad, which refuses the table of T = 1, without digits, before PyTorch 2.7 or so
        first = _SHARPNESS * torch.cat([table, table.new_zeros(dim - len(steps), digits)])
        first_bias = first.new_full((dim,), _SHARPNESS * (1 - digits))
        last = F.pad(ours(time).T / _SHARPNESS, (0, 0, 0, dim - ours.dim))  # (dim, T)
        last, last_bias = _to_width(last, dim), first.new_zeros(dim)
    return {
        "time_proj.weight": _to_width(table, room),
        "time_embedding.linear_1.weight": _to_width(first, room),
        "time_embedding.linear_1.bias": first_bias,
        "time_embedding.linear_2.weight": last,
        "time_embedding.linear_2.bias": last_bias.clone(),
    }


def _embedding_width(network: UNet, schedule: NoiseSchedule) -> int:
    dim = network.time_embedding.dim
    return dim if dim <= network.stem.out_channels else max(dim, schedule.num_timesteps)


def _to_width(rows: Tensor, width: int) -> Tensor:
    """(N, D) -> (N, width), with zeros."""
    return F.pad(rows, (0, width - rows.shape[1]))


def _widths(network: UNet) -> list[int]:
    return [stage.block.conv1.out_channels for stage in _first_stages(network)]


def _first_stages(network: UNet) -> list[Stage]:
    """The first of each level, fine to coarse."""
    levels = ((m for m in level.modules() if isinstance(m, Stage)) for level in network.encoder)
    return [next(stages) for stages in levels]


def _attentions(network: UNet) -> list[Attention]:
    return [layer for layer in network.modules() if isinstance(layer, Attention)]


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Their names and weights of all layers but the embeddings of time and class."""
    for name, tensor in state.items():
        if name.startswith(("time_embedding.", "class_embedding.")):
            continue
        for pattern, theirs in _NAMES:
            name = re.sub(pattern, theirs, name)
        if "attention.key_value." in name:
            for part, half in zip(("to_k.", "to_v."), tensor.chunk(2), strict=True):
                yield name.replace("attention.key_value.", part), half
        else:
            yield name, tensor
