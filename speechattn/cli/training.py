"""The commands that train: models, language models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from speechattn.cli.common import Allow, Overrides, read_config

SYNTHETIC_MARK = "synthetic.json"  # written by synth-corpus beside its media
Init = Annotated[tuple[Path, ...], "--init", "MODEL"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The experiment.

    Args:
        config: YAML of the experiment.
        tokens: folder of the tokenizer.
        exp: folder of the experiment.
        overrides: change the configuration, e.g. --set training.max_epochs=5; may be repeated.
    """

    config: Path
    tokens: Path
    exp: Path
    overrides: Overrides = ()

    def read(self) -> dict[str, Any]:
        """Return the configuration with its changes."""
        return read_config(self.config, self.overrides)


def train(
    experiment: Experiment, *, train_cuts: Path, valid_cuts: Path, crops: Path | None = None,
    noise: Path | None = None, init: Init = (), renew_classifier: bool = False, allow: Allow = ()
) -> None:  # fmt: skip
    """Train a model, or go on training it.

    Args:
        train_cuts: Lhotse cuts to train on.
        valid_cuts: Lhotse cuts that rank the epochs.
        crops: folder of mouth crops, for a model that reads lips.
        noise: data.noise, the sound file that AddNoise mixes in.
        init: model directory to start from; may be repeated: the first with a part gives it.
        renew_classifier: with --init, start with new CTC heads, decoder embedding and output
            rather than take them over for the tokens that both have.
        allow: plug-in package whose classes the configuration may name; may be repeated.
    """
    from speechattn.training import train

    config = experiment.read()
    if noise is not None:
        config["data"] = {**(config.get("data") or {}), "noise": str(noise)}
    folders = (train_cuts, valid_cuts, experiment.tokens, experiment.exp)
    options = {"allow": allow, "init": init, "renew_classifier": renew_classifier}
    train(config, *folders, crops=crops, **options)


def average(
    experiment: Experiment, *, best: int = 5, data_dir: Path | None = None, allow: Allow = ()
) -> None:
    """Average the best epochs into a model directory, EXP/model.

    Args:
        best: number of epochs.
        data_dir: folder of the corpus; if that is synthetic, the model says so.
        allow: plug-in package whose classes the configuration may name; may be repeated.
    """
    from speechattn.training import average

    meta: dict[str, Any] = {}
    if data_dir is not None:
        meta["corpus"] = data_dir.resolve().name
        meta["synthetic"] = (data_dir / SYNTHETIC_MARK).is_file()
    config = experiment.read()
    average(config, experiment.exp, experiment.tokens, best, meta=meta, allow=allow)
