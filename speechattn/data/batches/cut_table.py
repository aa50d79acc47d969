"""A manifest of any length as a sequence of cuts, each read from disk when it is asked for.

A Lhotse cut in memory is some 4 kB of Python objects, of which every loading process soon has a
copy; reading half a million of them takes a minute. `CutTable` keeps a few numbers of each cut in
arrays, and the place of its line in the manifest. Lhotse's own lazy manifests are read from front
to back, while batches of similar length need random access.

The arrays are kept beside the manifest, in `.<name>.table`, with the lines themselves if the
manifest is compressed. They are made again when the manifest has changed.
"""

import gzip
import hashlib
import json
import logging
import os
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechattn.errors import ConfigError, SpeechattnError
from speechattn.files import replacing

if TYPE_CHECKING:  # lhotse takes seconds to import, and recognition needs none of it
    from lhotse.cut import Cut

logger = logging.getLogger(__name__)

_MAGIC = b"speechattn cut table 2\n"  # ends the file; a new number where the format changes
_COLUMNS = {
    "starts": np.int64,  # of the lines, bytes
    "sizes": np.int64,
    "durations": np.float64,
    "has_audio": np.int8,
    "hashes": np.uint64,
    "id_ends": np.int64,  # one more than cuts: the first is 0
}


def id_hash(cut_id: str) -> int:
    """Hash a cut's id to 64 bits, the seed of its random draws."""
    return int.from_bytes(hashlib.blake2b(cut_id.encode(), digest_size=8).digest(), "little")


def has_audio(cut: "Cut") -> bool:
    """Return whether a cut's sound was recorded, and is not silence made up for a mute video."""
    return cut.has_recording and (cut.custom or {}).get("has_audio", True)


class CutTable(Sequence["Cut"]):
    """The cuts of a manifest, in its order. Cheap to pickle and safe in forked processes.

    A cut that was read is the caller's own: the table gives a new one each time.

    Args:
        path: the manifest, as Lhotse writes it.

    Raises:
        ConfigError: there is no such manifest, or it cannot be read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"{path}: no such manifest")
        table = self.path.with_name(f".{self.path.name}.table")
        stamp = _stamp(self.path)
        columns = _read_table(table, stamp)
        if columns is None:
            try:
                _write_table(self.path, table, stamp)
            except OSError as error:
                # A corpus that only others may write to: made for this process alone.
                logger.warning("%s: cannot be written (%s); made at every start", table, error)
                self._folder = tempfile.TemporaryDirectory(prefix="speechattn-")
                table = Path(self._folder.name) / table.name
                _write_table(self.path, table, stamp)
            columns = _read_table(table, stamp)
        self._ids = columns.pop("ids").tobytes()
        self._lines = self.path if _is_plain(self.path) else table
        self._columns = columns
        self._rows = np.arange(len(columns["starts"]))
        self._file: int | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.subset(np.arange(len(self))[index])
        row = int(self._rows[index])
        if self._file is None:
            self._file = os.open(self._lines, os.O_RDONLY)
        # pread keeps no position, so forked workers can share the file.
        size, start = (int(self._columns[name][row]) for name in ("sizes", "starts"))
        line = os.pread(self._file, size, start)
        try:
            cut = _to_cut(json.loads(line))
        except ValueError:
            cut = None
        if cut is None or cut.id != self._id(row):
            raise SpeechattnError(f"{self.path} has changed since it was opened: start again")
        return cut

    def __iter__(self) -> "Iterator[Cut]":
        return (self[i] for i in range(len(self)))

    @property
    def durations(self) -> np.ndarray:
        """Return (M,) seconds."""
        return self._columns["durations"][self._rows]

    @property
    def has_audio(self) -> np.ndarray:
        """Return (M,) bool: `has_audio` of each cut."""
        return self._columns["has_audio"][self._rows].astype(bool)

    @property
    def hashes(self) -> np.ndarray:
        """Return (M,) uint64: `id_hash` of each cut."""
        return self._columns["hashes"][self._rows]

    def ids(self) -> Iterator[str]:
        """Yield the ids, without reading a cut."""
        return map(self._id, self._rows.tolist())

    def subset(self, chosen: np.ndarray | Sequence[int]) -> "CutTable":
        """Select some of the cuts, by number or by a bool for each."""
        other = CutTable.__new__(CutTable)
        other.__dict__ = {**self.__dict__, "_file": None}
        other._rows = self._rows[np.asarray(chosen)]
        return other

    def _id(self, row: int) -> str:
        return self._ids[slice(*self._columns["id_ends"][row : row + 2])].decode()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_file": None}
        state.pop("_folder", None)  # removed by the process that made it
        return state

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)


# ------------------------------------------------------------------------------------ on disk


def _stamp(path: Path) -> list[int]:
    """Return size and time of change of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_table(table: Path, stamp: list[int]) -> dict[str, np.ndarray] | None:
    """Read the columns of a table; None if there is none, or of another state of the manifest."""
    try:
        with open(table, "rb") as file:
            file.seek(-len(_MAGIC) - 8, os.SEEK_END)
            start = int.from_bytes(file.read(8), "little")
            if file.read() != _MAGIC:
                return None
            file.seek(start)
            columns = {name: np.load(file) for name in ("stamp", "ids", *_COLUMNS)}
    except (OSError, ValueError, EOFError):
        return None
    return columns if columns["stamp"].tolist() == stamp else None


def _write_table(path: Path, table: Path, stamp: list[int]) -> None:
    """Read a manifest once from front to back; `table` is there when it is complete."""
    logger.info("%s: looking through the manifest, once", path)
    # Arrays: lists of half a million numbers would take more than all that is kept.
    values = {name: array(np.dtype(kind).char) for name, kind in _COLUMNS.items()}
    ids, position = bytearray(), 0
    with replacing(table) as part, open(part, "wb") as out:
        values["id_ends"].append(0)
        for number, line in enumerate(_lines(path), 1):
            start, position = position, position + len(line)
            if not line.strip():
                continue
            if not _is_plain(path):
                start = out.tell()
                out.write(line)
            try:
                name, duration, sound = _facts(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path}: line {number} is not a Lhotse cut ({error}); prepare it again"
                ) from error
            ids += name.encode()
            row = (start, len(line), duration, sound, id_hash(name), len(ids))
            for column, value in zip(values.values(), row, strict=True):
                column.append(value)
        end = out.tell()
        for column in (stamp, np.frombuffer(ids, np.uint8), *values.values()):
            np.save(out, column)
        out.write(end.to_bytes(8, "little") + _MAGIC)


def _is_plain(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the cuts of a manifest as lines of JSON."""
    try:
        if _is_plain(path) or path.name.endswith(".jsonl.gz"):
            with open(path, "rb") if _is_plain(path) else gzip.open(path, "rb") as file:
                yield from file
            return
        from lhotse import CutSet

        for cut in CutSet.from_file(path):
            yield json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n"
    except (EOFError, OSError, zlib.error) as error:
        raise ConfigError(f"{path}: damaged or cut short ({error}); prepare it again") from error


def _facts(record: dict[str, Any]) -> tuple[str, float, bool]:
    """Return id, seconds and whether there is sound."""
    if record["type"] == "MonoCut":
        sound = record.get("recording") is not None
        custom = record.get("custom") or {}
        return record["id"], float(record["duration"]), sound and custom.get("has_audio", True)
    cut = _to_cut(record)
    return cut.id, cut.duration, has_audio(cut)


def _to_cut(record: dict[str, Any]) -> "Cut":
    from lhotse.serialization import deserialize_item

    return deserialize_item(record)
