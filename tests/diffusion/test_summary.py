"""Costs of a network by part, against hand counts and what autograd keeps."""

import copy

import pytest
import torch
from torch import Tensor

from ddpm.diffusion.layers import DropoutKey
from ddpm.diffusion.summary import summarize_network
from ddpm.diffusion.unet import UNet
from tests.diffusion.test_unet import batch, small

pytestmark = pytest.mark.slow


def test_flops_of_a_small_network_by_hand() -> None:
    """One level of 8 channels at 4x4: 1 + 2 + 2 blocks, all but the second middle one attend."""
    network = small(
        4, 2, channel_mult=[1], has_attention=[True], model_channels=8, time_emb_dim=16, num_heads=1
    )
    pixels, c, e, k = 16, 8, 16, 9

    def block(width: int) -> int:
        skip = width * c * pixels if width != c else 0
        return (width * c + c * c) * k * pixels + e * c + skip

    attention = 4 * c * c * pixels + 2 * pixels * pixels * c  # q, k, v, out; q k^T and weights v
    stem = head = 2 * c * k * pixels
    time = 2 * e * e
    blocks = 3 * block(c) + 2 * block(2 * c)
    expected = 2 * (time + stem + blocks + 4 * attention + head)
    assert summarize_network(network, (2, 4, 4)).flops_per_image == expected


def test_summary_adds_up_and_touches_nothing() -> None:
    network = small(num_classes=3, dropout=0.2).eval()
    network.encoder[0].train()
    before = copy.deepcopy(network.state_dict())
    report = summarize_network(network, (1, 8, 8))
    assert report.parameters == sum(parameter.numel() for parameter in network.parameters())
    for field, total in [
        ("parameters", report.parameters),
        ("flops", report.flops_per_image),
        ("activation_bytes", report.activation_bytes_per_image),
    ]:
        assert sum(getattr(part, field) for part in report.parts) == total
    assert not network.training and network.encoder[0].training
    assert not network.stem._forward_hooks and not network.stem._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"use_cross_attention": True}])
def test_activation_bytes_are_what_autograd_keeps(options: dict[str, object]) -> None:
    network = small(**options)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def kept(num_images: int) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = network(
                *batch(num_images, 1, 8, 8), dropout_key=DropoutKey(0, torch.arange(num_images))
            )
        assert y.requires_grad
        return sum(size for pointer, size in storages.items() if pointer not in own)

    assert summarize_network(network, (1, 8, 8)).activation_bytes_per_image == kept(4) - kept(3)


def test_activation_bytes_fall_with_checkpointing() -> None:
    plain, checkpointed = small(), small(checkpoint_activations=True)
    size = summarize_network(plain, (1, 8, 8)).activation_bytes_per_image
    assert summarize_network(checkpointed, (1, 8, 8)).activation_bytes_per_image < 0.7 * size
    assert checkpointed.encoder[0].stages[0].checkpoint_activations


def test_no_part_keeps_less_than_nothing() -> None:
    options = {"channel_mult": [1, 2, 2], "has_attention": [False, True, True]}
    for is_on in (False, True):
        report = summarize_network(small(**options, checkpoint_activations=is_on), (1, 8, 8))
        assert all(part.activation_bytes >= 0 for part in report.parts)


def test_activation_bytes_of_mixed_precision_leave_out_copies_of_weights() -> None:
    plain = small()
    size = summarize_network(plain, (1, 8, 8)).activation_bytes_per_image
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = summarize_network(plain, (1, 8, 8)).activation_bytes_per_image
    assert 0.4 * size < half < 0.8 * size


def test_summary_is_a_table_of_parts() -> None:
    lines = str(summarize_network(small(), (1, 8, 8))).splitlines()
    assert lines[0] == "one image of 1x8x8"
    assert lines[1].split() == ["part", "parameters", "FLOPs", "activations"]
    names = [line.split()[0] for line in lines[3:-2]]
    assert names[:3] == ["time_embedding", "stem", "encoder.0"]
    assert {"encoder.1", "middle.0", "middle.1", "decoder.0", "decoder.1", "head"} <= set(names)
    assert lines[-1].startswith("total") and len({len(line) for line in lines[1:]}) == 1


def test_a_large_network_is_summarised_without_running_it() -> None:
    with torch.device("meta"):
        network = UNet(256, 3, 128, [1, 2, 4, 8], [False, False, True, True], dropout=0.1)
    report = summarize_network(network, (3, 256, 256))
    assert 1e8 < report.parameters < 3e8
    assert report.flops_per_image > 1e11 and report.activation_bytes_per_image > 2**30
