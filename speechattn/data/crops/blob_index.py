"""The index of a blob store (see `blobs`) in memory.

Numbers stand in arrays, not in objects: an entry takes about 270 bytes, its key included, and
forked workers share the pages of an index of half a million entries.
"""

import json
from array import array
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from speechattn.errors import SpeechattnError

_LINES = 200  # of the index that are read at a time


@dataclass(frozen=True)
class Layout:
    """The names of a kind of store on disk, and the numbers it keeps of each entry."""

    index: str  # name of the index file
    data: str  # first part of the names of the data files
    numbers: tuple[str, ...]  # names of the numbers kept of every entry
    title: str  # what such a store is called in errors

    def file(self, number: int) -> str:
        """Return the name of a data file."""
        return f"{self.data}-{number:05d}.bin"


class BlobIndex:
    """Entries of one folder or several, column by column."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.rows: dict[str, int] = {}
        self.numbers = {name: array("d") for name in layout.numbers}
        self.notes: dict[str, str] = {}  # few entries have one
        self.files: list[Path] = []
        self.file, self.offset = array("l"), array("q")
        self.first, self.sizes = array("q", [0]), array("q")  # blocks of row i: first[i:i + 2]

    def load(self, folder: Path) -> tuple[int, tuple[int, int]]:
        """Add the entries of a folder's index, except those that an earlier folder has.

        Returns:
            Bytes of the valid part of the index, and where the data ends: file number, offset.
        """
        path, before = folder / self.layout.index, len(self.offset)
        length, end, number = 0, (0, 0), 0
        files: dict[int, tuple[int, int]] = {}  # data file -> its place in `files`, its size
        with open(path, "rb") as stream:
            while lines := list(islice(stream, _LINES)):
                if not lines[-1].endswith(b"\n"):  # being written, or cut short
                    lines.pop()
                kept = []
                try:
                    # A chunk at once: twice as fast as line by line.
                    records = json.loads(b"[%s]" % b",".join(lines))
                    for line, record in zip(lines, records, strict=True):
                        data, stop = record["shard"], record["offset"] + sum(record["blocks"])
                        if data not in files:
                            files[data] = self._add_file(folder / self.layout.file(data))
                        # After a power cut the index can be ahead of the blocks: believe these.
                        if stop > files[data][1]:
                            self._extend(kept, files)
                            return length, end
                        length += len(line)
                        if (data, stop) > end:
                            end = data, stop
                        key = record["key"]
                        if self.rows.get(key, before) >= before:  # no earlier folder has it
                            self.rows[key] = len(self.offset) + len(kept)  # replaces an older one
                            kept.append(record)
                    self._extend(kept, files)
                except (ValueError, KeyError, TypeError) as error:
                    raise SpeechattnError(
                        f"{path}: line {number + self._find_damage(lines)} is damaged ({error}); "
                        "delete the store and run the ROI stage again"
                    ) from error
                number += len(lines)
        return length, end

    def _add_file(self, file: Path) -> tuple[int, int]:
        self.files.append(file)
        return len(self.files) - 1, file.stat().st_size if file.is_file() else 0

    def _extend(self, records: list[dict[str, Any]], files: dict[int, tuple[int, int]]) -> None:
        for name, column in self.numbers.items():
            column.extend([record[name] for record in records])
        self.file.extend([files[record["shard"]][0] for record in records])
        self.offset.extend([record["offset"] for record in records])
        blocks = [record["blocks"] for record in records]
        self.sizes.extend(chain.from_iterable(blocks))
        self.first.extend(islice(accumulate(map(len, blocks), initial=self.first[-1]), 1, None))
        for record in records:
            if "note" in record or record["key"] in self.notes:
                self.notes[record["key"]] = record.get("note", "")

    def _find_damage(self, lines: list[bytes]) -> int:
        """Return the number, from 1, of the first line that is no valid entry."""
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                hash(record["key"])
                sum([record[name] for name in ("shard", "offset", *self.numbers)])
                sum(record["blocks"])
            except (ValueError, KeyError, TypeError):
                return number
        return len(lines)
