"""A decoding graph as a picture: SVG, from left to right.

States are circles, double where a sentence may end. An arc says `unit:words/score`: what it reads,
what it writes, and the natural logarithm of its weight; words that are none and scores of 0.00 are
left out. Arcs between the same two states are one arrow that says several lines. Arrows that lead
back to the left have a colour of their own.

Legend: S states, A arcs, V units. Lengths are pixels.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.layered import SPACE, Arrow, Box, place
from speechattn.errors import ConfigError
from speechattn.evaluation.svg import INK, MUTED, SERIES

MOST_STATES, MOST_ARCS = 200, 600  # of which something can still be seen
SIZE, LINE = 11, 14  # of letters, and from a line of them to the next
# In a font of one width what a text takes is known before a browser has chosen the font.
FONT = "ui-monospace, 'DejaVu Sans Mono', 'Noto Sans Mono CJK SC', monospace"
CELL = 0.61 * SIZE
RADIUS, RING = 16, 3  # of a state at least, and between the circles of a final one
PORT = 5  # between arrows that touch a state
STEEP = 0.85  # how far up and down its circle they do so
LOOP = 24  # height of an arrow from a state to itself
ENTRY, HEAD = 26, 8  # lengths of the arrow into the first state, and of an arrow's head
ON, BACK = MUTED, SERIES[1]
CONTROLS = dict.fromkeys(range(32), "\ufffd")  # which XML has no way to write


@dataclass(frozen=True)
class State:
    """What is drawn of a state.

    Attributes:
        box: with the loop above and the score below.
        radius: of the circle, the outer one of a final state.
        loop: what its arcs to itself say, a line each.
        final: the score of ending in it, None where none does.
    """

    box: Box
    radius: float
    loop: list[str]
    final: float | None


def graph_svg(graph: Graph, tokens: Sequence[str]) -> str:
    """The picture of a graph.

    Args:
        graph: a small one.
        tokens: (V,) the names of the model's units, `tokenizer.tokens`.

    Returns:
        The text of an SVG file.

    Raises:
        ConfigError: the graph is too large or of another model, or grandalf is not installed.
    """
    arcs = graph.arcs
    if len(tokens) != graph.vocab_size:
        raise ConfigError(
            f"the graph is of a model of {graph.vocab_size} units and the tokenizer has "
            f"{len(tokens)}: give the one that the graph was made with"
        )
    if arcs.states > MOST_STATES or len(arcs) > MOST_ARCS:
        raise ConfigError(
            f"a graph of {arcs.states} states and {len(arcs)} arcs is too large for a picture; up "
            f"to {MOST_STATES} states and {MOST_ARCS} arcs can be drawn: make one of fewer words "
            "(`speechattn graph` with a short --lexicon, or --max-words 5)"
        )
    texts = _texts(graph, tokens)
    layer, lost = _layers(arcs.states, texts)
    states = _states(graph, texts, layer)
    arrows = {
        ends: _arrow(ends, lines, states) for ends, lines in texts.items() if ends[0] != ends[1]
    }
    # What nothing joins to the rest is held in place by an arrow that is not drawn.
    held = [_arrow((0, state), [""], states) for state in lost]
    sides = place(states[0].box, [*arrows.values(), *held])
    return _drawn(states, arrows, texts, sides)


def _texts(graph: Graph, tokens: Sequence[str]) -> dict[tuple[int, int], list[str]]:
    """What the arcs from a state to another say, a line each."""
    arcs = graph.arcs
    found: dict[tuple[int, int], list[str]] = {}
    columns = (arcs.source, arcs.target, arcs.label, arcs.output, arcs.score)
    for source, target, label, output, score in zip(*(c.tolist() for c in columns), strict=True):
        said = tokens[label]
        if words := graph.text([output] if output else []):
            said += ":" + " ".join(words)
        said += f"/{_number(score)}" if _number(score) else ""
        found.setdefault((source, target), []).append(said.translate(CONTROLS))
    return found


def _number(score: float) -> str:
    text = f"{score:.2f}"
    return text if float(text) else ""


def _width(text: str) -> float:
    """Of a line; ideographs take two cells, accents none."""
    seen = (c for c in text if not unicodedata.combining(c))
    return CELL * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in seen)


def _layers(states: int, joined: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Layers in which no two states are joined, the first state's on the left.

    States are taken as they are met from the first one on; each comes after all that it is joined
    with and that were taken before. Of those equally far away, which are taken first that lead to
    others more than others lead to them: so most arrows lead on.

    Returns:
        (S,) the layers, every second one; and the states, but the first, that were joined with none
        taken before.
    """
    follow: list[set[int]] = [set() for _ in range(states)]
    beside: list[set[int]] = [set() for _ in range(states)]
    for source, target in joined:
        follow[source].add(target)
        beside[source].add(target)
        beside[target].add(source)
    met: set[int] = set()
    layer = [0] * states
    taken: set[int] = set()
    lost = []
    for first in range(states):
        front = {first} - met
        while front:
            met |= front
            level = {s: sum((s in follow[o]) - (o in follow[s]) for o in front) for s in front}
            for state in sorted(front, key=lambda s: (level[s], s)):
                before = beside[state] & taken
                if state and not before:
                    lost.append(state)
                    before = {0}
                layer[state] = max((layer[other] + 2 for other in before), default=0)
                taken.add(state)
            front = set().union(*(follow[state] for state in front)) - met
    return layer, lost


