"""Graphs against OpenFst's own composition and against the n-gram model's arithmetic."""

import itertools
import math

import kaldifst
import numpy as np
import pytest

from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.kaldi_search import KaldiSearch, openfst
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.decoding.fst.width import SearchWidth
from speechattn.errors import ConfigError

LN10 = math.log(10)


def costs(fst, words=False) -> dict[tuple[int, ...], float]:
    """Of an acyclic transducer: by what it reads, or writes, the best cost."""
    found: dict[tuple[int, ...], float] = {}
    best = kaldifst.shortest_path(fst, n=100000)
    for path in kaldifst.convert_nbest_to_vector(best):
        _, labels, outputs, cost = kaldifst.get_linear_symbol_sequence(path)
        key = tuple(outputs if words else labels)
        found[key] = min(found.get(key, math.inf), cost.value)
    return found


def frames_of(count: int, vocab: int):
    """Accepts all sequences of so many frames."""
    lines = [f"{t} {t + 1} {v + 1} {v + 1} 0" for t in range(count) for v in range(vocab)]
    return kaldifst.compile("\n".join([*lines, f"{count} 0"]) + "\n", acceptor=False)


def meanings(labels, topology):
    """The unit sequences that frames may stand for, by the definition of the topologies."""
    runs = [(unit, len(list(run))) for unit, run in itertools.groupby(labels)]
    choices = [
        [()] if unit == 0 else [(unit,)] if topology == "standard" else
        [(unit,) * n for n in range(1, length + 1)]
        for unit, length in runs
    ]  # fmt: skip
    return {sum(chosen, ()) for chosen in itertools.product(*choices)}


# log10 probabilities of sentences, by hand from the ARPA file of conftest.py; the back-off paths
# of these are never better than the n-grams.
SENTENCES = {
    ("ab", "ba"): -0.3 - 0.2 - 0.15 - 0.4,
    ("ab",): -0.3 - 0.25 - 0.3 - 0.9,
    ("c",): -0.4 - 1.1 - 0.1 - 0.9,
    ("c", "c"): -0.4 - 1.1 - 0.6 - 0.1 - 0.9,
    ("ba", "c"): -0.4 - 0.8 - 0.2 - 1.1 - 0.1 - 0.9,
    ("bac",): -0.4 - 1.3 - 0.9,
}


def test_scores_of_frames(graph, tokenizer):
    """Each sequence of five frames scores as the best sentence that it may stand for."""
    fst = kaldifst.compose(frames_of(5, tokenizer.vocab_size), openfst(graph))
    found = costs(fst)
    texts = {tuple(tokenizer.encode("".join(words))): s for words, s in SENTENCES.items()}
    seen = set()
    for labels in itertools.product(range(tokenizer.vocab_size), repeat=5):
        cost = found.get(tuple(label + 1 for label in labels), math.inf)
        known = [m for m in meanings(labels, graph.topology) if m in texts]
        others = meanings(labels, graph.topology) - set(known)
        if known and not others:
            wanted = -LN10 * max(texts[m] for m in known)
            # Determinisation adds up the paths of a sentence, back-off among them, and rounds.
            assert wanted - 0.2 < cost < wanted + 5e-3, (labels, known)
            seen.update(known)
        if any(u not in tokenizer.encode("abc") for u in labels if u):
            assert cost == math.inf
    assert seen == set(texts)


def test_an_arc_writes_the_words_of_its_path(graph, tokenizer):
    fst = kaldifst.compose(frames_of(6, tokenizer.vocab_size), openfst(graph))
    checked = set()
    for events in costs(fst, words=True):
        words = graph.text(events)
        assert tokenizer.encode("".join(words)) == graph.units(events)
        checked.add(tuple(words))
    assert {("ab", "ba"), ("c", "c"), ("bac",), ("ba", "c"), ("ab", "c", "ab")} <= checked


def test_every_arc_reads_and_states_are_in_order(graph, tokenizer):
    arcs = graph.arcs
    assert (np.diff(arcs.source) >= 0).all() and arcs.source[0] == 0
    assert arcs.label.min() == 0 and arcs.label.max() < tokenizer.vocab_size
    begins = arcs.output > 0
    units = np.array([0, *(event.unit for event in graph.events)])
    assert (units[arcs.output[begins]] == arcs.label[begins]).all()


