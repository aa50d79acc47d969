"""Sums over the lattices of CTC and transducers; see `speechattn.kernels`."""
