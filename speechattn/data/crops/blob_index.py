"""The index of a store of byte strings (see `blobs`), in memory and on disk.

Numbers stand in arrays, not in objects: an entry takes about 270 bytes, its key included, and
forked workers share the pages of an index of half a million entries.

What is believed is the index of JSON lines. What was read of a large one is kept in arrays beside
it, under a stamp of what index and data were then; arrays that have another stamp, or are damaged,
are read past.
"""

import json
import os
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from speechattn.errors import SpeechattnError

_ARRAYS = (("file", "l"), ("offset", "q"), ("first", "q"), ("sizes", "q"))


@dataclass(frozen=True)
class Layout:
    """What a kind of store is called on disk and what it says about its entries.

    Attributes:
        index: name of the index file.
        data: first part of the names of the data files.
        numbers: what is said about every entry, as numbers.
        title: what such a store is called in errors.
    """

    index: str
    data: str
    numbers: tuple[str, ...]
    title: str

    def file(self, number: int) -> str:
        """Name of a data file."""
        return f"{self.data}-{number:05d}.bin"


class Table:
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
        """Add what a folder's index holds, unless an earlier folder has it.

        Returns:
            Length in bytes of the part of the index that can be believed, and where the data ends:
            number of the file, offset in it.
        """
        index = folder / self.layout.index
        before, length, end = len(self.offset), 0, (0, 0)
        known: dict[int, tuple[int, int]] = {}  # data file -> its place in `files`, its size
        columns = tuple(self.numbers.items())
        rows, first, sizes = self.rows, self.first, self.sizes
        with open(index, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    key, data, offset = record["key"], record["shard"], record["offset"]
                    blocks = record["blocks"]
                    values = [record[name] + 0.0 for name, _ in columns]
                    stop = offset + sum(blocks)
                except (ValueError, KeyError, TypeError) as error:
                    raise SpeechattnError(
                        f"{index}: line {number} is damaged ({error}); "
                        "delete the store and run the ROI stage again"
                    ) from error
                if data not in known:
                    file = folder / self.layout.file(data)
                    known[data] = (len(self.files), file.stat().st_size if file.is_file() else 0)
                    self.files.append(file)
                place, size = known[data]
                # After a power cut the index can be ahead of the blocks: believe the blocks.
                if stop > size:
                    break
                length += len(line)
                end = max(end, (data, stop))
                if rows.get(key, before) < before:  # an earlier folder has it
                    continue
                rows[key] = len(self.offset)  # a key that comes again replaces what was there
                self.file.append(place)
                self.offset.append(offset)
                sizes.extend(blocks)
                first.append(len(sizes))
                for (_, column), value in zip(columns, values, strict=True):
                    column.append(value)
                if "note" in record or key in self.notes:
                    self.notes[key] = record.get("note", "")
        return length, end

    def save(self, path: Path, stamp: str) -> None:
        """Keep the table for `kept`; without a word where the folder cannot be written.

        Args:
            path: of the arrays, in the store's folder: other files are named as seen from there,
                so that a store that is moved, or opened by another path, keeps them.
            stamp: of what the table was made from.
        """
        columns = {f"column {name}": getattr(self, name) for name, _ in _ARRAYS}
        columns |= {f"number {name}": column for name, column in self.numbers.items()}
        columns = {name: np.array(column) for name, column in columns.items()}
        texts = {
            "keys": "\0".join(self.rows),
            "files": "\0".join(str(file.relative_to(path.parent)) for file in self.files),
            "notes": json.dumps(self.notes),
            "stamp": stamp,
        }
        texts = {k: np.frombuffer(v.encode(), dtype=np.uint8) for k, v in texts.items()}
        rows = np.fromiter(self.rows.values(), dtype=np.int64, count=len(self.rows))
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                np.savez(file, rows=rows, **columns, **texts)
            part.replace(path)
            # Of processes that were killed; one that is at it still goes without.
            for other in path.parent.glob(f"{path.name}.*.part"):
                other.unlink(missing_ok=True)
        except OSError:
            with suppress(OSError):  # a read-only disk refuses even this
                part.unlink(missing_ok=True)

    @classmethod
    def kept(cls, layout: Layout, path: Path, stamp: str) -> "Table | None":
        """What `save` kept, if it is of the same stamp."""
        try:
            with np.load(path, allow_pickle=False) as file:
                texts = {k: file[k].tobytes().decode() for k in ("stamp", "keys", "files", "notes")}
                if texts["stamp"] != stamp:
                    return None
                table = cls(layout)
                for name, code in _ARRAYS:
                    setattr(table, name, array(code, file[f"column {name}"].tobytes()))
                for name in layout.numbers:
                    table.numbers[name] = array("d", file[f"number {name}"].tobytes())
                rows = file["rows"].tolist()
        except (OSError, KeyError, ValueError, EOFError, BadZipFile):
            return None
        table.rows = dict(zip(texts["keys"].split("\0"), rows, strict=True))
        table.files = [path.parent / name for name in texts["files"].split("\0")]
        table.notes = json.loads(texts["notes"])
        return table


def stamp_of(store: Path, folders: Sequence[Path], layout: Layout) -> str:
    """Sizes and times of the indices, sizes of the data: another where anything was written.

    Args:
        store: its folder.
        folders: that and those of its parts that have an index.
        layout: of the store.
    """
    parts: list[tuple[Any, ...]] = []
    for folder in folders:
        index = (folder / layout.index).stat()
        data = sorted((p.name, p.stat().st_size) for p in folder.glob(f"{layout.data}-*.bin"))
        parts.append((str(folder.relative_to(store)), index.st_size, index.st_mtime_ns, data))
    return json.dumps(parts)
