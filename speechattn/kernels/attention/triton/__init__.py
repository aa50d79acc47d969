"""Kernels for GPUs, in Triton: one operation a file, each forwards and backwards.

Nothing here is imported before `speechattn.kernels.backend.choose` says "triton", so that the
package works without Triton. TRITON_INTERPRET=1, set before the first import, runs the kernels on
a CPU, slowly and exactly, which is how they are tested where there is no GPU.

All tensors of heads lie as (B, T, H, Dh) in memory. Inputs are float32, bfloat16 or float16; sums,
scores, weights and states are float32. Lengths stay on the device: nothing waits for it, and no
result depends on the order in which programs run (there are no atomic additions).

Legend beyond that of `speechattn.kernels`: M queries a tile, N keys a tile.
"""
