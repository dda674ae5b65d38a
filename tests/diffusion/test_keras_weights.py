"""Weights of Keras' layers put into the network: each where it belongs, or a layer named."""

from typing import Any

import numpy as np
import pytest
import torch

from ddpm.diffusion import UNet, sinusoids
from ddpm.diffusion.keras_weights import weights_from_keras
from ddpm.diffusion.layers import Attention, Downsample
from ddpm.errors import InputError
from tests.support.keras_files import keras_layers, spoken

SHAPE = {"num_res_blocks": 1, "norm_groups": 4, "time_emb_dim": 8, "keras_layers": True}


def network(**more: Any) -> UNet:
    return UNet((8, 4), 3, 8, [1, 2], [False, True], **{**SHAPE, **more})


def layers(model: UNet) -> dict[str, list[np.ndarray]]:
    return {
        name: [array.copy() for array in arrays] for name, arrays in keras_layers(model).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"num_res_blocks": 2, "num_heads": 2}, {"num_classes": 3}],
    ids=["plain", "heads", "classes"],
)
def test_every_layer_goes_where_it_came_from(more: dict[str, Any]) -> None:
    model = spoken(network(**more))
    found = weights_from_keras(network(**more), layers(model))
    state = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_blocks_may_be_layers_of_their_own() -> None:
    model = spoken(network())
    moved = {}
    for name, arrays in layers(model).items():
        inner = {"group_normalization": "residual_block/norm0"}.get(name, name)
        inner = {"conv2d_1": "residual_block/conv0"}.get(name, inner)
        moved[inner] = arrays
    with pytest.raises(InputError, match="has 1 of kind residual_block norm, the network 16"):
        weights_from_keras(network(), moved)


def test_pixels_of_a_block_are_in_tensorflows_order() -> None:
    """space_to_depth: channel (dy 2 + dx) C + c; pixel_unshuffle: c 4 + dy 2 + dx."""
    model = spoken(network(block_size=2))
    found = weights_from_keras(network(block_size=2), layers(model))
    order = torch.tensor([c + 3 * pixel for c in range(3) for pixel in range(4)])
    assert torch.equal(found["stem.weight"], model.stem.weight[:, order])
    assert torch.equal(found["head.weight"], model.head.weight[order])
    assert torch.equal(found["head.bias"], model.head.bias[order])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda of: of.pop("conv2d_3"), "kind conv, the network .*: missing for head"),
        (lambda of: of.update(conv2d_99=of["conv2d"]), "the network .*: unused conv2d_99"),
        (lambda of: of.update(gru=of["conv2d"] * 2), r"layer gru \(.*is none of v3's network"),
        (lambda of: of.update({"mlp/dense": of["dense"]}), "layer mlp/dense .* is none of v3's"),
        (
            lambda of: of.update(dense=[of["dense"][0][:, :3], of["dense"][1]]),
            r"dense has the shape \(\(8, 3\), \(8,\)\), time_embedding.hidden takes \(\(8, 8\), ",
        ),
        (lambda of: of["conv2d"][1].fill(float("nan")), "layer conv2d is not finite"),
        (
            lambda of: [
                of.update({f"residual_block/{new}": of.pop(old)})
                for new, old in (("first", "conv2d_1"), ("second", "conv2d_2"))
            ],
            "residual_block/first and residual_block/second: nothing tells which .* comes first",
        ),
    ],
)
def test_a_layer_that_does_not_fit_is_named(change: Any, words: str) -> None:
    made = layers(spoken(network()))
    change(made)
    with pytest.raises(InputError, match=words):
        weights_from_keras(network(), made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"use_cross_attention": True}, "cross-attention cannot be imported"),
        ({"kernel_size": 1}, "KERNEL_SIZE 1 cannot be imported"),
        ({"keras_layers": False}, "give TRAINING.NETWORK.KERAS_LAYERS true"),
    ],
)
def test_a_network_that_cannot_be_imported_is_refused_with_the_reason(
    more: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        weights_from_keras(network(**more), layers(network(**more)))


def test_layers_of_keras_compute_what_keras_does() -> None:
    """Windows of stride 2 begin at the first pixel of an even side, before that of an odd one."""
    down = Downsample(1, 3, pads_as_keras=True)
    torch.nn.init.ones_(down.conv.weight)
    torch.nn.init.zeros_(down.conv.bias)
    x = torch.arange(4.0)[None, None, None].expand(1, 1, 5, 4)
    rows = torch.tensor([2, 3, 2])  # of 5: -1..1, 1..3, 3..5
    columns = torch.tensor([0 + 1 + 2, 2 + 3])  # of 4: 0..2, 2..4
    assert torch.equal(down(x)[0, 0], (rows[:, None] * columns).float())
    assert {norm.eps for norm in network().modules() if hasattr(norm, "eps")} == {1e-3}
    assert {norm.eps for norm in network(keras_layers=False).modules() if hasattr(norm, "eps")} == {
        1e-5
    }
    wide = [one for one in network(num_heads=2).modules() if isinstance(one, Attention)]
    assert {one.query.out_features for one in wide} == {2 * 16}


def test_sinusoids_differ_in_rounding_alone() -> None:
    time = torch.linspace(0, 1, 33, dtype=torch.float64)
    one, other = sinusoids(time, 128), sinusoids(time, 128, rounds_as_keras=True)
    assert 0 < (one - other).abs().max() < 1.5e-4
