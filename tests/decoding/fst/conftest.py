"""Small graphs, and all that can be said over them."""

from pathlib import Path

import numpy as np
import pytest

from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lexicon import Lexicon

pytest.importorskip("kaldifst")

ARPA = """
\\data\\
ngram 1=6
ngram 2=5
ngram 3=1

\\1-grams:
-99\t<s>\t-0.4
-0.9\t</s>
-0.7\tab\t-0.3
-0.8\tba\t-0.2
-1.1\tc\t-0.1
-1.3\tbac\t0

\\2-grams:
-0.3\t<s> ab\t-0.25
-0.5\tab ba\t-0.15
-0.4\tba </s>
-0.6\tc c
-0.35\tba ab

\\3-grams:
-0.2\t<s> ab ba

\\end\\
"""
WORDS = ["ab", "ba", "c", "bac"]


@pytest.fixture(scope="session")
def tokenizer():
    return CharTokenizer.train(["abc"])


@pytest.fixture(scope="session")
def arpa(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("arpa") / "lm.arpa"
    path.write_text(ARPA.lstrip())
    return path


@pytest.fixture(scope="session", params=["standard", "modified"])
def graph(request, tokenizer, arpa, tmp_path_factory) -> Graph:
    lexicon = Lexicon.spelled(WORDS, tokenizer)
    folder = tmp_path_factory.mktemp("graph")
    return build_graph(lexicon, tokenizer, folder, arpa, request.param)


@pytest.fixture(scope="session")
def draw():
    return _draw


def _draw(rng, frames: int, vocab: int) -> np.ndarray:
    """(T, V) log-probabilities."""
    x = 2.0 * rng.standard_normal((frames, vocab))
    return (x - np.log(np.exp(x).sum(1, keepdims=True))).astype(np.float32)