def _states(
    graph: Graph, texts: dict[tuple[int, int], list[str]], layer: Sequence[int]
) -> list[State]:
    touched: Counter[tuple[int, bool]] = Counter()  # arrows of a state, on its left and right
    for source, target in texts:
        if source == target:
            continue
        touched[source, layer[target] > layer[source]] += 1
        touched[target, layer[source] > layer[target]] += 1
    found = []
    for state, score in enumerate(graph.arcs.final.tolist()):
        final = score if score > float("-inf") else None
        loop = texts.get((state, state), [])
        most = max(touched[state, side] for side in (False, True))
        radius = max(RADIUS, most * PORT / 2 / STEEP) + (RING if final is not None else 0)
        above = LOOP + LINE * len(loop) if loop else 0
        below = LINE if final is not None and _number(final) else 0
        width = max([2 * (radius + HEAD), *map(_width, loop)])
        height = 2 * radius + above + below
        base = height / 2 - radius - below
        found.append(State(Box(layer[state], width, height, base), radius, loop, final))
    return found


def _arrow(ends: tuple[int, int], lines: list[str], states: Sequence[State]) -> Arrow:
    source, target = (states[state].box for state in ends)
    height = LINE * len(lines) + 5
    base = height / 2 - 2  # the text stands on the arrow
    layer = min(source.layer, target.layer) + 1
    text = Box(layer, max(map(_width, lines)) + 8, height, base)
    return Arrow((source, text, target))


def _ports(
    states: Sequence[State], arrows: dict[tuple[int, int], Arrow]
) -> dict[tuple[int, int, bool], tuple[float, float]]:
    """Where on circles arrows begin and end, by the states that they join: one below the other."""
    sides: dict[tuple[int, bool], list[tuple[float, tuple[int, int, bool]]]] = {}
    for (source, target), arrow in arrows.items():
        points = arrow.points()
        for state, (layer, y), ends in ((source, points[1], False), (target, points[-2], True)):
            on_right = layer > states[state].box.layer
            sides.setdefault((state, on_right), []).append((y, (source, target, ends)))
    ports = {}
    for (state, on_right), touching in sides.items():
        box, radius = states[state].box, states[state].radius
        for i, (_, key) in enumerate(sorted(touching)):
            dy = STEEP * radius * ((2 * i + 1) / len(touching) - 1)
            dx = (radius**2 - dy**2) ** 0.5
            ports[key] = (box.x + (dx if on_right else -dx), box.y + dy)
    return ports


def _path(
    arrow: Arrow,
    begin: tuple[float, float],
    end: tuple[float, float],
    sides: Sequence[tuple[float, float]],
) -> str:
    """Straight within layers, bent between them."""
    (x, y), (far, z) = begin, end
    path = f"M{x:.1f} {y:.1f}"
    points = arrow.points()
    here = points[0][0]
    for layer, height in [*points[1:-1], (points[-1][0], z)]:
        on = layer > here
        x, next_x = sides[here][on], sides[layer][not on]
        middle = (x + next_x) / 2
        path += f"H{x:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {height:.1f} {next_x:.1f} {height:.1f}"
        here, y = layer, height
    return path + f"H{far:.1f}"


