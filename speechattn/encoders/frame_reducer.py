"""Drops the frames that CTC is sure are blank, before a transducer reads them.

"Blank-regularized CTC for Frame Skipping in Neural Transducer" (2305.11558), after Tian et al.,
"FSR: Accelerating the Inference Process of Transducer-Based Models by Applying Fast-Skip
Regularization" (2104.02882) and Wang et al. (2210.16481).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.masks import padding_mask, without_padding
from speechattn.units import BLANK


class Reduced(NamedTuple):
    """The hidden frames of a batch that were kept.

    Attributes:
        hidden: (B, T', D), zero beyond an item's length; T' is at least 1.
        lengths: (B,) int64, may be 0.
        index: (B, T') int64, which frame each of them was; of no meaning beyond an item's length.
    """

    hidden: Tensor
    lengths: Tensor
    index: Tensor


class FrameReducer(nn.Module):
    """Keeps the frames whose blank has a posterior of at most `threshold`.

    In training at least as many as there are tokens are kept, those least blank, so that the
    transducer can emit one in each: without that an untrained CTC, which says blank everywhere,
    would leave it nothing to learn from. A search does not know how many there are, and may be left
    with none; `share` counts what searches kept.

    Args:
        threshold: of the posterior of blank, above 0, at most 1; 1 keeps all.
        warmup: batches of training before the first frame is dropped; 0 for none.
    """

    def __init__(self, threshold: float = 0.9, warmup: int = 0):
        super().__init__()
        if not 0.0 < threshold <= 1.0:
            raise ConfigError(f"threshold has to be above 0, at most 1, got {threshold!r}")
        if warmup < 0:
            raise ConfigError(f"warmup is 0 batches or more, not {warmup}")
        self.threshold, self.warmup = threshold, warmup
        # Kept with the weights, so that a training that goes on is as warm as it was.
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        # Frames that searches read and kept.
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def keeps(self, lengths: Tensor, log_probs: Tensor, token_lengths: Tensor | None) -> Tensor:
        """Return which frames are kept, (B, T) bool; see `forward`."""
        real = padding_mask(lengths, log_probs.shape[1])
        if self.batches < self.warmup:
            return real
        blank = log_probs[..., BLANK].masked_fill(~real, math.inf)
        # log(1) may be 0 and the posterior of a float above it.
        keep = real & (blank <= math.log(self.threshold)) if self.threshold < 1.0 else real
        if token_lengths is not None:
            place = blank.argsort(dim=1, stable=True).argsort(dim=1)  # the least blank first
            keep = keep | (real & (place < token_lengths[:, None]))
        return keep

    def forward(
        self,
        hidden: Tensor,
        lengths: Tensor,
        log_probs: Tensor,
        token_lengths: Tensor | None = None,
    ) -> Reduced:
        """Drop frames.

        Args:
            hidden: (B, T, D).
            lengths: (B,).
            log_probs: (B, T, V) of CTC, blank at 0; no gradient goes into them.
            token_lengths: (B,), of the transcripts in training: no item is left with fewer frames
                than that, if it had them.
        """
        keep = self.keeps(lengths, log_probs, token_lengths)
        kept = keep.sum(1)
        if self.training:
            self.batches += 1
        elif token_lengths is None:
            self.counts += torch.stack([lengths.sum(), kept.sum()])
        frames = max(1, int(kept.max()))
        index = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :frames]
        rows = torch.arange(len(kept), device=kept.device)[:, None]
        return Reduced(without_padding(hidden[rows, index], kept), kept, index)

    def share(self) -> float:
        """Return the share of frames that searches kept, 0..1; 1 before the first search."""
        read, kept = self.counts.tolist()
        return kept / read if read else 1.0
