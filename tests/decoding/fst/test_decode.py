"""Batches over a graph, the words of texts, and both from the command line."""

import numpy as np
import pytest
import torch

from speechattn.cli import main
from speechattn.data.tokenizer import CharTokenizer
from speechattn.decoding import DecodeOptions
from speechattn.decoding.dispatch import decode
from speechattn.decoding.evidence import Evidence
from speechattn.decoding.fst.decode import graph_search
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.kaldi_search import KaldiOptions, KaldiSearch
from speechattn.decoding.fst.word_ngram import train_word_ngram, words_of
from speechattn.decoding.ngram import NgramLm
from speechattn.decoding.shallow_fusion import ShallowFusion, read_fusion
from speechattn.errors import ConfigError

pytest.importorskip("kaldi_decoder")
LENGTHS = torch.tensor([9, 0, 4, 1])


@pytest.fixture(scope="module")
def batch(tokenizer, draw):
    rng = np.random.default_rng(3)
    return torch.from_numpy(np.stack([draw(rng, 9, tokenizer.vocab_size) for _ in LENGTHS]))


def options(**more) -> DecodeOptions:
    return DecodeOptions(method="ctc_graph", graph_beam=1000.0, graph_states=100000, **more)


def test_a_batch_gives_what_its_items_give(graph, batch):
    search = KaldiSearch(graph)
    found = graph_search(batch, LENGTHS, search, options(graph_weight=0.5))
    wide = KaldiSearch(graph, KaldiOptions(1000.0, 1000.0, 20, 100000))
    for row, n, (best,) in zip(batch, LENGTHS.tolist(), found, strict=True):
        path = wide.search(2.0 * row[:n].numpy())
        assert best.tokens == graph.units(path.events)
        assert best.score == pytest.approx(0.5 * path.score, abs=1e-4)
    assert found[1][0].tokens == [] and len(found[0][0].tokens) > 1


def test_nbest_are_different_and_best_first(graph, batch):
    found = graph_search(batch, LENGTHS, KaldiSearch(graph), options(nbest=4))[0]
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True) and len(found) == 4
    one = graph_search(batch, LENGTHS, KaldiSearch(graph), options())[0][0]
    assert found[0].tokens == one.tokens and scores[0] == pytest.approx(one.score, abs=1e-3)


def test_the_method_and_the_graph_go_together(graph, batch):
    evidence = [Evidence(batch, LENGTHS, batch)]
    fusion = ShallowFusion(graph=KaldiSearch(graph))
    found = decode(evidence, options(), fusion)
    assert found[0][0].tokens and found[1][0].tokens == []
    for method, given in (("ctc_graph", ShallowFusion()), ("ctc_greedy", fusion)):
        with pytest.raises(ConfigError, match="go together"):
            decode(evidence, DecodeOptions(method=method), given)
    other = [Evidence(batch, LENGTHS, torch.cat([batch, batch], 2))]
    with pytest.raises(ConfigError, match="12 units, and a decoding graph of 6"):
        decode(other, options(), fusion)


def test_words_of_texts():
    assert words_of("play 周杰伦的歌 now") == ["play", *"周杰伦的歌", "now"]
    assert words_of("A4纸 好") == ["A4", "纸", "好"]
    assert words_of(" 周杰伦 的 歌", segmented=True) == ["周杰伦", "的", "歌"]


def test_an_ngram_model_of_words(tmp_path):
    """Probabilities sum to one over words, the end and <unk>, which the lexicon lacks."""
    path = tmp_path / "words.arpa"
    counts = train_word_ngram([["a", "b"], ["a", "x"], ["b"]], ["a", "b"], path, order=2)
    assert len(counts) == 2
    lm = NgramLm.from_arpa(path, ["<blank>", "<unk>", "a", "b", "<sos/eos>"])
    total = lm.scores(torch.zeros(1, dtype=torch.int64))[0].exp()
    assert float(total[1:].sum()) == pytest.approx(1.0, abs=1e-4)


def test_from_the_command_line(tmp_path, capsys):
    tokenizer = CharTokenizer.train(["ab c"])
    tokenizer.save(tmp_path / "tokens")
    (tmp_path / "text").write_text("ab c\nc ab\nab ab xyz\n")
    common = ["graph", "--tokens", str(tmp_path / "tokens"), "--output", str(tmp_path / "graph")]
    assert main([*common, "--text", str(tmp_path / "text"), "--order", "2"]) == 0
    graph = Graph.load(tmp_path / "graph")
    assert graph.words == ("ab", "c") and (tmp_path / "graph" / "words.arpa").exists()
    fusion = read_fusion(tokenizer, graph=tmp_path / "graph")
    assert fusion.graph.graph.words == graph.words and "graph" in fusion.sources
    assert main(common) == 1
    assert "which words?" in capsys.readouterr().err
