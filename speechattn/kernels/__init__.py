"""Operations of attention and of lattices, each with up to three ways to compute it.

`reference` is the definition, plain and quadratic in memory; `torch` is portable, fast and of
bounded memory; `triton` is for GPUs. `speechattn.kernels.backend` chooses.

Legend: B utterances (items of a batch), T frames, H heads, Dh width of a head; Tq queries and Tk
keys, Hkv heads of keys and values, Dk and Dv widths of a head of keys and of values, where these
differ; s stride, Tq = ceil(T / s). Of a group of G items and a tile: c queries, m keys,
W = c + m - 1 distances between them, R rows. Of lattices: U tokens, V units with blank 0,
C = U + 1 columns (tokens so far).
"""
