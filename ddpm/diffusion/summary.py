"""What a network costs: parameters, arithmetic and activation memory, by part, without running it.

The network is traced on fake tensors (shapes and dtypes, no numbers), so a large one is as quick
as a small one. FLOPs are those of one forward pass of one image: matrix products,
convolutions and attention, a multiply-add as two; normalisations and the like are left out, as is
usual. A training step takes about three times as many, four with activation checkpointing.
Activation bytes are what autograd keeps until the backward pass, each storage once: of three images
less those of two, so that what does not grow with the batch (weights, their half-precision copies)
stays out. Called under autocast, summary() counts what mixed precision keeps.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ddpm.diffusion.layers import DropoutKey, Stage


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """One part of a network: its name, parameters, FLOPs and activation bytes for one image."""

    name: str
    parameters: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a network costs per image; str() is a table of its parts."""

    image_shape: tuple[int, int, int]
    parameters: int
    flops_per_image: int
    activation_bytes_per_image: int
    parts: tuple[PartCost, ...]

    def __str__(self) -> str:
        total = PartCost(
            name="total",
            parameters=self.parameters,
            flops=self.flops_per_image,
            activation_bytes=self.activation_bytes_per_image,
        )
        size = "x".join(str(side) for side in self.image_shape)
        header = ("part", "parameters", "FLOPs", "activations")
        rows = [header, *(_cells(part) for part in (*self.parts, total))]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(
                (
                    row[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
                )
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        return "\n".join((f"one image of {size}", lines[0], rule, *lines[1:-1], rule, lines[-1]))


def _cells(part: PartCost) -> tuple[str, str, str, str]:
    return (
        part.name,
        f"{part.parameters:,}",
        _scaled(part.flops, 1000, ("", " K", " M", " G", " T")),
        _scaled(part.activation_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB")),
    )


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


@dataclass(frozen=True, kw_only=True)
class _Trace:
    total_flops: int
    flops: dict[str, int]
    saved: list[_Kept]
    stage_inputs: list[_Kept]


def summary(network: nn.Module, image_shape: tuple[int, int, int]) -> Summary:
    """The cost of a U-Net for one image of `image_shape` (C, H, W).

    With checkpoint_activations the bytes are those of the blocks' inputs, of what lies between the
    blocks, and of the inside of the largest block, which exists while it is computed again.
    """
    parts = _parts(network)
    pair = _trace(network, image_shape, num_images=2)
    less = _bytes_by_part(network, parts, pair)
    more = _bytes_by_part(network, parts, _trace(network, image_shape, num_images=3))
    bytes_per_image = {name: more[name] - less[name] for name in more}
    costs = [
        PartCost(
            name=name,
            parameters=sum(p.numel() for p in module.parameters()),
            flops=pair.flops.get(name, 0) // 2,
            activation_bytes=bytes_per_image.pop(name, 0),
        )
        for name, module in parts.items()
    ]
    for name, size in bytes_per_image.items():
        costs.append(PartCost(name=name, parameters=0, flops=0, activation_bytes=size))
    return Summary(
        image_shape=image_shape,
        parameters=sum(p.numel() for p in network.parameters()),
        flops_per_image=pair.total_flops // 2,
        activation_bytes_per_image=sum(cost.activation_bytes for cost in costs),
        parts=tuple(costs),
    )


def _bytes_by_part(network: nn.Module, parts: dict[str, nn.Module], trace: _Trace) -> Counter[str]:
    """What each part keeps until the backward pass; a storage counts where it was kept first."""
    stages = _stages(network)
    bytes_by_part: Counter[str] = Counter()
    kept = trace.saved
    if any(stage.checkpoint_activations for stage in stages.values()):
        kept, bytes_by_part["largest block, recomputed"] = _checkpointed(stages, trace)
    for each in {each.storage: each for each in reversed(kept)}.values():
        bytes_by_part[_part_of(each.module, parts)] += each.num_bytes
    return bytes_by_part


def _parts(network: nn.Module) -> dict[str, nn.Module]:
    """The rows of the table: the children of the network, lists of levels entry by entry."""
    parts: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            parts |= {f"{name}.{index}": entry for index, entry in enumerate(child)}
        else:
            parts[name] = child
    return parts


def _part_of(module_name: str, parts: dict[str, nn.Module]) -> str:
    return next((part for part in parts if _is_inside(module_name, part)), "between the parts")


def _trace(network: nn.Module, image_shape: tuple[int, int, int], num_images: int) -> _Trace:
    """One forward pass on fake tensors, in training mode and without checkpointing."""
    stack = [""]
    stage_inputs: list[_Kept] = []
    saved: list[_Kept] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(_Kept(stack[-1], tensor))
        return tensor

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            stack.append(name)
            if isinstance(module, Stage):
                tensors = [each for each in inputs if isinstance(each, Tensor)]
                stage_inputs.extend(_Kept(name, tensor) for tensor in tensors)

        return hook

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        stack.pop()

    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with ExitStack() as hooks, FakeTensorMode(), _training(network):
        for name, module in network.named_modules():
            if name and not isinstance(module, nn.ModuleList):
                hooks.callback(module.register_forward_pre_hook(enter(name)).remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        weights = {name: _fake_like(each) for name, each in network.named_parameters()}
        device = next(iter(weights.values())).device
        x = torch.zeros(num_images, *image_shape, device=device)
        ids = torch.zeros(num_images, dtype=torch.int64, device=device)
        with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(
                network, weights, (x, x.new_zeros(num_images)), {"dropout_key": DropoutKey(0, ids)}
            )
    root = f"{type(network).__name__}."
    return _Trace(
        total_flops=counter.get_total_flops(),
        flops={
            name.removeprefix(root): sum(counts.values())
            for name, counts in counter.get_flop_counts().items()
        },
        saved=saved,
        stage_inputs=stage_inputs,
    )


def _is_inside(module: str, other: str) -> bool:
    return f"{module}.".startswith(f"{other}.")


def _checkpointed(stages: dict[str, Stage], trace: _Trace) -> tuple[list[_Kept], int]:
    """What lives until the backward pass, and the bytes of the inside of the largest stage."""
    inside: dict[str, dict[int, int]] = {stage: {} for stage in stages}
    kept = list(trace.stage_inputs)
    for each in trace.saved:
        stage = next((name for name in stages if _is_inside(each.module, name)), None)
        if stage is None:
            kept.append(each)
        else:
            inside[stage][each.storage] = each.num_bytes
    alive = {each.storage for each in kept}
    sizes = [sum(n for key, n in each.items() if key not in alive) for each in inside.values()]
    return kept, max(sizes)


def _fake_like(parameter: Tensor) -> Tensor:
    """A stand-in of a parameter; one on no device (meta) is taken to be on the CPU."""
    device = torch.device("cpu") if parameter.is_meta else parameter.device
    return torch.empty(
        parameter.shape, dtype=parameter.dtype, device=device, requires_grad=parameter.requires_grad
    )


def _stages(network: nn.Module) -> dict[str, Stage]:
    return {name: each for name, each in network.named_modules() if isinstance(each, Stage)}


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """The network in training mode, without checkpointing; put back as it was afterwards."""
    modes = {module: module.training for module in network.modules()}
    checkpoints = {stage: stage.checkpoint_activations for stage in _stages(network).values()}
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
