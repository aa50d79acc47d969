"""ESPnet's decode YAML as a `JointSearch`."""

from pathlib import Path

from speechattn.config import read_yaml
from speechattn.decoding import Search
from speechattn.decoding.config import build_search
from speechattn.errors import ConfigError
from speechattn.importing.keys import Keys, fixed, ignored, passed, refuse, translate

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
    "dtype": fixed("float32"),
    **ignored("batch_size ngpu"),
}


def read_decode(path: Path) -> Search:
    """Read a decode YAML; a missing key has the default of ESPnet's `asr_inference`.

    Raises:
        ConfigError: it lists every key that cannot be taken over.
    """
    problems: list[str] = []
    options = translate(read_yaml(path), DECODE, "", problems)
    refuse(problems, f"{path}: cannot be taken over")
    try:
        return build_search({"class_path": "JointSearch", "init_args": options})
    except ConfigError as error:
        raise ConfigError(f"{path}: cannot be taken over: {error}") from error
