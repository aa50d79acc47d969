"""The perplexity of texts."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.lm.ngram import NgramLm
from speechattn.lm.texts import TokenLines, collate_lines
from speechattn.lm.transformer import TransformerLm, sequence_scores

MAX_SCORES = 2**22  # of an n-gram model in memory at once


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a text, by token and by character.

    The end of each sentence is predicted too, and counts as one token and one character. So models
    of different units can be compared by character, as long as none of them has `<unk>` for a part
    of the text, which costs less than what it stands for.
    """

    log_prob: float  # of all sentences, natural log
    sentences: int  # how many
    tokens: int  # without the sentences' ends
    characters: int  # spaces counted, without the sentences' ends
    unknown: int  # tokens that are `<unk>`

    @property
    def token(self) -> float:
        """Return the perplexity per token."""
        return _exp(-self.log_prob / max(1, self.tokens + self.sentences))

    @property
    def character(self) -> float:
        """Return the perplexity per character."""
        return _exp(-self.log_prob / max(1, self.characters + self.sentences))

    def __str__(self) -> str:
        unknown = 100.0 * self.unknown / max(1, self.tokens)
        counts = f"{self.sentences} sentences, {self.tokens} tokens, {unknown:.2f} % <unk>"
        return f"perplexity {self.token:.2f} a token, {self.character:.2f} a character ({counts})"


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


@torch.inference_mode()
def lm_perplexity(lm: TransformerLm, lines: TokenLines, batch_tokens: int = 8192) -> Perplexity:
    """Compute the perplexity of sentences, by a model in evaluation mode."""
    total = 0.0
    device = lm.output.weight.device
    for chosen in PaddedFrameBatches(1.0 + lines.lengths, batch_tokens, shuffle=False).batches():
        batch = collate_lines([lines[i] for i in chosen], lm.vocab_size - 1).to(device)
        total += float(sequence_scores(lm, batch.tokens, batch.lengths).sum())
    return Perplexity(total, len(lines), len(lines.ids), lines.characters, lines.unknown)


@torch.inference_mode()
def ngram_perplexity(lm: NgramLm, lines: TokenLines) -> Perplexity:
    """Compute the perplexity of sentences."""
    total, eos = 0.0, lm.vocab_size - 1
    order = torch.from_numpy(np.argsort(lines.lengths, kind="stable"))
    for chosen in order.split(max(1, MAX_SCORES // lm.vocab_size)):
        texts = [torch.tensor([*lines[i].tolist(), eos]) for i in chosen.tolist()]
        lengths = torch.tensor([len(text) for text in texts])
        tokens = torch.nn.utils.rnn.pad_sequence(texts, True, padding_value=eos)  # (N, U)
        state = torch.full((len(texts),), lm.start)
        for u, token in enumerate(tokens.unbind(1)):
            scores = lm.scores(state).gather(1, token[:, None])[:, 0]
            total += float(scores[lengths > u].double().sum())
            state = lm.step(state, token)
    return Perplexity(total, len(lines), len(lines.ids), lines.characters, lines.unknown)
