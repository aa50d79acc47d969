"""Many small byte strings (blobs) in a few large files: the crop store and the face cache.

On disk: `<data>-00000.bin`, ... hold the blocks of all entries end to end; the index has a line of
JSON for each entry, written after its blocks are. A line that is not complete is not there. Nothing
is ever changed in place, so readers may open a store while it is written, and a writer that is
killed at any moment loses the entry it was writing and nothing else.

The jobs of a cluster write parts: folders `shard-00002-of-00016` in the store's folder, each with
an index and files of its own. A reader of the folder sees them all; `merge_parts` makes them one.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from speechattn.data.crops.blob_index import BlobIndex, Layout
from speechattn.errors import SpeechattnError
from speechattn.files import replacing

SHARD_BYTES = 1 << 30
_PARTS = "shard-*-of-*"


def part_name(shard: int, num_shards: int) -> str:
    """Return the name of the folder of one job of a cluster, in the store's folder."""
    return f"shard-{shard:05d}-of-{num_shards:05d}"


def part_folders(folder: str | Path) -> list[Path]:
    """Return the folders of a store's parts, in order."""
    return sorted(path for path in Path(folder).glob(_PARTS) if path.is_dir())


def index_folders(folder: str | Path, layout: Layout) -> list[Path]:
    """Return those of a store's folder and its parts that have an index."""
    return [f for f in (Path(folder), *part_folders(folder)) if (f / layout.index).is_file()]


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
        folders = index_folders(folder, layout)
        if not folders:
            raise SpeechattnError(f"{folder}: no {layout.title} here ({layout.index} is missing)")
        self._index = BlobIndex(layout)
        for one in folders:
            self._index.load(one)
        self._open: dict[int, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._index.rows

    def __len__(self) -> int:
        return len(self._index.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.rows)

    def number(self, key: str, name: str) -> float:
        """Return one of the layout's numbers of an entry; raise a KeyError if there is none."""
        return self._index.numbers[name][self._row(key)]

    def note(self, key: str) -> str:
        """Return the note on an entry; empty for most."""
        return self._index.notes.get(key, "")

    def file(self, key: str) -> Path:
        """Return the data file that an entry is in."""
        return self._index.files[self._index.file[self._row(key)]]

    def blocks(self, key: str, first: int = 0, stop: int | None = None) -> list[bytes]:
        """Read blocks `first` to `stop` of an entry; raise a KeyError if there is none."""
        index, row = self._index, self._row(key)
        lengths = index.sizes[index.first[row] : index.first[row + 1]]
        sizes = lengths[first:stop]
        offset = index.offset[row] + sum(lengths[:first])
        # pread keeps no position, so forked workers can share the file.
        data = os.pread(self._descriptor(index.file[row]), sum(sizes), offset)
        ends = accumulate(sizes)
        return [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]

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
            return self._index.rows[key]
        except KeyError:
            raise KeyError(f"no entry {key!r} in {self.folder}") from None

    def _descriptor(self, file: int) -> int:
        if file not in self._open:
            self._open[file] = os.open(self._index.files[file], os.O_RDONLY)
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
        index = BlobIndex(layout)
        length, (self._number, offset) = index.load(self.folder)
        self._index.truncate(length)
        self._keys = set(index.rows)
        self._open_file(offset)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add_blocks(
        self,
        key: str,
        blocks: Sequence[bytes],
        numbers: Mapping[str, float],
        *,
        note: str = "",
        replace: bool = False,
    ) -> None:
        """Store an entry.

        Args:
            key: its name.
            blocks: its bytes, in pieces that can be read one without the others.
            numbers: those of the layout.
            note: a remark for a person.
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
        """Write everything to disk and unlock the store."""
        for file in (file for file in (self._file, self._index) if not file.closed):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __enter__(self) -> Self:
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
    """Merge a folder's parts into one store. Killed at any moment, it is done by calling it again.

    Data files are linked into the folder under new numbers, not copied (unless its file system has
    no links); then the index is replaced; then what the parts had is removed. Of entries that are
    there twice the first is kept. Readers that have the store open must open it again.

    Returns:
        How many entries were taken over.

    Raises:
        SpeechattnError: something is writing to one of the parts.
    """
    folder = Path(folder)
    parts = [part for part in index_folders(folder, layout) if part != folder]
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
                shard = record["shard"]
                if shard not in moved:
                    moved[shard] = number
                    links.append((part / layout.file(shard), folder / layout.file(number)))
                    number += 1
                record["shard"] = moved[shard]
                lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        for source, target in links:
            target.unlink(missing_ok=True)
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        with replacing(folder / layout.index, sync=True) as whole:
            whole.write_bytes(b"".join(lines))
        for part in parts:
            (part / layout.index).unlink()
            for file in part.glob(f"{layout.data}-*.bin"):
                file.unlink()
    return len(lines) - 1
