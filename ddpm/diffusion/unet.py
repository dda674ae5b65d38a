"""The U-Net of DDPM v3: sees a noisy image, the time in [0, 1] and a label; predicts each pixel.

One level per entry of channel_mult, each at half the resolution of the one before:

    stem - [blocks, down] - [blocks, down] - ... - [blocks] - middle - [blocks, up] - ... - [blocks]
    - head

The stem, every encoder block and every down-sampling leave one skip; each decoder block
concatenates one of them. The widths are worked out once, in the constructor, by the same walk;
nothing is inferred from shapes while running. The middle has attention when the deepest level has.
Ho et al. 2020, App. B; Ronneberger et al. 2015.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.diffusion.layers import (
    KERAS_GROUP_NORM_EPS,
    AttentionBlock,
    ClassEmbedding,
    Downsample,
    DropoutKey,
    GroupNorm,
    KeyedDropout,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    ZeroConv2d,
    init_weights,
    same_conv,
)


class Condition(NamedTuple):
    """Input of every block besides the image. emb: (N, E), context: (N, M, E) or None."""

    emb: Tensor
    context: Tensor | None
    key: DropoutKey | None


class Stage(nn.Module):
    """A residual block and, where the level has it, attention: what skips and checkpoints.

    With checkpoint_activations only its inputs are kept; the inside is computed again in the
    backward pass. The dropout masks are functions of the key, so no random state has to be kept.
    """

    def __init__(
        self, block: ResidualBlock, attention: AttentionBlock | None, checkpoint_activations: bool
    ) -> None:
        super().__init__()
        self.block = block
        self.attention = attention
        self.checkpoint_activations = checkpoint_activations

    def forward(self, h: Tensor, skip: Tensor | None, condition: Condition) -> Tensor:
        if not (self.checkpoint_activations and torch.is_grad_enabled()):
            return self._compute(h, skip, condition)
        return checkpoint(
            self._compute, h, skip, condition, use_reentrant=False, preserve_rng_state=False
        )

    def _compute(self, h: Tensor, skip: Tensor | None, condition: Condition) -> Tensor:
        if skip is not None:
            h = torch.cat((h, skip), dim=1)  # (N, C_h + C_skip, H, W)
        h = self.block(h, condition.emb, condition.key)
        return h if self.attention is None else self.attention(h, condition.context)


class EncoderLevel(nn.Module):
    """Stages one after the other, then down to the next resolution unless it is the coarsest."""

    def __init__(self, stages: Sequence[Stage], down: Downsample | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.down = down

    def forward(self, h: Tensor, condition: Condition) -> list[Tensor]:
        """Outputs of the stages, then of the way down: all of them skips, the last the way on."""
        made = []
        for stage in self.stages:
            h = stage(h, None, condition)
            made.append(h)
        return made if self.down is None else [*made, self.down(h)]


class DecoderLevel(nn.Module):
    """Stages that take one skip each, then up to the next resolution unless it is the finest."""

    def __init__(self, stages: Sequence[Stage], up: Upsample | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.up = up

    def forward(
        self, h: Tensor, skips: Sequence[Tensor], condition: Condition, size: torch.Size
    ) -> Tensor:
        """h after the stages, at `size` (H, W) where the level goes up."""
        for stage, skip in zip(self.stages, skips, strict=True):
            h = stage(h, skip, condition)
        return h if self.up is None else self.up(h, size)


class UNet(nn.Module):
    """network(x, time, labels) -> (N, C, H, W): the prediction for noisy x at a time in [0, 1].

    image_size: H = W, or (H, W). Any other size that block_size divides runs too, odd ones as well.
    model_channels: the width of the stem; level i has model_channels * channel_mult[i] channels.
    has_attention: one per level.  num_res_blocks: per level, one more in the decoder.
    block_size: space-to-depth factor around the whole network; norm_groups must divide every width,
    num_heads every width that has attention.  dropout in [0, 1), keyed (layers.KeyedDropout).
    use_cross_attention: attention blocks also attend to the time and class embeddings as tokens.
    num_classes: labels are 0 .. num_classes - 1 and null_label = num_classes stands for "no class";
    None: no labels.
    class_emb_dim: the width of the class table; None is time_emb_dim, others are projected to it.
    checkpoint_activations: less memory, one more forward pass (Stage).
    keras_layers: layers as Keras' defaults are in DDPM v3: eps 1e-3 in the group norm, attention
    heads as wide as the whole layer, Downsample's other padding, sinusoids' other rounding. For
    weights trained there.

    The weights of a new network are init_weights(network, seed=0). Raises ValueError, naming both
    numbers, where two arguments contradict each other.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        in_channels: int,
        model_channels: int,
        channel_mult: Sequence[int],
        has_attention: Sequence[bool],
        num_res_blocks: int = 2,
        *,
        block_size: int = 1,
        norm_groups: int = 8,
        num_heads: int = 1,
        time_emb_dim: int = 128,
        dropout: float = 0.0,
        kernel_size: int = 3,
        use_cross_attention: bool = False,
        num_classes: int | None = None,
        class_emb_dim: int | None = None,
        checkpoint_activations: bool = False,
        keras_layers: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        _check(
            (height, width),
            block_size,
            kernel_size,
            channel_mult,
            has_attention,
            in_channels=in_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
        )
        self.image_size = (height, width)
        self.in_channels = in_channels
        self.block_size = block_size
        self.num_classes = num_classes
        self.null_label = num_classes
        self.dropout = dropout
        self.num_res_blocks = num_res_blocks
        self.use_cross_attention = use_cross_attention
        self.keras_layers = keras_layers

        def stage(in_width: int, out_width: int, attends: bool) -> Stage:
            block = ResidualBlock(
                in_width,
                out_width,
                time_emb_dim,
                norm_groups=norm_groups,
                kernel_size=kernel_size,
                dropout=dropout,
            )
            attention = None
            if attends:
                context_dim = time_emb_dim if use_cross_attention else None
                attention = AttentionBlock(
                    out_width,
                    norm_groups=norm_groups,
                    num_heads=num_heads,
                    context_dim=context_dim,
                    head_width=out_width if keras_layers else None,
                )
            return Stage(block, attention, checkpoint_activations)

        widths = [model_channels * multiplier for multiplier in channel_mult]
        coarsest = len(widths) - 1
        pixel_channels = in_channels * block_size**2
        self.time_embedding = TimeEmbedding(time_emb_dim, rounds_as_keras=keras_layers)
        self.class_embedding = None
        if num_classes is not None:
            class_dim = time_emb_dim if class_emb_dim is None else class_emb_dim
            self.class_embedding = ClassEmbedding(num_classes, class_dim, time_emb_dim)
        self.stem = same_conv(pixel_channels, model_channels, kernel_size)

        self.encoder = nn.ModuleList()
        skips = [model_channels]  # widths of the skips in order, the stem's first
        for level, out_width in enumerate(widths):
            in_widths = [skips[-1]] + [out_width] * (num_res_blocks - 1)
            stages = [stage(in_width, out_width, has_attention[level]) for in_width in in_widths]
            down = None
            if level < coarsest:
                down = Downsample(out_width, kernel_size, pads_as_keras=keras_layers)
            self.encoder.append(EncoderLevel(stages, down))
            skips += [out_width] * (num_res_blocks + (level < coarsest))

        self.middle = nn.ModuleList(
            stage(widths[-1], widths[-1], attends) for attends in (has_attention[-1], False)
        )
        self.decoder = nn.ModuleList()  # from coarse to fine; its stages take the skips last first
        width = widths[-1]
        for level in reversed(range(len(widths))):
            out_width = widths[level]
            in_widths = [width] + [out_width] * num_res_blocks
            stages = [
                stage(in_width + skips.pop(), out_width, has_attention[level])
                for in_width in in_widths
            ]
            up = Upsample(out_width, kernel_size) if level else None
            self.decoder.append(DecoderLevel(stages, up))
            width = out_width

        self.norm = GroupNorm(norm_groups, widths[0])
        self.head = ZeroConv2d(widths[0], pixel_channels, kernel_size, padding=kernel_size // 2)
        dropouts = (layer for layer in self.modules() if isinstance(layer, KeyedDropout))
        for index, layer in enumerate(dropouts):  # each its own stream of masks
            layer.index = index
        for norm in (layer for layer in self.modules() if isinstance(layer, GroupNorm)):
            norm.eps = KERAS_GROUP_NORM_EPS if keras_layers else norm.eps
        init_weights(self, seed=0)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        labels: Tensor | None = None,
        dropout_key: DropoutKey | None = None,
    ) -> Tensor:
        """The prediction for x, in its shape and dtype.

        x: (N, C, H, W).  time: (N,) float in [0, 1].  labels: (N,) int64; None: all null_label.
        dropout_key: needed in training mode when dropout > 0, unused otherwise.
        """
        self._check_input(x, time)
        tokens = self._condition(time, labels)
        emb = torch.stack(tokens).sum(dim=0)  # (N, E)
        context = torch.stack(tokens, dim=1) if self.use_cross_attention else None  # (N, M, E)
        condition = Condition(emb, context, dropout_key)

        h = self.stem(F.pixel_unshuffle(x.to(self.stem.weight.dtype), self.block_size))
        skips = [h]
        for level in self.encoder:
            skips += level(skips[-1], condition)
        h = skips[-1]
        for stage in self.middle:
            h = stage(h, None, condition)
        for level in self.decoder:
            own = [skips.pop() for _ in range(self.num_res_blocks + 1)]
            h = level(h, own, condition, skips[-1].shape[-2:] if skips else h.shape[-2:])
        h = self.head(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.block_size).to(x.dtype)

    def _condition(self, time: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The conditioning vectors, (N, E) each: of the time and, if any, of the class."""
        embedded = self.time_embedding(time)
        if self.class_embedding is None:
            if labels is not None:
                raise ValueError(
                    "labels were given but num_classes is None; pass no labels, or set num_classes"
                )
            return [embedded]
        if labels is None:
            assert self.null_label is not None
            labels = torch.full(time.shape, self.null_label, dtype=torch.int64, device=time.device)
        else:
            self._check_labels(labels)
        return [embedded, self.class_embedding(labels)]

    def _check_input(self, x: Tensor, time: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}; give (N, {self.in_channels}, H, W)")
        if time.shape != x.shape[:1]:
            raise ValueError(
                f"time has shape {tuple(time.shape)} but there are {x.shape[0]} images"
            )
        if x.shape[2] % self.block_size or x.shape[3] % self.block_size:
            raise ValueError(
                f"x is {x.shape[2]}x{x.shape[3]} but block_size is {self.block_size}; "
                "give a height and width that it divides"
            )

    def _check_labels(self, labels: Tensor) -> None:
        """On the CPU alone: elsewhere a look would wait for the device, and the lookup checks."""
        assert self.num_classes is not None
        if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
            return
        low, high = labels.aminmax()
        if low < 0 or high > self.num_classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"label {int(wrong)} with num_classes {self.num_classes}; "
                f"labels are 0 to {self.num_classes - 1}, or {self.num_classes} for no class"
            )


def _check(
    image_size: tuple[int, int],
    block_size: int,
    kernel_size: int,
    channel_mult: Sequence[int],
    has_attention: Sequence[bool],
    **positive: int,
) -> None:
    """Raises ValueError where arguments of UNet contradict each other."""
    if block_size < 1 or any(side < 1 or side % block_size for side in image_size):
        raise ValueError(
            f"block_size is {block_size} but the image is {image_size[0]}x{image_size[1]}; "
            "give a block size that divides its height and width"
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size is {kernel_size}; give an odd number, so that sizes are kept"
        )
    if not channel_mult or min(channel_mult) < 1:
        raise ValueError(
            f"channel_mult is {list(channel_mult)}; give a positive multiplier per level"
        )
    if len(has_attention) != len(channel_mult):
        raise ValueError(
            f"has_attention has {len(has_attention)} entries but "
            f"channel_mult has {len(channel_mult)}; "
            "give one true/false per level"
        )
    for name, number in positive.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; give at least 1")
