"""Layers of the U-Net, and their first weights: functions of (seed, parameter name, shape).

Notation: N batch, C channels, H W space, E the width of the conditioning vector `emb` (time plus
class). Papers: Ho et al. 2020 (App. B, the architecture), Vaswani et al. 2017 (sinusoids,
attention), Dhariwal and Nichol 2021.

Every branch that is added to something ends in a layer that starts at exactly zero (ZeroConv2d,
ZeroLinear; v3: variance 1e-10), so each block starts as the identity. Other weights are scaled as
in Ho et al. 2020 and DDPM v3: uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio
2010), biases 0, norms 1 and 0, rows of an embedding standard normal. Normalisation and softmax are
computed in float32 whatever autocast says: group norm by itself here, softmax inside
scaled_dot_product_attention, which accumulates in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.diffusion import philox

Network = TypeVar("Network", bound=nn.Module)

# torch's default. Ho et al. use 1e-6; Keras' 1e-3 visibly damps channels whose variance is small.
GROUP_NORM_EPS, KERAS_GROUP_NORM_EPS = 1e-5, 1e-3
# A mask element is one 16-bit half of a random word, so drop rates are multiples of 1 / 65536.
_HALF = 1 << 16


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero."""

    def reset_parameters(self) -> None:
        _zero(self)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        _zero(self)


@torch.no_grad()
def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()


@torch.no_grad()
def init_weights(network: Network, seed: int) -> Network:
    """Network itself, its weights set to their first values for `seed`.

    A parameter's values depend on (seed, its name in the network, its shape), not on what other
    parameters exist or in which order; so call it on the bare network, before a wrapper (compile,
    data parallel) prefixes the names. Raises ValueError for a layer type it has no rule for.
    """
    for prefix, layer in network.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.is_meta:
                parameter.copy_(
                    _first_value(layer, f"{prefix}.{name}".lstrip("."), parameter, seed)
                )
    return network


def _first_value(layer: nn.Module, name: str, parameter: Tensor, seed: int) -> Tensor:
    is_weight = name.endswith("weight")
    if isinstance(layer, ZeroConv2d | ZeroLinear):
        return torch.zeros_like(parameter)
    if isinstance(layer, nn.GroupNorm):
        return torch.full_like(parameter, float(is_weight))
    if isinstance(layer, nn.Conv2d | nn.Linear):
        if not is_weight:
            return torch.zeros_like(parameter)
        # (out, in) of a matrix, (out, in, height, width) of a kernel
        fans = (parameter.shape[0] + parameter.shape[1]) * parameter.shape[2:].numel()
        return (2 * _drawn(philox.uniform, name, parameter, seed) - 1) * math.sqrt(6 / fans)
    if isinstance(layer, nn.Embedding):
        return _drawn(philox.normal, name, parameter, seed)
    raise ValueError(
        f"no rule for the first value of {name}, a parameter of {type(layer).__name__}"
    )


def _drawn(distribution: Callable[..., Tensor], name: str, parameter: Tensor, seed: int) -> Tensor:
    """Draws in the shape of a parameter, keyed by its name."""
    ids = torch.tensor([philox.name_id(name)], dtype=torch.int64, device=parameter.device)
    return distribution(seed, philox.Stream.INIT, ids, tuple(parameter.shape))[0]


class DropoutKey(NamedTuple):
    """Key of a batch's dropout masks: a seed and an id per sample, int64 (N,)."""

    seed: int
    ids: Tensor


class GroupNorm(nn.GroupNorm):
    """Group normalisation with eps 1e-5: computed in float32 or better, returned in x's dtype."""

    def __init__(self, num_groups: int, num_channels: int) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"norm_groups is {num_groups} but a layer is {num_channels} channels wide; "
                "give a number of groups that divides every width"
            )
        super().__init__(num_groups, num_channels, eps=GROUP_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.group_norm(x.to(dtype), self.num_groups, weight, bias, self.eps).to(x.dtype)


class KeyedDropout(nn.Module):
    """Dropout whose mask is a pure function of (seed, sample id, layer index).

    Element e of a sample's (C, H, W) order is dropped by 16-bit half e % 2 (low half first) of
    random word e // 2 of the stream (seed, DROPOUT, id, step = layer index). So a sample's mask
    does not depend on the batch around it, on workers or micro-batches, and a recomputed forward
    (activation checkpointing) meets the same mask.

    rate in [0, 1), rounded to a multiple of 1 / 65536. index: unlike any other layer's of the
    network (UNet numbers its layers). Nothing is dropped in evaluation mode.
    """

    def __init__(self, rate: float, index: int = 0) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"dropout is {rate}; give a rate in [0, 1)")
        super().__init__()
        self.index = index
        self.num_dropped = min(round(rate * _HALF), _HALF - 1)  # halves of 65536 that drop

    def forward(self, x: Tensor, key: DropoutKey | None) -> Tensor:
        if not self.training or self.num_dropped == 0:
            return x
        if key is None:
            raise ValueError(
                f"dropout is {self.num_dropped / _HALF:g} in training mode but there is no key; "
                "pass DropoutKey(seed, ids), or call network.eval()"
            )
        if key.ids.shape != x.shape[:1]:
            raise ValueError(
                f"dropout_key has ids {tuple(key.ids.shape)} but there are {x.shape[0]} samples; "
                "give one id each"
            )
        scale = _HALF / (_HALF - self.num_dropped)
        has_values = type(key.ids) is Tensor and not torch.compiler.is_compiling()
        draw = dropped_elements if has_values else dropped_operator
        dropped = draw(key.seed, key.ids, self.index, self.num_dropped, x.shape[1:])
        return x.masked_fill(dropped, 0) * scale

    def extra_repr(self) -> str:
        return f"rate={self.num_dropped / _HALF:g}, index={self.index}"


