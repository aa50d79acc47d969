"""The base of the training tasks: a step of the optimiser over any processes and batches.

DDP averages the gradients of the processes, and accumulation those of a process's batches, as if
all batches were of one size. Here every utterance of a step has the same weight: gradients of sums
are added up and divided by the number of utterances in all processes and batches. So two processes
learn what one learns from the same utterances. (Statistics of batch normalisation remain those of
each batch.)

The same exchange of a few numbers a step sums up the figures of the epoch, which checkpoints keep,
and lets all processes skip the same batches.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError, SpeechattnError
from speechattn.training.options import TrainingOptions
from speechattn.training.schedule import noam, warmup_cosine

logger = logging.getLogger(__name__)

# Counted in each step beside `BaseTask.figures`.
COUNTS = ("utterances", "skipped", "unreadable")
UNREADABLE_SHARE = 0.1  # of the utterances of an epoch; more stops the training


class BaseTask(L.LightningModule):
    """A Lightning module that counts utterances, skips bad batches and sums up an epoch's figures.

    A subclass calls `begin`, then `count` or `skip`, in its `training_step`.

    Args:
        model: what is trained.
        options: optimiser, schedule, limits.

    Attributes:
        figures: names of what `count` gets; logged as `train_NAME` once an epoch.
        columns: of `metrics.csv`, see `EpochTable`.
        summary: of an epoch in the log, a format string over the columns.
    """

    figures: tuple[str, ...] = ("loss",)
    columns: tuple[str, ...] = ("epoch", "step", "train_loss", "lr", "skipped", "seconds")
    summary: str = "epoch {epoch}: train loss {train_loss}, {seconds} s"

    def __init__(self, model: nn.Module, options: TrainingOptions):
        super().__init__()
        self.model = model
        self.options = options
        freeze(model, options.freeze)
        self.current = "no batch yet"  # what is being computed, for messages
        self.sums: dict[str, float] = {}  # of the epoch, over all processes
        self.skipped_in_a_row = 0
        self._step: Tensor | None = None  # sums of this process since the last step
        self._skipped: list[str] = []
        self._failed: list[str] = []
        self._reported: set[str] = set()
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # Lightning omits it when it resumes within an epoch
        names = ("running_mean", "running_var")
        buffers = [b for name, b in self.model.named_buffers() if name.endswith(names)]
        self._statistics = [(b, b.clone()) for b in buffers]

    def on_train_epoch_start(self) -> None:
        # Here and not once: the loop puts everything into training mode.
        for name, module in self.model.named_modules():
            if is_frozen(f"{name}.", self.options.freeze):
                module.eval()

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        # Dropout is seeded by batch, so that a resumed run equals one that never stopped.
        trainer = self.trainer
        keys = (self.options.seed, trainer.current_epoch, index, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(keys).generate_state(1)[0]))

    def begin(self, current: str, failed: Sequence[str] = ()) -> None:
        """Prepare for the computation of a batch.

        Args:
            current: what the batch is, for messages.
            failed: utterances that could not be read, with the reason; they are not in it.
        """
        self.current = current
        for buffer, kept in self._statistics:
            kept.copy_(buffer)
        self.unreadable(failed)
        if failed:
            self._add(self._counts(unreadable=float(len(failed))))

    def count(self, loss: Tensor, count: int, figures: Mapping[str, Tensor | None]) -> Tensor:
        """Count a batch; return what `training_step` has to.

        Args:
            loss: its mean over `count`.
            count: utterances, or whatever else has equal weights in a step.
            figures: means too, by the names in `self.figures`.
        """
        if not torch.isfinite(loss):
            return self.skip(f"its loss is {float(loss)}")
        values = [figures.get(name) for name in self.figures]
        zero = loss.new_zeros((), dtype=torch.float32)
        means = torch.stack([zero if v is None else v.detach().float() for v in values])
        present = torch.tensor([v is not None for v in values], device=loss.device)
        self._add(torch.cat([torch.tensor([count, 0.0, 0.0]).to(means), count * means]), present)
        return loss * count

    def skip(self, reason: str) -> Tensor:
        """Skip a batch in which something went wrong; return what `training_step` has to."""
        for buffer, kept in self._statistics:
            buffer.copy_(kept)
        self._skipped.append(f"{reason}: {self.current}")
        self._add(self._counts(skipped=1.0))
        # Of all weights: other DDP processes wait for their gradients.
        return sum(p.sum() for p in self.model.parameters() if p.requires_grad) * 0.0

    def unreadable(self, failed: Sequence[str]) -> None:
        """Note utterances that could not be read; each is reported once a run."""
        self._failed += [text for text in failed if text not in self._reported]

    def _counts(self, **counts: float) -> Tensor:
        values = [counts.get(name, 0.0) for name in COUNTS] + [0.0] * len(self.figures)
        return torch.tensor(values, device=self.device)

    def _add(self, sums: Tensor, present: Tensor | None = None) -> None:
        if present is None:
            present = sums.new_zeros(len(self.figures))
        row = torch.cat([sums, present.to(sums)])
        self._step = row if self._step is None else self._step + row

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale the gradients to those of the mean over the step's utterances, and clip them.

        Raises:
            SpeechattnError: too much was skipped, in all processes alike.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        step = self._step if self._step is not None else self._counts()
        step, self._step = self.trainer.strategy.reduce(step, reduce_op="sum"), None
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        *values, norm = torch.cat([step, norm.reshape(1).to(step)]).tolist()
        count, skipped, unreadable = values[: len(COUNTS)]
        # DDP and accumulation have divided by the first two.
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches / max(count, 1.0)
        bad = not np.isfinite(norm) and self.options.precision != "fp16"  # its scaler handles that
        if count and not bad:
            if gradient_clip_val:
                scale *= min(1.0, gradient_clip_val / (norm * scale + 1e-6))
            for parameter in parameters:
                parameter.grad.mul_(scale)
        else:
            for parameter in parameters:
                parameter.grad = None  # the optimiser then skips it and its moments
        if bad:
            self._skipped.append(f"its gradient is {norm}: {self.current}")
            skipped += self.trainer.accumulate_grad_batches * self.trainer.world_size
            count, values = 0.0, [0.0] * len(values)
        sums = dict(zip(COUNTS, (count, skipped, unreadable), strict=True))
        totals, present = np.array_split(values[len(COUNTS) :], 2)
        sums |= {n: v for n, v, p in zip(self.figures, totals, present, strict=True) if p}
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.skipped_in_a_row = 0 if count else self.skipped_in_a_row + int(skipped)
        if skipped or unreadable:
            self._check_limits(self._report())

    def _report(self) -> list[str]:
        """Log in the first process what any of them skipped; called in all of them."""
        failed = dict.fromkeys(self._gather(self._failed))
        messages = [text for text in failed if text not in self._reported]
        self._reported.update(messages)
        messages += self._gather(self._skipped)
        self._skipped, self._failed = [], []
        if self.trainer.is_global_zero:
            for text in messages:
                logger.warning("skipped, %s", text)
        return messages

    def _check_limits(self, messages: Sequence[str]) -> None:
        limit, sums = self.options.skip_limit, self.sums
        skipped = max(self.skipped_in_a_row, int(sums["skipped"]))
        if skipped > limit:
            raise SpeechattnError(
                f"{skipped} batches had to be skipped ({sums['utterances']:g} utterances of this "
                f"epoch were used); the last one, {messages[-1] if messages else self.current}. If "
                "those named above are sound, lower training.lr or set training.precision=fp32; "
                "training.skip_limit is how many may be skipped"
            )
        total = sums["utterances"] + sums["unreadable"]
        if sums["unreadable"] > max(limit, UNREADABLE_SHARE * total):
            raise SpeechattnError(
                f"{sums['unreadable']:g} of {total:g} utterances of this epoch could not be read; "
                "the first are named above. Check the disk, then run the command again to go on"
            )

    def _gather(self, texts: list[str]) -> list[str]:
        """Return the texts of all processes."""
        if self.trainer.world_size == 1:
            return texts
        lists: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(lists, texts)
        return [text for each in lists for text in each]

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if not self.trainer.is_last_batch:
            return
        # The step is done, and validation and checkpoints are still to come.
        count = max(self.sums.get("utterances", 0.0), 1.0)
        for name in self.figures:
            if name in self.sums:
                self._log(f"train_{name}", self.sums[name] / count)
        for name in ("skipped", "unreadable"):
            self._log(name, self.sums.get(name, 0.0))
        self.sums = {}

    def log_epoch(self, name: str, value: Tensor, weight: int = 1, *, shown: bool = False) -> None:
        """Log a figure's mean over an epoch, by weight; `shown` puts it beside the progress bar."""
        options = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": weight}
        self.log(name, value, prog_bar=shown, **options)

    def _log(self, name: str, value: float) -> None:
        # The same in all processes, so `sync_dist` changes nothing.
        shown = name == "train_loss"
        self.log_epoch(name, torch.tensor(value, device=self.device), shown=shown)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sums"] = dict(self.sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.sums = dict(checkpoint.get("sums", {}))
        # A run that kept a moving average and no longer does goes on from its own weights.
        if not self.options.ema and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    def configure_optimizers(self):
        options = self.options
        groups = [
            {"params": list(decayed(self.model, True)), "weight_decay": options.weight_decay},
            {"params": list(decayed(self.model, False)), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)
        total = steps_of(self.trainer)

        def factor(step: int) -> float:
            if options.schedule == "noam":
                return noam(step, options.warmup_steps)
            return warmup_cosine(step, options.warmup_steps, total)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def steps_of(trainer: L.Trainer) -> int:
    """Return the optimiser steps of the whole training, as if all epochs were of one length.

    Lightning's own estimate would load data of the first epoch even where a checkpoint is resumed.
    """
    if trainer.datamodule is None:
        return int(trainer.estimated_stepping_batches)
    batches = len(trainer.datamodule.train_dataloader())
    return -(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs


def decayed(model: nn.Module, wanted: bool) -> Iterable[nn.Parameter]:
    """Yield the parameters with weight decay (matrices and kernels), or those without."""
    for parameter in model.parameters():
        if parameter.requires_grad and (parameter.ndim > 1) == wanted:
            yield parameter


def is_frozen(name: str, prefixes: Sequence[str]) -> bool:
    """Return whether the part of this name keeps its weights."""
    return name.startswith(tuple(prefixes))


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Exclude parameters from training.

    Raises:
        ConfigError: nothing has such a name.
    """
    for prefix in prefixes:
        parameters = [p for name, p in model.named_parameters() if is_frozen(name, [prefix])]
        if not parameters:
            raise ConfigError(f"training.freeze: no part of the model begins with {prefix!r}")
        for parameter in parameters:
            parameter.requires_grad_(False)
