"""The lists that the CNVSRC baselines bring: the share of each clip, and its text as token ids.

`data/<dataset>/{train,valid,test}.csv` of github.com/MKT-Dataoceanai/CNVSRC2023Baseline and
sectum1919/CNVSRC2024Baseline: no header, a clip a line,

    cnvsrc-multi,dev/video/80100246.mp4,74,2791 1382 2083 421 1698

dataset, path below the dataset's folder, frames at 25 a second, token ids. The ids are those of a
list of units: `char_units.txt` (4,468 with `<unk>`, from 2024 on) or the SentencePiece units of
2023, `unigram5000_units.txt`; 1 is `<unk>`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechattn.data.corpora.report import Failure
from speechattn.data.tokenizers.token_lists import read_token_list
from speechattn.units import SPACE_TOKEN, UNK_MARK, UNK_TOKEN

Share = Literal["train", "valid", "test"]
# A clip that is in two lists belongs to the share that is held out.
SHARES: tuple[Share, ...] = ("test", "valid", "train")
# Where the baselines keep their units, seen from the folder of the lists.
UNIT_FILES = (
    "char_units.txt",
    "../datamodule/char_units.txt",
    "../spm/unigram/unigram5000_units.txt",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a list."""

    path: str  # of the video below the dataset's folder
    share: Share  # the list that it is in
    ids: tuple[int, ...]  # token ids of the text
    file: str  # the list
    line: int  # number of the line in it


@dataclass(frozen=True)
class Lists:
    """The lists of one dataset."""

    rows: dict[str, Row]  # path of the video, without suffix, to its row
    shares: frozenset[str]  # which lists there are; none: nothing is known of any clip


def read_lists(folder: Path) -> tuple[Lists, list[Failure]]:
    """Read `train.csv`, `valid.csv` and `test.csv` of a folder, whichever are there."""
    rows: dict[str, Row] = {}
    failures: list[Failure] = []
    present = [share for share in SHARES if (folder / f"{share}.csv").is_file()]
    for share in present:
        for row in _read(folder / f"{share}.csv", share):
            if isinstance(row, Failure):
                failures.append(row)
                continue
            key = without_suffix(row.path)
            if (first := rows.setdefault(key, row)) is not row:
                reason = f"{row.path} is in line {first.line} of {first.file} too"
                failures.append(Failure(row.file, row.line, reason))
    return Lists(rows, frozenset(present)), failures


def _read(path: Path, share: Share) -> Iterator[Row | Failure]:
    file = str(path)
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            yield Failure(file, number, str(error))
            continue
        if not line:
            continue
        try:
            _, name, frames, tokens = line.split(",")
            int(frames)
            yield Row(name, share, tuple(map(int, tokens.split())), file, number)
        except ValueError:
            yield Failure(file, number, f"is not `dataset,path,frames,token ids`: {line[:80]!r}")


def without_suffix(name: str) -> str:
    """Strip the suffix: `dev/video/80100246.mp4` to `dev/video/80100246`."""
    return name.rpartition(".")[0] or name


class Units:
    """The units that the lists' ids stand for.

    Args:
        path: their file, a unit a line, with or without its id behind it.

    Raises:
        ConfigError: it is no such list.
    """

    def __init__(self, path: Path):
        self.path = path
        self.tokens = read_token_list(path)
        meant = {UNK_TOKEN: UNK_MARK, SPACE_TOKEN: " "}
        self._texts = [meant.get(token, token) for token in self.tokens]

    def text(self, ids: Sequence[int]) -> str | None:
        """Convert ids to text; None where one of them is no unit's.

        An unknown character comes back as the tokenizer's UNK_MARK.
        """
        if not all(0 < index < len(self.tokens) - 1 for index in ids):
            return None
        return "".join(self._texts[index] for index in ids).replace("\u2581", " ").strip()


def find_units(named: Path | None, folders: Sequence[Path]) -> Units | None:
    """Read the units named, or those that lie where the baselines have them."""
    if named is not None:
        return Units(named)
    files = (folder / name for folder in folders for name in UNIT_FILES)
    path = next((file for file in files if file.is_file()), None)
    return None if path is None else Units(path.resolve())
