"""Minimum word error rate (MWER) training: the expected errors of the search.

Prabhavalkar et al., "Minimum Word Error Rate Training for Attention-based Sequence-to-Sequence
Models" (1712.01818): an n-best list from the beam search stands for all texts, and with P the
model's probabilities normalised over the list and W(y) the errors of a text,

    loss = sum over y of P(y) (W(y) - mean of W over the list)

The mean changes no gradient of an exact sum and makes the loss 0 for a list of equal errors.
"""

import torch
from kaldialign import edit_distance
from torch import Tensor, nn

from speechattn.decoders import Decoder
from speechattn.decoders.scoring import next_tokens, sequence_log_probs
from speechattn.decoding import CtcBeamSearch, JointSearch, Search
from speechattn.errors import ConfigError
from speechattn.kernels.lattice.ctc import ctc
from speechattn.losses.ranges import check_range
from speechattn.model.output import ModelOutput


class MwerLoss(nn.Module):
    """Expected token errors over an n-best list, for fine-tuning of a model that is trained.

    Errors are counted in tokens: in words where the tokenizer's units are words, in characters
    where they are characters. The list is searched anew in every step with what the model is then,
    without dropout; only its scores learn.

    Args:
        weight: share of the expected errors in the loss of a `JointLoss`, 0..1; the rest goes to
            what it has without them, which keeps the probabilities from running away.
        nbest: hypotheses of each utterance, at least 2.
        ctc_weight: of CTC in the search and in the scores, 0..1; the decoder gets the rest. At 1
            the search is CTC's own prefix beam search.
        with_truth: add the transcript to lists that lack it, so that the true text is learnt too.
        scale: of the scores before they are normalised; small ones spread P over the list.
    """

    def __init__(
        self,
        weight: float = 0.9,
        nbest: int = 4,
        *,
        ctc_weight: float = 0.3,
        with_truth: bool = False,
        scale: float = 1.0,
    ):
        super().__init__()
        check_range("weight", weight, 0, 1)
        check_range("ctc_weight", ctc_weight, 0, 1)
        if nbest < 2:
            raise ConfigError(f"nbest is {nbest}: the risk of a list needs 2 hypotheses or more")
        if not scale > 0.0:
            raise ConfigError(f"scale has to be above 0, got {scale!r}")
        self.weight, self.ctc_weight = weight, ctc_weight
        self.with_truth, self.scale = with_truth, scale
        self.list_search: Search = (
            CtcBeamSearch(beam_size=nbest, nbest=nbest)
            if ctc_weight == 1.0
            else JointSearch(beam_size=nbest, nbest=nbest, ctc_weight=ctc_weight)
        )

    def forward(
        self,
        hidden: Tensor,
        lengths: Tensor,
        log_probs: Tensor,
        decoder: Decoder | None,
        tokens: Tensor,
        token_lengths: Tensor,
    ) -> Tensor:
        """Compute the mean over the batch of the expected errors above the mean of the list.

        Args:
            hidden: (B, T, D), lengths (B,).
            log_probs: (B, T, V) of CTC.
            decoder: reads `hidden`; None where `ctc_weight` is 1.
            tokens: (B, U) the transcripts, token_lengths (B,).
        """
        references = [t[:n].tolist() for t, n in zip(tokens, token_lengths.tolist(), strict=True)]
        lists = self.search(hidden, lengths, log_probs, decoder)
        if self.with_truth:
            pairs = zip(lists, references, strict=True)
            lists = [nbest if truth in nbest else [*nbest, truth] for nbest, truth in pairs]
        scores = self.scores(hidden, lengths, log_probs, decoder, lists)
        losses = []
        scores = scores.split([len(nbest) for nbest in lists])
        for truth, nbest, own in zip(references, lists, scores, strict=True):
            errors = own.new_tensor([edit_distance(truth, text)["total"] for text in nbest])
            losses.append((own.softmax(0) * (errors - errors.mean())).sum())
        return torch.stack(losses).mean().to(hidden.dtype)

    @torch.no_grad()
    def search(
        self, hidden: Tensor, lengths: Tensor, log_probs: Tensor, decoder: Decoder | None
    ) -> list[list[list[int]]]:
        """Search for the texts of each utterance, without dropout."""
        training = decoder is not None and decoder.training
        if training:
            decoder.eval()
        try:
            output = ModelOutput(hidden.detach(), lengths, log_probs.detach(), decoder)
            results = self.list_search.search([output])
        finally:
            if training:
                decoder.train()
        return [[hypothesis.tokens for hypothesis in nbest] for nbest in results]

    def scores(
        self,
        hidden: Tensor,
        lengths: Tensor,
        log_probs: Tensor,
        decoder: Decoder | None,
        lists: list[list[list[int]]],
    ) -> Tensor:
        """Score each text by CTC and the decoder, with gradients, (N,) float64."""
        texts = [text for nbest in lists for text in nbest]
        sizes = torch.tensor([len(nbest) for nbest in lists])
        rows = torch.arange(len(lists)).repeat_interleave(sizes).to(hidden.device)
        tokens, counts = padded(texts, hidden.device)
        total = torch.zeros(len(texts), dtype=torch.float64, device=hidden.device)
        if self.ctc_weight > 0.0:
            loss = ctc(log_probs[rows], lengths[rows], tokens, counts)
            # A text without an alignment was found by the decoder: CTC does not score it.
            possible = loss.masked_fill(loss.isposinf(), 0.0)
            total = total - self.ctc_weight * possible.double()
        if self.ctc_weight < 1.0:
            eos = decoder.vocab_size - 1
            inputs = torch.cat([tokens.new_full((len(texts), 1), eos), tokens], 1)
            logits = decoder(inputs, counts + 1, hidden[rows], lengths[rows])
            targets = next_tokens(inputs, counts + 1, eos)
            attention = sequence_log_probs(logits, targets, counts + 1)
            total = total + (1.0 - self.ctc_weight) * attention
        return self.scale * total


def padded(texts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad texts with 0 to (N, U) int64, and return their lengths (N,)."""
    counts = torch.tensor([len(text) for text in texts])
    tokens = torch.zeros(len(texts), max(int(counts.max()), 1), dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.int64)
    return tokens.to(device), counts.to(device)
