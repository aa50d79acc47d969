"""SYNTHETIC talking-face corpora: eSpeak NG speaks, OpenCV draws; in GRID's or CNVSRC's layout."""

from speechattn.synth.cnvsrc import synth_cnvsrc
from speechattn.synth.corpus import synth_corpus

__all__ = ["synth_cnvsrc", "synth_corpus"]
