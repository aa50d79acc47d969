"""Training of a Transformer language model from text, resumed where it stopped."""

import json
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from speechattn.config import build, check_sections
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.files import write_text
from speechattn.lm.directory import build_lm, load_lm, save_lm
from speechattn.lm.perplexity import lm_perplexity
from speechattn.lm.texts import TokenLines, hold_out, read_texts
from speechattn.training.fit import (
    LAST,
    average_weights,
    best_checkpoints,
    check_resumed,
    make_trainer,
)
from speechattn.training.lm.data import LmData, LmDataOptions
from speechattn.training.lm.task import LmTask
from speechattn.training.options import TrainingOptions
from speechattn.training.processes import is_first, quieten
from speechattn.training.table import EpochTable

logger = logging.getLogger(__name__)
SECTIONS = ("lm", "data", "training")


class LmTable(EpochTable):
    """The figures of a language model; `valid_error` is the perplexity a token."""

    columns = (
        "epoch step train_loss valid_loss valid_error valid_character_perplexity lr skipped seconds"
    ).split()
    said = (
        "epoch {epoch}: train loss {train_loss}, valid perplexity {valid_error} a token, "
        "{valid_character_perplexity} a character, {seconds} s"
    )


def train_lm(
    config: dict[str, Any],
    texts: Sequence[str | Path],
    tokenizer_dir: str | Path,
    exp: str | Path,
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
    options: TrainingOptions = build(TrainingOptions, config.get("training") or {}, "training")
    data_options: LmDataOptions = build(LmDataOptions, config.get("data") or {}, "data")
    if best < 1:
        raise ConfigError(f"best is {best}; at least one epoch is needed")
    folder = Path(exp) / "train"
    if options.threads:
        torch.set_num_threads(options.threads)
    L.seed_everything(options.seed, workers=True, verbose=False)
    tokenizer = Tokenizer.load(tokenizer_dir)
    lm = build_lm(config.get("lm") or {}, tokenizer.vocab_size)
    train, valid = read_texts(texts), read_texts(valid_text)
    if not valid:
        train, valid = hold_out(train)
        logger.info("no --valid-text: %d sentences are held out", len(valid))
    train, valid = TokenLines.of(train, tokenizer), TokenLines.of(valid, tokenizer)
    logger.info(
        "%.2f M parameters; %d sentences, %d tokens, %.2f %% of them <unk>",
        sum(p.numel() for p in lm.parameters()) / 1e6,
        len(train),
        len(train.ids),
        100.0 * train.unknown / max(1, len(train.ids)),
    )
    data = LmData(data_options, train, valid, tokenizer, options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    check_resumed(folder, config, ("lm",))
    trainer = make_trainer(
        options, folder, save_steps=options.save_steps, table=LmTable(folder / "metrics.csv")
    )
    if is_first():
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    last = folder / LAST
    if last.exists():
        logger.info("going on from %s", last)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        # Our own file: it holds the optimiser and the loops, which weights_only would refuse.
        resume = last if last.exists() else None
        trainer.fit(LmTask(lm, options, valid), data, ckpt_path=resume, weights_only=False)
    except SystemExit:
        # So Lightning ends on Ctrl-C, and it leaves Ctrl-C without effect.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    facts = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    if trainer.is_global_zero:
        average_lm(config, exp, tokenizer, best, {**facts, "sentences": len(train)})
        found = lm_perplexity(load_lm(Path(exp) / "lm")[0], valid)
        logger.info("%s: validation %s", Path(exp) / "lm", found)
        facts |= {"perplexity": found.token, "character_perplexity": found.character}
        write_text(folder / "done.json", json.dumps(facts))
    return Path(exp) / "lm"


def average_lm(
    config: dict[str, Any], exp: str | Path, tokenizer: Tokenizer, best: int, meta: dict[str, Any]
) -> None:
    """Average the best epochs of `exp/train` into `exp/lm`."""
    paths = best_checkpoints(Path(exp) / "train")[:best]
    if not paths:
        raise ConfigError(f"{Path(exp) / 'train'} has no checkpoint to average")
    weights = average_weights(paths)
    build_lm(config.get("lm") or {}, tokenizer.vocab_size).load_state_dict(weights)
    meta = {"averaged": [path.name for path in paths], **meta}
    save_lm(Path(exp) / "lm", config.get("lm") or {}, weights, tokenizer, meta)
