"""Batches over a graph, the words of texts, and both from the command line."""

import numpy as np
import pytest
import torch

from speechattn.cli import main
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoders import TransformerDecoder
from speechattn.decoding import CtcGreedySearch, GraphRescoringSearch, GraphSearch
from speechattn.decoding.alignment import hypothesis_times
from speechattn.decoding.fst.decode import DecodingGraph
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.width import SearchWidth
from speechattn.decoding.fst.word_lm import WordLm
from speechattn.decoding.fusion import Fusion, read_fusion
from speechattn.decoding.rescoring import decoder_scores
from speechattn.errors import ConfigError
from speechattn.lm.ngram import NgramLm
from speechattn.lm.word_ngram import split_words, train_word_ngram
from speechattn.model.output import ModelOutput

pytest.importorskip("kaldi_decoder")
LENGTHS = torch.tensor([9, 0, 4, 1])


@pytest.fixture(scope="module")
def batch(tokenizer, draw):
    rng = np.random.default_rng(3)
    return torch.from_numpy(np.stack([draw(rng, 9, tokenizer.vocab_size) for _ in LENGTHS]))


def graph_search(log_probs, lengths, graph, search):
    """All hypotheses of a batch."""
    return search.find([ModelOutput(log_probs, lengths, log_probs)], Fusion(graph=graph))


def options(**more) -> GraphSearch:
    return GraphSearch(beam=1000.0, max_states=100000, **more)


def test_a_batch_gives_what_its_items_give(graph, batch):
    found = graph_search(batch, LENGTHS, DecodingGraph(graph), options(weight=0.5))
    wide = KaldiSearch(graph, SearchWidth(1000.0, 1000.0, 100000, 20))
    for row, n, (best,) in zip(batch, LENGTHS.tolist(), found, strict=True):
        path = wide.search(2.0 * row[:n].numpy())
        assert best.tokens == graph.units(path.events)
        assert best.score == pytest.approx(0.5 * path.score, abs=1e-4)
    assert found[1][0].tokens == [] and len(found[0][0].tokens) > 1


def test_nbest_are_different_and_best_first(graph, batch):
    found = graph_search(batch, LENGTHS, DecodingGraph(graph), options(nbest=4))[0]
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True) and len(found) == 4
    one = graph_search(batch, LENGTHS, DecodingGraph(graph), options())[0][0]
    assert found[0].tokens == one.tokens and scores[0] == pytest.approx(one.score, abs=1e-3)


def test_the_method_and_the_graph_go_together(graph, batch):
    evidence = [ModelOutput(batch, LENGTHS, batch)]
    fusion = Fusion(graph=DecodingGraph(graph))
    found = options().search(evidence, fusion)
    assert found[0][0].tokens and found[1][0].tokens == []
    with pytest.raises(ConfigError, match="needs a decoding graph"):
        GraphSearch().search(evidence)
    with pytest.raises(ConfigError, match="would change nothing"):
        CtcGreedySearch().search(evidence, fusion)
    other = [ModelOutput(batch, LENGTHS, torch.cat([batch, batch], 2))]
    with pytest.raises(ConfigError, match="graph has 6 units and the model 12"):
        options().search(other, fusion)


def test_lattices_give_frames_and_confidences(graph, batch):
    found = graph_search(batch, LENGTHS, DecodingGraph(graph), options(lattice_beam=1000.0))
    plain = graph_search(batch, LENGTHS, DecodingGraph(graph), options())
    for (a,), (b,) in zip(found, plain, strict=True):
        assert (a.tokens, a.frames) == (b.tokens, b.frames)
        assert a.score == pytest.approx(b.score, abs=1e-3)
        assert a.scores == pytest.approx(b.scores, abs=1e-3)
        assert len(a.confidences) == len(a.tokens) == len(a.frames) and b.confidences is None
        assert all(0 < sure <= 1 for sure in a.confidences)
        assert sum(a.scores.values()) == pytest.approx(a.score, abs=1e-3)
    evidence = [ModelOutput(batch, LENGTHS, batch)]
    times = hypothesis_times(evidence, 0, found[0][0])
    assert [time.confidence for time in times] == found[0][0].confidences
    assert [time.start for time in times] == [0.04 * f for f in found[0][0].frames]


