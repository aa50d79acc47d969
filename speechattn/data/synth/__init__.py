"""A SYNTHETIC talking-face corpus: eSpeak NG speaks, OpenCV draws, in GRID's layout."""

from speechattn.data.synth.corpus import synth_corpus

__all__ = ["synth_corpus"]
