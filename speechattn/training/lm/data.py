"""Batches of sentences for a language model."""

import logging
from dataclasses import dataclass

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from speechattn.data.batches.loader import EpochLoader
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.lm import TokenLines, collate_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LmDataOptions:
    """How training batches are made.

    Attributes:
        batch_tokens: cap on a batch's padded size, in tokens, <sos> counted.
        max_items: at most so many sentences in a batch.
        max_tokens: longer sentences are not trained on.
    """

    batch_tokens: int = 8192
    max_items: int = 512
    max_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "max_items", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it has to be at least 1")


def short_lines(lines: TokenLines, most: int) -> np.ndarray:
    """Return the indices of sentences of at most `most` tokens, and report how many are longer.

    Raises:
        ConfigError: there is none.
    """
    kept = np.flatnonzero(lines.lengths <= most)
    if not len(kept):
        raise ConfigError(f"data.max_tokens: all sentences have more than {most} tokens")
    if len(kept) < len(lines):
        message = "%d of %d sentences have more than %d tokens and are left out (data.max_tokens)"
        logger.warning(message, len(lines) - len(kept), len(lines), most)
    return kept


class LmData(L.LightningDataModule):
    """Training and validation batches.

    Args:
        options: how batches are made.
        train: sentences to learn from.
        valid: sentences to validate on, of any length.
        tokenizer: whose units they are in.
        seed: of the batches.
    """

    def __init__(
        self,
        options: LmDataOptions,
        train: TokenLines,
        valid: TokenLines,
        tokenizer: Tokenizer,
        seed: int = 0,
    ):
        super().__init__()
        self.options, self.seed, self.sos = options, seed, tokenizer.sos_eos_id
        self.train, self.valid = train, valid
        self.short = short_lines(train, options.max_tokens)

    def loader(self, lines: TokenLines, kept: np.ndarray, shuffle: bool) -> DataLoader:
        trainer = self.trainer
        sampler = PaddedFrameBatches(
            1.0 + lines.lengths[kept],
            self.options.batch_tokens,
            self.options.max_items,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        # The order is a function of the epoch: a resumed run equals one that never stopped.
        sampler.set_epoch(trainer.current_epoch if trainer and shuffle else 0)
        return EpochLoader(
            kept,
            sampler,
            collate_fn=lambda chosen: collate_lines([lines[i] for i in chosen], self.sos),
            trainer=trainer if shuffle else None,
        )

    def train_dataloader(self) -> DataLoader:
        """Return the loader of an epoch (`reload_dataloaders_every_n_epochs=1`)."""
        return self.loader(self.train, self.short, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of validation, longest batches first."""
        return self.loader(self.valid, np.arange(len(self.valid)), shuffle=False)
