"""Drawings of graphs: the DOT text read back against the arcs, and Graphviz' picture of it."""

import re
import shutil
from collections import Counter
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest

from speechattn.cli import main
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.dot import MAX_STATES, draw_graph, graph_dot
from speechattn.decoding.fst.graph import Event, Graph
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.errors import ConfigError

LABEL = r'\[label="((?:[^"\\]|\\.)*)"'
TOKENS = ["<blank>", "a", "<&>", "<sos/eos>"]
needs_graphviz = pytest.mark.skipif(
    shutil.which("dot") is None, reason="no Graphviz: apt-get install -y graphviz"
)


def lines_of(label: str) -> list[str]:
    """The lines that Graphviz shows of a quoted label."""
    marks = {"\\n": "\n", "\\\\": "\\", '\\"': '"'}
    return unescape(re.sub(r"\\.", lambda mark: marks[mark.group()], label)).split("\n")


def parsed(dot: str) -> tuple[dict, dict, set]:
    """Lines of each state and of each arrow, and the states in which a sentence may end."""
    states = {int(s): lines_of(x) for s, x in re.findall(rf"^  (\d+) {LABEL}", dot, re.MULTILINE)}
    arrows = {
        (int(s), int(t)): lines_of(x)
        for s, t, x in re.findall(rf"^  (\d+) -> (\d+) {LABEL}\]$", dot, re.MULTILINE)
    }
    final = {int(s) for s in re.findall(r"^  (\d+) \[.*shape=doublecircle\]$", dot, re.MULTILINE)}
    assert len(dot.splitlines()) == 6 + len(states) + len(arrows)  # nothing was overlooked
    return states, arrows, final


def expected_arrows(graph: Graph, tokens: list[str]) -> dict[tuple[int, int], Counter]:
    """What stands at each pair of states, from the arrays."""
    arcs, found = graph.arcs, {}
    for i in range(len(arcs)):
        text = tokens[arcs.label[i]]
        if arcs.output[i]:
            words = [graph.words[w - 1] for w in graph.events[arcs.output[i] - 1].words]
            text += ":" + " ".join(words) if words else ""
        score = round(float(arcs.score[i]), 2)
        text += f"/{score:.2f}" if score else ""
        key = int(arcs.source[i]), int(arcs.target[i])
        found.setdefault(key, Counter())[text] += 1
    return found


def made(rows, final, words=("w",), units=4) -> Graph:
    """Of `source target label output score` rows; output n writes word n."""
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    events = tuple(Event(1, (number,)) for number in range(1, len(words) + 1))
    return Graph(Arcs.of(columns, np.array(final)), events, tuple(words), units)


def test_all_arcs_and_states_are_there(graph, tokenizer):
    states, arrows, final = parsed(graph_dot(graph, tokenizer.tokens))
    expected = expected_arrows(graph, tokenizer.tokens)
    assert any(":" in text and "/" in text for texts in expected.values() for text in texts)
    assert {ends: Counter(lines) for ends, lines in arrows.items()} == expected
    assert sorted(states) == list(range(graph.arcs.states))
    for state, lines in states.items():
        score = float(graph.arcs.final[state])
        assert (state in final) == np.isfinite(score)
        assert lines == [str(state)] + ([f"{score:.2f}"] if np.isfinite(score) else [])


@pytest.mark.parametrize("topology", ["standard", "modified"])
def test_mandarin(tmp_path, topology):
    tokenizer = CharTokenizer.train(["音乐天气"])
    graph = build_graph(
        Lexicon.spelled(["音乐", "天气"], tokenizer), tokenizer, tmp_path, topology=topology
    )
    _, arrows, _ = parsed(graph_dot(graph, tokenizer.tokens))
    lines = {line.split("/")[0] for lines in arrows.values() for line in lines}
    assert lines >= {"音:音乐", "天:天气", "乐", "气"}


ODD_WORDS = ['<b>"R&B"</b> ]]> \' \x0b', "\\N \\l back\\", "&lt;é音\U00020000", "a\nb"]


