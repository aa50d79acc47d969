"""SYNTHETIC talking-face corpora, in GRID's or CNVSRC's layout: eSpeak NG speaks, OpenCV draws.

eSpeak NG is licensed under the GPLv3 (https://github.com/espeak-ng/espeak-ng). It comes with the
package `espeakng-loader` of the extra `synth`, is loaded as a library, and is no part of this one.
"""

from speechattn.synth.cnvsrc import synth_cnvsrc
from speechattn.synth.corpus import synth_corpus

__all__ = ["synth_cnvsrc", "synth_corpus"]
