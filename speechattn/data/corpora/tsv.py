"""Any folder with a `file speaker split text` table, of audio or of video, into manifests.

The table is tab-separated UTF-8 with one header line; its columns come in any order. `file` is
relative to the table. Further columns that mean something: `id` (otherwise `<speaker>_<file name
without suffix>`), `language`, `landmarks` (path of precomputed face landmarks, relative to the
table). All others are kept, as strings, as custom fields of the cut; a column whose name is taken
by Lhotse or by this package, or is no identifier, is ignored with a warning.
"""

import logging
import os
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

from speechattn.data.corpora.manifests import SPLIT_NAME, Utterance, utterance_id, write_manifests
from speechattn.data.corpora.report import Failure
from speechattn.errors import ConfigError

log = logging.getLogger(__name__)

REQUIRED = ("file", "speaker", "split", "text")
_KNOWN = {*REQUIRED, "id", "language", "landmarks"}


def prepare_tsv(
    corpus_dir: str | Path,
    output_dir: str | Path,
    table: str = "manifest.tsv",
    language: str | None = None,
    *,
    workers: int = 2,
    verify: bool = True,
) -> dict[str, Path]:
    """Prepare manifests of a folder with a table; see the module's docstring for the table.

    A row that cannot be used (wrong number of fields, an empty field, a missing file, an id that
    was there before, a file that does not decode) is left out and listed with its line number in
    `output_dir/failures.tsv`.

    Args:
        corpus_dir: the folder, or the table itself.
        output_dir: where manifests and extracted sound go; see `manifests`.
        table: name of the table in the folder.
        language: code of the language spoken, for rows that do not say it.
        workers: files read at a time.
        verify: decode audio files to the end.

    Returns:
        Split name to the path of its CutSet (`cuts_<split>.jsonl.gz`).

    Raises:
        ConfigError: no table, or columns are missing from its header.
        SpeechattnError: no row could be used.
    """
    path = Path(corpus_dir)
    path = path if path.is_file() else path / table
    utterances, failures = read_table(path, language)
    return write_manifests(utterances, output_dir, failures, workers=workers, verify=verify)


def read_table(
    path: str | Path, language: str | None = None
) -> tuple[list[Utterance], list[Failure]]:
    """Read the rows of a table that can be used, and those that cannot, without opening the media.

    Args:
        path: the table.
        language: for rows that do not say it.

    Raises:
        ConfigError: no such file, or columns are missing from its header.
    """
    path = Path(os.path.abspath(path))
    if not path.is_file():
        raise ConfigError(f"{path}: no such table; expected columns: {' '.join(REQUIRED)}")
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    columns = _header(path, lines[0])
    utterances, failures, seen = [], [], {}
    for number, raw in enumerate(lines[1:], start=2):
        if not raw.strip():
            continue
        row = _row(raw, number, columns)
        result = row if isinstance(row, Failure) else _utterance(row, number, path.parent, language)
        if isinstance(result, Utterance) and result.id in seen:
            reason = f"id {result.id} was in line {seen[result.id]}; an `id` column can tell apart"
            result = Failure(row["file"], number, reason)
        if isinstance(result, Failure):
            failures.append(result)
        else:
            seen[result.id] = number
            utterances.append(result)
    return utterances, failures


def _header(path: Path, line: bytes) -> list[str]:
    columns = [name.strip() for name in line.decode("utf-8", errors="replace").split("\t")]
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise ConfigError(
            f"{path}: line 1: no column {', '.join(missing)} in the header (it has: "
            f"{', '.join(columns)}); needed, tab-separated: {' '.join(REQUIRED)}"
        )
    if repeated := {name for name in columns if columns.count(name) > 1}:
        raise ConfigError(f"{path}: line 1: column {', '.join(sorted(repeated))} is there twice")
    for name in columns:
        if name not in _KNOWN and not _is_free(name):
            log.warning("%s: column %r is ignored: the name cannot be a custom field", path, name)
    return columns


def _is_free(name: str) -> bool:
    return name.isidentifier() and name not in _taken_names()


@cache
def _taken_names() -> frozenset[str]:
    from lhotse import MonoCut

    ours = {"video", "video_fps", "video_frames", "has_audio", "type"}
    return frozenset(ours.union(dir(MonoCut), (field.name for field in fields(MonoCut))))


def _row(raw: bytes, number: int, columns: list[str]) -> dict[str, str] | Failure:
    try:
        cells = [value.strip() for value in raw.decode("utf-8").split("\t")]
    except UnicodeDecodeError as error:
        return Failure(raw.split(b"\t")[0].decode("utf-8", "replace"), number, str(error))
    if len(cells) != len(columns):
        return Failure(cells[0], number, f"{len(cells)} fields where the header has {len(columns)}")
    return dict(zip(columns, cells, strict=True))


def _utterance(
    values: dict[str, str], line: int, folder: Path, language: str | None
) -> Utterance | Failure:
    for name in REQUIRED:
        if not values[name]:
            return Failure(values["file"], line, f"empty {name}")
    if not SPLIT_NAME.fullmatch(values["split"]):
        reason = f"split {values['split']!r} cannot be part of a file name"
        return Failure(values["file"], line, reason)
    path = Path(os.path.abspath(folder / values["file"]))
    marks = values.get("landmarks")
    landmarks = Path(os.path.abspath(folder / marks)) if marks else None
    for file in filter(None, (path, landmarks)):
        if not os.path.isfile(file):  # Path.is_file raises where a name is too long
            return Failure(values["file"], line, f"no such file: {file}")
    speaker, text = values["speaker"], " ".join(values["text"].split())
    own = re.sub(r"[^\w.-]", "_", values.get("id", ""))
    row = (own or utterance_id(speaker, path.stem), path, speaker, values["split"], text)
    custom = {k: v for k, v in values.items() if k not in _KNOWN and _is_free(k)}
    language = values.get("language") or language
    return Utterance(*row, language, landmarks, custom=custom, line=line)