def dropped_elements(
    seed: int, ids: Tensor, index: int, num_dropped: int, shape: Sequence[int]
) -> Tensor:
    """A dropout mask, bool (N, *shape): true where a sample's element is dropped."""
    size = math.prod(shape)
    words = philox.words(seed, philox.Stream.DROPOUT, ids, (size + 1) // 2, step=index)
    halves = words.to(torch.int32).view(torch.int16)[:, :size]  # signed: they start at -32768
    return (halves < num_dropped - _HALF // 2).view(len(ids), *shape)


# One operation, so compilers neither look into the generator nor change it. Called where none is at
# work it would load PyTorch's, which takes seconds.
dropped_operator = torch.library.custom_op(
    "ddpm::dropped_elements",
    dropped_elements,
    mutates_args=(),
    schema="(int seed, Tensor ids, int index, int num_dropped, int[] shape) -> Tensor",
)


@dropped_operator.register_fake
def _(seed: int, ids: Tensor, index: int, num_dropped: int, shape: Sequence[int]) -> Tensor:
    return ids.new_empty((len(ids), *shape), dtype=torch.bool)


def sinusoids(time: Tensor, dim: int, *, rounds_as_keras: bool = False) -> Tensor:
    """The sinusoidal features of time: sines, then cosines, at dim / 2 frequencies, 1 to 1 / 10000.

    feature_k = sin(1000 time 10000^(-k / (dim/2 - 1)))    (Vaswani 2017, the divisor of Ho 2020)

    time: (N,) in [0, 1], any float dtype; the product with 1000 is formed in it, so t / T in
    float64 gives t exactly at T = 1000.  Returns (N, dim) float32. It sees time, not t, so the
    network does not depend on T.  rounds_as_keras: k times the quotient instead of the quotient of
    k, which is the same but for rounding, about 1e-4 in the features.
    """
    steps = torch.arange(dim // 2, dtype=torch.float32, device=time.device)
    last = max(dim // 2 - 1, 1)
    rate = math.log(10_000)
    exponents = rate / last * steps if rounds_as_keras else rate * (steps / last)
    angles = (1000 * time).to(torch.float32)[:, None] * torch.exp(-exponents)  # (N, dim/2)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class TimeEmbedding(nn.Module):
    """The time as a vector, (N,) -> (N, dim): sinusoids, Linear, SiLU, Linear; no autocast."""

    def __init__(self, dim: int, *, rounds_as_keras: bool = False) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"time_emb_dim is {dim}; give a positive even number")
        super().__init__()
        self.dim = dim
        self.rounds_as_keras = rounds_as_keras
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, time: Tensor) -> Tensor:
        with torch.autocast(time.device.type, enabled=False):
            features = sinusoids(time, self.dim, rounds_as_keras=self.rounds_as_keras)
            return self.out(F.silu(self.hidden(features.to(self.hidden.weight.dtype))))


class ClassEmbedding(nn.Module):
    """The label as a vector, (N,) int64 -> (N, out_dim): a row per class, the last for "no class".

    A table of another width than out_dim is projected to it. Never under autocast.
    """

    def __init__(self, num_classes: int, dim: int, out_dim: int) -> None:
        if num_classes < 1 or dim < 1:
            raise ValueError(
                f"num_classes is {num_classes}, class_emb_dim {dim}; both must be positive"
            )
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, dim)
        self.projection = nn.Identity() if dim == out_dim else nn.Linear(dim, out_dim)

    def forward(self, labels: Tensor) -> Tensor:
        with torch.autocast(labels.device.type, enabled=False):
            return self.projection(self.table(labels))


def same_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A padded convolution: H -> ceil(H / stride)."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)


class ResidualBlock(nn.Module):
    """x + f(x, emb), where f = GN, SiLU, conv, + Linear(SiLU(emb)), GN, SiLU, dropout, conv (zero).

    A 1x1 convolution carries x when the width changes. x: (N, C, H, W), emb: (N, E) -> (N,
    out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        *,
        norm_groups: int,
        kernel_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, in_channels)
        self.conv1 = same_conv(in_channels, out_channels, kernel_size)
        self.emb = nn.Linear(emb_dim, out_channels)
        self.norm2 = GroupNorm(norm_groups, out_channels)
        self.dropout = KeyedDropout(dropout)
        self.conv2 = ZeroConv2d(out_channels, out_channels, kernel_size, padding=kernel_size // 2)
        has_new_width = in_channels != out_channels
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if has_new_width else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor, key: DropoutKey | None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.emb(F.silu(emb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h)), key))
        return self.skip(x) + h


class Attention(nn.Module):
    """Multi-head attention of positions to tokens, with an output layer that starts at zero.

    softmax(q k^T / sqrt(width of a head)) v per head, which is C / heads wide, or head_width.
    queries (N, L, C), tokens (N, M, D) -> (N, L, C).
    """

    def __init__(
        self, channels: int, token_dim: int, num_heads: int, head_width: int | None = None
    ) -> None:
        if num_heads < 1 or channels % num_heads:
            raise ValueError(
                f"num_heads is {num_heads} but an attention block is {channels} channels wide; "
                "give a number of heads that divides the width"
            )
        super().__init__()
        self.num_heads = num_heads
        inner = channels if head_width is None else num_heads * head_width
        self.query = nn.Linear(channels, inner)
        self.key_value = nn.Linear(token_dim, 2 * inner)
        self.out = ZeroLinear(inner, channels)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        q, k, v = (self._split(part) for part in (self.query(queries), key, value))
        gathered = F.scaled_dot_product_attention(q, k, v)  # (N, heads, L, head width)
        return self.out(gathered.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(N, L, heads * width) -> (N, heads, L, width)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class AttentionBlock(nn.Module):
    """x + self-attention over positions and, given context_dim, + cross-attention to context.

    x: (N, C, H, W), context: (N, M, context_dim) -> (N, C, H, W).  With one context token the
    cross-attention is a learned projection of it, added everywhere: softmax over one entry is 1.
    head_width: as in Attention.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm_groups: int,
        num_heads: int,
        context_dim: int | None = None,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels)
        self.attention = Attention(channels, channels, num_heads, head_width)
        self.has_cross_attention = context_dim is not None
        if context_dim is not None:
            self.cross_norm = GroupNorm(norm_groups, channels)
            self.cross_attention = Attention(channels, context_dim, num_heads, head_width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        tokens = _tokens(self.norm(x))
        x = x + _image(self.attention(tokens, tokens), x)
        if not self.has_cross_attention:
            return x
        if context is None:
            raise ValueError("this attention block has cross-attention; give it context tokens")
        return x + _image(self.cross_attention(_tokens(self.cross_norm(x)), context), x)


def _tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)"""
    return x.flatten(2).transpose(1, 2)


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    """(N, H*W, C) -> (N, C, H, W)"""
    return tokens.transpose(1, 2).reshape(like.shape)


class Downsample(nn.Module):
    """A convolution of stride 2: (N, C, H, W) -> (N, C, ceil(H/2), ceil(W/2)).

    pads_as_keras: as many zeros as the last window needs and no more, the odd one after the image;
    so where a side is even, windows lie one pixel later than those of symmetric padding.
    """

    def __init__(self, channels: int, kernel_size: int, *, pads_as_keras: bool = False) -> None:
        super().__init__()
        self.conv = same_conv(channels, channels, kernel_size, stride=2)
        self.pads_as_keras = pads_as_keras
        if pads_as_keras:
            self.conv.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self._padded(x) if self.pads_as_keras else x)

    def _padded(self, x: Tensor) -> Tensor:
        kernel = self.conv.kernel_size[0]
        pads = []
        for side in reversed(x.shape[2:]):
            zeros = max((-(-side // 2) - 1) * 2 + kernel - side, 0)
            pads += [zeros // 2, zeros - zeros // 2]
        return F.pad(x, pads)


class Upsample(nn.Module):
    """Nearest neighbours at the skip's (H, W), so odd sizes come back; then a convolution."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = same_conv(channels, channels, kernel_size)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
