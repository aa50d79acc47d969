"""Many small byte strings in a few large files: what the crop store and the face cache are made of.

On disk: `<data>-00000.bin`, ... hold the blocks of all entries end to end; the index has a line of
JSON for each entry, written after its blocks are. A line that is not complete is not there. Nothing
is ever changed in place, so readers may open a store while it is written, and a writer that is
killed at any moment loses the entry it was writing and nothing else.

The jobs of a cluster write parts: folders `shard-00002-of-00016` in the store's folder, each with
an index and files of its own. A reader of the folder sees them all; `merge_parts` makes them one.

A large index is read once: what was read of it is kept beside it, in arrays, and is taken instead
as long as index and data are what they were (see `blob_index`).
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from speechattn.data.crops.blob_index import Layout, Table, stamp_of
from speechattn.errors import SpeechattnError

SHARD_BYTES = 1 << 30
LARGE = 20_000  # entries whose index takes a fifth of a second to read
_PARTS = "shard-*-of-*"


def part_name(shard: int, num_shards: int) -> str:
    """Name of the folder of one job of a cluster, in the store's folder."""
    return f"shard-{shard:05d}-of-{num_shards:05d}"


def part_folders(folder: str | Path) -> list[Path]:
    """The folders of a store's parts, in order."""
    return sorted(path for path in Path(folder).glob(_PARTS) if path.is_dir())


class BlobStore:
    """Reads entries. Cheap to open, picklable, and safe in forked processes.

    The index is read when the store is opened; entries added later are seen by opening it again.

    Args:
        folder: of a store that `BlobWriter` made, or of its parts, or of both.
        layout: of the store.

    Raises:
        SpeechattnError: there is no such store in `folder`.
    """

    def __init__(self, folder: str | Path, layout: Layout):
        self.folder, self.layout = Path(folder), layout
        folders = [self.folder, *part_folders(folder)]
        found = [one for one in folders if (one / layout.index).is_file()]
        if not found:
            raise SpeechattnError(f"{folder}: no {layout.title} here ({layout.index} is missing)")
        cache = self.folder / f"{layout.index}.arrays.npz"
        stamp = stamp_of(self.folder, found, layout)
        table = Table.kept(layout, cache, stamp)
        if table is None:
            table = Table(layout)
            for one in found:
                table.load(one)
            if len(table.rows) >= LARGE and stamp == stamp_of(self.folder, found, layout):
                table.save(cache, stamp)
        self._table = table
        self._open: dict[int, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._table.rows

    def __len__(self) -> int:
        return len(self._table.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.rows)

    def number(self, key: str, name: str) -> float:
        """One of the layout's numbers of an entry.

        Raises:
            KeyError: no such entry.
        """
        return self._table.numbers[name][self._row(key)]

    def note(self, key: str) -> str:
        """What was noted about an entry; empty for most."""
        return self._table.notes.get(key, "")

    def file(self, key: str) -> Path:
        """The data file that an entry is in."""
        return self._table.files[self._table.file[self._row(key)]]

    def blocks(self, key: str, first: int = 0, stop: int | None = None) -> list[bytes]:
        """Blocks `first` to `stop` of an entry.

        Raises:
            KeyError: no such entry.
        """
        table, row = self._table, self._row(key)
        lengths = table.sizes[table.first[row] : table.first[row + 1]]
        sizes = lengths[first:stop]
        offset = table.offset[row] + sum(lengths[:first])
        # pread keeps no position, so forked workers can share the file.
        data = os.pread(self._descriptor(table.file[row]), sum(sizes), offset)
        parts, position = [], 0
        for size in sizes:
            parts.append(data[position : position + size])
            position += size
        return parts

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        if getattr(self, "_open", None):
            self.close()

    def _row(self, key: str) -> int:
        try:
            return self._table.rows[key]
        except KeyError:
            raise KeyError(f"no entry {key!r} in {self.folder}") from None

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            self._open[file] = os.open(self._table.files[file], os.O_RDONLY)
        return self._open[file]


class BlobWriter:
    """Adds entries to a store, new or begun; one writer at a time.

    What an interrupted writer left half-written is cut off. Use it as a context manager, or call
    `close`.

    Args:
        folder: made if missing.
        layout: of the store.

    Raises:
        SpeechattnError: another process is writing to the store.
    """

    def __init__(self, folder: str | Path, layout: Layout):
        self.folder, self.layout = Path(folder), layout
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = open(self.folder / layout.index, "ab")
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._index.close()
            raise SpeechattnError(f"{folder}: another process is writing here") from error
        table = Table(layout)
        length, (self._number, offset) = table.load(self.folder)
        self._index.truncate(length)
        self._keys = set(table.rows)
        self._open_file(offset)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self,
        key: str,
        blocks: Sequence[bytes],
        numbers: Mapping[str, float],
        note: str = "",
        replace: bool = False,
    ) -> None:
        """Store an entry.

        Args:
            key: its name.
            blocks: its bytes, in pieces that can be read one without the others.
            numbers: what the layout says about every entry.
            note: anything to be remembered about it.
            replace: take the place of an entry of that name (whose bytes stay in the file).

        Raises:
            ValueError: the key is there already.
        """
        if key in self._keys and not replace:
            raise ValueError(f"{key!r} is in {self.folder} already")
        if self._offset >= SHARD_BYTES:
            self._file.close()
            self._number += 1
            self._open_file(0)
        for block in blocks:
            self._file.write(block)
        self._file.flush()  # before the index names it
        sizes = [len(block) for block in blocks]
        record = {"key": key, **{name: numbers[name] for name in self.layout.numbers}}
        record |= {"shard": self._number, "offset": self._offset, "blocks": sizes}
        if note:
            record["note"] = note
        self._index.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._index.flush()
        self._offset += sum(sizes)
        self._keys.add(key)

    def close(self) -> None:
        """Write everything out to disk and lets the store go."""
        for file in (self._file, self._index):
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_file(self, offset: int) -> None:
        path = self.folder / self.layout.file(self._number)
        if offset == 0:
            # Not emptied: a merge that was killed may have linked it to a part's data.
            path.unlink(missing_ok=True)
        self._file = open(path, "ab")
        self._file.truncate(offset)
        self._offset = offset


