"""The folders of CN-CVS and CNVSRC: clips, their sound, their transcripts, their speakers.

Known of the layout are its folders and file names (the READMEs of the baselines):

    cncvs/{news/n001,speech/s00001}/video/s00001_001_00001.mp4
    cnvsrc-multi/dev/{video,audio}/80100246.{mp4,wav}   cnvsrc-multi-dev-infos.json

Not published are the transcripts of CN-CVS, taken to be `text/<clip>.txt` beside `video/`, and the
fields of the JSON files, which are looked for under every usual name. So any folder that has a
folder `video` in it is read, with `audio` and `text` beside it, at any depth.

Several hundred thousand small files lie there: folders are listed, not probed, and what a text file
says is kept in a journal and read again only where its size or time changed.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from speechattn.data.corpora.grid import VIDEO_SUFFIXES
from speechattn.data.corpora.report import Failure
from speechattn.units import UNK_MARK, UNK_TOKEN

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus"})
TEXT_SUFFIXES = frozenset({".txt", ".lab", ".trn"})
MAX_DEPTH = 6
_IDS = ("id", "uid", "utt", "utt_id", "name", "key", "video", "video_id", "path", "file")
_TEXTS = ("text", "txt", "transcript", "transcription", "content", "label", "sentence")
_SPEAKERS = ("speaker", "speaker_id", "spk", "spk_id", "spkid")


@dataclass(frozen=True, slots=True)
class Clip:
    """One video of a dataset, before it was opened."""

    path: Path  # the file
    relative: str  # its path below the dataset's folder
    stem: str  # its name without suffix
    folder: str  # name of the folder that `video` is in; the speaker, in CN-CVS
    sound: Path | None  # its sound in a file of its own
    text: str | None  # transcript as it stands there, None without any
    speaker: str | None  # as the JSON file has it
    remarks: tuple[str, ...]  # faults that do not keep it from being used


class Info(NamedTuple):
    """The entry of a clip in a JSON file."""

    text: str | None = None
    speaker: str | None = None
    file: str = ""


class TextJournal:
    """The contents of small text files, remembered from run to run.

    Args:
        path: the journal; one JSON object a line, of which a torn one is dropped.
    """

    def __init__(self, path: Path):
        self._known: dict[str, tuple[int, int, str]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    name, size, time, text = json.loads(line)
                    self._known[name] = (size, time, text)
                except (ValueError, TypeError):
                    continue
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__
        self._file.write("\n")  # ends the line that a killed run may have left half-written

    def __enter__(self) -> "TextJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, entry: os.DirEntry) -> str:
        """Read a text file; raise OSError, or UnicodeDecodeError if not UTF-8 nor GB 18030."""
        stamp = (entry.stat().st_size, entry.stat().st_mtime_ns)
        if (known := self._known.get(entry.path)) and known[:2] == stamp:
            return known[2]
        raw = Path(entry.path).read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("gb18030")
        self._file.write(json.dumps([entry.path, *stamp, text], ensure_ascii=False) + "\n")
        return text


def read_dataset(
    root: Path, journal: TextJournal, skip: frozenset[str] = frozenset()
) -> tuple[list[Clip], list[Failure]]:
    """Read all clips of a dataset's folder, in the order of their paths.

    Folders named in `skip` are left out. Files that lack a video or cannot be read are failures.
    """
    failures: list[Failure] = []
    clips: list[Clip] = []
    infos = _read_infos(root, skip, failures)
    for folder in _media_folders(root, skip, failures, MAX_DEPTH):
        clips += _read_folder(root, folder, journal, infos=infos, failures=failures)
    there: dict[str, set[str]] = {"": set(), "dev": set(), "eval": set()}
    for clip in clips:
        there[_part(clip.relative)].add(clip.stem)
    for part, by_stem in infos.items():
        seen = there[part] | there[""] if part else set().union(*there.values())
        for stem in by_stem.keys() - seen:
            failures.append(Failure(by_stem[stem].file, None, f"missing pair: no video of {stem}"))
    return clips, failures


def clean_text(text: str) -> str:
    """Clean a transcript for training.

    The baselines take a text as it is, character by character, and have no punctuation among their
    characters; so punctuation and control characters go. White space stays between words of Latin
    letters or digits only. `<unk>`, as some lists have it, becomes the tokenizer's mark of an
    unknown character.
    """
    kept = []
    for character in text.replace(UNK_TOKEN, UNK_MARK):
        kind = unicodedata.category(character)
        if kind.startswith("P") and character not in ("'", UNK_MARK):
            kept.append(" ")
        elif character.isspace() or kind not in ("Cc", "Cf"):
            kept.append(character)
    words = "".join(kept).split()
    pairs = zip(words, words[1:], strict=False)
    apart = [" " * (before[-1].isascii() and word[0].isascii()) for before, word in pairs]
    return "".join(space + word for space, word in zip(["", *apart], words, strict=False))


# ------------------------------------------------------------------------------------ folders


def _entries(folder: Path, failures: list[Failure]) -> list[os.DirEntry]:
    """List a folder, sorted, without hidden files (macOS leaves `._x.mp4`)."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        failures.append(Failure(str(folder), None, f"cannot be listed: {error.strerror}"))
        return []


