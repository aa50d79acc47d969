"""Trained models made ready for use: packed, folded and quantized layers, and ONNX graphs.

Legend: B utterances, K hypotheses of each, M nodes (tokens of an utterance's hypotheses, shared
ones once, see `speechattn.decoders.tree`), T frames, V units, L layers, H heads, Dh width of a
head, D width. Pictures are (P, C, H, W), P those of all clips in a row, without padding.
"""

from speechattn.deploy.inference import prepare

__all__ = ["prepare"]
