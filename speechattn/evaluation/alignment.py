"""Alignments of reference and hypothesis as text for a terminal."""

from collections.abc import Sequence

from rich.cells import cell_len

Pair = tuple[str, str]
"""(reference unit, hypothesis unit) of an alignment; an empty string stands for none."""

SPACE = "\u2423"


def operation(pair: Pair) -> str:
    """Return ``I``, ``D``, ``S`` or, for equal units, an empty string."""
    reference, hypothesis = pair
    if reference == hypothesis:
        return ""
    if not reference:
        return "I"
    return "S" if hypothesis else "D"


def format_alignment(pairs: Sequence[Pair], width: int = 100) -> str:
    """Format three lines (REF, HYP, EVAL) with the units of a pair below each other.

    Columns are measured in terminal cells, so CJK lines up. Gaps are shown as asterisks, spaces as
    open boxes. After `width` cells a new group of three lines begins.
    """
    groups: list[list[list[str]]] = [[[], [], []]]
    used = 0
    for pair in pairs:
        shown = [SPACE if unit == " " else unit for unit in pair]
        cells = max(1, *(cell_len(unit) for unit in shown))
        if used and used + cells + 1 > width - 6:
            groups.append([[], [], []])
            used = 0
        used += cells + 1
        units = [*(unit or "*" * cells for unit in shown), operation(pair)]
        for line, unit in zip(groups[-1], units, strict=True):
            line.append(unit + " " * (cells - cell_len(unit)))
    labels = ("REF", "HYP", "EVAL")
    lines = (line for group in groups for line in zip(labels, group, strict=True))
    return "\n".join(f"{label:<5} {' '.join(line)}".rstrip() for label, line in lines)