def test_a_delay_penalty_makes_tokens_earlier(graph, batch):
    decoder, means = DecodingGraph(graph), []
    for penalty in (0.0, 1.0):
        found = graph_search(batch, LENGTHS, decoder, options(delay_penalty=penalty))
        means.append(np.mean(found[0][0].frames))
    assert means[1] < means[0]


def test_a_larger_model_takes_the_graphs_place(graph, batch, arpa, tmp_path):
    """The same model but for one word, which it finds far more probable."""
    text = arpa.read_text().replace("-1.1\tc", "-0.01\tc").replace("-0.6\tc c", "-0.01\tc c")
    (tmp_path / "larger.arpa").write_text(text)
    number = graph.words.index("c") + 1
    units = {event.unit for event in graph.events if event.words == (number,)}
    said = []
    for path in (arpa, tmp_path / "larger.arpa"):
        decoder = DecodingGraph(graph, WordLm(path, graph.words))
        more = options(nbest=5, ngram_weight=3.0, weight=0.5, lattice_beam=100.0)
        for hypotheses in graph_search(batch, LENGTHS, decoder, more):
            scores = [h.score for h in hypotheses]
            assert scores == sorted(scores, reverse=True)
            for h in hypotheses:
                of = h.scores
                assert of["ctc"] + 3 * of.get("graph_ngram", 0) == pytest.approx(h.score, abs=1e-3)
        best = graph_search(batch, LENGTHS, decoder, more)[0][0]
        said.append(sum(token in units for token in best.tokens))
    assert said[1] > said[0]


def test_the_decoder_ranks_what_the_graph_finds(graph, batch, tokenizer):
    torch.manual_seed(0)
    vocab = tokenizer.vocab_size
    decoder = TransformerDecoder(vocab, 8, attention_heads=2, linear_units=8, num_blocks=1).eval()
    evidence = [ModelOutput(torch.randn(4, 9, 8), LENGTHS, batch, decoder)]
    fusion = Fusion(graph=DecodingGraph(graph))
    more = GraphRescoringSearch(
        beam=1000.0, max_states=100000, nbest=4, beam_size=6, ctc_weight=0.4
    )
    found = more.search(evidence, fusion)
    nbest = graph_search(batch, LENGTHS, fusion.graph, options(nbest=6))
    alone = decoder_scores(evidence[0].rows(torch.tensor([0])), nbest[:1])[0]
    wanted = [
        0.4 * h.scores["ctc"] + h.scores["graph"] + 0.6 * score
        for h, score in zip(nbest[0], alone, strict=True)
    ]
    assert [h.score for h in found[0]] == pytest.approx(sorted(wanted)[:1:-1], abs=1e-3)
    assert found[1][0].tokens == [] and len(found[0]) == 4
    with pytest.raises(ConfigError, match="needs an attention decoder"):
        more.search([ModelOutput(batch, LENGTHS, batch)], fusion)


def test_a_larger_model_and_its_weight_go_together(graph, batch, arpa, tokenizer, tmp_path):
    evidence = [ModelOutput(batch, LENGTHS, batch)]
    given = Fusion(graph=DecodingGraph(graph, WordLm(arpa, graph.words)))
    for fusion, more in (
        (given, options()),
        (Fusion(graph=DecodingGraph(graph)), options(ngram_weight=1.0)),
    ):
        with pytest.raises(ConfigError, match="ngram_weight go together"):
            more.search(evidence, fusion)
    with pytest.raises(ConfigError, match="--graph DIR"):
        read_fusion(tokenizer, graph_ngram=arpa)


def test_words_of_texts():
    assert split_words("play 周杰伦的歌 now") == ["play", *"周杰伦的歌", "now"]
    assert split_words("A4纸 好") == ["A4", "纸", "好"]
    assert split_words(" 周杰伦 的 歌", segmented=True) == ["周杰伦", "的", "歌"]


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
