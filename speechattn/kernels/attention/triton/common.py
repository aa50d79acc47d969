"""What the Triton kernels share: tuning, what a query sees, tiles in memory, dropout.

Legend: see `speechattn.kernels.attention.triton`.
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from speechattn.masks import Chunks

# As `triton.jit` itself reads it, when a kernel is defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

_INTERPRETED = tl.constexpr(INTERPRETED)
LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x LOG2E): GPUs have exp2
INFINITY = tl.constexpr(float("inf"))


@dataclass(frozen=True)
class Span:
    """What a query sees besides the length: i sees j where, with begin = i // size * size,

        begin - left <= j < begin + size + right.

    Chunks have nothing to the right, a sliding window has size 1, causal is size 1 and no bound to
    the left.

    Attributes:
        size: frames a chunk.
        left: frames before the chunk; None for all.
        right: frames after the chunk; None for all.
        causal: what comes after the query is not seen, wherever its chunk ends.
    """

    size: int = 1
    left: int | None = None
    right: int | None = None
    causal: bool = False

    @classmethod
    def of(cls, chunks: Chunks | None = None, window: tuple[int, int] | None = None) -> "Span":
        """From chunks, or from the frames to the left and right of each that it sees.

        Raises:
            ValueError: both, or a window of less than no frames.
        """
        if chunks is not None and window is not None:
            raise ValueError("attention takes chunks or a window, not both")
        if chunks is not None:
            return cls(chunks.size, None if chunks.left < 0 else chunks.left, 0)
        if window is not None:
            if min(window) < 0:
                raise ValueError(f"attention: a window has 0 or more frames a side, not {window}")
            return cls(1, *window)
        return cls()

    @property
    def reach(self) -> int | None:
        """Frames that a chunk sees; None where they have no bound."""
        if self.left is None or self.right is None:
            return None
        return self.left + self.size + self.right

    def arguments(self) -> dict[str, int | bool]:
        """As the kernels take it."""
        return {
            "size": self.size,
            "left": self.left or 0,
            "right": self.right or 0,
            "HAS_LEFT": self.left is not None,
            "HAS_RIGHT": self.right is not None,
        }


def tuned(configurations: list[tuple[dict, int, int]], key: list[str], reset: tuple = ()):
    """Decorate a kernel: the fastest configuration for each key, found on first use.

    The interpreter takes the smallest tiles, uneven ones where the kernel allows it.

    Args:
        configurations: tile sizes, warps, stages of the loads' pipeline.
        key: arguments that decide.
        reset: arguments that a kernel leaves in part as they were, and that have to be zero.
    """
    if INTERPRETED:
        names = configurations[0][0]
        sizes = {name: 32 if name == "BLOCK_N" else 16 for name in names}
        configurations = [(sizes, 1, 1)]
    choices = [triton.Config(s, num_warps=w, num_stages=n) for s, w, n in configurations]
    return triton.autotune(choices, key=key, reset_to_zero=list(reset) or None)


def tiles(rows: int, name: str, heads: int, batch: int, sizes: dict) -> tuple[int, int, int]:
    """The grid of a kernel: tiles of `sizes[name]` rows, heads, items."""
    return triton.cdiv(rows, sizes[name]), heads, batch


def bucket(frames: int) -> int:
    """Lengths that share a tuning."""
    return triton.next_power_of_2(max(frames, 1))


def padded(depth: int) -> int:
    """The width of a head as a product of tensor cores takes it."""
    return max(triton.next_power_of_2(depth), 16)


def precision() -> str:
    """How to multiply float32: as torch's own products may, or three products that lose nothing.

    Half inputs don't look at it.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b, added up in float32."""
    if _INTERPRETED:  # which multiplies bfloat16 as if its bits were a number
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def sees(
    i, j, n, size, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    CAUSAL: tl.constexpr = False,
):  # fmt: skip
    """True where queries i (M, 1) see keys j (1, N) of an item of n frames; see `Span`."""
    seen = (j < n) & (i >= 0)
    begin = i // size * size
    if HAS_RIGHT:
        seen = seen & (j < begin + size + right)
    if HAS_LEFT:
        seen = seen & (j >= begin - left)
    if CAUSAL:
        seen = seen & (j <= i)
    return seen


@triton.jit
def keys_seen(
    start, stop, n, size, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    CAUSAL: tl.constexpr = False,
):  # fmt: skip
    """The first key that any of the queries from `start` to `stop` sees, and one past the last."""
    first, last = 0, n
    if HAS_LEFT:
        first = tl.maximum(start // size * size - left, 0)
    if HAS_RIGHT:
        last = tl.minimum((stop - 1) // size * size + size + right, n)
    if CAUSAL:
        last = tl.minimum(last, stop)
    return first, last


@triton.jit
def queries_seeing(
    start, stop, m, size, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    CAUSAL: tl.constexpr = False,
):  # fmt: skip
    """The first of m queries that sees a key from `start` to `stop`, and one past the last."""
    first, last = 0, m
    if HAS_RIGHT:
        first = tl.maximum(start - right, 0) // size * size
    if HAS_LEFT:
        last = tl.minimum(((stop - 1 + left) // size + 1) * size, m)
    if CAUSAL:
        first = tl.maximum(first, start)
    return first, last


@triton.jit
def places(x, b, h, t, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Addresses (rows, BLOCK_D) of frames t of a head of an item of x (B, frames, heads, DEPTH)."""
    d = tl.arange(0, BLOCK_D)
    item = (tl.cast(b, tl.int64) * frames * heads + h) * DEPTH  # 32 bits would do for an item only
    return x + item + t[:, None] * (heads * DEPTH) + d[None, :]


@triton.jit
def inside(t, n, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """True (rows, BLOCK_D) within 0 <= t < n and the width of a head."""
    d = tl.arange(0, BLOCK_D)
    return ((t >= 0) & (t < n))[:, None] & (d < DEPTH)[None, :]


@triton.jit
def load(x, b, h, t, n, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Frames t of a head of an item, (rows, BLOCK_D); zero from n on."""
    return tl.load(
        places(x, b, h, t, frames, heads, DEPTH, BLOCK_D),
        mask=inside(t, n, DEPTH, BLOCK_D),
        other=0.0,
    )


@triton.jit
def store(x, value, b, h, t, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """What `load` loads, all frames of the tensor."""
    tl.store(
        places(x, b, h, t, frames, heads, DEPTH, BLOCK_D),
        value.to(x.dtype.element_ty),
        mask=inside(t, frames, DEPTH, BLOCK_D),
    )


@triton.jit
def kept(i, j, seed, drop, b, h, frames, heads):
    """What to multiply the weights of queries i and keys j by: 0 or 1 / (1 - drop).

    By position and not by order, so that it is the same backwards, whatever the tiles. Each head of
    each item has a generator (Philox) of its own, so 32 bits are enough to count.
    """
    draws = tl.rand(seed + b * heads + h, i * frames + j)
    return tl.where(draws >= drop, 1.0 / (1.0 - drop), 0.0)
