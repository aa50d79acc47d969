"""The commands that train: models, language models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from speechattn.cli.common import AllowInConfig, Crops, Overrides, Tokens, read_config

SYNTHETIC_MARK = "synthetic.json"  # written by synth-corpus beside its media


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The experiment."""

    config: Annotated[Path, "YAML of the experiment"]
    tokens: Tokens
    exp: Annotated[Path, "folder of the experiment"]
    overrides: Overrides = ()


def train(
    experiment: Experiment,
    *,
    train_cuts: Annotated[Path, "Lhotse cuts to train on"],
    valid_cuts: Annotated[Path, "Lhotse cuts that rank the epochs"],
    crops: Crops = None,
    noise: Annotated[Path | None, "data.noise, the sound file that AddNoise mixes in"] = None,
    init: Annotated[
        tuple[Path, ...],
        "model directory to start from; may be repeated: the first with a part gives it",
        "--init",
        "MODEL",
    ] = (),
    renew_classifier: Annotated[
        bool,
        "with --init, start with new CTC heads, decoder embedding and output rather than take "
        "them over for the tokens that both have",
    ] = False,
    allow: AllowInConfig = (),
) -> None:
    """Train a model, or go on training it."""
    from speechattn.training import train

    config = read_config(experiment.config, experiment.overrides)
    if noise is not None:
        config["data"] = {**(config.get("data") or {}), "noise": str(noise)}
    folders = (train_cuts, valid_cuts, experiment.tokens, experiment.exp)
    options = {"allow": allow, "init": init, "renew_classifier": renew_classifier}
    train(config, *folders, crops=crops, **options)


def average(
    experiment: Experiment,
    *,
    best: Annotated[int, "number of epochs"] = 5,
    data_dir: Annotated[
        Path | None, "folder of the corpus; if that is synthetic, the model says so"
    ] = None,
    allow: AllowInConfig = (),
) -> None:
    """Average the best epochs into a model directory, EXP/model."""
    from speechattn.training import average

    meta: dict[str, Any] = {}
    if data_dir is not None:
        meta["corpus"] = data_dir.resolve().name
        meta["synthetic"] = (data_dir / SYNTHETIC_MARK).is_file()
    config = read_config(experiment.config, experiment.overrides)
    average(config, experiment.exp, experiment.tokens, best, meta=meta, allow=allow)
