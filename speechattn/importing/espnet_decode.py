"""ESPnet's decode YAML as options of `JointSearch`."""

from pathlib import Path
from typing import Any

from speechattn.config import read_yaml
from speechattn.decoding.config import build_search
from speechattn.errors import ConfigError
from speechattn.importing.keys import IGNORED, Keys, fixed, passed, translate

DECODE: Keys = {
    "beam_size": passed("beam_size", 20),
    "ctc_weight": passed("ctc_weight", 0.5),
    "penalty": passed("length_bonus", 0.0),
    "minlenratio": passed("min_length_ratio", 0.0),
    "maxlenratio": passed("max_length_ratio", 0.0),
    "nbest": passed("nbest", 1),
    "lm_weight": fixed(0, None),  # no language model is imported
    "ngram_weight": fixed(0, None),
    "normalize_length": fixed(False),
    "batch_size": IGNORED,
    "ngpu": IGNORED,
    "dtype": fixed("float32"),
}


def read_decode(path: Path) -> dict[str, Any]:
    """Return options of `JointSearch`; what is missing is as in ESPnet's `asr_inference`."""
    problems: list[str] = []
    options = translate(read_yaml(path), DECODE, "", problems)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{path}: cannot be taken over:{lines}")
    try:
        # Used later; what is wrong in them is said now.
        build_search({"class_path": "JointSearch", "init_args": options})
    except ConfigError as error:
        raise ConfigError(f"{path}: cannot be taken over: {error}") from error
    return options