def _media_folders(
    folder: Path, skip: frozenset[str], failures: list[Failure], depth: int
) -> Iterator[Path]:
    """Yield the folders that have a folder `video` in them."""
    entries = (e for e in _entries(folder, failures) if e.is_dir() and e.name not in skip)
    folders = [entry.name for entry in entries if _is_utf8(entry, failures)]
    if "video" in folders:
        yield folder
    for name in folders:
        if name not in ("video", "audio", "text") and depth > 0:
            yield from _media_folders(folder / name, frozenset(), failures, depth - 1)


def _read_folder(
    root: Path,
    folder: Path,
    journal: TextJournal,
    *,
    infos: dict[str, dict[str, Info]],
    failures: list[Failure],
) -> Iterator[Clip]:
    videos = _by_stem(folder / "video", VIDEO_SUFFIXES, failures)
    sounds = _by_stem(folder / "audio", SOUND_SUFFIXES, failures)
    texts = _by_stem(folder / "text", TEXT_SUFFIXES, failures)
    for entry in [*sounds.values(), *texts.values()]:
        if _stem(entry.name) not in videos:
            failures.append(Failure(entry.path, None, "missing pair: no video of that name"))
    for stem, entry in videos.items():
        path = Path(entry.path)
        relative = path.relative_to(root).as_posix()
        own = infos.get(_part(relative), {})
        info = own.get(stem) or infos.get("", {}).get(stem) or Info()
        text = info.text
        if stem in texts:
            try:
                text = journal.read(texts[stem])
            except (OSError, UnicodeDecodeError) as error:
                failures.append(Failure(texts[stem].path, None, f"cannot be read: {error}"))
                continue
        sound = Path(sounds[stem].path) if stem in sounds else None
        remarks = (f"missing pair: no sound in audio/ ({stem})",) if sounds and not sound else ()
        yield Clip(path, relative, stem, folder.name, sound, text, info.speaker, remarks)


def _by_stem(
    folder: Path, suffixes: frozenset[str], failures: list[Failure]
) -> dict[str, os.DirEntry]:
    found: dict[str, os.DirEntry] = {}
    if not folder.is_dir():
        return found
    for entry in _entries(folder, failures):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() not in suffixes or not _is_utf8(entry, failures):
            continue
        if (first := found.setdefault(stem, entry)) is not entry:
            failures.append(Failure(entry.path, None, f"the same clip as {first.name}"))
    return found


def _is_utf8(entry: os.DirEntry, failures: list[Failure]) -> bool:
    """Return whether a name can be written into a manifest."""
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError:
        failures.append(Failure(entry.path, None, "its name is not UTF-8: rename it"))
        return False
    return True


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _part(relative: str) -> str:
    """Return `dev` or `eval` of a path below the dataset's folder, else ""."""
    first = relative.partition("/")[0]
    return first if first in ("dev", "eval") else ""


# ------------------------------------------------------------------------------------ JSON


def _read_infos(
    root: Path, skip: frozenset[str], failures: list[Failure]
) -> dict[str, dict[str, Info]]:
    """Map part ("dev", "eval", "" for either) to clip to its entry in `*-<part>-infos.json`."""
    infos: dict[str, dict[str, Info]] = {}
    for entry in _entries(root, failures):
        match = re.search(r"(?:-(dev|eval))?-infos\.json$", entry.name)
        if match is None or match[1] in skip:
            continue
        try:
            content = json.loads(Path(entry.path).read_bytes().decode("utf-8-sig"))
            infos.setdefault(match[1] or "", {}).update(_info_rows(content, entry.path, failures))
        except (OSError, ValueError) as error:
            failures.append(Failure(entry.path, None, f"cannot be read as JSON: {error}"))
    return infos


def _info_rows(content: Any, file: str, failures: list[Failure]) -> Iterator[tuple[str, Info]]:
    values = list(content.values()) if isinstance(content, dict) else []
    if values and all(isinstance(value, list) for value in values):
        content = [row for value in values for row in value]
    if not isinstance(content, dict | list):
        raise ValueError("it holds neither an object nor a list")
    pairs = content.items() if isinstance(content, dict) else ((None, row) for row in content)
    for key, row in pairs:
        row = {"text": row} if isinstance(row, str) else row
        if isinstance(row, dict):
            key = key or _first(row, _IDS)
        if not isinstance(row, dict) or not key:
            failures.append(Failure(file, None, f"entry without a clip: {str(key or row)[:80]}"))
            continue
        name = os.path.basename(str(key))
        stem, suffix = os.path.splitext(name)
        stem = stem if suffix.lower() in VIDEO_SUFFIXES | SOUND_SUFFIXES else name
        yield stem, Info(_first(row, _TEXTS), _first(row, _SPEAKERS), file)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((str(row[name]) for name in names if isinstance(row.get(name), str | int)), None)