def test_characters_that_mean_something_to_graphviz():
    rows = [(0, i, 2, i, -0.5) for i in range(1, 5)] + [(1, 1, 2, 0, 0.0)]
    graph = made(rows, [-np.inf] + 4 * [0.0], ODD_WORDS)
    states, arrows, final = parsed(graph_dot(graph, TOKENS))
    shown = [word.replace("\x0b", "\ufffd").replace("\n", "\ufffd") for word in ODD_WORDS]
    assert [arrows[0, i] for i in range(1, 5)] == [[f"<&>:{word}/-0.50"] for word in shown]
    assert arrows[1, 1] == ["<&>"]
    assert (states[1], final) == (["1"], {1, 2, 3, 4})  # 0.00 is not shown


def test_parallel_arcs_are_one_arrow():
    rows = [(0, 1, 1, 1, -0.25), (0, 1, 1, 2, -1.5), (0, 1, 2, 0, 0.0), (1, 0, 1, 0, -0.001)]
    states, arrows, final = parsed(graph_dot(made(rows, [-np.inf, -1.0], ["one", "two"]), TOKENS))
    assert arrows == {(0, 1): ["a:one/-0.25", "a:two/-1.50", "<&>"], (1, 0): ["a"]}
    assert (states, final) == ({0: ["0"], 1: ["1", "-1.00"]}, {1})


def test_large_graphs_and_those_of_other_models_are_refused():
    states = MAX_STATES + 1
    chain = made([(s, s + 1, 1, 0, 0.0) for s in range(states - 1)], [0.0] * states)
    with pytest.raises(ConfigError, match=f"{states} states.*short --lexicon"):
        graph_dot(chain, TOKENS)
    many = made([(0, 1, 1, 0, 0.0)] * 2000, [0.0, 0.0])
    with pytest.raises(ConfigError, match="2000 arcs"):
        graph_dot(many, TOKENS)
    with pytest.raises(ConfigError, match="made for 4 units, but the tokenizer has 5"):
        graph_dot(made([(0, 1, 1, 0, 0.0)], [0.0, 0.0]), [*TOKENS, "b"])


@pytest.fixture
def saved(tmp_path):
    """A saved graph with the oddest of words, and its tokenizer."""
    tokenizer = CharTokenizer.train(["ab c"])
    tokenizer.save(tmp_path / "tokens")
    count = len(ODD_WORDS) - 1  # words.txt has a line each
    rows = [(0, i, 2, i, -0.5) for i in range(1, count + 1)]
    words = [word.replace("\x0b", "") for word in ODD_WORDS[:count]]
    made(rows, [-np.inf] + count * [0.0], words, tokenizer.vocab_size).save(tmp_path / "graph")
    return tmp_path / "graph", tmp_path / "tokens", words


@needs_graphviz
def test_graphviz_draws_it(saved, tmp_path):
    graph, tokens, words = saved
    picture = tmp_path / "pictures" / "graph.svg"
    draw_graph(graph, picture, tokens)
    assert [path.name for path in picture.parent.iterdir()] == ["graph.svg"]
    texts = [e.text for e in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    shown = {text.replace("\N{NO-BREAK SPACE}", " ") for text in texts}
    unit = CharTokenizer.load(tokens).tokens[2]
    assert shown == {*"0123", *(f"{unit}:{word}/-0.50" for word in words)}


def test_without_graphviz_the_text_is_written(saved, tmp_path, monkeypatch):
    graph, tokens, _ = saved
    monkeypatch.setenv("PATH", str(tmp_path))
    picture = tmp_path / "graph.svg"
    with pytest.raises(ConfigError, match=r"graph\.svg needs Graphviz.*wrote .*graph\.dot"):
        draw_graph(graph, picture, tokens)
    text = picture.with_suffix(".dot").read_text(encoding="utf-8")
    assert text == graph_dot(Graph.load(graph), CharTokenizer.load(tokens).tokens)
    assert not picture.exists()


def test_from_the_command_line(saved, tmp_path, capsys):
    graph, tokens = str(saved[0]), ["--tokens", str(saved[1])]
    file = tmp_path / "pictures" / "graph.dot"
    assert main(["draw", graph, str(file), *tokens]) == 0
    assert len(parsed(file.read_text(encoding="utf-8"))[0]) == Graph.load(graph).arcs.states
    assert main(["draw", graph, str(tmp_path / "graph.jpg"), *tokens]) == 1
    assert "name it graph.dot, .svg" in capsys.readouterr().err
    assert main(["draw", str(tmp_path), str(file), *tokens]) == 1
    assert "`speechattn graph` makes one" in capsys.readouterr().err
