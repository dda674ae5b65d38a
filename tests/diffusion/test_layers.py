"""Laws of the layers: what they compute, start as, and draw their masks from."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion import philox
from ddpm.diffusion.layers import (
    Attention,
    AttentionBlock,
    ClassEmbedding,
    Downsample,
    DropoutKey,
    GroupNorm,
    KeyedDropout,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    dropped_elements,
    dropped_operator,
    init_weights,
    sinusoids,
)


def draw(*shape: int, id: int = 0) -> Tensor:
    return philox.normal(1, philox.Stream.EVAL, torch.tensor([id]), shape)[0]


def test_sinusoids_are_sines_then_cosines_of_1000_time() -> None:
    time, dim = 0.3, 8
    frequencies = [10_000 ** (-k / (dim // 2 - 1)) for k in range(dim // 2)]
    expected = [f(300 * w) for f in (math.sin, math.cos) for w in frequencies]
    features = sinusoids(torch.tensor([time], dtype=torch.float64), dim)
    assert features.dtype == torch.float32
    assert_close(features[0], torch.tensor(expected), atol=3e-5, rtol=0)


def test_sinusoids_see_whole_timesteps_exactly() -> None:
    t = torch.arange(1001)
    features = sinusoids(t / 1000.0, 2)  # one frequency: sin and cos of t itself
    exact = sinusoids(t.double() / 1000, 2)
    assert_close(exact[:, 0], t.float().sin(), atol=0, rtol=0)
    assert_close(features, exact, atol=1e-4, rtol=0)


def test_smallest_time_embedding_has_no_division_by_zero() -> None:
    assert sinusoids(torch.tensor([0.0, 1.0]), 2).isfinite().all()


def test_embeddings_stay_in_float32_under_autocast() -> None:
    time_embedding, classes = TimeEmbedding(8), ClassEmbedding(3, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert time_embedding(torch.rand(2)).dtype == torch.float32
        assert classes(torch.tensor([0, 3])).dtype == torch.float32
    assert time_embedding(torch.rand(2, dtype=torch.float64)).dtype == torch.float32


def test_bfloat16_cannot_tell_late_times_apart_so_it_is_never_used() -> None:
    """Why the embedding leaves autocast: 1000 time above 256 is not exact in bfloat16."""
    late = torch.tensor([0.998, 0.999])
    embedding = TimeEmbedding(32)
    outside = embedding(late)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embedding(late), outside)
    assert not torch.equal(outside[0], outside[1])
    assert (1000 * late).bfloat16().diff().item() == 0


@pytest.mark.parametrize("dim", [0, -2, 7])
def test_time_embedding_refuses_odd_widths(dim: int) -> None:
    with pytest.raises(ValueError, match=f"time_emb_dim is {dim}.*positive even"):
        TimeEmbedding(dim)


def test_class_embedding_of_its_own_width_is_projected() -> None:
    same, projected = ClassEmbedding(3, 8, 8), ClassEmbedding(3, 5, 8)
    labels = torch.tensor([0, 3])
    assert same(labels).shape == projected(labels).shape == (2, 8)
    assert projected.table.weight.shape == (4, 5)
    assert isinstance(same.projection, torch.nn.Identity)


def test_group_norm_normalises_with_eps_1e_5() -> None:
    x = draw(2, 8, 3, 3)
    grouped = x.reshape(2, 4, -1)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    expected = centred / (grouped.var(dim=2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert_close(GroupNorm(4, 8)(x), expected.reshape(x.shape))


def test_group_norm_of_half_precision_is_computed_in_float32() -> None:
    """Far from zero a variance formed in bfloat16 would be all rounding."""
    x = (100 + draw(2, 8, 16, 16)).bfloat16()
    norm = GroupNorm(4, 8)
    norm.weight.data.copy_(draw(8, id=1))  # weights too, which bfloat16 would round
    exact = norm(x.float()).bfloat16()
    assert torch.equal(norm(x), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x), exact)


@pytest.mark.parametrize("groups", [0, 3, 16])
def test_group_norm_names_groups_and_width(groups: int) -> None:
    with pytest.raises(ValueError, match=f"norm_groups is {groups} but a layer is 8 channels wide"):
        GroupNorm(groups, 8)


def test_attention_is_softmax_of_scaled_products_per_head() -> None:
    attention = Attention(8, 6, num_heads=2)
    torch.nn.init.eye_(attention.out.weight)
    queries, tokens = draw(2, 5, 8), draw(2, 3, 6, id=1)
    q = attention.query(queries)
    k, v = attention.key_value(tokens).chunk(2, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2).softmax(dim=-1)  # sqrt(4)
        heads.append(weights @ v[..., head])
    assert_close(attention(queries, tokens), torch.cat(heads, dim=-1))


def test_attention_softmax_is_float32_in_half_precision() -> None:
    """1024 equal weights of 2^-10 sum to 1 in float32; summed in bfloat16 they stop at 1/4."""
    q = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16)
    k, v = q.expand(1, 1, 1024, 16), torch.ones(1, 1, 1024, 16, dtype=torch.bfloat16)
    assert_close(F.scaled_dot_product_attention(q, k, v), torch.ones_like(q), atol=0, rtol=0)


@pytest.mark.parametrize("heads", [0, 3])
def test_attention_names_heads_and_width(heads: int) -> None:
    with pytest.raises(ValueError, match=f"num_heads is {heads} but .* 8 channels wide"):
        Attention(8, 8, heads)


def test_blocks_start_as_the_identity() -> None:
    x, emb, context = draw(2, 8, 4, 4), draw(2, 6, id=1), draw(2, 2, 6, id=2)
    block = ResidualBlock(8, 8, 6, norm_groups=2, kernel_size=3, dropout=0)
    attention = AttentionBlock(8, norm_groups=2, num_heads=2, context_dim=6)
    assert torch.equal(block(x, emb, None), x)
    assert torch.equal(attention(x, context), x)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_residual_block_is_its_formula(dropout: float) -> None:
    block = ResidualBlock(4, 8, 6, norm_groups=2, kernel_size=3, dropout=dropout)
    torch.nn.init.normal_(block.conv2.weight, generator=torch.Generator().manual_seed(0))
    x, emb = draw(2, 4, 5, 3), draw(2, 6, id=1)
    h = F.conv2d(F.silu(block.norm1(x)), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + F.linear(F.silu(emb), block.emb.weight, block.emb.bias)[:, :, None, None]
    dropped = dropped_elements(3, torch.tensor([5, 6]), 0, round(dropout * 65536), h.shape[1:])
    h = torch.where(dropped, 0, F.silu(block.norm2(h)) / (1 - dropout))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    skip = F.conv2d(x, block.skip.weight, block.skip.bias)
    assert_close(block(x, emb, key(5, 6)), skip + h)


def test_attention_block_needs_context_for_its_cross_attention() -> None:
    block = AttentionBlock(8, norm_groups=2, num_heads=1, context_dim=6)
    with pytest.raises(ValueError, match="cross-attention; give it context"):
        block(draw(1, 8, 2, 2), None)


def test_attention_block_does_not_see_where_it_is() -> None:
    """Self-attention commutes with any permutation of the positions."""
    block = init_weights(AttentionBlock(8, norm_groups=2, num_heads=2), 0)
    torch.nn.init.eye_(block.attention.out.weight)
    x = draw(1, 8, 3, 4)
    order = philox.permutation(0, philox.Stream.EVAL, 12)
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    expected = block(x, None).flatten(2)[:, :, order].view_as(x)
    assert_close(block(shuffled, None), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_up_returns_to_the_size_that_down_left(size: tuple[int, int]) -> None:
    x = draw(1, 4, *size)
    small = Downsample(4, 3)(x)
    assert small.shape[-2:] == (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    assert Upsample(4, 3)(small, x.shape[-2:]).shape == x.shape


# Dropout


def key(*ids: int, seed: int = 3) -> DropoutKey:
    return DropoutKey(seed, torch.tensor(ids))


def test_dropout_follows_the_words_of_its_stream() -> None:
    """Element e is half e % 2, low first, of word e // 2, read as a signed number."""
    mask = dropped_elements(3, torch.tensor([9]), 5, 1 << 14, (3, 1, 1))
    first, second = philox.words(3, philox.Stream.DROPOUT, torch.tensor([9]), 2, step=5)[0].tolist()
    halves = [first & 0xFFFF, first >> 16, second & 0xFFFF]
    signed = [half - (1 << 16) if half >= 1 << 15 else half for half in halves]
    assert mask.flatten().tolist() == [half < (1 << 14) - (1 << 15) for half in signed]


