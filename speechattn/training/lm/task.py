"""The Lightning module of a language model."""

import torch
from torch import Tensor

from speechattn.lm.perplexity import Perplexity
from speechattn.lm.texts import LmBatch, TokenLines
from speechattn.lm.transformer import TransformerLm, sequence_scores
from speechattn.training.global_step import GlobalStep
from speechattn.training.options import TrainingOptions


class LmTask(GlobalStep):
    """Trains a `TransformerLm`: the cross-entropy of each token and of the sentence's end.

    Every token counts alike in a step. Validation reports the perplexity a token, which ranks the
    checkpoints of a run, and logs it a character too.

    Args:
        lm: what is trained.
        options: optimiser and schedule.
        valid: the sentences of validation.
    """

    def __init__(self, lm: TransformerLm, options: TrainingOptions, valid: TokenLines):
        super().__init__(lm, options)
        self.valid = valid
        self.log_prob = 0.0
        self.count = 0  # tokens with the sentences' ends
        self.seen = 0  # sentences

    def training_step(self, batch: LmBatch, index: int) -> Tensor:
        self.begin(f"{len(batch)} sentences of up to {batch.tokens.shape[1]} tokens")
        count = int(batch.lengths.sum())
        loss = -self.scores(batch).sum().float() / count
        return self.take(loss, count, {"loss": loss})

    def validation_step(self, batch: LmBatch, index: int) -> None:
        log_prob, count = float(self.scores(batch).sum()), int(batch.lengths.sum())
        self.log_prob += log_prob
        self.count += count
        self.seen += len(batch)
        loss = torch.tensor(-log_prob / count, device=self.device)
        kept = {"on_step": False, "on_epoch": True, "prog_bar": True, "sync_dist": True}
        self.log("valid_loss", loss, batch_size=count, **kept)

    def on_validation_epoch_end(self) -> None:
        sums = torch.tensor(
            [self.log_prob, self.count, self.seen], dtype=torch.float64, device=self.device
        )
        self.log_prob, self.count, self.seen = 0.0, 0, 0
        log_prob, tokens, sentences = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        # Several processes may see a sentence twice, to have equally many batches.
        characters = self.valid.characters * sentences / len(self.valid)
        tokens = round(tokens - sentences)
        found = Perplexity(log_prob, round(sentences), tokens, round(characters), 0)
        # The same in all processes.
        self.log("valid_error", found.token, prog_bar=True, sync_dist=True)
        self.log("valid_character_perplexity", found.character, sync_dist=True)

    def scores(self, batch: LmBatch) -> Tensor:
        """Log-probabilities of the sentences (B,)."""
        return sequence_scores(self.model, batch.tokens, batch.lengths)