def _drawn(
    states: Sequence[State],
    arrows: dict[tuple[int, int], Arrow],
    texts: dict[tuple[int, int], list[str]],
    sides: Sequence[tuple[float, float]],
) -> str:
    boxes = [state.box for state in states] + [arrow.stops[1] for arrow in arrows.values()]
    top = min(box.top for box in boxes) - SPACE
    bottom = max(box.top + box.height for box in boxes) + SPACE
    svg = _sheet(-SPACE - ENTRY, top, sides[-1][1] + SPACE, bottom)
    ports = _ports(states, arrows)
    for (source, target), arrow in arrows.items():
        group = SubElement(svg, "g", id=f"arc-{source}-{target}")
        SubElement(group, "title").text = f"{source} to {target}"
        kind = "on" if arrow.stops[0].layer < arrow.stops[2].layer else "back"
        begin, end = ports[source, target, False], ports[source, target, True]
        _head(group, kind, _path(arrow, begin, end, sides))
        _say(group, texts[source, target], arrow.stops[1].x, arrow.stops[1].y - 4)
    for number, state in enumerate(states):
        _draw_state(SubElement(svg, "g", id=f"state-{number}"), number, state)
    indent(svg)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(svg, encoding="unicode") + "\n"


def _sheet(left: float, top: float, right: float, bottom: float) -> Element:
    """White, with what the arrows and letters look like."""
    width, height = right - left, bottom - top
    svg = Element("svg", xmlns="http://www.w3.org/2000/svg")
    svg.set("viewBox", f"{left:.1f} {top:.1f} {width:.1f} {height:.1f}")
    svg.set("width", f"{width:.0f}")
    svg.set("height", f"{height:.0f}")
    SubElement(svg, "style").text = (
        f"text {{ font: {SIZE}px {FONT}; fill: {INK}; text-anchor: middle; white-space: pre }} "
        f"path, circle {{ fill: none; stroke-width: 1.1 }} circle {{ stroke: {INK} }} "
        f".on {{ stroke: {ON} }} .back {{ stroke: {BACK} }}"
    )
    definitions = SubElement(svg, "defs")
    size = {"markerWidth": f"{HEAD}", "markerHeight": "7", "refX": f"{HEAD}", "refY": "3.5"}
    for kind, colour in (("on", ON), ("back", BACK)):
        marker = SubElement(definitions, "marker", size, id=f"head-{kind}", orient="auto")
        marker.set("markerUnits", "userSpaceOnUse")
        SubElement(marker, "path", d=f"M0 0L{HEAD} 3.5L0 7Z", style=f"fill: {colour}; stroke: none")
    paper = {"x": f"{left:.1f}", "y": f"{top:.1f}", "fill": "#fff"}
    SubElement(svg, "rect", paper, width="100%", height="100%")
    return svg


def _draw_state(group: Element, number: int, state: State) -> None:
    x, y, radius = state.box.x, state.box.y, state.radius
    if number == 0:
        _head(group, "on", f"M{x - radius - ENTRY:.1f} {y:.1f}H{x - radius:.1f}")
    middle = {"cx": f"{x:.1f}", "cy": f"{y:.1f}"}
    SubElement(group, "circle", middle, r=f"{radius:.1f}")
    _say(group, [str(number)], x, y + 4)
    if state.final is not None:
        SubElement(group, "circle", middle, r=f"{radius - RING:.1f}")
        if _number(state.final):
            _say(group, [_number(state.final)], x, y + radius + SIZE)
    if state.loop:
        up = y - (radius**2 - 8**2) ** 0.5  # it touches the circle 8 beside the middle
        high = y - radius - 1.2 * LOOP
        curve = f"C{x - 16:.1f} {high:.1f} {x + 16:.1f} {high:.1f} {x + 8:.1f} {up:.1f}"
        _head(group, "on", f"M{x - 8:.1f} {up:.1f}{curve}")
        _say(group, state.loop, x, y - radius - LOOP - 1)


def _head(group: Element, kind: str, d: str) -> None:
    """An arrow along a path."""
    SubElement(group, "path", {"class": kind, "marker-end": f"url(#head-{kind})", "d": d})


def _say(group: Element, lines: Sequence[str], x: float, last: float) -> None:
    """Lines of which the last stands at a height."""
    for up, line in enumerate(reversed(lines)):
        SubElement(group, "text", x=f"{x:.1f}", y=f"{last - LINE * up:.1f}").text = line