def test_saved_and_read(graph, tmp_path):
    graph.save(tmp_path)
    again = Graph.load(tmp_path)
    assert (again.words, again.events, again.topology) == (
        graph.words,
        graph.events,
        graph.topology,
    )
    for name in graph.arcs.__dataclass_fields__:
        assert np.array_equal(getattr(again.arcs, name), getattr(graph.arcs, name))
    (tmp_path / "graph.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"graph\.npz: not the arcs of a saved graph"):
        Graph.load(tmp_path)
    with pytest.raises(ConfigError, match="speechattn graph"):
        Graph.load(tmp_path / "none")


def test_homophones_and_prefixes_without_a_grammar(tmp_path):
    """All words of a sequence of units are there, each as likely as the others."""
    tokenizer = CharTokenizer.train(["abc"])
    path = tmp_path / "lexicon.txt"
    path.write_text("sea c\nsee c\na a\nab a b\nb b\n")
    graph = build_graph(Lexicon.read(path, tokenizer), tokenizer, tmp_path / "graph")
    fst = kaldifst.compose(frames_of(2, tokenizer.vocab_size), openfst(graph))
    found = {}
    for events, cost in costs(fst, words=True).items():
        if graph.units(events) == tokenizer.encode("ab"):
            found[tuple(graph.text(events))] = cost
    assert found == {("ab",): 0.0, ("a", "b"): 0.0}
    one = kaldifst.compose(frames_of(1, tokenizer.vocab_size), openfst(graph))
    said = {tuple(graph.text(e)) for e in costs(one, words=True)} - {()}
    assert said == {("sea",), ("see",), ("a",), ("b",)}


def test_units_that_write_spaces(tmp_path):
    """One between words, none around them."""
    tokenizer = CharTokenizer.train(["a b"])
    graph = build_graph(Lexicon.spelled(["a", "ab"], tokenizer), tokenizer, tmp_path)
    fst = kaldifst.compose(frames_of(3, tokenizer.vocab_size), openfst(graph))
    texts = {tokenizer.decode(graph.units(events)) for events in costs(fst, words=True)}
    assert texts == {"", "a", "ab", "a a"}


@pytest.mark.parametrize("topology", ["standard", "modified"])
def test_spaces_stand_between_words_and_not_beside_ideographs(tmp_path, topology):
    tokenizer = CharTokenizer.train(["听 a b", "歌曲ab"])
    lexicon = Lexicon.spelled(["听", "歌曲", "a", "ab"], tokenizer)
    graph = build_graph(lexicon, tokenizer, tmp_path, topology=topology)

    def best(text: str) -> str:
        """What is found in frames of which each is sure of a unit of a text."""
        scores = np.full((len(text), tokenizer.vocab_size), -9.0, dtype=np.float32)
        scores[range(len(text)), tokenizer.encode(text)] = -0.01
        found = KaldiSearch(graph, SearchWidth(beam=100.0)).search(scores)
        return tokenizer.decode(graph.units(found.events))

    for text in ("听歌曲听", "听a歌曲", "a ab a", "ab听", "歌曲a ab听"):
        assert best(text) == text
    assert best("abab") != "abab"  # no words without a space between


def test_a_malformed_arpa_file_is_refused_and_nothing_is_logged(tokenizer, arpa, tmp_path, capfd):
    """The library logs to stderr, with paths of its sources, and aborts at a malformed file."""
    lexicon = Lexicon.spelled(["ab", "c"], tokenizer)
    build_graph(lexicon, tokenizer, tmp_path / "graph", arpa)
    bad = tmp_path / "bad.arpa"
    bad.write_text("no model\n")
    with pytest.raises(ConfigError, match=r"bad\.arpa: not an ARPA file of words \(line 2: \\data"):
        build_graph(lexicon, tokenizer, tmp_path / "none", bad)
    assert not (tmp_path / "none").exists()
    assert capfd.readouterr() == ("", "")


def test_a_grammar_of_other_words_is_refused(tokenizer, arpa, tmp_path):
    with pytest.raises(ConfigError, match="no n-gram of the lexicon's words"):
        build_graph(Lexicon.spelled(["aaa"], tokenizer), tokenizer, tmp_path, arpa)
    with pytest.raises(ConfigError, match="no such ARPA file"):
        build_graph(Lexicon.spelled(["c"], tokenizer), tokenizer, tmp_path, tmp_path / "none")
