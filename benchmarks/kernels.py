"""The Triton kernels on a GPU, forwards and backwards, against torch on the same batch.

Without a GPU nothing is measured: the rows say so, and the exit status is 0.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rows import against_peer, in_turn, row, save, spread
from torch import Tensor
from torch.nn.functional import ctc_loss, scaled_dot_product_attention

from speechattn.kernels.attention import gated_linear as gated
from speechattn.kernels.attention import local
from speechattn.kernels.attention.block_layouts import near_blocks, shards
from speechattn.kernels.attention.block_sparse import block_sparse_attention
from speechattn.kernels.attention.relative import tiled
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.kernels.lattice.ctc import ctc
from speechattn.masks import Chunks, padding_mask

DEVICE = "cuda"
HEADS, DEPTH = 8, 64
UNITS, TOKENS = 5000, 40  # of CTC
NOT_MEASURED = "not measured: no GPU"


@dataclass(frozen=True)
class Case:
    """An operation on a ragged batch of bfloat16, of float32 for CTC.

    Attributes:
        operation: `exact`, `causal`, `relative`, `linear`, `gated`, `local` (128 neighbours),
            `sparse` (blocks of 64 frames: its neighbours, and of all others one in 16, another
            one for each head) or `ctc`.
        items: of the batch; the shortest has half the frames of the longest.
        frames: of the longest.
        target: how many times faster than torch it is to be.
    """

    operation: str
    items: int
    frames: int
    target: float

    @property
    def peer(self) -> str:
        return {
            "exact": "torch's scaled_dot_product_attention with a mask",
            "causal": "torch's scaled_dot_product_attention, causal, padding computed too",
            "relative": "the torch path",
            "linear": "torch's scaled_dot_product_attention, causal, padding computed too",
            "gated": "the torch path",
            "local": "torch's scaled_dot_product_attention, over all keys, padding computed too",
            "sparse": "torch's scaled_dot_product_attention, over all keys, padding computed too",
            "ctc": "torch's ctc_loss",
        }[self.operation]


CASES = [
    Case("exact", 16, 1000, 1.0), Case("exact", 4, 4000, 1.0),
    Case("causal", 16, 1000, 1.0), Case("causal", 4, 4000, 1.0),
    Case("relative", 16, 1000, 2.0), Case("relative", 4, 4000, 2.0),
    Case("linear", 4, 4000, 1.0), Case("linear", 1, 64000, 4.0),
    Case("gated", 4, 4000, 2.0), Case("gated", 1, 64000, 2.0),
    Case("local", 4, 4000, 2.0), Case("local", 1, 16000, 20.0),
    Case("sparse", 4, 4000, 1.5), Case("sparse", 1, 16000, 3.0),
    Case("ctc", 32, 500, 1.0), Case("ctc", 16, 1500, 1.0),
]  # fmt: skip


def made(case: Case) -> tuple[Callable, Callable, list[Tensor], Tensor]:
    """Ours, the peer, what both take and what to start the way back with."""
    from speechattn.kernels.attention.triton.exact import attention
    from speechattn.kernels.attention.triton.linear import linear_attention
    from speechattn.kernels.attention.triton.relative import relative_attention

    torch.manual_seed(0)
    settings = {"device": DEVICE, "dtype": torch.bfloat16}
    shape = case.items, case.frames, HEADS, DEPTH
    tensors = [torch.randn(shape, **settings).requires_grad_() for _ in range(3)]
    lengths = torch.linspace(case.frames // 2, case.frames, case.items, device=DEVICE).long()
    lengths[-1] = case.frames
    real = padding_mask(lengths, case.frames)[:, None, None]
    if case.operation == "ctc":
        return _ctc(case, lengths)

    if case.operation == "exact":
        ours = partial(attention, lengths=lengths, query_lengths=lengths)
        peer = partial(torchs, attn_mask=real)
    elif case.operation == "causal":
        ours = partial(attention, lengths=lengths, chunks=Chunks(1), query_lengths=lengths)
        peer = partial(torchs, is_causal=True)
    elif case.operation == "linear":
        decay = -torch.linspace(0.001, 0.1, HEADS, device=DEVICE)
        ours = partial(linear_attention, decay=decay, lengths=lengths)
        peer = partial(torchs, is_causal=True)
    elif case.operation == "gated":
        tensors += [(torch.randn(shape, device=DEVICE).sigmoid().log() / 16).requires_grad_()]
        ours = partial(gated.gated_linear_attention, lengths=lengths)
        peer = partial(gated.tiled, lengths=lengths)
    elif case.operation == "local":
        ours = partial(
            local.local_attention, lengths=lengths, window=AttentionWindow.from_size(128)
        )
        peer = torchs
    elif case.operation == "sparse":
        blocks = -(-case.frames // 64)
        layout = near_blocks(blocks, 1, DEVICE) | shards(HEADS, blocks, 16, DEVICE)
        ours = partial(block_sparse_attention, lengths=lengths, layout=layout, block=64)
        peer = torchs
    else:
        p = torch.randn(2 * case.frames - 1, HEADS, DEPTH, **settings)
        tensors += [x.requires_grad_() for x in (p, *torch.randn(2, HEADS, DEPTH, **settings))]
        ours = partial(relative_attention, lengths=lengths)
        peer = partial(tiled, lengths=lengths)
    return ours, peer, tensors, torch.randn(shape, **settings)


def _ctc(case: Case, lengths: Tensor) -> tuple[Callable, Callable, list[Tensor], Tensor]:
    """`made` for CTC: losses (B,) of log probabilities, as each of the two wants them."""
    logits = torch.randn(case.items, case.frames, UNITS, device=DEVICE).requires_grad_()
    texts = torch.randint(1, UNITS, (case.items, TOKENS), device=DEVICE)
    spoken = torch.full_like(lengths, TOKENS)

    def ours(logits: Tensor) -> Tensor:
        return ctc(logits.log_softmax(-1), lengths, texts, spoken)

    def peer(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        return ctc_loss(log_probs, texts, lengths, spoken, reduction="none")

    return ours, peer, [logits], torch.ones(case.items, device=DEVICE)


def torchs(q: Tensor, k: Tensor, v: Tensor, **masked: Tensor | bool) -> Tensor:
    """Torch's own call, from and to (B, T, H, Dh)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, **masked).transpose(1, 2)


