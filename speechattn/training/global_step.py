"""One step of the optimiser, whatever the number of processes and of batches that it is made of.

DDP averages the gradients of the processes, and accumulation those of a process's batches, as if
all batches were alike. They hold different numbers of utterances; here each utterance of a step
counts alike: gradients of sums are added up and divided by the number of utterances of all
processes and batches. So two processes learn what one learns from the same utterances. (Statistics
of batch normalisation remain those of each batch.)

The same exchange of a few numbers a step brings the figures of the epoch, which a checkpoint keeps,
and decides alike in all processes what is left out.
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

# Counted in each step beside the figures of `GlobalStep.figures`.
COUNTS = ("utterances", "skipped", "unreadable")
UNREADABLE_SHARE = 0.1  # of the utterances of an epoch; more stop the training


class GlobalStep(L.LightningModule):
    """What the tasks share: the step, what it leaves out, the figures of an epoch, the optimiser.

    A subclass calls `take` or `skip` in its `training_step`.

    Args:
        model: what is trained.
        options: optimiser, schedule, limits.
    """

    figures: tuple[str, ...] = ("loss",)

    def __init__(self, model: nn.Module, options: TrainingOptions):
        super().__init__()
        self.model = model
        self.options = options
        freeze(model, options.freeze)
        self.now = "no batch yet"  # what is being computed, for messages
        self.sums: dict[str, float] = {}  # of the epoch, over all processes
        self.in_row = 0  # skipped batches since the last that counted
        self._step: Tensor | None = None  # sums of this process since the last step
        self._left_out: list[str] = []
        self._failed: list[str] = []
        self._reported: set[str] = set()
        self._statistics: list[tuple[Tensor, Tensor]] = []

    # ---------------------------------------------------------------------------- one batch

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # Lightning leaves it out where it goes on within an epoch
        names = ("running_mean", "running_var")
        buffers = [b for name, b in self.model.named_buffers() if name.endswith(names)]
        self._statistics = [(b, b.clone()) for b in buffers]

    def on_train_epoch_start(self) -> None:
        # Here and not once: the loop puts everything into training mode.
        for name, module in self.model.named_modules():
            if is_frozen(f"{name}.", self.options.freeze):
                module.eval()

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        # Dropout is drawn by batch, so that a resumed run goes on as if it had never stopped.
        trainer = self.trainer
        keys = (self.options.seed, trainer.current_epoch, index, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(keys).generate_state(1)[0]))

    def begin(self, now: str, failed: Sequence[str] = ()) -> None:
        """Go before the computation of a batch.

        Args:
            now: what it is, for messages.
            failed: utterances that could not be read, with the reason; they are not in it.
        """
        self.now = now
        for buffer, kept in self._statistics:
            kept.copy_(buffer)
        self.unreadable(failed)
        if failed:
            self._add(self._counted(unreadable=float(len(failed))))

    def take(self, loss: Tensor, count: int, figures: Mapping[str, Tensor | None]) -> Tensor:
        """Count a batch.

        Args:
            loss: its mean over `count`.
            count: utterances, or what else counts alike in a step.
            figures: means too, of the names in `self.figures`.

        Returns:
            What `training_step` returns.
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
        """Leave the batch out, in which something may have gone wrong: it changes no weight.

        Returns:
            What `training_step` returns.
        """
        for buffer, kept in self._statistics:
            buffer.copy_(kept)
        self._left_out.append(f"{reason}: {self.now}")
        self._add(self._counted(skipped=1.0))
        # Of all weights: other processes of DDP wait for the gradients.
        return sum(p.sum() for p in self.model.parameters() if p.requires_grad) * 0.0

    def unreadable(self, failed: Sequence[str]) -> None:
        """Take note of utterances that could not be read; each is reported once a run."""
        self._failed += [text for text in failed if text not in self._reported]

    def _counted(self, **counts: float) -> Tensor:
        values = [counts.get(name, 0.0) for name in COUNTS] + [0.0] * len(self.figures)
        return torch.tensor(values, device=self.device)

    def _add(self, sums: Tensor, present: Tensor | None = None) -> None:
        if present is None:
            present = sums.new_zeros(len(self.figures))
        row = torch.cat([sums, present.to(sums)])
        self._step = row if self._step is None else self._step + row

    # ---------------------------------------------------------------------------- one step

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make the gradients those of the mean over the step's utterances, and clips them.

        Raises:
            SpeechattnError: too much was left out, in all processes alike.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        step = self._step if self._step is not None else self._counted()
        step, self._step = self.trainer.strategy.reduce(step, reduce_op="sum"), None
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        *values, norm = torch.cat([step, norm.reshape(1).to(step)]).tolist()
        count, skipped, unreadable = values[: len(COUNTS)]
        # What DDP and accumulation have divided by.
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches / max(count, 1.0)
        bad = not np.isfinite(norm) and self.options.precision != "fp16"  # whose scaler sees to it
        if count and not bad:
            if gradient_clip_val:
                scale *= min(1.0, gradient_clip_val / (norm * scale + 1e-6))
            for parameter in parameters:
                parameter.grad.mul_(scale)
        else:
            for parameter in parameters:
                parameter.grad = None  # the optimiser then leaves it, and its moments, alone
        if bad:
            self._left_out.append(f"its gradient is {norm}: {self.now}")
            skipped += self.trainer.accumulate_grad_batches * self.trainer.world_size
            count, values = 0.0, [0.0] * len(values)
        self._count("utterances", count)
        self._count("skipped", skipped)
        self._count("unreadable", unreadable)
        means, present = np.array_split(values[len(COUNTS) :], 2)
        for name, value, there in zip(self.figures, means, present, strict=True):
            if there:
                self._count(name, value)
        self.in_row = 0 if count else self.in_row + int(skipped)
        if skipped or unreadable:
            self._stop_if_much(self._report())

    def _count(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def _report(self) -> list[str]:
        """Say in the first process what any of them left out; called in all of them."""
        failed = dict.fromkeys(self._everywhere(self._failed))
        left_out = [text for text in failed if text not in self._reported]
        self._reported.update(left_out)
        left_out += self._everywhere(self._left_out)
        self._left_out, self._failed = [], []
        if self.trainer.is_global_zero:
            for text in left_out:
                logger.warning("left out, %s", text)
        return left_out

    def _stop_if_much(self, left_out: Sequence[str]) -> None:
        limit, sums = self.options.skip_limit, self.sums
        many = max(self.in_row, int(sums["skipped"]))
        if many > limit:
            raise SpeechattnError(
                f"{many} batches had to be left out ({sums['utterances']:g} utterances counted in "
                f"this epoch); the last one, {left_out[-1] if left_out else self.now}. If what is "
                "named above is sound, lower training.lr or train with training.precision=fp32; "
                "training.skip_limit says how many may be left out"
            )
        seen = sums["utterances"] + sums["unreadable"]
        if sums["unreadable"] > max(limit, UNREADABLE_SHARE * seen):
            raise SpeechattnError(
                f"{sums['unreadable']:g} of {seen:g} utterances of this epoch could not be read; "
                "the first are named above. Look for the disk, then run it again to go on"
            )

    def _everywhere(self, texts: list[str]) -> list[str]:
        """Those of all processes."""
        if self.trainer.world_size == 1:
            return texts
        found: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(found, texts)
        return [text for each in found for text in each]

    # ---------------------------------------------------------------------------- one epoch

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

    def _log(self, name: str, value: float) -> None:
        # The same in all processes; what `sync_dist` does to it is nothing.
        value = torch.tensor(value, device=self.device)
        options = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": 1}
        self.log(name, value, prog_bar=name == "train_loss", **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sums"] = dict(self.sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.sums = dict(checkpoint.get("sums", {}))
        # A run that kept a moving average, and now does not: its own weights go on.
        if not self.options.ema and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint["current_model_state"]

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
        total = steps_of(self.trainer)

        def factor(step: int) -> float:
            if options.schedule == "noam":
                return noam(step, options.warmup_steps)
            return warmup_cosine(step, options.warmup_steps, total)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def steps_of(trainer: L.Trainer) -> int:
    """Optimiser steps of the whole training; epochs of joined utterances differ a little.

    Lightning's own estimate would load data, of the first epoch, before a checkpoint says where to
    go on.
    """
    if trainer.datamodule is None:
        return int(trainer.estimated_stepping_batches)
    batches = len(trainer.datamodule.train_dataloader())
    return -(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs


def decayed(model: nn.Module, wanted: bool) -> Iterable[nn.Parameter]:
    """Parameters that weight decay is for (matrices and kernels), or the others."""
    for parameter in model.parameters():
        if parameter.requires_grad and (parameter.ndim > 1) == wanted:
            yield parameter


def is_frozen(name: str, beginnings: Sequence[str]) -> bool:
    """Whether a part of this name is one of those that keep their weights."""
    return name.startswith(tuple(beginnings))


def freeze(model: nn.Module, beginnings: Sequence[str]) -> None:
    """Exclude parameters from training.

    Raises:
        ConfigError: nothing has such a name.
    """
    for beginning in beginnings:
        found = [p for name, p in model.named_parameters() if is_frozen(name, [beginning])]
        if not found:
            raise ConfigError(f"training.freeze: no part of the model begins with {beginning!r}")
        for parameter in found:
            parameter.requires_grad_(False)
