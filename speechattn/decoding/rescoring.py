"""Second pass over what a search found: scores that need the whole sequence.

Legend: B utterances, K hypotheses of an utterance, N = B * K, T frames, U tokens, V units.

As the attention rescoring of WeNet (2102.01547, and U2++, 2106.05642), but for an n-best with
attention scores in it, and all utterances in one pass.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from speechattn.decoders import BidirectionalDecoder, reverse_tokens
from speechattn.decoding.evidence import Evidence
from speechattn.decoding.hypothesis import Hypothesis
from speechattn.masks import padding_mask

# Logits held at once. A batch with more of them goes through in several passes.
MAX_LOGITS = 2**27


def rescore(
    evidence: Sequence[Evidence],
    nbest: list[list[Hypothesis]],
    attention_weight: float,
    reverse_weight: float,
) -> list[list[Hypothesis]]:
    """Ranks hypotheses by both directions.

    Each model's attention score becomes `(1 - reverse_weight) * decoder + reverse_weight *
    reverse`; the other scores stay.

    Args:
        evidence: of the models that were searched, all with a BidirectionalDecoder.
        nbest: of each utterance, each hypothesis with a score `decoder` of every model.
        attention_weight: that the search gave to the scores `decoder`, before the models' weights.
        reverse_weight: share of the right-to-left score, 0..1.

    Returns:
        The same hypotheses, each with a score `reverse` of every model and a new total, best first.
    """
    for e in evidence:
        share = e.weight * attention_weight * reverse_weight
        reverse = reverse_scores(e.decoder, nbest, e.hidden, e.lengths)
        nbest = [
            [add_reverse(h, e, share, score) for h, score in zip(hypotheses, scores, strict=True)]
            for hypotheses, scores in zip(nbest, reverse, strict=True)
        ]
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in nbest]


def add_reverse(h: Hypothesis, e: Evidence, share: float, score: float) -> Hypothesis:
    """With `share` of one model's left-to-right score replaced by the right-to-left one."""
    total = h.score + share * (score - h.scores[e.label("decoder")])
    return replace(h, score=total, scores={**h.scores, e.label("reverse"): score})


def reverse_scores(
    decoder: BidirectionalDecoder,
    nbest: list[list[Hypothesis]],
    hidden: Tensor,
    lengths: Tensor,
) -> list[list[float]]:
    """Log-probability of each hypothesis right to left, <eos> included.

    Args:
        decoder: in evaluation mode.
        nbest: of each utterance.
        hidden: (B, T, D), the encoder's output.
        lengths: (B,) int64, each at least 1.
    """
    k = max(1, max(map(len, nbest), default=1))
    u = 1 + max((len(h.tokens) for hypotheses in nbest for h in hypotheses), default=0)
    eos = decoder.vocab_size - 1
    tokens = torch.full((len(nbest), k, u), eos)  # <sos> first; an empty place stays <sos> alone
    token_lengths = torch.ones(len(nbest), k, dtype=torch.int64)
    for b, hypotheses in enumerate(nbest):
        for i, h in enumerate(hypotheses):
            tokens[b, i, 1 : len(h.tokens) + 1] = torch.tensor(h.tokens, dtype=torch.int64)
            token_lengths[b, i] = len(h.tokens) + 1
    rows = torch.arange(len(nbest)).split(max(1, MAX_LOGITS // (k * u * decoder.vocab_size)))
    device = hidden.device
    scores = torch.cat(
        [
            sequence_scores(
                decoder,
                tokens[r].flatten(0, 1).to(device),
                token_lengths[r].flatten().to(device),
                hidden[r.to(device)],
                lengths[r.to(device)],
            )
            for r in rows
        ]
    ).view(-1, k)  # (B, K)
    return [row[: len(hs)] for row, hs in zip(scores.tolist(), nbest, strict=True)]


def sequence_scores(
    decoder: BidirectionalDecoder,
    tokens: Tensor,
    token_lengths: Tensor,
    hidden: Tensor,
    lengths: Tensor,
) -> Tensor:
    """Log-probability right to left of sequences behind <sos>, (N, U) -> (N,) float64."""
    eos = decoder.vocab_size - 1
    logits = decoder.reverse(tokens, token_lengths, hidden, lengths).float()  # (N, U, V)
    after = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], eos)], 1)
    targets = reverse_tokens(after, token_lengths - 1)
    targets = targets.scatter(1, token_lengths[:, None] - 1, eos)  # (N, U)
    true = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
    real = padding_mask(token_lengths, tokens.size(1))
    return true.double().masked_fill(~real, 0.0).sum(1)
