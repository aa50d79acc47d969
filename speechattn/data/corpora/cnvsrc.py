"""CN-CVS and the sets of the CNVSRC challenges, of any track and year.

CN-CVS (Chen, Wang and Zheng 2023, doi:10.1109/ICASSP49357.2023.10095796) is news and speeches of
2,557 people in Mandarin, some 300 hours; CNVSRC-Single is one person, CNVSRC-Multi 43 in a studio
and in front of their own cameras. Each of the two has a `dev` part with transcripts and an `eval`
part, to be recognised. `cnvsrc_layout` tells of the folders, `cnvsrc_lists` of the lists.

Splits, where S is the dataset of the track:

    pretrain         CN-CVS, its training share; and what year and `open_track` add
    pretrain_dev     speakers of CN-CVS held out (the baselines' valid.csv)
    pretrain_test    further ones (test.csv)
    finetune         S/dev, its training share: the target alone
    train            pretrain and finetune
    dev              S/dev, the share that is held out (valid.csv)
    test             S/eval, with transcripts or, where it comes without any, with empty ones
    dev_single/_multi   held-out share of the other dataset, where that is trained on

    fixed 2023, 2024   CN-CVS and S/dev
    fixed 2025         CN-CVS, CN-CVS2-P1, CN-CVS3 and both dev parts, S/dev as `finetune`, the
                       other in `pretrain`. Its task is Multi; Single is kept as a target.
    open               any year: all of these that are there, and the folders of `extra`

Shares are those of the lists, where there are any: they are the baselines', and a clip that no
list names is left unused, as there. Without lists a share is a function of the id alone, so that
missing files or further ones move no other clip: 3 % of CN-CVS' speakers go to pretrain_dev and
3 % to pretrain_test, a ninth of Single's clips and a quarter of Multi's go to dev.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from speechattn.data.corpora.cnvsrc_layout import Clip, TextJournal, clean_text, read_dataset
from speechattn.data.corpora.cnvsrc_lists import (
    Lists,
    Row,
    Units,
    find_units,
    read_lists,
    without_suffix,
)
from speechattn.data.corpora.manifests import Utterance, drop_repeated, write_manifests
from speechattn.data.corpora.report import Failure
from speechattn.data.corpora.tsv import read_table
from speechattn.errors import ConfigError

log = logging.getLogger(__name__)

Track = Literal["single", "multi"]
Year = Literal[2023, 2024, 2025]

# Names of the folders, in lower case and without hyphens and underscores.
FOLDERS = {
    "cncvs": ("cncvs",),
    "cncvs2": ("cncvs2", "cncvs2p1"),
    "cncvs3": ("cncvs3",),
    "single": ("cnvsrcsingle", "singlespeaker"),
    "multi": ("cnvsrcmulti", "multispeaker"),
}
HELD_OUT = {"single": 1 / 9, "multi": 1 / 4}  # of the clips of dev
HELD_OUT_SPEAKERS = 0.03  # of CN-CVS; as many again for pretrain_test
FPS = 25.0
JOURNAL = ".texts.jsonl"


def prepare_cnvsrc(
    corpus_dir: str | Path,
    output_dir: str | Path,
    track: Track,
    year: Year = 2024,
    *,
    open_track: bool = False,
    extra: Sequence[str | Path] = (),
    lists: str | Path | None = None,
    units: str | Path | None = None,
    workers: int = 2,
    verify: bool = True,
) -> dict[str, Path]:
    """Prepare manifests of a track; see the module's docstring for the splits.

    What cannot be used is listed in `output_dir/failures.tsv` and never stops it, and so is what
    is used in spite of a fault: those reasons start with "kept:".

    Args:
        corpus_dir: the folder with `cncvs`, `cnvsrc-single`, `cnvsrc-multi`.
        output_dir: where manifests and extracted sound go; see `manifests`.
        track: "single" or "multi".
        year: of the challenge.
        open_track: any data may be trained on.
        extra: open track: folders with a `manifest.tsv` (see `tsv`), whose rows of split "train"
            are added to pretrain.
        lists: folder with `<dataset>/train.csv` and so on (`data/` of a baseline); by default the
            corpus folder.
        units: the units that the ids in the lists stand for; by default those beside the lists.
            Only needed where a transcript is nowhere else.
        workers: files read at a time.
        verify: decode audio files to the end.

    Returns:
        Split name to the path of its CutSet.

    Raises:
        ConfigError: the track's folder is missing, or the arguments do not fit together.
        SpeechattnError: no clip could be used.
    """
    root, output_dir = Path(os.path.abspath(corpus_dir)), Path(output_dir)
    if track not in get_args(Track) or year not in get_args(Year):
        raise ConfigError(f"track, year: {track} {year}: single or multi, 2023, 2024 or 2025")
    if extra and not open_track:
        raise ConfigError("extra: only the open track may use further data (--open)")
    folders = _find_folders(root, track)
    lists_dir = root if lists is None else Path(os.path.abspath(lists))
    if not lists_dir.is_dir():
        raise ConfigError(f"lists: no such folder: {lists_dir}")
    known_units = find_units(units and Path(units), [root, lists_dir])
    utterances, failures = [], []
    with TextJournal(output_dir / JOURNAL) as journal:
        for name in _datasets(track, year, open_track):
            if name not in folders:
                log.warning("%s: no %s in it", root, FOLDERS[name][0])
                continue
            skip = frozenset({"eval"} if name in HELD_OUT and name != track else ())
            clips, unread = read_dataset(folders[name], journal, skip)
            own_lists, bad = _find_lists(folders[name], lists_dir)
            failures += unread + bad
            reader = _Dataset(name, track, folders[name], lists=own_lists, units=known_units)
            for result in reader.utterances(clips):
                (failures if isinstance(result, Failure) else utterances).append(result)
    for number, folder in enumerate(extra, start=1):
        rows, bad = _read_extra(Path(folder), number)
        utterances += rows
        failures += bad
    unique, repeated = drop_repeated(utterances)
    rules = {"unions": {"train": ("pretrain", "finetune")}, "fps": FPS}
    failures += repeated
    return write_manifests(unique, output_dir, failures, workers=workers, verify=verify, **rules)


def _datasets(track: Track, year: Year, open_track: bool) -> list[str]:
    """List the datasets that may be trained on, the target last."""
    other = "multi" if track == "single" else "single"
    more = ["cncvs2", "cncvs3", other] if open_track or year == 2025 else []
    return ["cncvs", *more, track]


def _find_folders(root: Path, track: Track) -> dict[str, Path]:
    if not root.is_dir():
        raise ConfigError(f"corpus_dir: no such folder: {root}")
    there = sorted(path for path in root.iterdir() if path.is_dir())
    folders: dict[str, Path] = {}
    for path in there:
        if (name := _dataset_of(path)) and folders.setdefault(name, path) is not path:
            raise ConfigError(f"{path}: is the same dataset as {folders[name]}")
    if track not in folders:
        names = ", ".join(path.name for path in there) or "nothing"
        raise ConfigError(f"corpus_dir: no cnvsrc-{track} in {root}; there is: {names}")
    return folders


def _dataset_of(folder: Path) -> str | None:
    plain = re.sub(r"[-_ ]", "", folder.name).lower()
    return next((name for name, names in FOLDERS.items() if plain in names), None)


def _find_lists(folder: Path, lists_dir: Path) -> tuple[Lists, list[Failure]]:
    """Read the lists in the folder of that name, or of one that means the same dataset."""
    dataset = _dataset_of(folder)
    others = [path.name for path in sorted(lists_dir.iterdir()) if _dataset_of(path) == dataset]
    for name in [folder.name, *others]:
        lists, failures = read_lists(lists_dir / name)
        if lists.shares:
            return lists, failures
    return Lists({}, frozenset()), []


class _Dataset:
    """Makes utterances of the clips of one dataset."""

    def __init__(self, name: str, track: Track, root: Path, *, lists: Lists, units: Units | None):
        self.name, self.track, self.root, self.lists, self.units = name, track, root, lists, units

    def utterances(self, clips: Sequence[Clip]) -> Iterator[Utterance | Failure]:
        unused, seen = 0, set()
        bare = not any(clip.text for clip in clips if self._is_eval(clip))
        for clip in clips:
            seen.add(key := without_suffix(clip.relative))
            row, speaker = self.lists.rows.get(key), self._speaker(clip)
            split = self._split(clip, speaker, row)
            if split is None:
                unused += 1
                continue
            text = self._text(clip, row)
            if text is None and self._is_eval(clip) and bare:
                text = ""
            elif not text:
                yield Failure(str(clip.path), None, self._why_no_text(clip, row))
                continue
            yield self._utterance(clip, speaker, split, text)
        for key, row in self.lists.rows.items():
            if key not in seen and not (self.name != self.track and key.startswith("eval/")):
                yield Failure(row.file, row.line, f"no such file: {self.root / row.path}")
        if unused:
            log.info("%s: %d clips are in none of the lists, and not used", self.root, unused)

    def _is_eval(self, clip: Clip) -> bool:
        return self.name in HELD_OUT and clip.relative.startswith("eval/")

    def _speaker(self, clip: Clip) -> str:
        if self.name == "single":
            return clip.speaker or "single"
        if self.name == "multi":
            # 80100246: speaker 10, session 0, clip 246; v0140201: speaker 14, clip 201.
            coded = re.fullmatch(r"80\d{6}|v\d{7}", clip.stem)
            return clip.speaker or (clip.stem[:4] if coded else clip.stem.partition("_")[0])
        speaker = clip.speaker or clip.folder
        return speaker if self.name == "cncvs" else f"{self.name}_{speaker}"

    def _split(self, clip: Clip, speaker: str, row: Row | None) -> str | None:
        if self._is_eval(clip):
            return "test" if self.name == self.track else None
        if row is not None:
            share: str | None = row.share
        elif self.lists.shares:
            share = None if "train" in self.lists.shares else "train"
        elif self.name in HELD_OUT:
            share = "valid" if _chance(self.name, clip.stem) < HELD_OUT[self.name] else "train"
        else:
            chance, few = _chance(self.name, speaker), HELD_OUT_SPEAKERS
            share = "valid" if chance < few else "test" if chance > 1 - few else "train"
        if share is None:
            return None
        if self.name == self.track:
            return {"train": "finetune", "valid": "dev", "test": "test"}[share]
        if self.name in HELD_OUT:
            return "pretrain" if share == "train" else f"dev_{self.name}"
        return {"train": "pretrain", "valid": "pretrain_dev", "test": "pretrain_test"}[share]

    def _text(self, clip: Clip, row: Row | None) -> str | None:
        """Return the transcript, "" if it is empty, None if there is none."""
        text = clip.text
        if text is None and row is not None and self.units is not None:
            text = self.units.text(row.ids)
        return None if text is None else clean_text(text)

    def _why_no_text(self, clip: Clip, row: Row | None) -> str:
        if clip.text is not None or (row is not None and not row.ids):
            return "empty transcript"
        if row is None:
            return "missing pair: no transcript"
        where = f"line {row.line} of {row.file}"
        if self.units is None:
            return f"its transcript is token ids ({where}): name the list of units (--units)"
        return f"its transcript ({where}) has an id that is not in {self.units.path}"

    def _utterance(self, clip: Clip, speaker: str, split: str, text: str) -> Utterance:
        remarks, name = clip.remarks, _ascii(clip.stem)
        if not clip.stem.isascii():
            remarks = (*remarks, f"its name is not ASCII: {name} in its id")
        part = f"cnvsrc-{self.name}" if self.name in HELD_OUT else self.name
        if self.name == "multi":
            part += "-vlog" if clip.stem.startswith("v") else "-record"
        elif self.name == "cncvs":
            part += f"-{clip.relative.partition('/')[0]}"
        more = {"custom": {"part": part}, "sound": clip.sound, "remarks": remarks}
        return Utterance(f"{self.name}_{name}", clip.path, speaker, split, text, "cmn", **more)


def _chance(dataset: str, name: str) -> float:
    """Hash a name to a number from 0 to 1."""
    digest = hashlib.sha256(f"{dataset}/{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _ascii(name: str) -> str:
    """Make a name fit for a file on any system: `s1_u4e2d` of `s1_中`."""
    plain = (c if c.isascii() else f"u{ord(c):x}" for c in name)
    return re.sub(r"[^\w.-]", "_", "".join(plain))


def _read_extra(folder: Path, number: int) -> tuple[list[Utterance], list[Failure]]:
    rows, failures = read_table(folder / "manifest.tsv", language="cmn")
    utterances = []
    for row in (row for row in rows if row.split == "train"):
        names = {"id": f"extra{number}_{_ascii(row.id)}", "speaker": f"extra{number}_{row.speaker}"}
        custom, text = {**row.custom, "part": "extra"}, clean_text(row.text)
        utterances.append(replace(row, **names, split="pretrain", text=text, custom=custom))
    log.info("%s: %d of %d rows are of split train", folder, len(utterances), len(rows))
    return utterances, failures
