"""Laws of the U-Net: shapes, conditioning, independence of samples, first weights, costs."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ddpm.diffusion import philox
from ddpm.diffusion.layers import DropoutKey, KeyedDropout, ZeroConv2d, ZeroLinear, init_weights
from ddpm.diffusion.unet import UNet


def draw(*shape: int, id: int = 0) -> Tensor:
    return philox.normal(1, philox.Stream.EVAL, torch.tensor([id]), shape)[0]


def small(image_size: int | tuple[int, int] = 8, in_channels: int = 1, **options: object) -> UNet:
    """A quick network with attention at its second level; any option of UNet can be replaced."""
    defaults: dict[str, object] = {
        "model_channels": 8,
        "channel_mult": [1, 2],
        "has_attention": [False, True],
        "num_res_blocks": 1,
        "norm_groups": 4,
        "num_heads": 2,
        "time_emb_dim": 16,
    }
    return UNet(image_size, in_channels, **(defaults | options))  # type: ignore[arg-type]


def awake(network: UNet) -> UNet:
    """The network with the layers that start at zero drawn as well, so everything has a say."""
    for name, layer in network.named_modules():
        if isinstance(layer, ZeroConv2d | ZeroLinear):
            id = philox.name_id(name)
            with torch.no_grad():
                layer.weight.copy_(0.2 * draw(*layer.weight.shape, id=id))
    return network


def batch(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    return draw(n, *shape), torch.linspace(0.05, 1, n)


EVERY_WAY = {
    "plain": {},
    "one level": {"channel_mult": [1], "has_attention": [True]},
    "three levels": {"channel_mult": [1, 2, 3], "has_attention": [True, False, True]},
    "wide first level": {"channel_mult": [2, 4]},
    "narrowing": {"channel_mult": [3, 1]},
    "no attention": {"has_attention": [False, False]},
    "three blocks": {"num_res_blocks": 3},
    "space to depth": {"block_size": 2},
    "big kernel": {"kernel_size": 5},
    "one by one kernel": {"kernel_size": 1},
    "classes": {"num_classes": 3},
    "class table of its own width": {"num_classes": 3, "class_emb_dim": 5},
    "cross-attention": {"use_cross_attention": True, "num_classes": 3},
    "cross-attention without classes": {"use_cross_attention": True},
    "checkpointed": {"checkpoint_activations": True},
}
every_way = pytest.mark.parametrize("options", EVERY_WAY.values(), ids=EVERY_WAY.keys())


@pytest.mark.slow
@every_way
def test_a_new_network_predicts_zero(options: dict[str, object]) -> None:
    x, time = batch(2, 1, 8, 8)
    assert torch.equal(small(**options)(x, time), torch.zeros_like(x))


@pytest.mark.slow
@every_way
def test_every_parameter_has_a_gradient(options: dict[str, object]) -> None:
    network = awake(small(**options))
    x, time = batch(3, 1, 8, 8)
    labels = torch.tensor([0, 1, 3]) if network.num_classes else None
    (network(x, time, labels) * draw(3, 1, 8, 8, id=9)).sum().backward()
    # With one context token softmax is constant: who asks, and for which key, changes nothing.
    idle = ("cross_attention.query",) if "num_classes" not in options else ()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # The keys' bias shifts all scores of a softmax alike.
        if not name.endswith("key_value.bias") and not any(part in name for part in idle):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (7, 5), (1, 1)])
def test_any_channels_and_sizes(channels: int, size: tuple[int, int]) -> None:
    network = awake(small(size, channels, channel_mult=[1, 1, 2], has_attention=[False] * 3))
    x, time = batch(2, channels, *size)
    y = network(x, time)
    assert y.shape == x.shape and y.isfinite().all() and y.std() > 0 or size == (1, 1)


def test_a_network_runs_at_other_sizes_than_its_own() -> None:
    network = awake(small(8))
    x, time = batch(1, 1, 11, 16)
    assert network(x, time).shape == x.shape


def test_space_to_depth_works_on_blocks() -> None:
    """With 1x1 kernels and no attention nothing crosses a block of 4x4 at one level."""
    options = {"kernel_size": 1, "channel_mult": [1], "has_attention": [False], "norm_groups": 8}
    network = awake(small(**options, block_size=4))
    for layer in [each for each in network.modules() if isinstance(each, nn.GroupNorm)]:
        layer.forward = lambda x: x  # type: ignore[method-assign] # norms do look across blocks
    x, time = batch(1, 1, 8, 8)
    changed = x.clone()
    changed[..., :4, :4] += 1
    difference = (network(changed, time) - network(x, time)).abs()
    assert difference[..., :4, :4].min() > 0
    assert difference[..., 4:, :].max() == 0 and difference[..., 4:].max() == 0


def test_output_has_the_dtype_of_x() -> None:
    network = awake(small())
    x, time = batch(2, 1, 8, 8)
    assert network(x.double(), time.double()).dtype == torch.float64
    assert_close(network(x.double(), time.double()).float(), network(x, time))


def test_a_double_network_agrees_with_a_single_one() -> None:
    network = awake(small(num_classes=3))
    x, time = batch(2, 1, 8, 8)
    expected = network(x, time)
    assert_close(copy.deepcopy(network).double()(x.double(), time).float(), expected)


# What a prediction depends on


@pytest.mark.slow
@every_way
def test_samples_do_not_see_each_other(options: dict[str, object]) -> None:
    network = awake(small(**options)).eval()
    x, time = batch(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 2, 3]) if network.num_classes else None
    whole = network(x, time, labels)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = network(x[order], time[order], None if labels is None else labels[order])
    assert_close(shuffled, whole[order], atol=1e-5, rtol=1e-5)
    for i in range(4):
        alone = network(
            x[i : i + 1], time[i : i + 1], None if labels is None else labels[i : i + 1]
        )
        assert_close(alone, whole[i : i + 1], atol=1e-5, rtol=1e-5)


def test_no_gradient_crosses_samples() -> None:
    network = awake(small(num_classes=3, use_cross_attention=True))
    x, time = batch(3, 1, 8, 8)
    x.requires_grad_()
    network(x, time)[1].square().sum().backward()
    assert x.grad is not None
    assert x.grad[1].abs().max() > 0
    assert x.grad[0].abs().max() == 0 and x.grad[2].abs().max() == 0


def test_prediction_depends_on_time_and_label() -> None:
    network = awake(small(num_classes=3)).eval()
    x = draw(1, 1, 8, 8).expand(2, -1, -1, -1)
    time, labels = torch.tensor([0.5, 0.5]), torch.tensor([1, 1])
    same = network(x, time, labels)
    assert_close(same[0], same[1])
    later = network(x, torch.tensor([0.5, 0.6]), labels)
    other = network(x, time, torch.tensor([1, 2]))
    assert (later[0] - later[1]).abs().max() > 1e-3
    assert (other[0] - other[1]).abs().max() > 1e-3


def test_no_labels_are_the_null_label() -> None:
    network = awake(small(num_classes=3)).eval()
    x, time = batch(2, 1, 8, 8)
    assert network.null_label == network.num_classes == 3
    assert torch.equal(network(x, time), network(x, time, torch.tensor([3, 3])))
    assert not torch.equal(network(x, time), network(x, time, torch.tensor([0, 3])))
    assert small().null_label is None


def test_cross_attention_reads_the_class() -> None:
    """With the class's way through the blocks cut, the label is still seen."""
    network = awake(small(num_classes=3, use_cross_attention=True)).eval()
    for name, parameter in network.named_parameters():
        if ".block.emb." in name:
            parameter.data.zero_()
    x, time = batch(2, 1, 8, 8)
    first, second = (network(x, time, torch.full((2,), label)) for label in (0, 1))
    assert (first - second).abs().max() > 1e-4


