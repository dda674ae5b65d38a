"""Laws of the keyed random numbers: the published words, the distributions, and independence."""

import math

import pytest
import torch
from scipy import stats

from ddpm.diffusion.philox import Stream, name_id, normal, permutation, philox, uniform, words

# (counter, key, output) as published with Random123, the authors' implementation.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        0x299F31D0A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def hex_words(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: str, key: int, expected: str) -> None:
    assert torch.equal(philox(hex_words(counter), key), hex_words(expected))


def test_philox_leaves_its_counter_alone() -> None:
    counter = torch.zeros(5, 4, dtype=torch.int64)
    first = philox(counter, 7)
    assert torch.equal(counter, torch.zeros_like(counter))
    assert torch.equal(first[0], first[4])


def test_words_follow_the_documented_counter() -> None:
    seed, step, count = 0x0123456789ABCDEF, 0xABCDE, 11
    ids = torch.tensor([0, 5, 2**32 + 3, 2**63 - 1])
    drawn = words(seed, Stream.AUGMENT, ids, count, step=step)
    for row, id in enumerate(ids.tolist()):
        for element in range(count):
            counter = [element // 4, id % 2**32, id >> 32, (int(Stream.AUGMENT) << 24) | step]
            assert drawn[row, element] == philox(torch.tensor(counter), seed)[element % 4]


def test_uniform_is_the_word_over_2_to_the_32() -> None:
    ids = torch.arange(9)
    draws = uniform(1, Stream.SPLIT, ids, (2, 3))
    assert draws.dtype == torch.float64 and draws.shape == (9, 2, 3)
    assert torch.equal(draws.flatten(1) * 2**32, words(1, Stream.SPLIT, ids, 6).double())
    assert torch.equal(uniform(1, Stream.SPLIT, ids), draws[:, 0, 0])


def test_normal_is_box_muller_in_float64_rounded_once() -> None:
    ids = torch.arange(1000)
    w = words(3, Stream.NOISE, ids, 40).double().view(-1, 2)
    radius = torch.sqrt(-2 * torch.log((w[:, 0] + 0.5) / 2**32))
    angle = 2 * math.pi * w[:, 1] / 2**32
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).view(1000, 40)
    drawn = normal(3, Stream.NOISE, ids, (40,)).double()
    assert ((drawn - expected).abs() <= 2.0**-24 * expected.abs() + 1e-14).all()


