"""Transducer losses: over all alignments, or over those that a simple joiner leaves.

The full loss scores every token position in every frame, (B, T, U + 1, V): exact, but large. The
pruned one scores `width` positions a frame (2206.13236), for large vocabularies and batches. Both
can penalise delay (2211.00490).
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
from speechattn.losses.criterion import mean
from speechattn.losses.ranges import check_range


class FullTransducerLoss(nn.Module):
    """The loss over all alignments.

    Args:
        delay_penalty: for each frame of delay of a token, 0 or more; more makes earlier tokens,
            and more errors.
        topology: "regular" for any number of tokens a frame, "modified" for one at most,
            "constrained" for one and a blank; decode likewise.
    """

    def __init__(self, delay_penalty: float = 0.0, topology: Topology = "regular"):
        super().__init__()
        check_range("delay_penalty", delay_penalty)
        _check_topology(topology)
        self.delay_penalty, self.topology = delay_penalty, topology

    def forward(
        self,
        head: nn.Module,
        hidden: Tensor,
        lengths: Tensor,
        tokens: Tensor,
        token_lengths: Tensor,
    ) -> Tensor:
        """Compute the mean over the batch; items too short for their text count 0.

        Args:
            head: a `speechattn.decoders.transducer.Transducer`.
            hidden: (B, T, D) of the encoder; lengths (B,), tokens (B, U), token_lengths (B,).
        """
        predicted = head.predict(tokens)  # (B, U + 1, P)
        logits = head.joiner(hidden[:, :, None], predicted[:, None])  # (B, T, U + 1, V)
        options = {"delay_penalty": self.delay_penalty, "topology": self.topology}
        return mean(transducer(logits, lengths, tokens, token_lengths, **options))


class PrunedTransducerLoss(nn.Module):
    """The loss over the alignments that the simple joiner leaves, and the simple joiner's own.

    The simple joiner has to learn alignments before it can prune. So during `warmup` its scale
    falls from 1 to simple_scale and that of the pruned loss rises from 0.1 to 1, as in icefall; the
    delay penalty begins after it. Evaluation always uses the scales after the warmup, so that its
    values can be compared.

    Args:
        width: token positions kept in a frame, at least 2 for the regular topology.
        simple_scale: of the simple joiner's loss.
        lm_only_scale: share of the predictor alone in the simple joiner's loss.
        am_only_scale: likewise of the encoder alone.
        delay_penalty: of both; see `FullTransducerLoss`.
        topology: see `FullTransducerLoss`.
        warmup: batches of training; 0 for none.
    """

    def __init__(
        self,
        width: int = 5,
        *,
        simple_scale: float = 0.5,
        lm_only_scale: float = 0.25,
        am_only_scale: float = 0.0,
        delay_penalty: float = 0.0,
        topology: Topology = "regular",
        warmup: int = 2000,
    ):
        super().__init__()
        _check_topology(topology)
        check_range("delay_penalty", delay_penalty)
        check_range("simple_scale", simple_scale)
        check_range("lm_only_scale", lm_only_scale, 0, 1)
        check_range("am_only_scale", am_only_scale, 0, 1)
        check_range("lm_only_scale + am_only_scale", lm_only_scale + am_only_scale, 0, 1)
        check_range("width", width, 2 if topology == "regular" else 1)
        check_range("warmup", warmup)
        self.width, self.simple_scale, self.lm_only_scale = width, simple_scale, lm_only_scale
        self.am_only_scale, self.delay_penalty = am_only_scale, delay_penalty
        self.topology, self.warmup = topology, warmup
        # Kept with the weights: a resumed training goes on with its warmup.
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, head: nn.Module, *tensors: Tensor) -> Tensor:
        """Compute the mean over the batch; see `FullTransducerLoss.forward`."""
        simple_scale, pruned_scale, delay_penalty = self.simple_scale, 1.0, self.delay_penalty
        if self.training and self.warmup:
            warm = (self.batches / self.warmup).clamp(max=1.0)
            simple_scale = 1.0 - warm * (1.0 - self.simple_scale)
            pruned_scale = 0.1 + 0.9 * warm
            if delay_penalty and warm < 1.0:
                delay_penalty = 0.0
            self.batches += 1
        simple, pruned = self.losses(head, *tensors, delay_penalty=delay_penalty)
        return simple_scale * mean(simple) + pruned_scale * mean(pruned)

    def losses(
        self, head: nn.Module, *tensors: Tensor, delay_penalty: float
    ) -> tuple[Tensor, Tensor]:
        """Return the losses (B,) of the simple joiner and (B,) of the real one; see `forward`."""
        hidden, lengths, tokens, token_lengths = tensors
        options = {"delay_penalty": delay_penalty, "topology": self.topology}
        predicted = head.predict(tokens)  # (B, U + 1, P)
        simple, px_grad, py_grad = simple_transducer(
            head.simple_am(hidden),
            head.simple_lm(predicted),
            tokens,
            lengths,
            token_lengths,
            lm_only_scale=self.lm_only_scale,
            am_only_scale=self.am_only_scale,
            **options,
        )
        ranges = prune_ranges(px_grad, py_grad, lengths, token_lengths, self.width)  # (B, T, s)
        joiner = head.joiner
        # Projected before they are repeated: s times less to do.
        frames, columns = prune(
            joiner.encoder_projection(hidden), joiner.predictor_projection(predicted), ranges
        )
        logits = joiner(frames, columns, project=False)  # (B, T, s, V)
        pruned = pruned_transducer(logits, tokens, ranges, lengths, token_lengths, **options)
        return simple, pruned


def _check_topology(topology: str) -> None:
    if topology not in get_args(Topology):
        raise ConfigError(f"topology is one of {', '.join(get_args(Topology))}, not {topology!r}")
