"""Pictures of graphs, read as XML: what they say against the arcs, where it is against geometry."""

import itertools
import math
import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest

from speechattn.cli import main
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.draw import CELL, MOST_STATES, SIZE, graph_svg
from speechattn.decoding.fst.graph import Event, Graph
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.errors import ConfigError

pytest.importorskip("grandalf")

SVG = "{http://www.w3.org/2000/svg}"


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


class Picture:
    """What a reader of the file finds."""

    def __init__(self, svg: str):
        self.root = ElementTree.fromstring(svg)
        groups = {group.get("id"): group for group in self.root.iter(SVG + "g")}
        self.states = {
            int(name.split("-")[1]): group
            for name, group in groups.items()
            if name.startswith("state")
        }
        self.arcs = {
            tuple(int(state) for state in name.split("-")[1:]): group
            for name, group in groups.items()
            if name.startswith("arc")
        }

    def circle(self, state: int) -> tuple[float, float, float]:
        """Middle and radius of the outer one."""
        found = self.states[state].findall(SVG + "circle")
        return tuple(max(float(circle.get(name)) for circle in found) for name in ("cx", "cy", "r"))

    def lines(self, group) -> list[str]:
        return [text.text for text in group.findall(SVG + "text")]

    def rectangles(self) -> list[tuple[float, float, float, float]]:
        """Of all lines of text: left, top, right, bottom; one width for all letters is assumed."""
        found = []
        for text in self.root.iter(SVG + "text"):
            x, y = float(text.get("x")), float(text.get("y"))
            half = CELL * len(text.text) / 2
            found.append((x - half, y - 0.8 * SIZE, x + half, y + 0.2 * SIZE))
        return found


def overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def points(path: str) -> np.ndarray:
    """(points, 2) along a path of M, H and C."""
    t = np.linspace(0, 1, 60)[:, None]
    weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
    found, at = [], np.zeros(2)
    for letter, text in re.findall(r"([MHC])([^MHC]*)", path):
        n = np.array(numbers(text))
        if letter == "M":
            at = n
        elif letter == "H":
            end = np.array([n[0], at[1]])
            found.append((1 - t) * at + t * end)
            at = end
        else:
            corners = [at, *n.reshape(3, 2)]
            found.append(sum(w * c for w, c in zip(weights, corners, strict=True)))
            at = corners[-1]
    return np.concatenate(found)


def said(graph: Graph, tokens: list[str]) -> dict[tuple[int, int], Counter]:
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


@pytest.fixture(scope="module")
def picture(graph, tokenizer):
    return Picture(graph_svg(graph, tokenizer.tokens))


def test_all_that_the_graph_has_is_said(graph, tokenizer, picture):
    wanted = said(graph, tokenizer.tokens)
    assert any(":" in text and "/" in text for texts in wanted.values() for text in texts)
    for (source, target), texts in wanted.items():
        if source != target:
            assert Counter(picture.lines(picture.arcs[source, target])) == texts
    assert set(picture.arcs) == {(a, b) for a, b in wanted if a != b}
    assert sorted(picture.states) == list(range(graph.arcs.states))
    for state, group in picture.states.items():
        expected = Counter([str(state)]) + wanted.get((state, state), Counter())
        final = float(graph.arcs.final[state])
        if np.isfinite(final):
            expected[f"{final:.2f}"] += 1
        assert Counter(picture.lines(group)) == expected
        assert len(group.findall(SVG + "circle")) == (2 if np.isfinite(final) else 1)


