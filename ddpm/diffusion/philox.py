"""All randomness of the project: pure functions of (seed, stream, step, sample id).

Counter-based: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
A block is one application: a 128-bit counter in, four 32-bit words out.

    key      the 64-bit seed                              (low word, high word)
    counter  (block, id low, id high, stream << 24 | step)

Element e of a sample's draw is word e % 4 of block e // 4, so it depends on nothing else: not on
the batch the sample sits in, not on the worker, not on what was drawn before. No generator, no
state, nothing to save.

32-bit words live in int64 tensors (PyTorch has no full set of unsigned operations). Everything
below uses only operations whose result integer arithmetic or IEEE 754 fixes to the bit (shifts,
+ - * / sqrt, rounding), one kernel each, so that CPU and GPU, vectorised kernels and their scalar
tails all agree; library logarithms, sines and cosines do not.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from enum import IntEnum

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Blocks computed together. On a CPU six int64 tensors of this length stay in a core's second-level
# cache; elsewhere each of the 200 kernels should have enough to do, within some 150 MB.
_CHUNK_BLOCKS = 1 << 14
_CHUNK_BLOCKS_OFF_CPU = 1 << 20

# Taylor coefficients in z = x * x, highest power first, cut where a term is below 2^-53 of the sum.
_ATANH = tuple(1.0 / (2 * k + 1) for k in range(10, -1, -1))  # |x| <= (sqrt(2) - 1) / (sqrt(2) + 1)
_SIN = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(8, -1, -1))  # |x| <= pi / 4
_COS = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(9, -1, -1))  # |x| <= pi / 4


class Stream(IntEnum):
    """Purpose of a draw. Results depend on the numbers: append new ones, never change any."""

    INIT = 0
    ORDER = 1
    SPLIT = 2
    AUGMENT = 3
    TIME = 4
    NOISE = 5
    LABEL_DROP = 6
    DROPOUT = 7
    X_T = 8
    STEP_NOISE = 9
    EVAL = 10
    RESAMPLE = 11
    KNOWN = 12


def philox(counter: Tensor, key: int) -> Tensor:
    """Philox 4x32-10 of each counter: four 32-bit words, as int64 in [0, 2^32).

    counter: int64 (..., 4), words in [0, 2^32).  key: int in [0, 2^64).  Returns int64 (..., 4).
    Raises ValueError for another dtype or shape, or a key outside its range.
    """
    if counter.dtype != torch.int64 or counter.ndim == 0 or counter.shape[-1] != 4:
        raise ValueError(
            f"counter is {counter.dtype} {tuple(counter.shape)}; give an int64 tensor (..., 4)"
        )
    if not 0 <= key < 2**64:
        raise ValueError(f"key is {key}; give an integer in [0, 2^64)")
    words = [counter[..., j].clone() for j in range(4)]
    return torch.stack(_rounds(words, key), dim=-1)


def words(seed: int, stream: Stream, ids: Tensor, count: int, *, step: int = 0) -> Tensor:
    """The first `count` 32-bit words of each sample's draw, as int64 in [0, 2^32).

    seed: [0, 2^63).  ids: int64 (N,), at least 0.  step: [0, 2^24).  Returns int64 (N, count) on
    the device of ids. Raises ValueError for an argument outside its range; the sign of ids is
    checked on the CPU only, since elsewhere looking at it would stall the device.
    """
    out = _empty_blocks(seed, stream, ids, count, step, torch.int64)
    for rows, blocks, block_words in _blocks(seed, stream, ids, out.shape[1], step):
        for j, word in enumerate(block_words):
            out[rows, blocks, j] = word
    return out.flatten(1)[:, :count].contiguous()


def uniform(seed: int, stream: Stream, ids: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Uniform draws in [0, 1): each word / 2^32, exact.

    Arguments and errors as in words().  Returns float64 (N, *shape).
    """
    draws = words(seed, stream, ids, math.prod(shape)).to(torch.float64) * 2.0**-32
    return draws.reshape(len(ids), *shape)


def normal(
    seed: int, stream: Stream, ids: Tensor, shape: Sequence[int], *, step: int = 0
) -> Tensor:
    """Standard normal draws, by Box-Muller on the word pairs (w0, w1) and (w2, w3) of each block.

    z0, z1 = r cos a, r sin a,  r = sqrt(-2 ln((w0 + 1/2) / 2^32)),  a = 2 pi w1 / 2^32

    Computed in float64 and rounded once; |z| < 6.77. Never compiled, also when the caller is: a
    compiler may fuse a multiplication with an addition, which rounds differently.

    Arguments and errors as in words().  Returns float32 (N, *shape).
    """
    draw = torch.compiler.disable(_normal) if torch.compiler.is_compiling() else _normal
    return draw(seed, stream, ids, math.prod(shape), step).reshape(len(ids), *shape)


def _normal(seed: int, stream: Stream, ids: Tensor, count: int, step: int) -> Tensor:
    out = _empty_blocks(seed, stream, ids, count, step, torch.float32)
    for rows, blocks, (w0, w1, w2, w3) in _blocks(seed, stream, ids, out.shape[1], step):
        for j, z in enumerate((*_box_muller(w0, w1), *_box_muller(w2, w3))):
            out[rows, blocks, j] = z
    return out.flatten(1)[:, :count].contiguous()


def permutation(seed: int, stream: Stream, n: int, *, step: int = 0, id: int = 0) -> Tensor:
    """A keyed order of 0 .. n-1: the stable argsort of n 64-bit draws.

    Arguments and errors as in words().  Returns int64 (n,) on the CPU.
    """
    pairs = words(seed, stream, torch.tensor([id]), 2 * n, step=step).view(n, 2)
    return torch.argsort((pairs[:, 0] << 32) | pairs[:, 1], stable=True)


