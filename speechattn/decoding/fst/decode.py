"""Batches of utterances over a decoding graph."""

from dataclasses import replace

import numpy as np
from torch import Tensor

from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.path import Path
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.options import DecodeOptions


def graph_search(
    log_probs: Tensor, lengths: Tensor, search: KaldiSearch, options: DecodeOptions
) -> list[list[Hypothesis]]:
    """The best sentences that a graph allows.

    Args:
        log_probs: (B, T, V) of CTC.
        lengths: (B,) int64.
        search: over the graph.
        options: `graph_weight`, `graph_beam`, `graph_states` and `nbest`.

    Returns:
        For each utterance at least one hypothesis, best first; `path` among its scores is that of
        the best sequence of frames, CTC's and the weighted graph's together.
    """
    width = replace(search.options, beam=options.graph_beam, max_active=options.graph_states)
    search = search.with_options(width)
    frames = log_probs.float().cpu().numpy() / options.graph_weight
    results = []
    for row, length in zip(frames, lengths.tolist(), strict=True):
        paths = found(row[:length], search, options.nbest)
        scores = [options.graph_weight * path.score for path in paths]
        results.append(
            [
                Hypothesis(search.graph.units(path.events), score, {"path": score})
                for path, score in zip(paths, scores, strict=True)
            ]
        )
    return results


def found(scores: np.ndarray, search: KaldiSearch, count: int) -> list[Path]:
    """The best paths of an utterance; where none ends a sentence, the best that there is."""
    paths = search.nbest(scores, count) if count > 1 else []
    if not paths or not np.isfinite(paths[0].score):
        paths = [search.search(scores)]
    return [path if np.isfinite(path.score) else replace(path, score=0.0) for path in paths]