def test_arrows_begin_and_end_on_circles_and_have_heads(graph, picture):
    for (source, target), group in picture.arcs.items():
        (path,) = group.findall(SVG + "path")
        (cx, cy, r), (tx, ty, tr) = picture.circle(source), picture.circle(target)
        n = numbers(re.match(r"M[^HC]*", path.get("d")).group())
        assert math.hypot(n[0] - cx, n[1] - cy) == pytest.approx(r, abs=0.2)
        x, y = points(path.get("d"))[-1]
        assert math.hypot(x - tx, y - ty) == pytest.approx(tr, abs=0.2)
        kind = path.get("class")
        assert path.get("marker-end") == f"url(#head-{kind})"
        assert kind == ("on" if cx < tx else "back")
        # The last stretch is straight, towards the circle, and as long as the head.
        bend = numbers(path.get("d"))[-3]
        assert (x - bend if cx < tx else bend - x) > 7.5
    loops = {int(a) for a, b in zip(graph.arcs.source, graph.arcs.target, strict=True) if a == b}
    for state, group in picture.states.items():
        paths = [path for path in group.findall(SVG + "path") if "C" in path.get("d")]
        assert len(paths) == (state in loops)
        cx, cy, r = picture.circle(state)
        for path in paths:
            for x, y in (points(path.get("d"))[0], points(path.get("d"))[-1]):
                assert math.hypot(x - cx, y - cy) == pytest.approx(r, abs=0.2)
    heads = {marker.get("id") for marker in picture.root.iter(SVG + "marker")}
    assert heads == {"head-on", "head-back"}


def test_nothing_is_on_top_of_something_else(picture):
    texts = picture.rectangles()
    for a, b in itertools.combinations(texts, 2):
        assert not overlap(a, b)
    circles = [picture.circle(state) for state in picture.states]
    for (x, y, r), (u, v, s) in itertools.combinations(circles, 2):
        assert math.hypot(x - u, y - v) > r + s
    left, top, width, height = numbers(picture.root.get("viewBox"))
    for a in texts:
        assert left <= a[0] and a[2] <= left + width and top <= a[1] and a[3] <= top + height
    # No arrow goes through a text or through a state.
    drawn = [*picture.arcs.values(), *picture.states.values()]
    for path in (path for group in drawn for path in group.findall(SVG + "path")):
        x, y = points(path.get("d")).T[:, :, None]  # points, 1
        a0, a1, a2, a3 = np.array(texts).T  # texts
        assert not ((a0 < x) & (x < a2) & (a1 < y) & (y < a3)).any(), path.get("d")
        u, v, r = np.array(circles).T
        assert (np.hypot(x - u, y - v) > r - 0.2).all(), path.get("d")


def test_the_first_state_is_on_the_left(picture):
    assert all(picture.circle(0)[0] < picture.circle(state)[0] for state in picture.states if state)


def test_arrows_lead_on_where_they_can():
    """State 3 is as far from the first as 1 and 2, and leads to both: it comes before them."""
    rows = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 1), (3, 1), (3, 2)]
    drawn = Picture(graph_svg(made([(*row, 1, 0, 0.0) for row in rows], [0.0] * 5), TOKENS))
    across = [drawn.circle(state)[0] for state in range(5)]
    assert sorted(range(5), key=across.__getitem__) == [0, 3, 2, 1, 4]


@pytest.mark.parametrize("topology", ["standard", "modified"])
def test_mandarin(tmp_path, topology):
    tokenizer = CharTokenizer.train(["音乐天气"])
    graph = build_graph(
        Lexicon.spelled(["音乐", "天气"], tokenizer), tokenizer, tmp_path, topology=topology
    )
    drawn = Picture(graph_svg(graph, tokenizer.tokens))
    lines = {line for group in drawn.arcs.values() for line in drawn.lines(group)}
    assert {line.split("/")[0] for line in lines} >= {"音:音乐", "天:天气", "乐", "气"}


def test_an_ideograph_takes_the_room_of_two_letters():
    def width(word: str) -> float:
        graph = made([(0, 1, 1, 1, 0.0)], [-np.inf, 0.0], [word])
        return float(Picture(graph_svg(graph, TOKENS)).root.get("width"))

    assert width("a" * 20) == width("音" * 10) > width("a" * 19) == width("a" * 19 + "\u0301")