def name_id(name: str) -> int:
    """The id of a text, in [0, 2^63): the first 63 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _empty_blocks(
    seed: int, stream: Stream, ids: Tensor, count: int, step: int, dtype: torch.dtype
) -> Tensor:
    """Room for the draw, (N, blocks, 4), once the arguments have been checked."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; give an integer in [0, 2^63)")
    if not 0 <= step < 2**24:
        raise ValueError(f"step is {step}; give an integer in [0, 2^24)")
    if not 0 <= count <= 2**34:
        raise ValueError(f"count is {count}; a draw has between 0 and 2^34 words")
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise ValueError(f"ids is {ids.dtype} {tuple(ids.shape)}; give an int64 tensor (N,)")
    if ids.device.type == "cpu" and not torch.compiler.is_compiling() and bool((ids < 0).any()):
        raise ValueError(f"ids has {int(ids.min())}; ids are at least 0")
    return torch.empty((len(ids), -(-count // 4), 4), dtype=dtype, device=ids.device)


def _blocks(
    seed: int, stream: Stream, ids: Tensor, num_blocks: int, step: int
) -> Iterator[tuple[slice, slice, list[Tensor]]]:
    """The words of all blocks, a cache-sized rectangle (rows, blocks) at a time."""
    if num_blocks == 0:
        return
    last_word = int(stream) << 24 | step
    chunk = _CHUNK_BLOCKS if ids.device.type == "cpu" else _CHUNK_BLOCKS_OFF_CPU
    num_rows = max(1, chunk // num_blocks)
    for row in range(0, len(ids), num_rows):
        rows = slice(row, min(row + num_rows, len(ids)))
        for start in range(0, num_blocks, chunk):
            blocks = slice(start, min(start + chunk, num_blocks))
            shape = (rows.stop - rows.start, blocks.stop - blocks.start)
            counter = (
                torch.arange(blocks.start, blocks.stop, device=ids.device),
                ids[rows, None] & _MASK,
                (ids[rows, None] >> 32) & _MASK,
                torch.full((), last_word, dtype=torch.int64, device=ids.device),
            )
            yield rows, blocks, _rounds([word.expand(shape).contiguous() for word in counter], seed)


def _rounds(counter: list[Tensor], key: int) -> list[Tensor]:
    """The ten rounds, in place.

    Words 1 and 3 carry stale high bits from round to round: only a factor has to be 32 bits wide.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = key & _MASK, key >> 32
    for _ in range(_ROUNDS):
        low0, low1 = c0 * _ROUND_MULTIPLIERS[0], c2 * _ROUND_MULTIPLIERS[1]  # wrap modulo 2^64
        torch.bitwise_right_shift(low1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(key0)
        torch.bitwise_right_shift(low0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(key1)
        c0, c1, c2, c3 = c0.bitwise_and_(_MASK), low1, c2.bitwise_and_(_MASK), low0
        key0, key1 = (key0 + _KEY_INCREMENTS[0]) & _MASK, (key1 + _KEY_INCREMENTS[1]) & _MASK
    return [c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)]


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two float64 normals from two 32-bit words."""
    interior = first.to(torch.float64).add_(0.5).mul_(2.0**-32)  # never 0, never 1
    radius = _log(interior).mul_(-2.0).sqrt_()
    cosine, sine = _cos_sin_turns(second.to(torch.float64).mul_(2.0**-32))
    return cosine.mul_(radius), sine.mul_(radius)


def _log(x: Tensor) -> Tensor:
    """ln x = e ln 2 + 2 atanh((m - 1) / (m + 1)), where x = m 2^e and sqrt(1/2) <= m < sqrt(2)."""
    mantissa, exponent = torch.frexp(x)  # mantissa in [1/2, 1)
    is_small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(is_small, mantissa * 2.0, mantissa)
    exponent = exponent.to(torch.float64).sub_(is_small.to(torch.float64))
    ratio = (mantissa - 1.0).div_(mantissa.add_(1.0))
    series = _polynomial(_ATANH, ratio * ratio)
    return series.mul_(ratio).mul_(2.0).add_(exponent.mul_(math.log(2.0)))


def _cos_sin_turns(turns: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi turns, turns in [0, 1): whole quarters and an angle within pi / 4."""
    quarters = (turns * 4.0).round_()
    angle = (turns * 4.0).sub_(quarters).mul_(math.pi / 2)  # in [-pi/4, pi/4]
    square = angle * angle
    cosine = _polynomial(_COS, square)
    sine = _polynomial(_SIN, square).mul_(angle)
    quarter = quarters.to(torch.int64).bitwise_and_(3)
    is_odd = (quarter & 1).to(torch.bool)
    # For 0, 1, 2, 3 quarters: the cosine is cos, -sin, -cos, sin, the sine sin, cos, -sin, -cos.
    cosine, sine = torch.where(is_odd, sine, cosine), torch.where(is_odd, cosine, sine)
    cosine.mul_(1.0 - 2.0 * ((quarter == 1) | (quarter == 2)).to(torch.float64))
    sine.mul_(1.0 - 2.0 * (quarter >= 2).to(torch.float64))
    return cosine, sine


def _polynomial(coefficients: Sequence[float], z: Tensor) -> Tensor:
    """Horner's rule, a multiplication and an addition at a time."""
    value = torch.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        value.mul_(z).add_(coefficient)
    return value