def test_evaluation_is_deterministic_and_drops_nothing() -> None:
    network = awake(small(dropout=0.5)).eval()
    x, time = batch(2, 1, 8, 8)
    key = DropoutKey(0, torch.tensor([1, 2]))
    assert torch.equal(network(x, time), network(x, time, dropout_key=key))


# Dropout and checkpointing


def test_dropout_layers_are_numbered_apart() -> None:
    network = small(dropout=0.1)
    indices = [each.index for each in network.modules() if isinstance(each, KeyedDropout)]
    assert indices == list(range(8))  # 2 encoder, 2 middle, 4 decoder blocks
    assert network.dropout == 0.1


def test_training_with_dropout_needs_its_key() -> None:
    network = awake(small(dropout=0.5))
    x, time = batch(2, 1, 8, 8)
    with pytest.raises(ValueError, match="pass DropoutKey"):
        network(x, time)
    first = network(x, time, dropout_key=DropoutKey(0, torch.tensor([1, 2])))
    again = network(x, time, dropout_key=DropoutKey(0, torch.tensor([1, 2])))
    other = network(x, time, dropout_key=DropoutKey(1, torch.tensor([1, 2])))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_checkpointing_changes_no_bit(dropout: float) -> None:
    options = {"dropout": dropout, "num_classes": 3, "use_cross_attention": True}
    x, time = batch(3, 1, 8, 8)
    key = DropoutKey(5, torch.tensor([4, 5, 6]))
    gradients = []
    for is_on in (False, True):
        network = awake(small(**options, checkpoint_activations=is_on))
        y = network(x, time, torch.tensor([0, 1, 2]), key)
        y.square().sum().backward()
        gradients.append([y, *(parameter.grad for parameter in network.parameters())])
    for without, with_it in zip(*gradients, strict=True):
        assert torch.equal(without, with_it)


