"""Kernels for GPUs, in Triton; see `speechattn.kernels.attention.triton`."""
