"""Operations of attention; see `speechattn.kernels`."""
