"""Training of a Transformer language model from text, resumed where it stopped."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechattn.config import build, check_sections
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.files import write_text
from speechattn.lm import (
    TokenLines,
    build_lm,
    hold_out,
    lm_perplexity,
    load_lm,
    read_texts,
    save_lm,
)
from speechattn.training.averaging import average_weights, best_checkpoints
from speechattn.training.lm.data import LmData, LmDataOptions
from speechattn.training.lm.task import LmTask
from speechattn.training.options import read_training_options
from speechattn.training.processes import quieten
from speechattn.training.trainer import check_resumed, fit, make_trainer, seed

logger = logging.getLogger(__name__)
SECTIONS = ("lm", "data", "training")


def train_lm(
    config: dict[str, Any],
    texts: Sequence[str | Path],
    tokenizer_dir: str | Path,
    exp: str | Path,
    *,
    valid_text: Sequence[str | Path] = (),
    best: int = 5,
) -> Path:
    """Train a language model, from where an earlier call with the same `exp` stopped.

    Args:
        config: sections `lm` (arguments of `TransformerLm`), `data` and `training`.
        texts: to learn from, see `read_texts`.
        tokenizer_dir: of the models that it will go with.
        exp: the experiment; `train/` and `lm/` below it are written.
        valid_text: ranks the epochs; without one every fiftieth sentence of `texts` does.
        best: how many of the kept epochs are averaged.

    Returns:
        `exp/lm`, the directory that decoding reads.
    """
    quieten()
    check_sections(config, SECTIONS)
    options = read_training_options(config)
    data_options: LmDataOptions = build(LmDataOptions, config.get("data") or {}, "data")
    if best < 1:
        raise ConfigError(f"best is {best}; at least one epoch is needed")
    folder = Path(exp) / "train"
    seed(options)
    tokenizer = Tokenizer.load(tokenizer_dir)
    lm = build_lm(config.get("lm") or {}, tokenizer.vocab_size)
    train, valid = read_texts(texts), read_texts(valid_text)
    if not valid:
        train, valid = hold_out(train)
        logger.info("no --valid-text: %d sentences are held out", len(valid))
    train, valid = TokenLines.of(train, tokenizer), TokenLines.of(valid, tokenizer)
    size, tokens = sum(p.numel() for p in lm.parameters()) / 1e6, len(train.ids)
    message = "%.2f M parameters; %d sentences, %d tokens, %.2f %% of them <unk>"
    logger.info(message, size, len(train), tokens, 100.0 * train.unknown / max(1, tokens))
    data = LmData(data_options, train, valid, tokenizer, options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    check_resumed(folder, config, ("lm",))
    trainer = make_trainer(options, folder, save_steps=options.save_steps)
    facts = fit(trainer, LmTask(lm, options, valid), data, folder, config)
    if trainer.is_global_zero:
        meta = {**facts, "sentences": len(train)}
        average_lm(config, exp, tokenizer, best, meta=meta)
        result = lm_perplexity(load_lm(Path(exp) / "lm")[0], valid)
        logger.info("%s: validation %s", Path(exp) / "lm", result)
        facts |= {"perplexity": result.token, "character_perplexity": result.character}
        write_text(folder / "done.json", json.dumps(facts))
    return Path(exp) / "lm"


def average_lm(
    config: dict[str, Any], exp: str | Path, tokenizer: Tokenizer, best: int, *, meta: dict
) -> None:
    """Average the best epochs of `exp/train` into `exp/lm`."""
    paths = best_checkpoints(Path(exp) / "train", best)
    weights = average_weights(paths)
    build_lm(config.get("lm") or {}, tokenizer.vocab_size).load_state_dict(weights)
    meta = {"averaged": [path.name for path in paths], **meta}
    save_lm(Path(exp) / "lm", config.get("lm") or {}, weights, tokenizer, meta)