def test_dropout_of_a_sample_does_not_depend_on_its_batch() -> None:
    layer = KeyedDropout(0.3, index=2)
    x = draw(3, 5, 3, 3)
    whole = layer(x, key(7, 8, 9))
    for row, id in enumerate((7, 8, 9)):
        assert torch.equal(layer(x[row : row + 1], key(id)), whole[row : row + 1])
    assert torch.equal(layer(x.flip(0), key(9, 8, 7)).flip(0), whole)
    odd_one_out = layer(x[:1].contiguous(memory_format=torch.channels_last), key(7))
    assert torch.equal(odd_one_out, whole[:1])


@pytest.mark.parametrize("other", ["seed", "index", "id"])
def test_dropout_differs_between_seeds_layers_and_samples(other: str) -> None:
    x = torch.ones(1, 4, 8, 8)
    mask = KeyedDropout(0.5, index=0)(x, key(1))
    index, seed, id = int(other == "index"), 4 if other == "seed" else 3, 1 + (other == "id")
    different = KeyedDropout(0.5, index=index)(x, key(id, seed=seed))
    agreement = (mask == different).double().mean().item()
    assert abs(agreement - 0.5) < 5 * 0.5 / math.sqrt(x.numel())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate: float) -> None:
    x = torch.ones(64, 4, 16, 16)
    layer = KeyedDropout(rate)
    dropped = layer(x, key(*range(64)))
    share = (dropped == 0).double().mean().item()
    error = math.sqrt(rate * (1 - rate) / x.numel())
    assert abs(share - rate) < 5 * error
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=2e-4)
    assert abs(dropped.double().mean().item() - 1) < 5 * error / (1 - rate)


