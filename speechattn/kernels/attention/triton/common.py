"""Common parts of the Triton kernels: tuning, visible keys, tiles in memory, dropout."""

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
class KeyRange:
    """The keys that a query sees, within the length: i sees j where, with begin = i // size * size,

        begin - left <= j < begin + size + right.

    Chunks have a right of 0, a sliding window has size 1, causal is size 1 without a left bound.

    Attributes:
        size: frames of a chunk.
        left, right: frames before and after the chunk; None for all.
        causal: nothing after the query is seen, wherever its chunk ends.
    """

    size: int = 1
    left: int | None = None
    right: int | None = None
    causal: bool = False

    @classmethod
    def make(
        cls, chunks: Chunks | None = None, window: tuple[int, int] | None = None
    ) -> "KeyRange":
        """Make the range of chunks, or of a window of so many frames to the left and right.

        Raises:
            ValueError: both are given, or a window is negative.
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
        """Return the number of frames that a chunk sees; None for all."""
        if self.left is None or self.right is None:
            return None
        return self.left + self.size + self.right

    def arguments(self) -> dict[str, int | bool]:
        """Return the kernels' arguments."""
        return {
            "size": self.size,
            "left": self.left or 0,
            "right": self.right or 0,
            "HAS_LEFT": self.left is not None,
            "HAS_RIGHT": self.right is not None,
        }


def tuned(configurations: list[tuple[dict, int, int]], key: list[str], reset: tuple = ()):
    """Decorate a kernel to use the fastest configuration for each key, found on first use.

    The interpreter takes the smallest tiles, uneven ones where the kernel allows it.

    Args:
        configurations: tile sizes, warps, stages of the loads' pipeline.
        key: arguments that the choice depends on.
        reset: arguments that a kernel writes in part, and that have to be zero before.
    """
    if INTERPRETED:
        names = configurations[0][0]
        sizes = {name: 32 if name == "BLOCK_N" else 16 for name in names}
        configurations = [(sizes, 1, 1)]
    choices = [triton.Config(s, num_warps=w, num_stages=n) for s, w, n in configurations]
    return triton.autotune(choices, key=key, reset_to_zero=list(reset) or None)


def sized(names: list[str], *configurations: tuple[int, ...]) -> list[tuple[dict, int, int]]:
    """Return configurations for `tuned` from tuples: tile sizes by these names, warps, stages."""
    return [(dict(zip(names, c, strict=False)), c[-2], c[-1]) for c in configurations]


def refuse_double(operation: str, heads: torch.Tensor) -> None:
    """Raise ValueError where operands are float64, which the kernels do not take."""
    if heads.dtype == torch.float64:
        raise ValueError(f"the Triton kernel of {operation} takes float32 and halves, not float64")


def tiles(rows: int, name: str, heads: int, batch: int, sizes: dict) -> tuple[int, int, int]:
    """Return the grid of a kernel: tiles of `sizes[name]` rows, heads, items."""
    return triton.cdiv(rows, sizes[name]), heads, batch


def bucket(frames: int) -> int:
    """Round a length up to one that shares its tuning."""
    return triton.next_power_of_2(max(frames, 1))


def padded(depth: int) -> int:
    """Round the width of a head up to one of tensor cores."""
    return max(triton.next_power_of_2(depth), 16)


def precision() -> str:
    """Return the precision of float32 products: TF32 where torch allows it, else three of them.

    Half inputs ignore it.
    """
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Multiply a b, summed in float32."""
    if _INTERPRETED:  # the interpreter multiplies the bits of bfloat16 as numbers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def visible(
    i, j, n, size, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    CAUSAL: tl.constexpr = False,
):  # fmt: skip
    """Return a mask, True where queries i (M, 1) see keys j (1, N) of n frames; see `KeyRange`."""
    mask = (j < n) & (i >= 0)
    begin = i // size * size
    if HAS_RIGHT:
        mask = mask & (j < begin + size + right)
    if HAS_LEFT:
        mask = mask & (j >= begin - left)
    if CAUSAL:
        mask = mask & (j <= i)
    return mask


@triton.jit
def visible_keys(
    start, stop, n, size, left, right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr,
    CAUSAL: tl.constexpr = False,
):  # fmt: skip
    """Return the range of keys that any of the queries from `start` to `stop` sees."""
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
    """Return the range of queries, of m, that see any of the keys from `start` to `stop`."""
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
    """Return addresses (rows, BLOCK_D) of frames t of head h, item b of x (B, T, H, Dh)."""
    d = tl.arange(0, BLOCK_D)
    item = (tl.cast(b, tl.int64) * frames * heads + h) * DEPTH  # 64 bits for large batches
    return x + item + t[:, None] * (heads * DEPTH) + d[None, :]


@triton.jit
def inside(t, n, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return a mask (rows, BLOCK_D), True within 0 <= t < n and the width of a head."""
    d = tl.arange(0, BLOCK_D)
    return ((t >= 0) & (t < n))[:, None] & (d < DEPTH)[None, :]


@triton.jit
def load(x, b, h, t, n, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load frames t of head h, item b, (rows, BLOCK_D); zero from n on."""
    return tl.load(
        places(x, b, h, t, frames, heads, DEPTH, BLOCK_D),
        mask=inside(t, n, DEPTH, BLOCK_D),
        other=0.0,
    )


@triton.jit
def store(x, value, b, h, t, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store frames t of head h, item b."""
    store_until(x, value, b, h, t, frames, frames, heads, DEPTH, BLOCK_D)


@triton.jit
def store_until(
    x, value, b, h, t, n, frames, heads, DEPTH: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Store frames t below n of head h, item b."""
    tl.store(
        places(x, b, h, t, frames, heads, DEPTH, BLOCK_D),
        value.to(x.dtype.element_ty),
        mask=inside(t, n, DEPTH, BLOCK_D),
    )


@triton.jit
def dropout_factor(i, j, seed, drop, b, h, frames, heads):
    """Return the factors of the weights of queries i and keys j: 0 or 1 / (1 - drop).

    They depend on the position, not on the order, so that they are the same backwards, whatever the
    tiles. Each head of each item has a generator (Philox) of its own: 32 bits are enough to count.
    """
    draws = tl.rand(seed + b * heads + h, i * frames + j)
    return tl.where(draws >= drop, 1.0 / (1.0 - drop), 0.0)
