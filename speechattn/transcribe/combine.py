"""Trained models into an ensemble, each with the share that does best on a development set."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from kaldialign import edit_distance
from rich.progress import track

from speechattn.config import build
from speechattn.data.batches.batch import Batch
from speechattn.data.crops.roi import RoiOptions
from speechattn.data.long_form import LongFormOptions
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import Search
from speechattn.decoding.config import search_of, search_section
from speechattn.errors import ConfigError
from speechattn.model.directory import (
    load_model,
    read_config,
    read_meta,
    save_model_dir,
)
from speechattn.model.ensemble import Ensemble
from speechattn.model.speech_model import SpeechModel
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.transcriber import Transcriber

logger = logging.getLogger(__name__)

STEPS = 10  # weights are tried in steps of a tenth


def read_models(
    folders: Mapping[str, str | Path],
    search: Search | None = None,
    allow: Iterable[str] = (),
) -> Transcriber:
    """Return an ensemble of equal weights.

    Args:
        folders: model directories by the name that each has in the ensemble.
        search: of the ensemble; that of the first model by default, which also tells how long
            files are cut.
        allow: packages beside this one whose classes the models may name.

    Raises:
        ConfigError: the models do not go together.
    """
    models, rois = {}, {}
    first = next(iter(folders.values()))
    tokenizer = Tokenizer.load(first)
    for name, folder in folders.items():
        config = read_config(folder)
        models[name] = load_model(folder, allow)
        if not isinstance(models[name], SpeechModel):
            raise ConfigError(f"{folder} is an ensemble already: name the models in it")
        if Tokenizer.load(folder).tokens != tokenizer.tokens:
            raise ConfigError(
                f"{folder} and {first} have other units; train both with the same tokenizer"
            )
        if "video" in models[name].modalities:
            rois[folder] = build(RoiOptions, config.get("roi", {}), "roi")
    if len(set(rois.values())) > 1:
        raise ConfigError(f"{' and '.join(map(str, rois))} cut mouths out in other ways (roi)")
    config = read_config(first)
    ensemble = Ensemble(models, dict.fromkeys(models, 1.0)).eval()
    roi = next(iter(rois.values()), None)
    long_form = build(LongFormOptions, config.get("long_form", {}), "long_form")
    search = search or search_of(config, allow, where=first)
    return Transcriber(Recogniser(ensemble, tokenizer, search, roi=roi), long_form)


def choose_weights(
    recogniser: Recogniser, conditions: Mapping[str, Sequence[Batch]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Set an ensemble's weights to those of the fewest token errors.

    All weights in steps of a tenth are tried, at which each model has a say. Of equally good ones
    those nearest to equal shares are taken.

    Args:
        recogniser: an ensemble and its search; the ensemble's weights are changed.
        conditions: utterances with transcripts, by a name of their noise.

    Returns:
        The weights, and with them the token errors in percent by condition.
    """
    names = list(recogniser.model.models)
    candidates = sorted(shares(len(names)), key=lambda c: sum(x * x for x in c))
    errors = {name: torch.zeros(len(candidates), dtype=torch.int64) for name in conditions}
    totals = dict.fromkeys(conditions, 0)
    for condition, batches in conditions.items():
        for batch in track(batches, description=f"weights, {condition}"):
            for reason in batch.failed:
                logger.warning("cannot be read and is left out: %s", reason)
            if not len(batch):
                continue
            references = [
                tokens[:n]
                for tokens, n in zip(batch.tokens.tolist(), batch.token_lengths, strict=True)
            ]
            totals[condition] += sum(map(len, references))
            for i, found in enumerate(search_each(recogniser, batch, candidates)):
                errors[condition][i] += sum(
                    edit_distance(ref, hyp)["total"]
                    for ref, hyp in zip(references, found, strict=True)
                )
    rates = {name: 100.0 * errors[name] / max(1, totals[name]) for name in conditions}
    for i, candidate in sorted(enumerate(candidates), key=lambda pair: pair[1]):
        logger.info(
            "%s: token errors %s",
            ", ".join(f"{n} {c / STEPS:g}" for n, c in zip(names, candidate, strict=True)),
            ", ".join(f"{rates[name][i]:.2f} % {name}" for name in rates),
        )
    best = int(sum(rates.values()).argmin())
    weights = {n: c / STEPS for n, c in zip(names, candidates[best], strict=True)}
    recogniser.model.weights = weights
    return weights, {name: round(float(rates[name][best]), 4) for name in rates}


@torch.inference_mode()
def search_each(
    recogniser: Recogniser, batch: Batch, candidates: Sequence[tuple[int, ...]]
) -> Iterator[list[list[int]]]:
    """Yield the tokens of a batch's utterances by each of the candidate weights."""
    outputs = recogniser.model.outputs(
        batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
    )
    for candidate in candidates:
        weighed = [
            replace(output, weight=share / STEPS)
            for output, share in zip(outputs, candidate, strict=True)
        ]
        yield [nbest[0].tokens for nbest in recogniser.search.search(weighed)]


def shares(count: int, total: int = STEPS) -> Iterator[tuple[int, ...]]:
    """Yield all ways to split `total` into `count` parts of at least 1."""
    if count == 1:
        yield (total,)
        return
    for first in range(1, total - count + 2):
        for rest in shares(count - 1, total - first):
            yield (first, *rest)


def save_ensemble(
    transcriber: Transcriber,
    folders: Mapping[str, str | Path],
    output: str | Path,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write the model directory of an ensemble that `read_models` made of `folders`."""
    recogniser = transcriber.recogniser
    ensemble = recogniser.model
    config = {
        "ensemble": {
            "weights": dict(ensemble.weights),
            "models": {name: read_config(folder)["model"] for name, folder in folders.items()},
        },
        "search": search_section(recogniser.search),
        "roi": asdict(recogniser.reader.cropper.options),
        "long_form": asdict(transcriber.long_form),
    }
    metas = [read_meta(folder) for folder in folders.values()]
    facts = {
        "parameters": ensemble.num_parameters(),
        "modalities": list(ensemble.modalities),
        "synthetic": any(m.get("synthetic") for m in metas),
        **(meta or {}),
    }
    corpora = {m["corpus"] for m in metas if "corpus" in m}
    if len(corpora) == 1:
        facts["corpus"] = corpora.pop()
    save_model_dir(output, config, ensemble.state_dict(), recogniser.tokenizer, facts)
