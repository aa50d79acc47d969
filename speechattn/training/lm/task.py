"""The Lightning module of a language model."""

import torch
from torch import Tensor

from speechattn.lm import LmBatch, Perplexity, TokenLines, TransformerLm, sequence_scores
from speechattn.training.base_task import BaseTask
from speechattn.training.options import TrainingOptions


class LmTask(BaseTask):
    """Trains a `TransformerLm`: the cross-entropy of each token and of the sentence's end.

    Every token has the same weight in a step. Validation reports the perplexity per token, which
    ranks the checkpoints of a run, and per character.

    Args:
        lm: what is trained.
        options: optimiser and schedule.
        valid: the sentences of validation.
    """

    columns = tuple(
        "epoch step train_loss valid_loss valid_error valid_character_perplexity lr skipped "
        "seconds".split()
    )
    summary = (
        "epoch {epoch}: train loss {train_loss}, valid perplexity {valid_error} a token, "
        "{valid_character_perplexity} a character, {seconds} s"
    )

    def __init__(self, lm: TransformerLm, options: TrainingOptions, valid: TokenLines):
        super().__init__(lm, options)
        self.valid = valid
        self.log_prob = 0.0
        self.tokens = 0  # with the sentences' ends
        self.sentences = 0

    def training_step(self, batch: LmBatch, index: int) -> Tensor:
        self.begin(f"{len(batch)} sentences of up to {batch.tokens.shape[1]} tokens")
        count = int(batch.lengths.sum())
        loss = -self.scores(batch).sum().float() / count
        return self.count(loss, count, {"loss": loss})

    def validation_step(self, batch: LmBatch, index: int) -> None:
        log_prob, count = float(self.scores(batch).sum()), int(batch.lengths.sum())
        self.log_prob += log_prob
        self.tokens += count
        self.sentences += len(batch)
        loss = torch.tensor(-log_prob / count, device=self.device)
        self.log_epoch("valid_loss", loss, count, shown=True)

    def on_validation_epoch_end(self) -> None:
        sums = torch.tensor(
            [self.log_prob, self.tokens, self.sentences], dtype=torch.float64, device=self.device
        )
        self.log_prob, self.tokens, self.sentences = 0.0, 0, 0
        log_prob, tokens, sentences = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        # Several processes may score a sentence twice, to have equally many batches.
        characters = self.valid.characters * sentences / len(self.valid)
        tokens = round(tokens - sentences)
        perplexity = Perplexity(log_prob, round(sentences), tokens, round(characters), 0)
        # The same in all processes.
        self.log("valid_error", perplexity.token, prog_bar=True, sync_dist=True)
        self.log("valid_character_perplexity", perplexity.character, sync_dist=True)

    def scores(self, batch: LmBatch) -> Tensor:
        """Return the log-probabilities of the sentences (B,)."""
        return sequence_scores(self.model, batch.tokens, batch.lengths)
