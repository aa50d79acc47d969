"""That the kernels compile for GPUs, which needs none: Triton brings the assembler."""

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# Run without TRITON_INTERPRET, under which kernels are nothing that could be compiled.
PROGRAM = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from speechattn.kernels.attention.triton import (
    block_sparse, exact, gated_linear, linear, relative
)
from speechattn.kernels.lattice.triton import ctc

LONGS = ("lengths", "query_lengths", "tokens", "token_lengths")
INDICES = {"lists": "*i16", "counts": "*i32"}
DOUBLES = ("reached", "total", "repeat_score")
FLOATS = ("lse", "delta", "dlse", "sink", "slopes", "sums", "dp", "decay", "gates", "dgates",
          "states", "dstates", "log_probs", "first_scores", "blank", "token")
TENSORS = ("q", "k", "v", "p", "u", "w", "out", "dout", "dq", "dk", "dv", "a", "b", "c", "grad")
NUMBERS = ("scale", "drop")
FLAGS = {"HAS_SINK": True, "HAS_SLOPES": True, "SHARED": 2, "DEPTH": 64, "BLOCK_D": 64,
         "HAS_LEFT": True, "HAS_RIGHT": True, "CAUSAL": True, "DROPPED": True,
         "PRECISION": "tf32x3", "REVERSE": True, "STRICT": True, "WIDTH": 64, "HAS_DLSE": True,
         "BACK": False, "FLIP": True, "HAS_FIRST": True, "MODIFIED": False, "NEEDS_GRAD": True,
         "EACH": True}
UNTUNED = triton.Config({"BLOCK": 128}, num_warps=2)
KERNELS = (exact._forward, exact._backward_queries, exact._backward_keys, relative._forward,
           relative._backward_queries, relative._backward_keys, relative._backward_distances,
           linear._kernel, gated_linear._scan, gated_linear._outputs, gated_linear._gradients,
           block_sparse._forward, block_sparse._backward_queries, block_sparse._backward_keys,
           ctc._recursion, ctc._posteriors)
for kernel in KERNELS:
    tuned = isinstance(kernel, triton.runtime.Autotuner)
    options = kernel.configs[-2] if tuned else UNTUNED
    function = kernel.fn if tuned else kernel
    for dtype, capability in (("bf16", 80), ("bf16", 90), ("fp32", 80)):
        half = dtype == "bf16"
        fixed = {**FLAGS, "HALF": half, "BLOCK": 64 if half else 32, **options.kwargs}
        types, values, aligned = {}, {}, {}
        for number, name in enumerate(function.arg_names):
            if name in fixed:
                types[name], values[(number,)] = "constexpr", fixed[name]
            elif name in INDICES:
                types[name] = INDICES[name]
                aligned[(number,)] = [["tt.divisibility", 16]]
            elif name in NUMBERS:
                types[name] = "fp32"
            elif name in LONGS + DOUBLES + FLOATS + TENSORS:
                types[name] = "*" + ("i64" if name in LONGS else
                                     "fp64" if name in DOUBLES else
                                     "fp32" if name in FLOATS else dtype)
                aligned[(number,)] = [["tt.divisibility", 16]]
            else:
                types[name] = "i32"
        made = triton.compile(
            ASTSource(function, types, values, aligned),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": options.num_warps, "num_stages": options.num_stages},
        )
        products = made.asm["ptx"].count("mma.sync") + made.asm["ptx"].count("wgmma.mma_async")
        assert len(made.asm["cubin"]) > 0
        print(function.__name__, dtype, capability, made.metadata.shared, products)
"""


@pytest.mark.slow
def test_for_ampere_and_hopper(tmp_path):
    """Products are the tensor cores', and shared memory fits the smaller GPUs of each kind."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [re.fullmatch(r"(\S+) (\S+) (\d+) (\d+) (\d+)", r) for r in done.stdout.splitlines()]
    assert len(rows) == 48
    for row in rows:
        assert int(row[4]) <= 99 * 1024, row[0]
        # Of CTC there are none.
        assert int(row[5]) >= (0 if row[1] in ("_recursion", "_posteriors") else 2), row[0]