def passes(compute: Callable, tensors: list[Tensor], weight: Tensor) -> dict[str, Callable]:
    """Functions that return when the GPU is done."""

    def forward() -> None:
        with torch.no_grad():
            compute(*tensors)
        torch.cuda.synchronize()

    def training() -> None:
        torch.autograd.grad(compute(*tensors), tensors, weight)
        torch.cuda.synchronize()

    return {"forward": forward, "forward and backward": training}


def memory(function: Callable) -> float:
    """The most that a call holds beyond what is there before, in MB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measured(case: Case, rounds: int) -> list[dict]:
    """The rows of a case."""
    title = f"{case.operation}, {case.items} items of up to {case.frames} frames"
    names = [
        f"{title}, {what}, against {case.peer}" for what in ("forward", "forward and backward")
    ]
    storage = f"{title}, forward and backward, memory, against {case.peer}"
    if not torch.cuda.is_available():
        print(f"{title}: {NOT_MEASURED}", flush=True)
        rows = [row(f"{n}: {NOT_MEASURED}", None, None, None, case.target, "ms", False)
                for n in names]  # fmt: skip
        return [*rows, row(f"{storage}: {NOT_MEASURED}", None, None, None, 1.0, "MB", False)]
    ours, peer, tensors, weight = made(case)
    ours, peer = (passes(compute, tensors, weight) for compute in (ours, peer))
    rows = []
    for name, what in zip(names, ours, strict=True):
        ours[what]()  # tunes
        times = in_turn({"ours": ours[what], "peer": peer[what]}, rounds)
        times = {who: [1e3 * t for t in found] for who, found in times.items()}
        print(f"{name}, ms: ours {spread(times['ours'])}, peer {spread(times['peer'])}", flush=True)
        median = {who: statistics.median(found) for who, found in times.items()}
        rows.append(against_peer(name, median["ours"], median["peer"], case.target, "ms"))
    what = "forward and backward"
    rows.append(against_peer(storage, memory(ours[what]), memory(peer[what]), 1.0, "MB"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case of each, few rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = CASES[::2] if options.quick else CASES
    rows = [r for case in cases for r in measured(case, 5 if options.quick else 30)]
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