def merge_parts(folder: str | Path, layout: Layout) -> int:
    """Make one store of a folder's parts. Killed at any moment, it is done by calling it again.

    Data files are linked into the folder under new numbers, not copied (unless its file system has
    no links); then the index is replaced; then what the parts had is removed. Of entries that are
    there twice the first is kept. Who has the store open must open it again.

    Args:
        folder: of the store.
        layout: of the store.

    Returns:
        How many entries were taken over.

    Raises:
        SpeechattnError: something is writing to one of the parts.
    """
    folder = Path(folder)
    parts = [part for part in part_folders(folder) if (part / layout.index).is_file()]
    if not parts:
        return 0
    with ExitStack() as stack:
        own = stack.enter_context(BlobWriter(folder, layout))  # locks, and cuts off half entries
        for part in parts:
            stack.enter_context(BlobWriter(part, layout))
        keys, number = set(own._keys), own._number + 1
        lines, links = [(folder / layout.index).read_bytes()], []
        for part in parts:
            # A key that was replaced has two lines; the last counts.
            records = [json.loads(line) for line in (part / layout.index).open("rb")]
            last = {record["key"]: record for record in records}
            new = [record for key, record in last.items() if key not in keys]
            keys.update(last)
            moved: dict[int, int] = {}
            for record in new:
                if record["shard"] not in moved:
                    moved[record["shard"]] = number
                    links.append(
                        (part / layout.file(record["shard"]), folder / layout.file(number))
                    )
                    number += 1
                record["shard"] = moved[record["shard"]]
                lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        for source, target in links:
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        whole = folder / (layout.index + ".merged")
        with open(whole, "wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, folder / layout.index)
        for part in parts:
            (part / layout.index).unlink()
            for file in part.glob(f"{layout.data}-*.bin"):
                file.unlink()
    return len(lines) - 1
