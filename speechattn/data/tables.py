"""Transcript tables: one utterance a line, ``id TAB text`` or ``id TAB speaker TAB text``.

UTF-8 without a header. Which of the two a file is follows from the number of tabs, which must be
the same on every line: one tab makes two columns, two make three. Blank lines are skipped. The text
may be empty; a line that is an id and nothing else is an empty text in a two-column file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from speechattn.errors import SpeechattnError
from speechattn.files import write_text


@dataclass(frozen=True)
class Table:
    """Transcripts by utterance."""

    texts: dict[str, str]  # by utterance id, in the file's order
    speakers: dict[str, str] = field(default_factory=dict)  # likewise; none in a two-column file


def read_table(path: str | Path) -> Table:
    """Read a two- or three-column table.

    Raises:
        SpeechattnError: the file is missing, not UTF-8, mixes two and three columns, has no tabs,
            or holds an id twice; the message names the file and the line.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpeechattnError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpeechattnError(f"{path}: a folder, not a table") from None
    except UnicodeDecodeError as error:
        raise SpeechattnError(f"{path}: not UTF-8 text ({error.reason})") from None

    # Not splitlines(): a transcript may hold U+2028 and its like.
    lines = enumerate(content.split("\n"), start=1)
    rows = [(number, line.rstrip("\r")) for number, line in lines if line.strip()]
    columns, first_line = _count_columns(path, rows)
    texts: dict[str, str] = {}
    speakers: dict[str, str] = {}
    seen_at: dict[str, int] = {}
    for number, line in rows:
        cells = line.split("\t")
        if len(cells) == 1 and columns == 2:
            cells.append("")
        if len(cells) != columns:
            raise SpeechattnError(
                f"{path}:{number}: {len(cells)} columns, but line {first_line} has {columns}; "
                "a table is either 'id TAB text' or 'id TAB speaker TAB text' throughout"
            )
        utterance = cells[0].strip()
        if not utterance:
            raise SpeechattnError(f"{path}:{number}: the utterance id is empty")
        if before := seen_at.get(utterance):
            raise SpeechattnError(f"{path}:{number}: id {utterance!r} was already on line {before}")
        seen_at[utterance] = number
        texts[utterance] = cells[-1].strip()
        if columns == 3:
            speakers[utterance] = cells[1].strip()
            if not speakers[utterance]:
                raise SpeechattnError(f"{path}:{number}: the speaker of {utterance!r} is empty")
    return Table(texts, speakers)


def write_table(
    path: str | Path, texts: Mapping[str, str], speakers: Mapping[str, str] | None = None
) -> None:
    """Write a table, whole or not at all; with `speakers` it has three columns.

    White space inside a text (tabs and line breaks too) becomes single spaces.

    Raises:
        SpeechattnError: an id or a speaker is empty or holds a tab or line break, or an utterance
            has no speaker.
    """
    lines = []
    for utterance, text in texts.items():
        cells = [utterance]
        if speakers:
            if utterance not in speakers:
                raise SpeechattnError(f"{path}: utterance {utterance!r} has no speaker")
            cells.append(speakers[utterance])
        for cell in cells:
            if not cell.strip() or any(char in cell for char in "\t\r\n"):
                raise SpeechattnError(f"{path}: {cell!r} cannot be an id or a speaker in a table")
        lines.append("\t".join([*cells, " ".join(text.split())]) + "\n")
    write_text(path, "".join(lines))


def _count_columns(path: Path, rows: list[tuple[int, str]]) -> tuple[int, int]:
    """Return the number of columns of the table, and the first line that shows it."""
    for number, line in rows:
        columns = line.count("\t") + 1
        if columns in (2, 3):
            return columns, number
        if columns > 3:
            raise SpeechattnError(
                f"{path}:{number}: {columns} columns; expected 'id TAB text' or "
                "'id TAB speaker TAB text' (a text cannot hold a tab)"
            )
        if len(line.split()) > 1:
            raise SpeechattnError(
                f"{path}:{number}: no tab; put a tab, not a space, between the id and the text"
            )
    return 2, 1