@pytest.mark.slow
def test_normal_has_the_moments_and_the_law_of_the_normal_distribution() -> None:
    draws = normal(0, Stream.NOISE, torch.arange(1000), (1000,)).double().flatten()
    n = len(draws)
    # Each estimate within five of its standard errors.
    assert abs(draws.mean()) < 5 / math.sqrt(n)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((draws**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((draws**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3
    assert 4.5 < draws.abs().max() < 6.77


@pytest.mark.slow
def test_uniform_has_the_law_of_the_uniform_distribution() -> None:
    across_ids = uniform(0, Stream.TIME, torch.arange(500_000))
    within_a_sample = uniform(0, Stream.TIME, torch.tensor([500_000]), (500_000,))[0]
    for draws in (across_ids, within_a_sample):
        assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.slow
def test_neighbours_are_uncorrelated_in_every_direction() -> None:
    def draw(step: int, seed: int = 0) -> torch.Tensor:
        return normal(seed, Stream.NOISE, torch.arange(500), (2000,), step=step).double()

    base = draw(0)
    pairs = {
        "elements": (base[:, 1:], base[:, :-1]),
        "pairs of Box-Muller": (base[:, ::2] ** 2, base[:, 1::2] ** 2),
        "ids": (base[1:], base[:-1]),
        "steps": (base, draw(1)),
        "seeds": (base, draw(0, seed=1)),
    }
    for name, (a, b) in pairs.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(a.numel()), name


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 1001])
def test_a_draw_is_bitwise_the_same_in_any_batch_and_any_length(count: int) -> None:
    """Odd sizes matter: vectorised kernels finish with scalar code that may round otherwise."""
    ids = torch.randperm(61, generator=torch.Generator().manual_seed(count)) + 2**31
    together = normal(5, Stream.X_T, ids, (count,))
    longer = normal(5, Stream.X_T, ids, (count + 6,))
    assert torch.equal(longer[:, :count], together)
    for row in range(0, 61, 7):
        assert torch.equal(normal(5, Stream.X_T, ids[row : row + 1], (count,))[0], together[row])
        assert torch.equal(normal(5, Stream.X_T, ids[row:], (count,)), together[row:])
    assert torch.equal(normal(5, Stream.X_T, ids.flip(0), (count,)), together.flip(0))


def test_every_position_in_a_vector_computes_the_same_bits_before_rounding() -> None:
    """float64, since rounding to float32 would hide a difference in the last bit nearly always."""
    from ddpm.diffusion.philox import _box_muller

    w = words(9, Stream.NOISE, torch.arange(2), 999)
    whole = _box_muller(w[0].contiguous(), w[1].contiguous())
    for start in range(0, 40):
        for length in (1, 3, 8, 13, 29):
            part = slice(start, start + length)
            for z, z_part in zip(whole, _box_muller(w[0, part], w[1, part]), strict=True):
                assert torch.equal(z[part], z_part)


def test_a_draw_larger_than_a_chunk_equals_its_parts() -> None:
    from ddpm.diffusion.philox import _CHUNK_BLOCKS

    count = 4 * _CHUNK_BLOCKS + 5
    drawn = words(1, Stream.NOISE, torch.arange(2), count)
    assert torch.equal(drawn[:, :100], words(1, Stream.NOISE, torch.arange(2), 100))
    last = torch.tensor([_CHUNK_BLOCKS + 1, 1, 0, int(Stream.NOISE) << 24])
    assert drawn[1, -1] == philox(last, 1)[0]
    many = words(1, Stream.NOISE, torch.arange(_CHUNK_BLOCKS + 7), 3)
    assert torch.equal(many[-1:], words(1, Stream.NOISE, torch.tensor([_CHUNK_BLOCKS + 6]), 3))


def test_draws_of_other_seeds_streams_steps_and_ids_share_no_block() -> None:
    blocks: list[tuple[int, ...]] = []
    for seed in (0, 1, 2**32, 2**62):
        for stream in Stream:
            for step in (0, 1, 2**24 - 1):
                ids = torch.tensor([0, 1, 2**32, 2**40 + 1])
                drawn = words(seed, stream, ids, 8, step=step).view(-1, 4)
                blocks += [tuple(block) for block in drawn.tolist()]
    assert len(set(blocks)) == len(blocks) == 4 * len(Stream) * 3 * 4 * 2


def test_stream_numbers_never_change() -> None:
    names = (
        "INIT ORDER SPLIT AUGMENT TIME NOISE LABEL_DROP DROPOUT X_T STEP_NOISE EVAL RESAMPLE KNOWN"
    ).split()
    assert [(stream.name, stream.value) for stream in Stream] == [
        (name, number) for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
def test_a_permutation_is_one(n: int) -> None:
    order = permutation(4, Stream.ORDER, n)
    assert torch.equal(order.sort().values, torch.arange(n))


def test_a_permutation_is_keyed_by_everything_it_is_given() -> None:
    base = permutation(4, Stream.ORDER, 100)
    assert torch.equal(base, permutation(4, Stream.ORDER, 100, step=0, id=0))
    others = [
        permutation(5, Stream.ORDER, 100),
        permutation(4, Stream.SPLIT, 100),
        permutation(4, Stream.ORDER, 100, step=1),
        permutation(4, Stream.ORDER, 100, id=1),
    ]
    assert not any(torch.equal(base, other) for other in others)


@pytest.mark.slow
def test_every_permutation_is_as_likely_as_any_other() -> None:
    counts = dict.fromkeys([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], 0)
    for id in range(1200):
        counts[tuple(permutation(0, Stream.ORDER, 3, id=id).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_name_ids_are_fixed_and_fit_an_id() -> None:
    # The first eight bytes of SHA-256 of "abc" (FIPS 180-2, appendix B.1), one bit dropped.
    assert name_id("abc") == 0xBA7816BF8F01CFEA >> 1
    assert name_id("stem.weight") != name_id("stem.bias")
    assert words(0, Stream.INIT, torch.tensor([name_id("Größe")]), 1).shape == (1, 1)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    normal(0, Stream.NOISE, torch.arange(3), (5,))
    permutation(0, Stream.ORDER, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_empty_draws_have_their_shape() -> None:
    assert normal(0, Stream.NOISE, torch.arange(0), (3, 2)).shape == (0, 3, 2)
    assert normal(0, Stream.NOISE, torch.arange(2), (3, 0)).shape == (2, 3, 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seed": -1}, r"seed is -1; give an integer in \[0, 2\^63\)"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"step": -1}, "step is -1"),
        ({"step": 2**24}, r"step is 16777216; give an integer in \[0, 2\^24\)"),
        ({"count": -1}, "count is -1"),
        ({"ids": torch.tensor([3, -2])}, "ids has -2; ids are at least 0"),
        ({"ids": torch.tensor([1.0])}, r"ids is torch.float32 \(1,\); give an int64 tensor \(N,\)"),
        ({"ids": torch.tensor(1)}, r"ids is torch.int64 \(\)"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict, message: str) -> None:
    valid = {"seed": 0, "stream": Stream.NOISE, "ids": torch.arange(2), "count": 4}
    with pytest.raises(ValueError, match=message):
        words(**(valid | arguments))


@pytest.mark.parametrize(
    "counter, key, message",
    [
        (torch.zeros(4), 0, "counter is torch.float32"),
        (torch.zeros(3, dtype=torch.int64), 0, r"\(3,\); give an int64 tensor \(..., 4\)"),
        (torch.zeros(4, dtype=torch.int64), 2**64, "key is 18446744073709551616"),
    ],
)
def test_philox_refuses_a_malformed_counter(counter: torch.Tensor, key: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        philox(counter, key)


@pytest.mark.long
def test_compiled_callers_get_the_same_bits() -> None:
    def draw(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return words(3, Stream.DROPOUT, ids, 21), normal(3, Stream.NOISE, ids, (3, 7))

    ids = torch.arange(9)
    for compiled, eager in zip(torch.compile(draw)(ids), draw(ids), strict=True):
        assert torch.equal(compiled, eager)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_bits_of_the_cpu() -> None:
    ids = torch.arange(2000)
    for draw in (words, lambda *a: normal(*a[:3], (a[3],)), lambda *a: uniform(*a[:3], (a[3],))):
        assert torch.equal(
            draw(1, Stream.NOISE, ids.cuda(), 501).cpu(), draw(1, Stream.NOISE, ids, 501)
        )
