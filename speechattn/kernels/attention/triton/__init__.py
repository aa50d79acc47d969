"""Kernels for GPUs, in Triton: one operation per file, each forwards and backwards.

Nothing here is imported before `speechattn.kernels.backend.choose` returns "triton", so that the
package works without Triton. TRITON_INTERPRET=1, set before the first import, runs the kernels on a
CPU, slowly and exactly: so they are tested where there is no GPU.

Heads are (B, T, H, Dh) in memory. Inputs are float32, bfloat16 or float16; sums, scores, weights
and states are float32. Lengths stay on the device, nothing waits for it, and no result depends on
the order in which programs run (there are no atomic additions).

Legend: see `speechattn.kernels`; M queries of a tile, N keys of a tile.
"""
