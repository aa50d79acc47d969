"""ESPnet's Transformer language models (`espnet2.tasks.lm`): their configuration and weights."""

from collections.abc import Iterable, Mapping
from typing import Any

from speechattn.importing.checkpoint import map_part
from speechattn.importing.espnet import Names, lm_names
from speechattn.importing.espnet_config import TOP
from speechattn.importing.keys import IGNORED, Keys, chosen, fixed, passed, refuse, translate

LM: Keys = {
    "pos_enc": chosen("positions", None, {None: "none", "sinusoidal": "sinusoidal"}),
    "embed_unit": passed("embed_size", 128),
    "att_unit": passed("width", 256),
    "head": passed("attention_heads", 2),
    "unit": passed("linear_units", 1024),
    "layer": passed("num_blocks", 4),
    "dropout_rate": passed("dropout", 0.1),
    "attention_dropout_rate": passed("attention_dropout", 0.1),
    "positional_dropout_rate": IGNORED,  # of training; ours is `dropout`
}
MODEL: Keys = {"ignore_id": fixed(0)}  # blank, which no sentence has
# Keys that every task of ESPnet has beside its model.
LM_TOP: Keys = {
    **{key: rule for key, rule in TOP.items() if rule is IGNORED},
    "model": fixed("lm"),
    "lm": fixed("transformer"),
    "lm_conf": IGNORED,  # looked at apart
}


def is_lm(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is that of a language model."""
    return "lm" in config or "lm_conf" in config


def read_lm_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return our `lm:` section for an ESPnet configuration, as `espnet_config.read_config` does."""
    problems: list[str] = []
    # Their default is another model with other keys.
    config = {"lm": "seq_rnn", **config}
    translate(config, LM_TOP, "", problems)
    translate(config.get("model_conf"), MODEL, "model_conf.", problems)
    section: dict[str, Any] = {}
    if config["lm"] == "transformer":
        section = translate(config.get("lm_conf"), LM, "lm_conf.", problems)
    refuse(problems, f"{where} cannot be imported")
    return section


def lm_weight_names(names: Iterable[str]) -> Names:
    """Map each of our names to an ESPnetLanguageModel's; unknown ones stay as they are."""
    names = list(names)
    others = {name: (name,) for name in names if not name.startswith("lm.")}
    return map_part(names, lm_names, "", "lm.") | others
