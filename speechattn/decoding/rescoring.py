"""Second pass over what a search found: scores that need the whole sequence.

Legend: B utterances, K hypotheses of an utterance, N = B * K, T frames, U tokens, V units.

As the attention rescoring of WeNet (2102.01547, and U2++, 2106.05642), with all utterances in one
pass and what hypotheses have in common computed once; also for n-best lists with attention scores
in them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from kaldialign import edit_distance
from torch import Tensor

from speechattn.decoding.hypothesis import Hypothesis
from speechattn.decoding.prefix_tree import tree_scores
from speechattn.lm.transformer import TransformerLm, sequence_scores
from speechattn.model.output import ModelOutput

# Logits held at once. A batch with more of them goes through in several passes.
MAX_LOGITS = 2**27


def rescore(
    outputs: Sequence[ModelOutput],
    nbest: list[list[Hypothesis]],
    attention_weight: float,
    reverse_weight: float,
) -> list[list[Hypothesis]]:
    """Rank hypotheses by both directions.

    Each model's attention score becomes `(1 - reverse_weight) * decoder + reverse_weight *
    reverse`; the other scores stay.

    Args:
        outputs: of the models that were searched, all with a BidirectionalDecoder.
        nbest: of each utterance, each hypothesis with a score `decoder` of every model.
        attention_weight: that the search gave to the scores `decoder`, before the models' weights.
        reverse_weight: share of the right-to-left score, 0..1.

    Returns:
        The same hypotheses, each with a score `reverse` of every model and a new total, best first.
    """
    for output in outputs:
        share = output.weight * attention_weight * reverse_weight
        reverse = reverse_scores(output, nbest)
        nbest = [
            [
                add_reverse(h, output, share, score)
                for h, score in zip(hypotheses, scores, strict=True)
            ]
            for hypotheses, scores in zip(nbest, reverse, strict=True)
        ]
    return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in nbest]


def add_reverse(h: Hypothesis, output: ModelOutput, share: float, score: float) -> Hypothesis:
    """Replace `share` of one model's left-to-right score by its right-to-left one."""
    total = h.score + share * (score - h.scores[output.label("decoder")])
    return replace(h, score=total, scores={**h.scores, output.label("reverse"): score})


def add_decoder(
    output: ModelOutput, nbest: list[list[Hypothesis]], attention_weight: float
) -> list[list[Hypothesis]]:
    """Give what CTC alone found a score `decoder`, which takes its share from the score `ctc`.

    Args:
        output: of the model that was searched, with a decoder.
        nbest: of each utterance, each hypothesis with a score `ctc` of weight 1.
        attention_weight: share of the decoder, 0..1; CTC keeps the rest.

    Returns:
        The same hypotheses with new totals, best first.
    """
    results = []
    for hypotheses, scores in zip(nbest, decoder_scores(output, nbest), strict=True):
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


def add_lm(
    lm: TransformerLm, nbest: list[list[Hypothesis]], weight: float
) -> list[list[Hypothesis]]:
    """Add a language model's score to the others.

    Args:
        lm: in evaluation mode.
        nbest: of each utterance.
        weight: of its log-probability, <eos> included.

    Returns:
        The same hypotheses, each with a score `lm` and a new total, best first.
    """
    results = []
    for hypotheses, scores in zip(nbest, lm_scores(lm, nbest), strict=True):
        rescored = [
            replace(h, score=h.score + weight * score, scores={**h.scores, "lm": score})
            for h, score in zip(hypotheses, scores, strict=True)
        ]
        results.append(sorted(rescored, key=lambda h: -h.score))
    return results


def lm_scores(lm: TransformerLm, nbest: list[list[Hypothesis]]) -> list[list[float]]:
    """Return the log-probability of each hypothesis by a language model, <eos> included."""

    def score(tokens: Tensor, token_lengths: Tensor, rows: Tensor) -> Tensor:
        return sequence_scores(lm, tokens, token_lengths)

    return nbest_scores(score, nbest, lm.vocab_size, lm.output.weight.device)


def decoder_scores(output: ModelOutput, nbest: list[list[Hypothesis]]) -> list[list[float]]:
    """Return the log-probability of each hypothesis left to right, <eos> included."""
    sequences = [[h.tokens for h in hypotheses] for hypotheses in nbest]
    predict = output.decoder.predict_tree
    return tree_scores(predict, sequences, output.hidden, output.lengths, output.decoder.vocab_size)


def reverse_scores(output: ModelOutput, nbest: list[list[Hypothesis]]) -> list[list[float]]:
    """Return the log-probability of each hypothesis right to left, <eos> included."""
    sequences = [[h.tokens[::-1] for h in hypotheses] for hypotheses in nbest]
    predict = output.decoder.reverse_tree
    return tree_scores(predict, sequences, output.hidden, output.lengths, output.decoder.vocab_size)


def nbest_scores(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    nbest: list[list[Hypothesis]],
    vocab_size: int,
    device: torch.device,
) -> list[list[float]]:
    """Return a score of each hypothesis, all of them in one pass.

    Args:
        score: of sequences behind <sos> (N, U), their lengths (N,) and the utterances (B,) that
            they are of, equally many of each; gives (N,) float64.
        nbest: of each utterance.
        vocab_size: V.
        device: where the scores are computed.
    """
    k = max(1, max(map(len, nbest), default=1))
    u = 1 + max((len(h.tokens) for hypotheses in nbest for h in hypotheses), default=0)
    # <sos> first; an empty place stays <sos> alone
    tokens = torch.full((len(nbest), k, u), vocab_size - 1)
    token_lengths = torch.ones(len(nbest), k, dtype=torch.int64)
    for b, hypotheses in enumerate(nbest):
        for i, h in enumerate(hypotheses):
            tokens[b, i, 1 : len(h.tokens) + 1] = torch.tensor(h.tokens, dtype=torch.int64)
            token_lengths[b, i] = len(h.tokens) + 1
    tokens, token_lengths = tokens.to(device), token_lengths.to(device)
    rows = torch.arange(len(nbest), device=device)
    scores = torch.cat(
        [
            score(tokens[r].flatten(0, 1), token_lengths[r].flatten(), r)
            for r in rows.split(max(1, MAX_LOGITS // (k * u * vocab_size)))
        ]
    ).view(-1, k)  # (B, K)
    return [row[: len(hs)] for row, hs in zip(scores.tolist(), nbest, strict=True)]


def least_risk(nbest: list[list[Hypothesis]], scale: float) -> list[list[Hypothesis]]:
    """Put that hypothesis first which the n-best list expects the fewest token errors of.

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
