"""What a transducer learns from: the loss of all its alignments, or of those a cheap joiner finds.

The full loss scores every column in every frame, (B, T, U + 1, V): exact, and as much memory. The
pruned one scores `width` columns a frame (2206.13236) and is what large vocabularies and batches
are trained with. Both can be paid for saying tokens early (2211.00490).

Legend: B items, T frames, U tokens of the longest text, D width, V units.
"""

from typing import get_args

import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.kernels.lattice.pruned_transducer import (
    prune,
    prune_ranges,
    pruned_transducer,
    simple_transducer,
)
from speechattn.kernels.lattice.transducer import transducer
from speechattn.kernels.lattice.transducer_lattice import Topology


class FullTransducerLoss(nn.Module):
    """The loss over all alignments.

    Args:
        delay_penalty: for each frame that a token is later, 0 or more; more makes earlier tokens,
            and more errors.
        topology: "regular" for any number of tokens a frame, "modified" for one at most,
            "constrained" for one and a blank; decode likewise.
    """

    def __init__(self, delay_penalty: float = 0.0, topology: Topology = "regular"):
        super().__init__()
        _check_range("delay_penalty", delay_penalty, 0.0, float("inf"))
        _check_topology(topology)
        self.delay_penalty = delay_penalty
        self.topology = topology

    def forward(
        self,
        head: nn.Module,
        hidden: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
    ) -> Tensor:
        """A scalar, averaged over the batch; items too short for their text count 0.

        Args:
            head: a `speechattn.decoders.transducer.Transducer`.
            hidden: (B, T, D) of the encoder.
            lengths: (B,).
            tokens: (B, U).
            token_lengths: (B,).
        """
        predicted = head.predict(tokens)  # (B, U + 1, P)
        logits = head.joiner(hidden[:, :, None], predicted[:, None])  # (B, T, U + 1, V)
        loss = transducer(
            logits,
            lengths,
            tokens,
            token_lengths,
            delay_penalty=self.delay_penalty,
            topology=self.topology,
        )
        return _mean(loss)


class PrunedTransducerLoss(nn.Module):
    """The loss over the alignments that the simple joiner of a head leaves, and that joiner's own.

    The simple joiner has to know where texts are before what it leaves is worth scoring. So while
    `warmup` lasts its scale falls from 1 to simple_scale, and that of the pruned loss rises from
    0.1 to 1, as in icefall; the delay penalty waits until the end of it. An evaluation has what
    comes after the warmup, at any time: its values can be compared.

    Args:
        width: columns of a frame that are kept, at least 2 for the regular topology.
        simple_scale: of the simple joiner's loss.
        lm_only_scale: how much the simple joiner's loss is one of the predictor alone.
        am_only_scale: likewise of the encoder alone.
        delay_penalty: of both; see `FullTransducerLoss`.
        topology: see `FullTransducerLoss`.
        warmup: batches of training; 0 for none.
    """

    def __init__(
        self,
        width: int = 5,
        simple_scale: float = 0.5,
        lm_only_scale: float = 0.25,
        am_only_scale: float = 0.0,
        delay_penalty: float = 0.0,
        topology: Topology = "regular",
        warmup: int = 2000,
    ):
        super().__init__()
        _check_topology(topology)
        _check_range("delay_penalty", delay_penalty, 0.0, float("inf"))
        _check_range("simple_scale", simple_scale, 0.0, float("inf"))
        _check_range("lm_only_scale", lm_only_scale, 0.0, 1.0)
        _check_range("am_only_scale", am_only_scale, 0.0, 1.0)
        _check_range("lm_only_scale + am_only_scale", lm_only_scale + am_only_scale, 0.0, 1.0)
        _check_range("width", width, 2 if topology == "regular" else 1, float("inf"))
        _check_range("warmup", warmup, 0, float("inf"))
        self.width = width
        self.simple_scale = simple_scale
        self.lm_only_scale = lm_only_scale
        self.am_only_scale = am_only_scale
        self.delay_penalty = delay_penalty
        self.topology = topology
        self.warmup = warmup
        # Kept with the weights, so that a training that goes on is as warm as it was.
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        head: nn.Module,
        hidden: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
    ) -> Tensor:
        """A scalar, averaged over the batch; see `FullTransducerLoss.forward`."""
        simple_scale, pruned_scale, delay_penalty = self.simple_scale, 1.0, self.delay_penalty
        if self.training and self.warmup:
            warm = (self.batches / self.warmup).clamp(max=1.0)
            simple_scale = 1.0 - warm * (1.0 - self.simple_scale)
            pruned_scale = 0.1 + 0.9 * warm
            if delay_penalty and warm < 1.0:
                delay_penalty = 0.0
            self.batches += 1
        simple, pruned = self.losses(head, hidden, lengths, tokens, token_lengths, delay_penalty)
        return simple_scale * _mean(simple) + pruned_scale * _mean(pruned)

    def losses(
        self,
        head: nn.Module,
        hidden: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
        delay_penalty: float,
    ) -> tuple[Tensor, Tensor]:
        """(B,) of the simple joiner and (B,) of the real one."""
        predicted = head.predict(tokens)  # (B, U + 1, P)
        simple, px_grad, py_grad = simple_transducer(
            head.simple_am(hidden),
            head.simple_lm(predicted),
            tokens,
            lengths,
            token_lengths,
            lm_only_scale=self.lm_only_scale,
            am_only_scale=self.am_only_scale,
            delay_penalty=delay_penalty,
            topology=self.topology,
        )
        ranges = prune_ranges(px_grad, py_grad, lengths, token_lengths, self.width)  # (B, T, s)
        joiner = head.joiner
        # Projected before they are repeated: s times less to do.
        frames, columns = prune(
            joiner.encoder_projection(hidden), joiner.predictor_projection(predicted), ranges
        )
        logits = joiner(frames, columns, project=False)  # (B, T, s, V)
        pruned = pruned_transducer(
            logits,
            tokens,
            ranges,
            lengths,
            token_lengths,
            delay_penalty=delay_penalty,
            topology=self.topology,
        )
        return simple, pruned


def _mean(losses: Tensor) -> Tensor:
    """Over the batch, where no alignment counts 0."""
    return losses.masked_fill(losses.isposinf(), 0.0).sum() / len(losses)


def _check_topology(topology: str) -> None:
    if topology not in get_args(Topology):
        raise ConfigError(f"topology is one of {', '.join(get_args(Topology))}, not {topology!r}")


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most or value == float("inf"):
        bounds = f"{least:g} or more" if most == float("inf") else f"{least:g} to {most:g}"
        raise ConfigError(f"{name} has to be {bounds}, got {value!r}")
