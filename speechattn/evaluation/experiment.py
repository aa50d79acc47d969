"""Reading of experiment folders for tables and reports; every file is optional.

::

    exp/<name>/train/metrics.csv            learning curves
               model/meta.json              facts about the model ("modality", "synthetic", ...)
               decode_<split>/hyp.tsv ref.tsv score.json
               decode_<split>/details/<utterance>.npz
"""

import csv
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import SpeechattnError
from speechattn.evaluation.bootstrap import BootstrapOptions
from speechattn.evaluation.error_rate import ScoreReport
from speechattn.evaluation.score_files import score_files
from speechattn.evaluation.text import UNITS, Unit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decode:
    """One decoded split.

    Args:
        split: name after ``decode_``.
        folder: ``decode_<split>``.
        scores: entries of score.json by unit; may be empty.
        details: files under ``details/``, sorted.
    """

    split: str
    folder: Path
    scores: dict[str, dict[str, Any]]
    details: tuple[Path, ...]

    @property
    def any_score(self) -> dict[str, Any]:
        """Return an entry of `scores` for what all units share; empty without any."""
        return self.scores.get("word") or self.scores.get("char") or {}

    def report(self, unit: Unit) -> ScoreReport | None:
        """Return the utterances' scores, without an interval; None where a table is missing."""
        ref, hyp = self.folder / "ref.tsv", self.folder / "hyp.tsv"
        if not (ref.is_file() and hyp.is_file()):
            return None
        try:
            none = BootstrapOptions(replications=0)
            return score_files(ref, hyp, unit, allow_missing=True, allow_extra=True, bootstrap=none)
        except SpeechattnError as error:
            log.warning("left out of the report: %s", error)
            return None


@dataclass(frozen=True)
class Experiment:
    """One experiment folder.

    Args:
        name, folder: its name in tables, and its path.
        meta: content of meta.json, or empty.
        metrics: columns of metrics.csv as (rows,) float64 with NaN for blanks; may be empty.
        decodes: its decoded splits.
    """

    name: str
    folder: Path
    meta: dict[str, Any]
    metrics: dict[str, np.ndarray]
    decodes: tuple[Decode, ...]

    @property
    def modality(self) -> str:
        """Return ``audio``, ``video`` or ``audio+video`` as in meta.json, or an empty string."""
        listed = self.meta.get("modalities") or [self.meta.get("modality", "")]
        return "+".join(map(str, listed))

    @property
    def synthetic(self) -> bool:
        """Return whether meta.json says that the data is synthetic."""
        return bool(self.meta.get("synthetic"))


@dataclass(frozen=True)
class Details:
    """Inputs and outputs of a decoder for one utterance.

    Args:
        id: utterance id.
        text, reference: the hypothesis and the reference.
        tokens: (U,) decoded tokens, without start and end.
        frame_shift: seconds per encoder frame.
        ctc: (T, V) posteriors in [0, 1], or None.
        cross_attention: (L, H, U', T) weights, or None; U' is U, or U + 1 with a row for the end.
        crops: (Tv, height, width) uint8 mouth crops over the same time as `ctc`, or None.
        vocabulary: (V,) token strings, or None if unknown.
    """

    id: str
    text: str
    reference: str
    tokens: tuple[str, ...]
    frame_shift: float
    ctc: np.ndarray | None
    cross_attention: np.ndarray | None
    crops: np.ndarray | None
    vocabulary: tuple[str, ...] | None

    @property
    def duration(self) -> float:
        """Return the seconds that the pictures span; 0 without any."""
        for array, axis in ((self.ctc, 0), (self.cross_attention, -1)):
            if array is not None:
                return array.shape[axis] * self.frame_shift
        return 0.0 if self.crops is None else len(self.crops) / 25.0


def read_experiments(folders: Iterable[str | Path] | Mapping[str, str | Path]) -> list[Experiment]:
    """Read experiment folders; a mapping gives their names, else they have the folders' names.

    Raises:
        SpeechattnError: a folder does not exist.
    """
    if isinstance(folders, Mapping):
        return [read_experiment(folder, name) for name, folder in folders.items()]
    return [read_experiment(folder) for folder in folders]


def read_experiment(folder: str | Path, name: str | None = None) -> Experiment:
    """Read one experiment folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SpeechattnError(f"{folder}: no such experiment folder")
    meta = _read_json(folder / "model" / "meta.json") or _read_json(folder / "meta.json")
    metrics = read_metrics(folder / "train" / "metrics.csv")
    decodes = []
    for path in sorted(folder.glob("decode_*")):
        if path.is_dir():
            details = tuple(sorted((path / "details").glob("*.npz")))
            split = path.name.removeprefix("decode_")
            decodes.append(Decode(split, path, read_scores(path), details))
    return Experiment(name or folder.resolve().name, folder, meta, metrics, tuple(decodes))


def read_scores(decode_dir: Path) -> dict[str, dict[str, Any]]:
    """Read ``score.json``, of one unit or ``{"char": ..., "word": ...}``, as entries by unit."""
    content = _read_json(decode_dir / "score.json")
    if content.get("unit") in UNITS:
        content = {content["unit"]: content}
    return {unit: content[unit] for unit in UNITS if isinstance(content.get(unit), dict)}


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a CSV of numbers, NaN for other cells; empty without the file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name]
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in names}


def read_details(path: Path, vocabulary: tuple[str, ...] | None = None) -> Details | None:
    """Read ``details/<utterance>.npz``; None, with a warning, when the file is damaged.

    `vocabulary` has (V,) token strings, used if the file has none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("left out of the report: %s: %s", path, error)
        return None
    ctc = _ranked(content, "ctc", 2)
    if "vocabulary" in content:
        vocabulary = tuple(map(str, content["vocabulary"]))
    if vocabulary and ctc is not None and len(vocabulary) != ctc.shape[1]:
        vocabulary = None
    return Details(
        id=path.stem,
        text=str(content.get("text", "")),
        reference=str(content.get("reference", "")),
        tokens=tuple(map(str, content.get("tokens", ()))),
        frame_shift=float(content.get("frame_shift", 0.04)),
        ctc=None if ctc is None else ctc.astype(np.float32),
        cross_attention=_ranked(content, "cross_attention", 4),
        crops=_ranked(content, "crops", 3),
        vocabulary=vocabulary or None,
    )


def read_vocabulary(model_dir: Path) -> tuple[str, ...] | None:
    """Read the tokens of a model directory; None without a tokenizer."""
    if not model_dir.is_dir():
        return None
    try:
        return tuple(Tokenizer.load(model_dir).tokens)
    except SpeechattnError as error:
        log.info("no token names from %s: %s", model_dir, error)
        return None


def _ranked(content: Mapping[str, np.ndarray], name: str, rank: int) -> np.ndarray | None:
    array = content.get(name)
    return array if array is not None and array.ndim == rank and array.size else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        log.warning("left out of the report: %s: %s", path, error)
        return {}
    return content if isinstance(content, dict) else {}


def _number(cell: str | None) -> float:
    try:
        return float(cell) if cell else float("nan")
    except ValueError:
        return float("nan")
