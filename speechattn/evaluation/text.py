"""Normalisation of texts and their splitting into the units that error rates count.

The text rule, in this order (each step can be turned off in `TextNormalization`):

1. NFKC: full-width letters, digits and punctuation become half-width, ligatures and composed
   characters get one spelling; a typographic apostrophe becomes ``'``.
2. Case: Latin (and every cased) letters are lower-cased, as NIST's sclite does unless told ``-s``.
3. Punctuation is kept unless `remove_punctuation`.
4. Space: runs of white space become one space, none at the ends, and none beside a CJK character
   (``今 天 买 A 股`` is ``今天买A股``); between two Latin words the space stays.

Units:

- ``char``: code points after the rule; the space between Latin words is one too, as ESPnet counts
  ``<space>``. ``<unk>`` is a single unit.
- ``word``: separated by white space, but every CJK character is a word of its own (the mixed error
  rate of code-switched corpora); for pure Chinese, words and characters coincide.

CJK here is Han, kana and bopomofo with their punctuation; Korean is written with spaces and keeps
them.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Unit = Literal["char", "word"]
UNITS: tuple[Unit, ...] = ("char", "word")

_CJK = (
    "\u2e80-\u2fdf"  # radicals
    "\u3001-\u303f"  # punctuation, without the ideographic space
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3100-\u312f\u31a0-\u31bf"  # bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"  # Han, extensions B and later
)
_SPACE_BESIDE_CJK = re.compile(rf"(?<=[{_CJK}])\s+|\s+(?=[{_CJK}])")
_WORD_OR_CJK = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_CHAR = re.compile(r"<unk>|.", re.DOTALL | re.IGNORECASE)
_HAS_CJK = re.compile(rf"[{_CJK}]")
# Characters without sound that are invisible on screen: errors that nobody could see.
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff\u00ad]")


@dataclass(frozen=True)
class TextNormalization:
    """Options of the text rule.

    Args:
        nfkc: apply Unicode's NFKC, which maps full-width forms to half-width ones.
        lower_case: ignore case.
        remove_punctuation: replace punctuation by a space, except for apostrophes between letters
            and the brackets of ``<unk>``.
        join_cjk: remove white space beside CJK characters.
    """

    nfkc: bool = True
    lower_case: bool = True
    remove_punctuation: bool = False
    join_cjk: bool = True


def normalize(text: str, options: TextNormalization | None = None) -> str:
    """Apply the module's rule to one transcript."""
    options = options or TextNormalization()
    text = _INVISIBLE.sub("", text)
    if options.nfkc:
        text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    if options.lower_case:
        text = text.lower()
    if options.remove_punctuation:
        text = _without_punctuation(text)
    text = " ".join(text.split())
    return _SPACE_BESIDE_CJK.sub("", text) if options.join_cjk else text


def split_units(text: str, unit: Unit) -> list[str]:
    """Split a normalised transcript into the units that are counted; see the module's rule."""
    if unit == "char":
        return _CHAR.findall(text)
    if unit == "word":
        return _WORD_OR_CJK.findall(text)
    raise ValueError(f"unit must be one of {', '.join(UNITS)}, not {unit!r}")


def has_cjk(text: str) -> bool:
    """Return whether a text has a character that is scored as a word of its own."""
    return _HAS_CJK.search(text) is not None


def _without_punctuation(text: str) -> str:
    def kept(index: int) -> bool:
        char = text[index]
        if not unicodedata.category(char).startswith("P"):
            return True
        between = 0 < index < len(text) - 1
        return char == "'" and between and text[index - 1].isalpha() and text[index + 1].isalpha()

    return "".join(char if kept(i) else " " for i, char in enumerate(text))
