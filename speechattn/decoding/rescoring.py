"""Second pass over what a search found: scores that need the whole sequence.

Legend: B utterances, K hypotheses of an utterance, N = B * K, T frames, U tokens, V units.

As the attention rescoring of WeNet (2102.01547, and U2++, 2106.05642), with all utterances in one
pass; also for n-best lists with attention scores in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from kaldialign import edit_distance
from torch import Tensor

from speechattn.decoders import BidirectionalDecoder, Decoder, reverse_tokens
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
        reverse = reverse_scores(e, nbest)
        nbest = [
            [add_reverse(h, e, share, score) for h, score in zip(hypotheses, scores, strict=True)]
            for hypotheses, scores in zip(nbest, reverse, strict=True)
        ]
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in nbest]


def add_reverse(h: Hypothesis, e: Evidence, share: float, score: float) -> Hypothesis:
    """With `share` of one model's left-to-right score replaced by the right-to-left one."""
    total = h.score + share * (score - h.scores[e.label("decoder")])
    return replace(h, score=total, scores={**h.scores, e.label("reverse"): score})


def add_decoder(
    e: Evidence, nbest: list[list[Hypothesis]], attention_weight: float
) -> list[list[Hypothesis]]:
    """Gives what CTC alone found a score `decoder`, which takes its share from the score `ctc`.

    Args:
        e: of the model that was searched, with a decoder.
        nbest: of each utterance, each hypothesis with a score `ctc` of weight 1.
        attention_weight: share of the decoder, 0..1; CTC keeps the rest.

    Returns:
        The same hypotheses with new totals, best first.
    """
    results = []
    for hypotheses, scores in zip(nbest, decoder_scores(e, nbest), strict=True):
        rescored = [
            replace(
                h,
                score=h.score + attention_weight * (score - h.scores["ctc"]),
                scores={"decoder": score, **h.scores},
            )
            for h, score in zip(hypotheses, scores, strict=True)
        ]
        results.append(sorted(rescored, key=lambda h: -h.score))
    return results


def decoder_scores(e: Evidence, nbest: list[list[Hypothesis]]) -> list[list[float]]:
    """Log-probability of each hypothesis left to right, <eos> included."""
    return nbest_scores(left_to_right, e, nbest)


def reverse_scores(e: Evidence, nbest: list[list[Hypothesis]]) -> list[list[float]]:
    """Log-probability of each hypothesis right to left, <eos> included."""
    return nbest_scores(right_to_left, e, nbest)


def nbest_scores(
    score: Callable[[Decoder, Tensor, Tensor, Tensor, Tensor], Tensor],
    e: Evidence,
    nbest: list[list[Hypothesis]],
) -> list[list[float]]:
    """A score of each hypothesis, all of them in one pass.

    Args:
        score: of the decoder, sequences behind <sos> (N, U), their lengths (N,), the encoder's
            output (B, T, D) and its lengths (B,); gives (N,) float64.
        e: what they were found in, each length at least 1.
        nbest: of each utterance.
    """
    decoder, device = e.decoder, e.hidden.device
    k = max(1, max(map(len, nbest), default=1))
    u = 1 + max((len(h.tokens) for hypotheses in nbest for h in hypotheses), default=0)
    eos = decoder.vocab_size - 1
    tokens = torch.full((len(nbest), k, u), eos)  # <sos> first; an empty place stays <sos> alone
    token_lengths = torch.ones(len(nbest), k, dtype=torch.int64)
    for b, hypotheses in enumerate(nbest):
        for i, h in enumerate(hypotheses):
            tokens[b, i, 1 : len(h.tokens) + 1] = torch.tensor(h.tokens, dtype=torch.int64)
            token_lengths[b, i] = len(h.tokens) + 1
    tokens, token_lengths = tokens.to(device), token_lengths.to(device)
    rows = torch.arange(len(nbest), device=device)
    scores = torch.cat(
        [
            score(
                decoder,
                tokens[r].flatten(0, 1),
                token_lengths[r].flatten(),
                e.hidden[r],
                e.lengths[r],
            )
            for r in rows.split(max(1, MAX_LOGITS // (k * u * decoder.vocab_size)))
        ]
    ).view(-1, k)  # (B, K)
    return [row[: len(hs)] for row, hs in zip(scores.tolist(), nbest, strict=True)]


def left_to_right(
    decoder: Decoder, tokens: Tensor, token_lengths: Tensor, hidden: Tensor, lengths: Tensor
) -> Tensor:
    """Log-probability of sequences behind <sos>, (N, U) -> (N,) float64."""
    logits = decoder(tokens, token_lengths, hidden, lengths).float()  # (N, U, V)
    after = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
    targets = after.scatter(1, token_lengths[:, None] - 1, decoder.vocab_size - 1)
    return _total(logits, targets, token_lengths)


def right_to_left(
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
    return _total(logits, targets, token_lengths)


def _total(logits: Tensor, targets: Tensor, token_lengths: Tensor) -> Tensor:
    true = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(-1)
    real = padding_mask(token_lengths, targets.size(1))
    return true.double().masked_fill(~real, 0.0).sum(1)


def least_risk(nbest: list[list[Hypothesis]], scale: float) -> list[list[Hypothesis]]:
    """Puts that hypothesis first which the n-best list expects the fewest token errors of.

    Minimum Bayes risk (Stolcke et al., "Explicit Word Error Minimization in N-Best List
    Rescoring", 1997): how far it is from the others, each as probable as exp(scale * score) says.

    Args:
        nbest: of each utterance, best first.
        scale: of the scores; the smaller, the more the list's lower half has to say.
    """
    results = []
    for hypotheses in nbest:
        scores = torch.tensor([h.score for h in hypotheses], dtype=torch.float64)
        weights = (scale * scores).softmax(0)
        distance = torch.tensor(
            [[edit_distance(a.tokens, b.tokens)["total"] for b in hypotheses] for a in hypotheses],
            dtype=torch.float64,
        )
        best = int((distance @ weights).argmin())
        rest = [h for i, h in enumerate(hypotheses) if i != best]
        results.append([hypotheses[best], *rest])
    return results
