"""The two halves of the U-Net: levels of one resolution, made of stages, and their wiring.

Widths are worked out here once, by the same walk that the forward pass takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.layers import AttentionBlock, Downsample, DropoutKey, ResidualBlock, Upsample


class Condition(NamedTuple):
    """What every block sees besides its input. emb: (N, E), context: (N, M, E) or None."""

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
        """What each stage made, then what went down: all of them skips, the last the way on."""
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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What all blocks of a network share, and the parts made of it."""

    emb_dim: int
    norm_groups: int
    num_heads: int
    kernel_size: int
    dropout: float
    context_dim: int | None
    checkpoint_activations: bool

    def stage(self, in_width: int, out_width: int, has_attention: bool) -> Stage:
        block = ResidualBlock(
            in_width,
            out_width,
            self.emb_dim,
            norm_groups=self.norm_groups,
            kernel_size=self.kernel_size,
            dropout=self.dropout,
        )
        attention = None
        if has_attention:
            attention = AttentionBlock(
                out_width,
                norm_groups=self.norm_groups,
                num_heads=self.num_heads,
                context_dim=self.context_dim,
            )
        return Stage(block, attention, self.checkpoint_activations)


def encoder_levels(
    parts: Parts, width: int, widths: Sequence[int], has_attention: Sequence[bool], num_blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """The levels, fine to coarse, and the widths of the skips in order, the stem's first."""
    levels = nn.ModuleList()
    skip_widths = [width]
    for index, out_width in enumerate(widths):
        in_widths = [width] + [out_width] * (num_blocks - 1)
        stages = [parts.stage(in_width, out_width, has_attention[index]) for in_width in in_widths]
        is_coarsest = index == len(widths) - 1
        levels.append(
            EncoderLevel(stages, None if is_coarsest else Downsample(out_width, parts.kernel_size))
        )
        skip_widths += [out_width] * (num_blocks if is_coarsest else num_blocks + 1)
        width = out_width
    return levels, skip_widths


def decoder_levels(
    parts: Parts,
    skip_widths: Sequence[int],
    widths: Sequence[int],
    has_attention: Sequence[bool],
    num_blocks: int,
) -> nn.ModuleList:
    """The levels from coarse to fine; their stages take the skips last to first."""
    levels = nn.ModuleList()
    waiting = list(skip_widths)
    width = widths[-1]
    for index in reversed(range(len(widths))):
        out_width = widths[index]
        in_widths = [width] + [out_width] * num_blocks
        stages = [
            parts.stage(in_width + waiting.pop(), out_width, has_attention[index])
            for in_width in in_widths
        ]
        levels.append(
            DecoderLevel(stages, Upsample(out_width, parts.kernel_size) if index else None)
        )
        width = out_width
    return levels
