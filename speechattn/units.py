"""Units of text: ids that every vocabulary shares, marks within tokens, and scripts.

Ids are ESPnet's: 0 blank, 1 unknown, the last <sos/eos>.
"""

BLANK, UNK = 0, 1  # ids
BLANK_TOKEN, UNK_TOKEN, SOS_EOS_TOKEN, SPACE_TOKEN = "<blank>", "<unk>", "<sos/eos>", "<space>"
# How an unknown unit is written in a text: DOUBLE QUESTION MARK, SentencePiece's own choice.
UNK_MARK = "\u2047"
WORD_START = "\u2581"  # SentencePiece's mark of a space before a piece


def is_ideograph(character: str) -> bool:
    """Return whether a character is a word of its own: a CJK ideograph or kana."""
    if len(character) != 1:
        return False
    code = ord(character)
    return (
        0x3040 <= code <= 0x30FF  # kana
        or 0x3400 <= code <= 0x4DBF  # extension A
        or 0x4E00 <= code <= 0x9FFF  # unified ideographs
        or 0xF900 <= code <= 0xFAFF  # compatibility
        or 0x20000 <= code <= 0x3FFFF  # the supplementary planes of ideographs
    )
