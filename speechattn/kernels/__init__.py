"""Operations of attention: one a file, each with up to three ways to compute it.

`reference` is the definition, plain and quadratic in memory; `torch` is portable, fast and of
bounded memory; `triton` is for GPUs. See `speechattn.kernels.backend` for which one runs.

Legend: B utterances, T frames, H heads, Dh width of a head, c queries of a tile, m keys that a tile
sees, W = c + m - 1 distances between them, N items of a group times heads, s stride of
the queries, Tq = ceil(T / s).
"""