def made(rows, final, words=("w",), units=4) -> Graph:
    """Of `source target label output score` rows; output n writes words n."""
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    events = tuple(Event(1, (number,)) for number in range(1, len(words) + 1))
    return Graph(Arcs.of(*columns, np.array(final)), events, tuple(words), units)


TOKENS = ["<blank>", "a", "<&>", "<sos/eos>"]


def test_characters_that_mean_something_in_xml():
    word = '<b>"R&B"</b> ]]> \' \x0b'
    graph = made([(0, 1, 2, 1, -0.5), (1, 1, 2, 0, 0.0)], [-np.inf, 0.0], [word])
    drawn = Picture(graph_svg(graph, TOKENS))
    seen = word.replace("\x0b", "\ufffd")
    assert drawn.lines(drawn.arcs[0, 1]) == [f"<&>:{seen}/-0.50"]
    assert drawn.lines(drawn.states[1]) == ["1", "<&>"]  # 0.00 in the end is not said


def test_parallel_arcs_circles_and_states_that_nothing_leads_to():
    rows = [
        *((0, 1, 1, 1, -0.25), (0, 1, 1, 2, -1.5), (0, 1, 2, 0, 0.0)),
        *((1, 0, 1, 0, 0.0), (1, 2, 1, 0, 0.0), (2, 1, 2, 0, 0.0)),
        *((0, 3, 1, 0, 0.0), (3, 2, 1, 0, 0.0), (2, 3, 1, 0, 0.0)),
        *((4, 5, 1, 0, 0.0), (5, 4, 1, 0, 0.0), (6, 6, 1, 0, -0.001)),
    ]
    graph = made(rows, [-np.inf] * 6 + [-1.0], ["one", "two"])
    drawn = Picture(graph_svg(graph, TOKENS))
    assert set(drawn.arcs) == {(int(a), int(b)) for a, b, *_ in rows if a != b}
    assert sorted(drawn.lines(drawn.arcs[0, 1])) == ["<&>", "a:one/-0.25", "a:two/-1.50"]
    assert sorted(drawn.lines(drawn.states[6])) == ["-1.00", "6", "a"]
    test_nothing_is_on_top_of_something_else(drawn)
    test_arrows_begin_and_end_on_circles_and_have_heads(graph, drawn)


def test_large_graphs_and_those_of_other_models_are_refused():
    states = MOST_STATES + 1
    chain = made([(s, s + 1, 1, 0, 0.0) for s in range(states - 1)], [0.0] * states)
    with pytest.raises(ConfigError, match=f"{states} states.*short --lexicon"):
        graph_svg(chain, TOKENS)
    many = made([(0, 1, 1, 0, 0.0)] * 2000, [0.0, 0.0])
    with pytest.raises(ConfigError, match="2000 arcs"):
        graph_svg(many, TOKENS)
    with pytest.raises(ConfigError, match="model of 4 units and the tokenizer has 5"):
        graph_svg(made([(0, 1, 1, 0, 0.0)], [0.0, 0.0]), [*TOKENS, "b"])


def test_from_the_command_line(tmp_path, capsys):
    tokenizer = CharTokenizer.train(["ab c"])
    tokenizer.save(tmp_path / "tokens")
    (tmp_path / "text").write_text("ab c\nc ab\n")
    tokens = ["--tokens", str(tmp_path / "tokens")]
    graph = str(tmp_path / "graph")
    text = ["--text", str(tmp_path / "text"), "--order", "2"]
    assert main(["graph", *tokens, *text, "--output", graph]) == 0
    file = tmp_path / "pictures" / "graph.svg"
    assert main(["draw", graph, str(file), *tokens]) == 0
    drawn = Picture(file.read_text(encoding="utf-8"))
    assert len(drawn.states) == Graph.load(graph).arcs.states
    assert main(["draw", graph, str(tmp_path / "graph.png"), *tokens]) == 1
    assert "name it graph.svg" in capsys.readouterr().err
    assert main(["draw", str(tmp_path), str(file), *tokens]) == 1
    assert "`speechattn graph` makes one" in capsys.readouterr().err
