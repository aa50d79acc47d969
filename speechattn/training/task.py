"""The Lightning module of a recogniser: one training step, one validation step."""

from dataclasses import fields

import torch
from kaldialign import edit_distance

from speechattn.data.batches.batch import Batch
from speechattn.decoding import Hypothesis, TransducerGreedySearch, ctc_greedy
from speechattn.losses import JointLoss, LossParts
from speechattn.model.speech_model import Encoded, SpeechModel
from speechattn.training.base_task import BaseTask
from speechattn.training.options import TrainingOptions

FIGURES = tuple(field.name for field in fields(LossParts))


class SpeechTask(BaseTask):
    """Trains a `SpeechModel`.

    Validation reports the token error rate of greedy decoding, by the transducer where the loss
    trains one and by CTC elsewhere: it needs no search, and ranks the checkpoints of a run.

    Every utterance has the same weight in a step. Where `loss.per_token` averages attention over
    tokens, it does so within each batch of each process.

    Args:
        model: what is trained.
        loss: what is minimised.
        options: optimiser and schedule.

    Raises:
        ConfigError: the loss weighs a part that the model does not have.
    """

    figures = FIGURES
    columns = (
        "epoch",
        "step",
        *(f"train_{name}" for name in FIGURES),
        *(f"valid_{name}" for name in FIGURES if name != "risk"),  # which training alone has
        "valid_error",
        "lr",
        "skipped",
        "unreadable",
        "seconds",
    )
    summary = (
        "epoch {epoch}: train loss {train_loss}, valid loss {valid_loss}, "
        "valid error {valid_error} %, {seconds} s"
    )

    def __init__(self, model: SpeechModel, loss: JointLoss, options: TrainingOptions):
        super().__init__(model, options)
        loss.check(model)
        self.loss = loss
        self.errors = 0
        self.tokens = 0

    def encode(self, batch: Batch) -> Encoded:
        """Run the encoders."""
        return self.model.encode_streams(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.begin(self.describe(batch), batch.failed)
        if len(batch) == 0:
            return self.skip("nothing of it could be read")
        parts = self.loss(self.model, self.encode(batch), batch)
        return self.count(parts.loss, len(batch), vars(parts))

    def validation_step(self, batch: Batch, index: int) -> None:
        self.current = self.describe(batch)
        self.unreadable(batch.failed)
        if len(batch) == 0:
            return
        encoded = self.encode(batch)
        for name, value in vars(self.loss(self.model, encoded, batch)).items():
            if value is not None:
                self.log_epoch(f"valid_{name}", value.detach(), len(batch), shown=name == "loss")
        best = self.greedy(encoded)
        for hyp, ref, n in zip(best, batch.tokens.tolist(), batch.token_lengths, strict=True):
            ref = ref[:n]
            self.errors += edit_distance(ref, hyp.tokens)["total"]
            self.tokens += len(ref)

    def greedy(self, encoded: Encoded) -> list[Hypothesis]:
        """Return the best hypothesis of each utterance."""
        model, hidden, lengths = self.model, encoded.hidden, encoded.lengths
        log_probs = model.ctc_log_probs(hidden)
        if not self.loss.transducer_weight:
            return ctc_greedy(log_probs, lengths)
        output = model.output_of(hidden, lengths, log_probs)
        return [best for best, *_ in TransducerGreedySearch().search([output])]

    def on_validation_epoch_end(self) -> None:
        counts = [self.errors, self.tokens, len(self._failed)]
        counts = torch.tensor(counts, dtype=torch.float64, device=self.device)
        self.errors = self.tokens = 0
        errors, tokens, failed = self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        if failed:
            self._report()
        error = torch.tensor(100.0 * errors / max(tokens, 1.0), device=self.device)
        self.log("valid_error", error, prog_bar=True, sync_dist=True)  # the same in all processes

    def describe(self, batch: Batch) -> str:
        """Describe a batch for messages."""
        if batch.audio is not None:
            seconds = batch.audio.shape[1] / self.model.sample_rate
        elif batch.video is not None:
            seconds = batch.video.shape[1] / self.model.video_fps
        else:
            return "cuts " + " ".join(text.split(":")[0] for text in batch.failed)
        cuts = " ".join(batch.ids)
        return f"{len(batch)} utterances padded to {seconds:.1f} s each, cuts {cuts}"
