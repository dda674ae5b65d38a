"""Cost of a network: parameters, arithmetic and activation memory, by part, without running it.

The network is traced on fake tensors (shapes and dtypes, no numbers), so a large one is as quick
as a small one. FLOPs are those of one forward pass of one image: matrix products,
convolutions and attention, a multiply-add as two; normalisations and the like are left out, as is
usual. A training step takes about three times as many, four with activation checkpointing.
Activation bytes are what autograd keeps until the backward pass, each storage once: of three images
less those of two, so that what does not grow with the batch (weights, their half-precision copies)
stays out. Called under autocast, summarize_network() counts what mixed precision keeps.

Fake tensors and not the meta device, which has neither autocast nor the CPU's attention: there a
softmax is kept whole, which no device of ours keeps.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ddpm.diffusion.layers import DropoutKey
from ddpm.diffusion.unet import Stage


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """One part of a network: its name, parameters, FLOPs and activation bytes for one image."""

    name: str
    parameters: int
    flops: int
    activation_bytes: int


_DECIMAL, _BINARY = ("", " K", " M", " G", " T"), (" B", " KiB", " MiB", " GiB", " TiB")


@dataclass(frozen=True, kw_only=True)
class NetworkSummary:
    """Cost of a network per image; str() is a table of its parts."""

    image_shape: tuple[int, int, int]
    parameters: int
    flops_per_image: int
    activation_bytes_per_image: int
    parts: tuple[PartCost, ...]

    @property
    def line(self) -> str:
        """The totals."""
        flops = _scaled(self.flops_per_image, 1000, _DECIMAL)
        size = _scaled(self.activation_bytes_per_image, 1024, _BINARY)
        return f"{self.parameters:,} parameters; {flops} FLOPs and {size} of activations an image"

    def __str__(self) -> str:
        total = ("total", self.parameters, self.flops_per_image, self.activation_bytes_per_image)
        parts = ((p.name, p.parameters, p.flops, p.activation_bytes) for p in self.parts)
        rows = [
            (
                name,
                f"{parameters:,}",
                _scaled(flops, 1000, _DECIMAL),
                _scaled(size, 1024, _BINARY),
            )
            for name, parameters, flops, size in (*parts, total)
        ]
        rows = [("part", "parameters", "FLOPs", "activations"), *rows]
        name_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [
            "  ".join((name.ljust(name_width), *map(str.rjust, cells, widths)))
            for name, *cells in rows
        ]
        rule = "-" * len(lines[0])
        size = "x".join(map(str, self.image_shape))
        return "\n".join((f"one image of {size}", lines[0], rule, *lines[1:-1], rule, lines[-1]))


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while number >= base and power < len(units) - 1:
        number /= base
        power += 1
    return f"{number:.{2 if power else 0}f}{units[power]}"


class _Kept(NamedTuple):
    """A tensor whose storage lives until the backward pass, and the module that kept it."""

    module: str
    tensor: Tensor

    @property
    def storage(self) -> int:
        """Tells storages apart, as long as the tensor lives."""
        return self.tensor.untyped_storage()._cdata

    @property
    def num_bytes(self) -> int:
        return self.tensor.untyped_storage().nbytes()


def summarize_network(network: nn.Module, image_shape: tuple[int, int, int]) -> NetworkSummary:
    """The cost of a U-Net for one image of `image_shape` (C, H, W).

    With checkpoint_activations the bytes are those of the blocks' inputs, of what lies between the
    blocks, and of the inside of the largest block, which exists while it is computed again.
    """
    parts: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            parts |= {f"{name}.{number}": part for number, part in enumerate(child)}
        else:
            parts[name] = child
    flops, less = _traced(network, image_shape, parts, num_images=2)
    _, more = _traced(network, image_shape, parts, num_images=3)
    costs = [
        PartCost(
            name=name,
            parameters=sum(p.numel() for p in parts[name].parameters()) if name in parts else 0,
            flops=flops.get(name, 0) // 2,
            activation_bytes=more[name] - less[name],
        )
        for name in dict.fromkeys((*parts, *more))
    ]
    return NetworkSummary(
        image_shape=image_shape,
        parameters=sum(p.numel() for p in network.parameters()),
        flops_per_image=flops[""] // 2,
        activation_bytes_per_image=sum(cost.activation_bytes for cost in costs),
        parts=tuple(costs),
    )


def _traced(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    parts: dict[str, nn.Module],
    num_images: int,
) -> tuple[dict[str, int], Counter[str]]:
    """FLOPs by module ("" is the network) and bytes kept by part, of a forward pass that trains.

    A storage counts where it was kept first.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    root = type(network).__name__
    saved: list[_Kept] = []
    stage_inputs: list[_Kept] = []
    stages = {name: each for name, each in network.named_modules() if isinstance(each, Stage)}

    def module() -> str:
        return max(counter.mod_tracker.parents, key=len).removeprefix(f"{root}.")

    def keep(tensor: Tensor) -> Tensor:
        saved.append(_Kept(module(), tensor))
        return tensor

    def enter(stage: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        stage_inputs.extend(_Kept(names[stage], tensor) for tensor in tensors)

    names: dict[nn.Module, str] = {stage: name for name, stage in stages.items()}
    is_checkpointed = any(stage.checkpoint_activations for stage in stages.values())
    with FakeTensorMode(), _plain_training(network, stages), ExitStack() as hooks:
        for stage in stages.values():
            hooks.callback(stage.register_forward_pre_hook(enter).remove)
        weights = {name: _fake_like(each) for name, each in network.named_parameters()}
        device = next(iter(weights.values())).device
        x = torch.zeros(num_images, *image_shape, device=device)
        ids = torch.zeros(num_images, dtype=torch.int64, device=device)
        with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            key = {"dropout_key": DropoutKey(0, ids)}
            torch.func.functional_call(network, weights, (x, x.new_zeros(num_images)), key)

    kept, bytes_by_part = saved, Counter[str]()
    if is_checkpointed:
        kept, bytes_by_part["largest block, recomputed"] = _checkpointed(
            stages, saved, stage_inputs
        )
    for each in {each.storage: each for each in reversed(kept)}.values():
        part = next((part for part in parts if _is_inside(each.module, part)), "between the parts")
        bytes_by_part[part] += each.num_bytes
    flops = {
        name.removeprefix(root).removeprefix("."): sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
    }
    return flops | {"": counter.get_total_flops()}, bytes_by_part


def _checkpointed(
    stages: dict[str, Stage], saved: list[_Kept], stage_inputs: list[_Kept]
) -> tuple[list[_Kept], int]:
    """Tensors that live until the backward pass, and the bytes inside the largest stage."""
    inside: dict[str, dict[int, int]] = {stage: {} for stage in stages}
    kept = list(stage_inputs)
    for each in saved:
        stage = next((name for name in stages if _is_inside(each.module, name)), None)
        if stage is None:
            kept.append(each)
        else:
            inside[stage][each.storage] = each.num_bytes
    alive = {each.storage for each in kept}
    sizes = [sum(n for key, n in each.items() if key not in alive) for each in inside.values()]
    return kept, max(sizes)


def _is_inside(module: str, other: str) -> bool:
    return f"{module}.".startswith(f"{other}.")


def _fake_like(parameter: Tensor) -> Tensor:
    """A stand-in of a parameter; one on no device (meta) is taken to be on the CPU."""
    device = torch.device("cpu") if parameter.is_meta else parameter.device
    return torch.empty(
        parameter.shape, dtype=parameter.dtype, device=device, requires_grad=parameter.requires_grad
    )


@contextmanager
def _plain_training(network: nn.Module, stages: dict[str, Stage]) -> Iterator[None]:
    """The network in training mode, without checkpointing; put back as it was afterwards."""
    modes = {module: module.training for module in network.modules()}
    checkpoints = {stage: stage.checkpoint_activations for stage in stages.values()}
    try:
        network.train()
        for stage in checkpoints:
            stage.checkpoint_activations = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for stage, has_checkpoint in checkpoints.items():
            stage.checkpoint_activations = has_checkpoint


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *args: object, **options: object
) -> int:
    return sdpa_flop_count(query, key, value)


# torch counts the attention kernels of GPUs; this is the CPU's.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