# Ways to run it


def test_bfloat16_autocast_is_close() -> None:
    network = awake(small(num_classes=3)).eval()
    x, time = batch(4, 1, 8, 8)
    exact = network(x, time)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x, time)
    assert rough.dtype == torch.float32 and rough.isfinite().all()
    assert (rough - exact).norm() < 0.03 * exact.norm()
    assert not torch.equal(rough, exact)


def test_channels_last_agrees() -> None:
    network = awake(small())
    x, time = batch(2, 1, 8, 8)
    expected = network(x, time)
    turned = network.to(memory_format=torch.channels_last)
    assert_close(turned(x.to(memory_format=torch.channels_last), time), expected)


@pytest.mark.slow
def test_traces_as_one_graph() -> None:
    options = {"use_cross_attention": True, "block_size": 2, "checkpoint_activations": True}
    assert_compiled_agrees(small(num_classes=3, dropout=0.4, **options), "eager")


@pytest.mark.long
def test_compiles_as_one_graph() -> None:
    network = small(dropout=0.4, num_classes=3, channel_mult=[1], has_attention=[True])
    assert_compiled_agrees(network, "inductor")


def assert_compiled_agrees(network: UNet, backend: str) -> None:
    awake(network)
    x, time = batch(2, 1, 8, 8)
    arguments = (x, time, torch.tensor([1, 3]), DropoutKey(0, torch.tensor([1, 2])))
    expected = network(*arguments)
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    assert_close(compiled(*arguments), expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    compiled(*arguments).square().sum().backward()
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


# First weights


def test_equal_seeds_are_equal_bitwise() -> None:
    first, again, other = (init_weights(small(num_classes=3), seed) for seed in (4, 4, 5))
    states = [network.state_dict() for network in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["stem.weight"], states[2]["stem.weight"])


def test_a_new_network_has_the_weights_of_seed_zero() -> None:
    torch.manual_seed(1)
    new = small().state_dict()
    for name, value in init_weights(small(), 0).state_dict().items():
        assert torch.equal(new[name], value)


@pytest.mark.slow
def test_a_weight_depends_on_name_shape_and_seed_alone() -> None:
    plain = init_weights(small(), 7).state_dict()
    richer = small(num_classes=5, channel_mult=[1, 2, 2], has_attention=[False, True, True])
    others = init_weights(richer, 7).state_dict()
    shared = [name for name in plain if name in others and plain[name].shape == others[name].shape]
    assert len(shared) > 20 and "encoder.1.stages.0.attention.attention.query.weight" in shared
    for name in shared:
        assert torch.equal(plain[name], others[name]), name
    assert not torch.equal(
        plain["middle.0.block.conv1.weight"], plain["middle.1.block.conv1.weight"]
    )


def test_first_weights_by_layer_type() -> None:
    network = init_weights(small(model_channels=32, num_classes=200, norm_groups=8), 3)
    for layer in network.modules():
        if isinstance(layer, ZeroConv2d | ZeroLinear):
            assert layer.weight.abs().max() == 0 and layer.bias.abs().max() == 0
        elif isinstance(layer, nn.GroupNorm):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            fans = sum(layer.weight.shape[:2]) * layer.weight.shape[2:].numel()
            ratio = layer.weight.var().item() / (2 / fans)
            tolerance = 5 * (0.8 / layer.weight.numel()) ** 0.5  # a uniform's variance of variance
            assert abs(ratio - 1) < tolerance and (layer.bias == 0).all()
    assert network.class_embedding is not None
    table = network.class_embedding.table.weight
    error = table.numel() ** -0.5
    assert abs(table.mean().item()) < 5 * error and abs(table.var().item() - 1) < 5 * 2**0.5 * error


def test_layers_without_a_rule_are_refused() -> None:
    with pytest.raises(ValueError, match="no rule for .*weight, a parameter of LayerNorm"):
        init_weights(nn.Sequential(nn.LayerNorm(3)), 0)


def test_a_network_on_meta_is_not_filled() -> None:
    with torch.device("meta"):
        assert small().stem.weight.is_meta


# Bad arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm_groups": 3}, "norm_groups is 3 but a layer is 8 channels wide"),
        ({"norm_groups": 16}, "norm_groups is 16 but a layer is 8 channels wide"),
        ({"num_heads": 3}, "num_heads is 3 but an attention block is 16 channels wide"),
        ({"has_attention": [True]}, "has_attention has 1 entries but channel_mult has 2"),
        ({"channel_mult": []}, r"channel_mult is \[\]; give a positive multiplier"),
        ({"channel_mult": [1, 0]}, r"channel_mult is \[1, 0\]; give a positive multiplier"),
        ({"block_size": 3}, "block_size is 3 but the image is 8x8"),
        ({"block_size": 0}, "block_size is 0 but the image is 8x8"),
        ({"time_emb_dim": 7}, "time_emb_dim is 7; give a positive even number"),
        ({"time_emb_dim": 0}, "time_emb_dim is 0; give a positive even number"),
        ({"kernel_size": 2}, "kernel_size is 2; give an odd number"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0; give at least 1"),
        ({"model_channels": 0}, "model_channels is 0; give at least 1"),
        ({"in_channels": 0}, "in_channels is 0; give at least 1"),
        ({"dropout": 1.0}, r"dropout is 1\.0; give a rate in \[0, 1\)"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2, "class_emb_dim": 0}, "class_emb_dim 0"),
    ],
)
def test_contradictions_name_both_numbers(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)  # type: ignore[arg-type]


def test_non_square_sizes_are_checked_on_both_sides() -> None:
    assert small((8, 4), block_size=4).image_size == (8, 4)
    with pytest.raises(ValueError, match="block_size is 4 but the image is 8x6"):
        small((8, 6), block_size=4)


def test_bad_input_is_named() -> None:
    network, plain = small(num_classes=3, block_size=2), small()
    x, time = batch(2, 1, 8, 8)
    for label in (-1, 4):
        with pytest.raises(
            ValueError, match=f"label {label} with num_classes 3.*or 3 for no class"
        ):
            network(x, time, torch.tensor([0, label]))
    with pytest.raises(ValueError, match="labels were given but num_classes is None"):
        plain(x, time, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"time has shape \(1,\) but there are 2 images"):
        network(x, time[:1])
    with pytest.raises(ValueError, match=r"x has shape \(2, 3, 8, 8\); give \(N, 1, H, W\)"):
        network(x.expand(-1, 3, -1, -1), time)
    with pytest.raises(ValueError, match="x is 7x8 but block_size is 2"):
        network(x[:, :, 1:], time)
