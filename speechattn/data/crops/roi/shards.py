"""Dividing a corpus among the jobs of a cluster, and merging their crops.

Job i of N takes the videos whose key falls to it and writes a store of its own, in a folder of the
common one (see `blobs`); the common folder can be read as one store at any time. So no job waits
for another, each can be killed and begun again, and merging copies nothing.
"""

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from speechattn.data.crops.blobs import merge_parts, part_folders
from speechattn.data.crops.roi.faces import FACES
from speechattn.data.crops.roi.sheet import write_contact_sheet
from speechattn.data.crops.roi.workers import RoiItem
from speechattn.data.crops.store import CROPS, CropStore
from speechattn.errors import SpeechattnError
from speechattn.files import remove_partial, write_text

FAILURES, NOTES, SHEET, OPTIONS = "failures.tsv", "notes.tsv", "contact_sheet.png", "roi.json"
_Rows = dict[str, tuple[str, str]]  # key -> path, text


@dataclass(frozen=True)
class MergeSummary:
    """Counts of a corpus whose shards were merged."""

    done: int  # clips with crops
    failed: int  # clips without; listed in `failures.tsv`
    missing: int  # clips that no job has tried


def shard_of(key: str, num_shards: int) -> int:
    """Return the job that a clip falls to; the same on every machine."""
    return zlib.crc32(key.encode()) % num_shards


def shard_items(items: Sequence[RoiItem], num_shards: int, shard: int) -> list[RoiItem]:
    """Select the videos of one job.

    Raises:
        ValueError: there is no such shard.
    """
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} of {num_shards}: shards are 0 to {num_shards - 1}")
    return [item for item in items if shard_of(item.key, num_shards) == shard]


def merge_shards(items: Sequence[RoiItem], folder: str | Path) -> MergeSummary:
    """Merge the stores, lists of failures and notes that the jobs wrote.

    Nothing is cropped, and killed at any moment it is done by calling it again. Clips that no job
    has tried are counted; running their job again, or the whole without shards, adds them. `items`
    are the videos of the corpus.

    Raises:
        SpeechattnError: a job is still writing, or there is nothing to merge.
    """
    folder = Path(folder)
    parts = part_folders(folder)
    if not parts and not (folder / CROPS.index).is_file():
        raise SpeechattnError(f"{folder}: neither crops nor shards here")
    failures: _Rows = {}
    for one in (folder, *parts):
        failures |= read_rows(one / FAILURES)
        if (one / OPTIONS).is_file() and not (folder / OPTIONS).is_file():
            write_text(folder / OPTIONS, (one / OPTIONS).read_text(encoding="utf-8"))
    merge_parts(folder, FACES)
    merge_parts(folder, CROPS)
    store = CropStore(folder)
    lost = [item.key for item in items if item.key not in store]
    failures = {key: failures[key] for key in lost if key in failures}
    write_rows(folder / FAILURES, "reason", failures)
    for part in parts:
        remove_partial(part)
        for name in (FAILURES, NOTES, SHEET, OPTIONS):
            (part / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: somebody's own files
            part.rmdir()
    finish(items, folder)
    done = sum(item.key in store for item in items)
    return MergeSummary(done, len(failures), len(items) - done - len(failures))


def finish(items: Sequence[RoiItem], folder: Path) -> None:
    """Write the notes and the picture of a folder's crops."""
    store = CropStore(folder)
    shown = [item for item in items if item.key in store]
    notes = {item.key: (item.path, store.info(item.key).note) for item in shown}
    write_rows(folder / NOTES, "note", {k: row for k, row in notes.items() if row[1]})
    if shown:
        write_contact_sheet(store, [item.key for item in shown], folder / SHEET)


def line(key: str, path: str, text: str) -> str:
    """Format a row of a table of failures or notes."""
    return "\t".join(" ".join(cell.split()) for cell in (key, path, text)) + "\n"


def read_rows(path: Path) -> _Rows:
    """Read a table of failures, empty if it is missing; a line cut short is dropped."""
    if not path.is_file():
        return {}
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines[1:]]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def write_rows(path: Path, title: str, rows: _Rows) -> None:
    """Write a table of failures or notes, whole."""
    body = "".join(line(key, *row) for key, row in rows.items())
    write_text(path, f"key\tpath\t{title}\n{body}")
