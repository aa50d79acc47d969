"""The Lightning module: one training step, one validation step, the optimiser."""

from collections.abc import Sequence

import lightning as L
import numpy as np
import torch
from kaldialign import edit_distance
from torch import nn

from speechattn.data.batch import Batch
from speechattn.decoding.ctc import ctc_greedy
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss
from speechattn.model import SpeechModel
from speechattn.training.options import TrainingOptions
from speechattn.training.schedule import noam, warmup_cosine


class SpeechTask(L.LightningModule):
    """Trains a `SpeechModel`.

    Validation reports the token error rate of greedy CTC decoding: it costs no search, and it ranks
    the checkpoints of a run.

    Args:
        model: what is trained.
        loss: what is minimised.
        options: optimiser and schedule.

    Raises:
        ConfigError: the loss weighs a part that the model does not have.
    """

    def __init__(self, model: SpeechModel, loss: JointLoss, options: TrainingOptions):
        super().__init__()
        loss.check(model)
        self.model = model
        self.loss = loss
        self.options = options
        self.errors = 0
        self.tokens = 0
        freeze(model, options.freeze)

    def on_train_epoch_start(self) -> None:
        # Here and not once: the loop puts everything into training mode.
        for name, module in self.model.named_modules():
            if is_frozen(f"{name}.", self.options.freeze):
                module.eval()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        # Dropout is drawn by batch, so that a resumed run goes on as if it had never stopped.
        trainer = self.trainer
        keys = (self.options.seed, trainer.current_epoch, index, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(keys).generate_state(1)[0]))

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        parts = self.loss(self.model, batch)
        self.record("train", parts, len(batch))
        return parts.total

    def validation_step(self, batch: Batch, index: int) -> None:
        encoded = self.model.encode_streams(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )
        self.record("valid", self.loss(self.model, batch, encoded), len(batch))
        found = ctc_greedy(self.model.ctc_log_probs(encoded.hidden), encoded.lengths)
        for hyp, ref, n in zip(found, batch.tokens.tolist(), batch.token_lengths, strict=True):
            ref = ref[:n]
            self.errors += edit_distance(ref, hyp.tokens)["total"]
            self.tokens += len(ref)

    def on_validation_epoch_end(self) -> None:
        counts = torch.tensor([self.errors, self.tokens], dtype=torch.float64)
        self.errors = self.tokens = 0
        if self.trainer.world_size > 1:
            counts = self.all_gather(counts).sum(0)
        self.log("valid_error", 100.0 * counts[0] / counts[1].clamp(min=1), prog_bar=True)

    def record(self, stage: str, parts, size: int) -> None:
        values = {
            "loss": parts.total,
            "ctc_loss": parts.ctc,
            "att_loss": parts.attention,
            "reverse_loss": parts.reverse,
            "intermediate_loss": parts.intermediate,
            "stream_loss": parts.streams,
        }
        for name, value in values.items():
            if value is not None:
                self.log(
                    f"{stage}_{name}",
                    value.detach(),
                    on_step=False,
                    on_epoch=True,
                    prog_bar=name == "loss",
                    batch_size=size,
                    sync_dist=True,
                )

    def configure_optimizers(self):
        options = self.options
        optimizer = torch.optim.AdamW(
            [
                {"params": list(decayed(self.model, True)), "weight_decay": options.weight_decay},
                {"params": list(decayed(self.model, False)), "weight_decay": 0.0},
            ],
            lr=options.lr,
            betas=options.betas,
        )
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            if options.schedule == "noam":
                return noam(step, options.warmup_steps)
            return warmup_cosine(step, options.warmup_steps, total)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def decayed(model: nn.Module, wanted: bool):
    """Parameters that weight decay is for (matrices and kernels), or the others."""
    for parameter in model.parameters():
        if parameter.requires_grad and (parameter.ndim > 1) == wanted:
            yield parameter


def is_frozen(name: str, beginnings: Sequence[str]) -> bool:
    """Whether a part of this name is one of those that keep their weights."""
    return name.startswith(tuple(beginnings))


def freeze(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Excludes parameters from training.

    Raises:
        ConfigError: nothing has such a name.
    """
    for beginning in beginnings:
        found = [p for name, p in model.named_parameters() if is_frozen(name, [beginning])]
        if not found:
            raise ConfigError(f"training.freeze: no part of the model begins with {beginning!r}")
        for parameter in found:
            parameter.requires_grad_(False)
