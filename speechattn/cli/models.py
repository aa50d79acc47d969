"""The commands that make models of models: import, combine, export."""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from speechattn.cli.common import AllowInModel, Noise, named
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


def import_checkpoint(
    source: Annotated[
        Literal["espnet", "auto_avsr", "cnvsrc2023", "cnvsrc2024"],
        "what wrote it: espnet, auto_avsr, cnvsrc2023 or cnvsrc2024",
    ],
    checkpoint: Annotated[
        Path, "checkpoint file; of ESPnet, a model or a language model, or a folder with one"
    ],
    output: Annotated[Path, "model directory to make"],
    *,
    config: Annotated[
        Path | None,
        "its configuration (default: ESPnet's config.yaml beside it; else as published)",
    ] = None,
    tokens: Annotated[
        Path | None, "list of its units, one a line; ESPnet's configuration can do without"
    ] = None,
    bpe_model: Annotated[
        Path | None, "SentencePiece model of its units (default: ESPnet's own; else characters)"
    ] = None,
    decode: Annotated[
        Path | None, "a decode YAML of ESPnet's (default: the authors' search)"
    ] = None,
) -> None:
    """Make a model directory from another toolkit's checkpoint."""
    from speechattn.importing import import_checkpoint

    options = {"config": config, "tokens": tokens, "bpe_model": bpe_model, "decode": decode}
    logger.info("written to %s", import_checkpoint(source, checkpoint, output, **options))


def combine(
    *,
    model: Annotated[
        tuple[str, ...],
        "a model directory and its name in the ensemble; repeated",
        "--model",
        "NAME=DIR",
    ],
    output: Annotated[Path, "model directory to make"],
    noise: Noise,
    weight: Annotated[
        tuple[str, ...],
        "share of a model in the score; repeated (default: equal shares)",
        "--weight",
        "NAME=SHARE",
    ] = (),
    cuts: Annotated[Path | None, "Lhotse cuts on which the weights are chosen instead"] = None,
    crops: Annotated[Path | None, "folder of mouth crops of the cuts"] = None,
    search: Annotated[
        str | None,
        "class of the search, such as JointSearch, or a YAML file with a section `search` "
        "(default: the first model's)",
    ] = None,
    allow: Annotated[
        tuple[str, ...],
        "plug-in package whose classes the models may name; may be repeated",
        "--allow",
        "PACKAGE",
    ] = (),
) -> None:
    """Combine several models into one that searches with all of them."""
    from speechattn.data.batches.dataset import read_cuts
    from speechattn.data.crops.store import CropStore
    from speechattn.decoding.config import chosen_search
    from speechattn.model.ensemble import Ensemble
    from speechattn.transcribe.combine import choose_weights, read_models, save_ensemble
    from speechattn.transcribe.manifests import CutBatches

    if weight and cuts is not None:
        raise ConfigError("--weight gives the shares and --cuts chooses them: leave one out")
    if noise.noise is not None and cuts is None:
        raise ConfigError("--noise is mixed into the utterances of --cuts: give these too")
    folders = named(model, "--model")
    chosen = chosen_search({}, search=search, allow=allow) if search else None
    transcriber = read_models(folders, chosen, allow)
    recogniser = transcriber.recogniser
    meta: dict[str, Any] = {}
    if cuts is not None:
        store = CropStore(crops) if crops is not None else None
        utterances = read_cuts(cuts, recogniser.model.modalities, store)
        conditions = {"clean": CutBatches(recogniser, utterances, store)}
        if noise.noise is not None:
            noisy = CutBatches(recogniser, utterances, store, noise.load())
            conditions[f"at {noise.snr:g} dB"] = noisy
        _, meta["token_errors"] = choose_weights(recogniser, conditions)
    elif weight:
        try:
            shares = {k: float(v) for k, v in named(weight, "--weight").items()}
        except ValueError as error:
            raise ConfigError(f"--weight: {error}") from error
        recogniser.model.weights = Ensemble(recogniser.model.models, shares).weights
    save_ensemble(transcriber, folders, output, meta)
    weights = (f"{name} {share:.3g}" for name, share in recogniser.model.weights.items())
    logger.info("%s: weights %s", output, ", ".join(weights))


def export(
    *,
    model: Annotated[Path, "model directory"],
    output: Annotated[Path, "folder for the graphs"],
    allow: AllowInModel = (),
) -> None:
    """Export a model as ONNX graphs, in a folder that --model takes too."""
    from speechattn.deploy.export import export_dir

    for path in export_dir(model, output, allow):
        logger.info("written to %s", path)
