"""Random lexicons, n-gram models of their words, and frames to be read over their graphs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.lm.word_ngram import train_word_ngram
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_TOKEN

CASES = 200
ITEMS = 3  # utterances of a case


class Letters(Tokenizer):
    """Units without a space between words."""

    kind = "letters"

    def encode(self, text: str) -> list[int]:
        return [self.tokens.index(letter) for letter in text]

    def _join(self, units: list[str]) -> str:
        return "".join(units)


@dataclass
class Case:
    """One graph and a batch.

    Attributes:
        graph: made by us.
        arpa: the n-gram model; None for none.
        scores: of each item (T, V) float32 log-probabilities.
    """

    graph: Graph
    lexicon: Lexicon
    arpa: Path | None
    scores: list[np.ndarray]


def case(seed: int, folder: Path) -> Case:
    """One of CASES: spellings that are alike or begin each other, with or without probabilities."""
    draw = np.random.Generator(np.random.PCG64(seed))
    units = int(draw.integers(4, 30))
    letters = [chr(ord("a") + i) for i in range(units)]
    tokenizer = Letters([BLANK_TOKEN, UNK_TOKEN, *letters, SOS_EOS_TOKEN])
    entries = []
    count = int(draw.integers(5, 60))
    for word in range(1, count + 1):
        if entries and draw.random() < 0.15:  # as another, or beyond it
            spelled = entries[draw.integers(len(entries))][1]
            spelled += tuple(draw.integers(2, units + 2, draw.integers(0, 2)).tolist())
        else:
            spelled = tuple(draw.integers(2, units + 2, draw.integers(1, 6)).tolist())
        entries.append((word, spelled))
    words = tuple(f"w{word}" for word in range(1, count + 1))
    lexicon = Lexicon(words, tuple(entries))
    folder.mkdir(parents=True, exist_ok=True)
    arpa = None
    if seed % 4:
        arpa = folder / "words.arpa"
        sentences = [
            [words[w] for w in draw.integers(0, count, draw.integers(1, 8))] for _ in range(40)
        ]
        train_word_ngram(sentences, words, arpa, order=1 + seed % 3)
    topology = "modified" if seed % 2 else "standard"
    graph = build_graph(lexicon, tokenizer, folder / "graph", arpa, topology)
    spread = (1.0, 3.0, 6.0)[seed % 3]
    scores = []
    for _ in range(ITEMS):
        frames = int(draw.integers(5, 40))
        x = spread * draw.standard_normal((frames, tokenizer.vocab_size))
        # What is said, so that some path is far better than the others.
        said = [u for w in draw.integers(0, count, 3) for u in entries[w][1]]
        for t, unit in enumerate(said):
            if 2 * t < frames:
                x[2 * t, unit] += 2 * spread
        x[:, tokenizer.vocab_size - 1] -= 30
        x -= np.log(np.exp(x).sum(1, keepdims=True))
        scores.append(x.astype(np.float32))
    return Case(graph, lexicon, arpa, scores)
