"""The GRID audio-visual sentence corpus (Cooke et al. 2006, doi:10.1121/1.2229005).

34 speakers say 1000 six-word commands each ("bin blue at s two please"): 3 s, 25 fps. Two layouts
are taken:

- published: `s1/*.mpg` (or .mp4, .avi, .mov; also deeper, as `s1/video/mpg_6000/`), with
  `align/s1/*.align`, `alignments/s1/*.align` or `s1/align/*.align`, and optional precomputed face
  landmarks `landmarks/s1/*.npz`. Splits are made here.
- a folder with a `manifest.tsv` of `file speaker split text`; it brings its own splits.

An .align file holds `start end word` lines in 1/1000 of a 25 fps frame; its words, without the
silences `sil` and `sp`, make the text, and their times go into the supervision's alignment.

In Zenodo's copy (doi:10.5281/zenodo.3625687) the alignments of half the speakers lie in folders of
others (https://github.com/lhotse-speech/lhotse/pull/1502); the university's own are right. Which of
the two a corpus has shows in the names of the files, which are those of the videos.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from speechattn.data.corpora.manifests import (
    Utterance,
    drop_repeated,
    utterance_id,
    write_manifests,
)
from speechattn.data.corpora.report import Failure
from speechattn.data.corpora.tsv import read_table
from speechattn.errors import ConfigError

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".mpg", ".mpeg", ".mp4", ".avi", ".mov", ".mkv", ".webm"})
SILENCES = frozenset({"sil", "sp"})
ALIGN_UNITS = 25_000  # a second in an .align file
_ALIGN_FOLDERS = ("align", "alignments")
_NO_SPEAKERS = frozenset({*_ALIGN_FOLDERS, "landmarks", "audio", "audio_25k"})
# Speaker to the folder of his alignments in Zenodo's copy, where it is not his own.
_ZENODO_ALIGNMENTS = {
    "s5": "s6", "s6": "s5",
    "s10": "s13", "s11": "s10", "s12": "s11", "s13": "s12",
    "s14": "s15", "s15": "s14",
    "s18": "s19", "s19": "s18",
    "s20": "s21", "s21": "s20",
    "s22": "s23", "s23": "s22",
    "s26": "s27", "s27": "s26",
    "s28": "s29", "s29": "s28",
    "s32": "s33", "s33": "s32",
}  # fmt: skip


def prepare_grid(
    corpus_dir: str | Path,
    output_dir: str | Path,
    split: Literal["utterance", "speaker"] = "utterance",
    fractions: tuple[float, float, float] = (0.80, 0.07, 0.13),
    *,
    dev_speakers: Sequence[str] = (),
    test_speakers: Sequence[str] = (),
    seed: int = 0,
    workers: int = 2,
) -> dict[str, Path]:
    """Prepare manifests of GRID, in either layout; see the module's docstring.

    Args:
        corpus_dir: the folder with `s1/` or with `manifest.tsv`.
        output_dir: where manifests and extracted sound go; see `manifests`.
        split: "utterance" shares each speaker's clips out, so that all speakers are in all splits;
            "speaker" holds speakers out. A `manifest.tsv` brings its own splits.
        fractions: of train, dev and test, in clips of each speaker or in speakers.
        dev_speakers: speakers held out for dev; none named: a fraction of those not in test.
        test_speakers: speakers held out for test; none named: a fraction.
        seed: of the choice; a clip's place does not depend on other speakers' clips.
        workers: files read at a time.

    Returns:
        Split name ("train", "dev", "test") to the path of its CutSet.

    Raises:
        ConfigError: not a GRID folder, or splits that cannot be made of it.
        SpeechattnError: no clip could be used.
    """
    corpus_dir = Path(os.path.abspath(corpus_dir))
    named = (*dev_speakers, *test_speakers)
    if (corpus_dir / "manifest.tsv").is_file():
        if split == "speaker" or named:
            raise ConfigError(f"split: {corpus_dir / 'manifest.tsv'} brings its own splits")
        utterances, failures = read_table(corpus_dir / "manifest.tsv", language="en")
        utterances = [_with_landmarks(u, corpus_dir) for u in utterances]
        return write_manifests(utterances, output_dir, failures, workers=workers)
    if named and split != "speaker":
        raise ConfigError("dev_speakers, test_speakers: they need split='speaker'")
    if min(fractions) < 0 or not 0.99 < sum(fractions) < 1.01:
        raise ConfigError(f"fractions: {fractions} is not three shares of 1")
    clips = _find_clips(corpus_dir)
    if split == "speaker":
        held_out = {"dev": dev_speakers, "test": test_speakers}
        by_speaker = _speaker_splits(list(clips), fractions, **held_out, seed=seed)
        splits = {path: by_speaker[name] for name, paths in clips.items() for path in paths}
    else:
        splits = {}
        for speaker, paths in clips.items():
            splits |= _shares([(p, f"{speaker}/{p.stem}") for p in paths], fractions, seed)
    utterances, failures = [], []
    for speaker, paths in clips.items():
        aligns = _align_folder(corpus_dir, speaker, paths)
        for path in paths:
            result = _read_clip(corpus_dir, aligns, speaker, path)
            if isinstance(result, Failure):
                failures.append(result)
            else:
                utterances.append(replace(result, split=splits[path]))
    unique, repeated = drop_repeated(utterances)
    return write_manifests(unique, output_dir, failures + repeated, workers=workers)


def read_align(path: str | Path) -> list[tuple[str, float, float]]:
    """Read (word, start, duration) in seconds, without silences, from an .align file.

    Raises:
        ConfigError: a line that is not of this form, or no word at all; names the line.
    """
    words = []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            start, end = int(fields[0]) / ALIGN_UNITS, int(fields[1]) / ALIGN_UNITS
            (word,) = fields[2:]
        except (ValueError, IndexError):
            raise ConfigError(f"{path}: line {number} is not `start end word`: {line!r}") from None
        if not 0 <= start <= end:
            raise ConfigError(f"{path}: line {number} ends before it starts: {line!r}")
        if word.lower() not in SILENCES:
            words.append((word, start, round(end - start, 6)))
    if not words:
        raise ConfigError(f"{path}: empty text: no word in it")
    return words


# ------------------------------------------------------------------------------------ clips


def _find_clips(corpus_dir: Path) -> dict[str, list[Path]]:
    """Map speakers to their video files, both sorted; a speaker is a folder that holds videos."""
    if not corpus_dir.is_dir():
        raise ConfigError(f"corpus_dir: no such folder: {corpus_dir}")
    clips = {}
    for folder in sorted(corpus_dir.iterdir(), key=_natural):
        if not folder.is_dir() or folder.name in _NO_SPEAKERS or folder.name.startswith("."):
            continue
        # macOS archives carry a `._name.mpg` beside each file.
        files = (file for file in folder.rglob("[!.]*") if file.suffix.lower() in VIDEO_SUFFIXES)
        if files := sorted(files):
            clips[folder.name] = files
    if not clips:
        raise ConfigError(
            f"corpus_dir: {corpus_dir} is not a GRID folder: neither manifest.tsv nor videos as "
            "in s1/bbaf2n.mpg (with align/s1/bbaf2n.align)"
        )
    return clips


def _natural(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.name if c.isdigit())
    return int(digits or 0), path.name


def _align_folder(corpus_dir: Path, speaker: str, paths: Sequence[Path]) -> str:
    """Return the name of the folder with a speaker's alignments: his own, or Zenodo's."""

    def count(folder: str) -> int:
        places = [corpus_dir / top / folder for top in _ALIGN_FOLDERS]
        return sum(any((p / f"{path.stem}.align").is_file() for p in places) for path in paths)

    other = _ZENODO_ALIGNMENTS.get(speaker)
    # Speakers share some sentences, and so some names, by chance.
    if other is None or count(other) <= max(count(speaker), len(paths) // 2):
        return speaker
    message = "the alignments of %s are in the folder of %s, and are taken from there"
    log.warning(message, speaker, other)
    return other


def _read_clip(corpus_dir: Path, aligns: str, speaker: str, path: Path) -> Utterance | Failure:
    name = f"{path.stem}.align"
    candidates = [
        *(corpus_dir / top / aligns / name for top in _ALIGN_FOLDERS),
        corpus_dir / speaker / "align" / name,
        path.with_suffix(".align"),
    ]
    align = next((file for file in candidates if file.is_file()), None)
    if align is None:
        return Failure(str(path), None, f"missing file: no {candidates[0]}")
    try:
        words = read_align(align)
    except ConfigError as error:
        return Failure(str(path), None, str(error))
    name, text = utterance_id(speaker, path.stem), " ".join(word for word, _, _ in words)
    utterance = Utterance(name, path, speaker, "", text, "en", words=tuple(words))
    return _with_landmarks(utterance, corpus_dir)


def _with_landmarks(utterance: Utterance, corpus_dir: Path) -> Utterance:
    if utterance.landmarks is not None:
        return utterance
    base = corpus_dir / "landmarks" / utterance.speaker / utterance.path.stem
    files = (Path(f"{base}{suffix}") for suffix in (".npz", ".npy"))
    return replace(utterance, landmarks=next((file for file in files if file.is_file()), None))


# ------------------------------------------------------------------------------------ splits


def _shares(
    named: Sequence[tuple[Path | str, str]], fractions: tuple[float, float, float], seed: int
) -> dict:
    """Share items out to "train", "dev" and "test", by an order of their names and the seed alone.

    Three or more items leave none of the three empty, unless its fraction is 0.
    """
    order = sorted(named, key=lambda item: hashlib.sha256(f"{seed}/{item[1]}".encode()).digest())
    total = len(order)
    sizes = [round(fraction * total) for fraction in fractions[1:]]
    if total >= 3:
        sizes = [max(size, 1) if f > 0 else 0 for size, f in zip(sizes, fractions[1:], strict=True)]
    sizes = [max(total - sum(sizes), 0), *sizes]
    labels = np.repeat(["train", "dev", "test"], sizes).tolist()
    return {item: label for (item, _), label in zip(order, labels, strict=False)}


def _speaker_splits(
    speakers: list[str],
    fractions: tuple[float, float, float],
    *,
    dev: Sequence[str],
    test: Sequence[str],
    seed: int,
) -> dict[str, str]:
    for key, names in (("dev_speakers", dev), ("test_speakers", test)):
        if unknown := sorted(set(names) - set(speakers)):
            raise ConfigError(f"{key}: no speaker {', '.join(unknown)}; there are: {speakers}")
    if both := sorted(set(dev) & set(test)):
        raise ConfigError(f"dev_speakers, test_speakers: {', '.join(both)} is in both")
    splits = dict.fromkeys(test, "test") | dict.fromkeys(dev, "dev")
    rest = [name for name in speakers if name not in splits]
    dev_share, test_share = 0 if dev else fractions[1], 0 if test else fractions[2]
    shares = (1 - dev_share - test_share, dev_share, test_share)
    needed = sum(share > 0 for share in shares)
    if len(rest) < needed:
        raise ConfigError(
            f"split: {len(speakers)} speakers ({', '.join(speakers)}) cannot be held out for "
            "train, dev and test; name dev_speakers and test_speakers, or split='utterance'"
        )
    if needed == 1:
        return splits | dict.fromkeys(rest, "train")
    assigned = _shares([(name, name) for name in rest], shares, seed)
    wanted = {n for n, share in zip(("train", "dev", "test"), shares, strict=True) if share > 0}
    if set(assigned.values()) != wanted:  # two speakers for two splits
        assigned = dict(zip(rest, sorted(wanted, reverse=True), strict=True))
    return splits | assigned
