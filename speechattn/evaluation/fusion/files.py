"""Fusion of several systems' transcripts on disk by ROVER, for ``speechattn fuse``.

A system is a decode folder (``hyp.tsv``, with confidences if ``transcripts.jsonl`` is there too) or
a plain ``id TAB text`` file. Units are those of `speechattn.evaluation.text`: they are compared
after its rule (case, width, space beside Chinese) and written as the winning system wrote them.
"""

import json
import logging
import shutil
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from speechattn.data.tables import read_table, write_table
from speechattn.errors import ConfigError, SpeechattnError
from speechattn.evaluation.fusion.rover import RoverOptions, Unit, Voting, check_weights
from speechattn.evaluation.fusion.tuning import (
    DevSet,
    align_utterances,
    choose_options,
    choose_weights,
)
from speechattn.evaluation.text import TextNormalization, normalize, split_units
from speechattn.evaluation.text import Unit as UnitName
from speechattn.files import write_text
from speechattn.units import SPACE_TOKEN, UNK_MARK, UNK_TOKEN, WORD_START

logger = logging.getLogger(__name__)

AS_WRITTEN = TextNormalization(nfkc=False, lower_case=False)
UNKNOWN_CONFIDENCE = 0.5  # of a system without confidences


@dataclass(frozen=True)
class System:
    """One system's folder or table, and its units by utterance id, in the file's order."""

    path: Path
    transcripts: dict[str, list[Unit]]