def test_dropout_is_off_in_evaluation_and_at_rate_zero() -> None:
    x = draw(2, 3, 4, 4)
    assert KeyedDropout(0.5).eval()(x, None) is x
    assert KeyedDropout(0.0)(x, None) is x


def test_dropout_gradient_passes_where_values_pass() -> None:
    x = draw(2, 3, 4, 4).requires_grad_()
    layer = KeyedDropout(0.25)
    y = layer(x, key(0, 1))
    y.sum().backward()
    assert_close(x.grad, torch.where(y == 0, 0.0, 1 / 0.75))


def test_dropout_without_key_is_refused_in_training() -> None:
    with pytest.raises(ValueError, match=r"dropout is 0\.5 in training mode but there is no key"):
        KeyedDropout(0.5)(draw(1, 2, 2, 2), None)


def test_dropout_needs_one_id_per_sample() -> None:
    with pytest.raises(ValueError, match=r"ids \(3,\) but there are 2 samples"):
        KeyedDropout(0.5)(draw(2, 2, 2, 2), key(1, 2, 3))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_rate_has_limits(rate: float) -> None:
    with pytest.raises(ValueError, match=f"dropout is {rate}"):
        KeyedDropout(rate)


@pytest.mark.slow
def test_dropout_mask_is_a_sound_operation() -> None:
    """Its shape function, used when compiling and summarising, agrees with what it computes."""
    arguments = (1, torch.tensor([4, 5]), 2, 1000, [3, 5])
    torch.library.opcheck(dropped_operator, arguments)
