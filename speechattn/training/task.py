"""The Lightning module of a recogniser: one training step, one validation step."""

import torch
from kaldialign import edit_distance

from speechattn.data.batches.batch import Batch
from speechattn.decoding import Hypothesis, TransducerGreedySearch, ctc_greedy
from speechattn.losses import JointLoss
from speechattn.losses.joint import LossParts
from speechattn.model.speech_model import Encoded, SpeechModel
from speechattn.training.global_step import GlobalStep
from speechattn.training.options import TrainingOptions


class SpeechTask(GlobalStep):
    """Trains a `SpeechModel`.

    Validation reports the token error rate of greedy decoding, of the transducer where the loss
    trains one and of CTC elsewhere: it costs no search, and it ranks the checkpoints of a run.

    Every utterance counts alike in a step. Where `loss.per_token` averages attention over tokens,
    it does so within each batch of each process, and batches count by their utterances.

    Args:
        model: what is trained.
        loss: what is minimised.
        options: optimiser and schedule.

    Raises:
        ConfigError: the loss weighs a part that the model does not have.
    """

    figures = (
        "loss",
        "ctc_loss",
        "att_loss",
        "reverse_loss",
        "intermediate_loss",
        "stream_loss",
        "risk",
        "transducer_loss",
        "kept_frames",
    )

    def __init__(self, model: SpeechModel, loss: JointLoss, options: TrainingOptions):
        super().__init__(model, options)
        loss.check(model)
        self.loss = loss
        self.errors = 0
        self.tokens = 0

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.begin(self.described(batch), batch.failed)
        if len(batch) == 0:
            return self.skip("nothing of it could be read")
        parts = self.loss(self.model, batch)
        return self.take(parts.total, len(batch), named(parts))

    def validation_step(self, batch: Batch, index: int) -> None:
        self.now = self.described(batch)
        self.unreadable(batch.failed)
        if len(batch) == 0:
            return
        encoded = self.model.encode_streams(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )
        for name, value in named(self.loss(self.model, batch, encoded)).items():
            if value is not None:
                self.log(
                    f"valid_{name}",
                    value.detach(),
                    on_step=False,
                    on_epoch=True,
                    prog_bar=name == "loss",
                    batch_size=len(batch),
                    sync_dist=True,
                )
        found = self.greedy(encoded)
        for hyp, ref, n in zip(found, batch.tokens.tolist(), batch.token_lengths, strict=True):
            ref = ref[:n]
            self.errors += edit_distance(ref, hyp.tokens)["total"]
            self.tokens += len(ref)

    def greedy(self, encoded: Encoded) -> list[Hypothesis]:
        """The best of each utterance."""
        model, hidden, lengths = self.model, encoded.hidden, encoded.lengths
        log_probs = model.ctc_log_probs(hidden)
        if not self.loss.transducer_weight:
            return ctc_greedy(log_probs, lengths)
        output = model.output_of(hidden, lengths, log_probs)
        found = TransducerGreedySearch().search([output])
        return [best for best, *_ in found]

    def on_validation_epoch_end(self) -> None:
        counts = [self.errors, self.tokens, len(self._failed)]
        counts = torch.tensor(counts, dtype=torch.float64, device=self.device)
        self.errors = self.tokens = 0
        errors, tokens, failed = self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        if failed:
            self._report()
        error = torch.tensor(100.0 * errors / max(tokens, 1.0), device=self.device)
        self.log("valid_error", error, prog_bar=True, sync_dist=True)  # the same in all processes

    def described(self, batch: Batch) -> str:
        """A batch for messages; nothing of it stays in memory."""
        if batch.audio is not None:
            seconds = batch.audio.shape[1] / self.model.sample_rate
        elif batch.video is not None:
            seconds = batch.video.shape[1] / self.model.video_fps
        else:
            return "cuts " + " ".join(text.split(":")[0] for text in batch.failed)
        cuts = " ".join(batch.ids)
        return f"{len(batch)} utterances padded to {seconds:.1f} s each, cuts {cuts}"


def named(parts: LossParts) -> dict[str, torch.Tensor | None]:
    """What a loss is made of, under the names of the tables."""
    return {
        "loss": parts.total,
        "ctc_loss": parts.ctc,
        "att_loss": parts.attention,
        "reverse_loss": parts.reverse,
        "intermediate_loss": parts.intermediate,
        "stream_loss": parts.streams,
        "risk": parts.risk,
        "transducer_loss": parts.transducer,
        "kept_frames": parts.kept,
    }