def fuse(
    systems: Sequence[str | Path],
    output: str | Path,
    *,
    unit: UnitName = "word",
    voting: Voting | None = None,
    alpha: float | None = None,
    null_confidence: float | None = None,
    weights: Sequence[float] | None = None,
    dev: Sequence[Sequence[str | Path]] = (),
    tune_weights: bool = False,
    order_by_dev: bool = False,
    allow_missing: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fuse systems into a decode folder.

    Writes `hyp.tsv`, `ref.tsv` if one of the systems has it, and `fuse.yaml`: the options used and
    the error rates on the development sets.

    Args:
        systems: decode folders or tables; the order counts, see `rover`.
        output: a folder.
        unit: what is aligned and voted on, `word` or `char`.
        voting: see `RoverOptions`. None: chosen on `dev`; without one `average` if `alpha` or
            `null_confidence` is given, else `frequency`.
        alpha: weight of the votes. None: chosen on `dev`, or 0.5.
        null_confidence: confidence of a null arc. None: chosen on `dev`, or 0.5.
        weights: of the systems as given; equal by default.
        dev: development sets, each as outputs of the same systems in the same order; references
            are the `ref.tsv` of the first folder of a set that has one. Their error rates are
            averaged.
        tune_weights: choose the weights on `dev`, starting from `weights`.
        order_by_dev: order the systems by their own error rates on `dev`, the best first.
        allow_missing: an utterance that some systems lack is voted on by the others.
        console: where the result is printed; None prints nothing.

    Returns:
        The content of `fuse.yaml`.

    Raises:
        SpeechattnError: a file cannot be used, ids differ, or references do.
    """
    paths, output = [Path(path) for path in systems], Path(output)
    dev = [[Path(path) for path in one] for one in dev]
    _check_paths(paths, output, dev)
    if (tune_weights or order_by_dev) and not dev:
        raise ConfigError("weights and order are chosen on a development set: give --dev")
    shares = check_weights(weights, len(paths))
    inputs = [read_system(path, unit) for path in paths]
    references = find_references(paths)  # early, for its errors
    sets = [read_dev(one, len(paths), unit, allow_missing) for one in dev]
    if order_by_dev:
        order = sorted(
            range(len(paths)), key=lambda s: np.mean([one.single_rates[s] for one in sets])
        )
        sets = [one.ordered(order) for one in sets]
        inputs, shares = [inputs[s] for s in order], shares[order]
    given = {"voting": voting, "alpha": alpha, "null_confidence": null_confidence}
    options = choose_options(sets, shares, **given) if sets else default_options(**given)
    if tune_weights:
        shares = choose_weights(sets, shares, options)
        options = choose_options(sets, shares, **given)
    ids = common_ids(inputs, allow_missing)
    alternatives = align_utterances([[s.transcripts.get(key) for s in inputs] for key in ids])
    texts = [join_units(units, unit) for units in alternatives.fuse(options, shares)]
    chosen = _summary(unit, options, shares, inputs, ids=set(ids), sets=sets)
    output.mkdir(parents=True, exist_ok=True)
    if references is not None:
        shutil.copyfile(references, output / "ref.tsv")
    write_text(output / "fuse.yaml", yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True))
    write_table(output / "hyp.tsv", dict(zip(ids, texts, strict=True)))
    if console is not None:
        _print(chosen, console)
        console.print(f"{len(ids)} utterances written to {output}", soft_wrap=True, markup=False)
    return chosen


def default_options(
    voting: Voting | None, alpha: float | None, null_confidence: float | None
) -> RoverOptions:
    """Return the options of a fusion without a development set."""
    by_confidence = alpha is not None or null_confidence is not None
    return RoverOptions(
        voting or ("average" if by_confidence else "frequency"),
        0.5 if alpha is None else alpha,
        0.5 if null_confidence is None else null_confidence,
    )


def _check_paths(paths: Sequence[Path], output: Path, dev: Sequence[Sequence[Path]]) -> None:
    """Refuse to fuse nothing, or to overwrite an input."""
    if not paths:
        raise ConfigError("no system to fuse")
    sources = [*paths, *(path for one in dev for path in one)]
    if output.resolve() in {(p.parent if p.name == "hyp.tsv" else p).resolve() for p in sources}:
        raise ConfigError(f"--output {output} is an input and would be lost: name another folder")


def _summary(
    unit: UnitName,
    options: RoverOptions,
    shares: np.ndarray,
    inputs: Sequence[System],
    *,
    ids: Set[str],
    sets: Sequence[DevSet],
) -> dict[str, Any]:
    """Return the content of `fuse.yaml`."""
    return {
        "unit": unit,
        **(asdict(options) if options.voting != "frequency" else {"voting": "frequency"}),
        "systems": [
            {"path": str(s.path), "weight": weight, "missing": len(ids - s.transcripts.keys())}
            for weight, s in zip(shares.tolist(), inputs, strict=True)
        ],
        "dev": [
            {
                "paths": list(one.names),
                "error_rates": [round(rate, 4) for rate in one.single_rates],
                "fused_error_rate": round(one.rate(options, shares), 4),
            }
            for one in sets
        ],
    }


def _print(chosen: Mapping[str, Any], console: Console) -> None:
    """Print the options of a fusion, and the error rates of a development set if there was one."""
    sets = chosen["dev"]
    names = [f"dev {i}" if len(sets) > 1 else "dev" for i in range(1, len(sets) + 1)]
    table = Table(title=f"ROVER by {chosen['unit']}")
    table.add_column("system", overflow="fold")
    for header in ("weight", "missing", *(f"{name} % errors" for name in names)):
        table.add_column(header, justify="right", no_wrap=True)
    for i, system in enumerate(chosen["systems"]):
        rates = (f"{one['error_rates'][i]:.2f}" for one in sets)
        row = escape(system["path"]), f"{system['weight']:.3g}", str(system["missing"])
        table.add_row(*row, *rates, end_section=i + 1 == len(chosen["systems"]))
    if sets:
        table.add_row("fused", "", "", *(f"{one['fused_error_rate']:.2f}" for one in sets))
    console.print(table)
    used = {"voting": "voting", "alpha": "alpha", "null_confidence": "null confidence"}
    console.print(", ".join(f"{name} {chosen[key]}" for key, name in used.items() if key in chosen))


def read_system(path: Path, unit: UnitName) -> System:
    """Read a decode folder or a table."""
    if not path.is_dir():
        table = read_table(path)
        return System(path, {key: make_units(text, unit) for key, text in table.texts.items()})
    table = read_table(path / "hyp.tsv")
    scored = read_confidences(path / "transcripts.jsonl", unit)
    transcripts = {}
    for key, text in table.texts.items():
        decoded, pieces = scored.get(key, (text, ()))
        if " ".join(decoded.split()) != " ".join(text.split()):
            raise SpeechattnError(
                f"{path}: {key!r} differs between transcripts.jsonl and hyp.tsv; decode again, or "
                "name hyp.tsv itself to do without confidences"
            )
        transcripts[key] = make_units(text, unit, pieces)
    return System(path, transcripts)


Pieces = Sequence[tuple[str, float]]
"""Stretches of a text with their confidences, in order."""


def read_confidences(path: Path, unit: UnitName) -> dict[str, tuple[str, Pieces]]:
    """Read texts and confidences by id: of words or, if characters are fused, of tokens."""
    if not path.exists():
        return {}
    found = {}
    # Not splitlines(): a transcript may hold U+2028 and its like.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            transcript = json.loads(line)
            spans = transcript["words" if unit == "word" else "tokens"]
            pieces = [(_spelled(s["text"]), _confidence(s["confidence"])) for s in spans]
            found[transcript["id"]] = (transcript["text"], pieces)
        except (ValueError, KeyError, TypeError) as error:
            raise SpeechattnError(f"{path}:{number}: not a transcript ({error!r})") from None
    return found


def _confidence(value: float) -> float:
    if not -1e-6 <= value <= 1 + 1e-6:  # false for nan, too
        raise ValueError(f"a confidence must lie in 0 to 1, not {value}")
    return min(1.0, max(0.0, value))


def _spelled(token: str) -> str:
    text = token.replace(UNK_TOKEN, UNK_MARK).replace(WORD_START, " ")
    return " " if token == SPACE_TOKEN else text


def make_units(text: str, unit: UnitName, pieces: Pieces = ()) -> list[Unit]:
    """Split a transcript into units with keys by the text rule of `speechattn.evaluation.text`.

    A unit's confidence is the mean of its characters', and a character has that of its piece. A
    character in no piece has the mean of the pieces, or UNKNOWN_CONFIDENCE without any. Pieces are
    the system's words (for words) or tokens (for characters).
    """
    # Composes as the text rule does, but before the characters are split.
    text = normalize(unicodedata.normalize("NFC", text), AS_WRITTEN)
    parts = split_units(text, unit)
    confidences = iter(character_confidences("".join(parts), pieces, spaces=unit == "char"))
    return [
        Unit(normalize(part) or part, part, float(np.mean([next(confidences) for _ in part])))
        for part in parts
    ]


def character_confidences(text: str, pieces: Pieces, spaces: bool) -> list[float]:
    """Return the confidence of each character; `spaces`: the text's spaces are characters, too."""
    if not pieces:
        return [UNKNOWN_CONFIDENCE] * len(text)
    pairs = [(c, share) for piece, share in pieces for c in piece if spaces or not c.isspace()]
    characters, confidences = [c for c, _ in pairs], [share for _, share in pairs]
    mean = sum(confidence for _, confidence in pieces) / len(pieces)
    spelled = "".join(characters)
    start = len(spelled) - len(spelled.lstrip())  # a space before the first token
    if spelled[start:] == text:
        return confidences[start:]
    aligned, i = [], 0
    for character, spelling in kaldialign.align(list(text), characters, ""):
        if character:
            aligned.append(confidences[i] if spelling else mean)
        i += bool(spelling)
    return aligned


def join_units(units: Sequence[Unit], unit: UnitName) -> str:
    """Join units to a text: the inverse of `make_units` but for white space."""
    joint = " " if unit == "word" else ""
    return normalize(joint.join(u.text for u in units), AS_WRITTEN)


def common_ids(systems: Sequence[System], allow_missing: bool) -> list[str]:
    """Return all systems' ids in the first one's order; refuse differences unless allowed."""
    ids = list(dict.fromkeys(key for system in systems for key in system.transcripts))
    if not ids:
        raise SpeechattnError(f"{systems[0].path}: no utterances")
    for system in systems:
        missing = [key for key in ids if key not in system.transcripts]
        if missing and not allow_missing:
            raise SpeechattnError(
                f"{system.path} lacks {len(missing)} of {len(ids)} utterances, {missing[0]!r} "
                "first; with --allow-missing the other systems vote on these"
            )
        if missing:
            logger.warning("%s lacks %d of %d utterances", system.path, len(missing), len(ids))
    return ids


def find_references(paths: Sequence[Path]) -> Path | None:
    """Return the first `ref.tsv` in the folders; refuse references that differ between them."""
    found = [path / "ref.tsv" for path in paths if (path / "ref.tsv").is_file()]
    seen: Mapping[str, str] = {}
    for path in found:
        texts = read_table(path).texts
        for key in texts.keys() & seen.keys():
            if texts[key] != seen[key]:
                raise SpeechattnError(f"{path}: the reference of {key!r} differs from {found[0]}")
        seen = {**texts, **seen}
    return found[0] if found else None


def read_dev(paths: Sequence[Path], count: int, unit: UnitName, allow_missing: bool) -> DevSet:
    """Read a development set: the outputs of `count` systems and their references."""
    if len(paths) != count:
        raise ConfigError(
            f"--dev {' '.join(map(str, paths))}: {len(paths)} outputs, but {count} systems; name "
            "one per system, in the same order"
        )
    references = find_references(paths)
    if references is None:
        raise ConfigError(f"--dev {' '.join(map(str, paths))}: no ref.tsv in any of these")
    systems = [read_system(path, unit) for path in paths]
    ids = common_ids(systems, allow_missing)
    texts = read_table(references).texts
    for differing, where in ((set(ids) - texts.keys(), references), (texts.keys() - ids, paths[0])):
        if differing:
            raise SpeechattnError(
                f"{where} lacks {len(differing)} utterances, such as {min(differing)!r}"
            )
    transcripts = [[system.transcripts.get(key) for key in ids] for system in systems]
    units = [split_units(normalize(texts[key]), unit) for key in ids]
    return DevSet([str(path) for path in paths], transcripts, units)
