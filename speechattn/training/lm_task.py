"""The Lightning module of a language model."""

import logging

import lightning as L
import torch
from torch import Tensor

from speechattn.data.texts import LmBatch, TokenLines
from speechattn.decoders.language_model import TransformerLm, sequence_scores
from speechattn.evaluation.perplexity import Perplexity
from speechattn.training.options import TrainingOptions
from speechattn.training.task import SpeechTask, freeze

logger = logging.getLogger(__name__)


class LmTask(L.LightningModule):
    """Trains a `TransformerLm`: the cross-entropy of each token and of the sentence's end.

    Validation reports the perplexity a token, which ranks the checkpoints of a run, and logs it a
    character too.

    Args:
        lm: what is trained.
        options: optimiser and schedule.
        valid: the sentences of validation.
    """

    def __init__(self, lm: TransformerLm, options: TrainingOptions, valid: TokenLines):
        super().__init__()
        self.model = lm
        self.options = options
        self.valid = valid
        self.log_prob = 0.0
        self.count = 0  # tokens with the sentences' ends
        self.seen = 0  # sentences
        freeze(lm, options.freeze)

    # Dropout that is drawn by batch, parts that stay as they are, optimiser and schedule.
    on_train_epoch_start = SpeechTask.on_train_epoch_start
    on_train_batch_start = SpeechTask.on_train_batch_start
    configure_optimizers = SpeechTask.configure_optimizers

    def training_step(self, batch: LmBatch, index: int) -> Tensor:
        count = int(batch.lengths.sum())
        loss = -self.scores(batch).sum().float() / count
        self.record("train_loss", loss.detach(), count)
        return loss

    def validation_step(self, batch: LmBatch, index: int) -> None:
        log_prob, count = float(self.scores(batch).sum()), int(batch.lengths.sum())
        self.log_prob += log_prob
        self.count += count
        self.seen += len(batch)
        self.record("valid_loss", torch.tensor(-log_prob / count, device=self.device), count)

    def on_validation_epoch_end(self) -> None:
        sums = [self.log_prob, self.count, self.seen]
        self.log_prob, self.count, self.seen = 0.0, 0, 0
        if self.trainer.world_size > 1:
            counts = torch.tensor(sums, dtype=torch.float64, device=self.device)
            sums = self.all_gather(counts).sum(0).tolist()
        log_prob, tokens, sentences = sums
        # Several processes may see a sentence twice, to have equally many batches.
        characters = self.valid.characters * sentences / len(self.valid)
        tokens = round(tokens - sentences)
        found = Perplexity(log_prob, round(sentences), tokens, round(characters), 0)
        self.log("valid_error", found.token, prog_bar=True)
        self.log("valid_character_perplexity", found.character)

    def scores(self, batch: LmBatch) -> Tensor:
        """Log-probabilities of the sentences (B,)."""
        return sequence_scores(self.model, batch.tokens, batch.lengths)

    def record(self, name: str, value: Tensor, size: int) -> None:
        kept = {"on_step": False, "on_epoch": True, "prog_bar": True, "sync_dist": True}
        self.log(name, value, batch_size=size, **kept)
