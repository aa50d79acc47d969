"""Boxes in layers from left to right, and the arrows between them, placed by `grandalf`.

Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures"
(1981); Brandes and Koepf, "Fast and simple horizontal coordinate assignment" (2001). What an arrow
says is a box too, in a layer between those of its ends, so that texts have room of their own.
Lengths are pixels, y grows downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from speechattn.errors import ConfigError

ROUNDS = 8  # of looking for an order with fewer crossings
SPACE, LOW = 12, 8  # between boxes of a layer; how far of it an arrow may leave its place
GAP, WIDEST_GAP = 30, 90  # between layers; wider where arrows climb


@dataclass(eq=False)
class Box:
    """A rectangle that no other one overlaps.

    Attributes:
        layer: from 0.
        width, height: of the rectangle.
        base: from its middle down to where arrows touch it.
        x, y: where arrows touch it, set by `place`; x is the middle of the layer.
    """

    layer: int
    width: float
    height: float
    base: float
    x: float = 0.0
    y: float = 0.0

    @property
    def top(self) -> float:
        return self.y - self.base - self.height / 2


@dataclass(eq=False)
class Arrow:
    """From a box, by way of what it says, to another.

    Attributes:
        stops: the three boxes; the middle one is in a layer between.
        passed: of both halves, the layers between their ends, and the height in each; set by
            `place`.
    """

    stops: tuple[Box, Box, Box]
    passed: list[list[tuple[int, float]]] = field(default_factory=list)

    def points(self) -> list[tuple[int, float]]:
        """Layer and height of all that it passes, its ends among them."""
        begin, middle, end = ((box.layer, box.y) for box in self.stops)
        return [begin, *self.passed[0], middle, *self.passed[1], end]


def place(first: Box, arrows: Sequence[Arrow]) -> list[tuple[float, float]]:
    """Set where boxes are and what arrows pass.

    Args:
        first: in layer 0.
        arrows: at least one; any box that they join is in the layer after the last of those that
            it is joined with in earlier layers, and only `first` is with none.

    Returns:
        Left and right side of each layer.

    Raises:
        ConfigError: grandalf is not installed.
    """
    try:
        from grandalf.graphs import Edge, Vertex, graph_core
        from grandalf.layouts import SugiyamaLayout
    except ImportError as error:
        raise ConfigError("drawing needs grandalf: pip install 'speechattn[fst]'") from error

    boxes = list(dict.fromkeys([first, *(box for arrow in arrows for box in arrow.stops)]))
    vertices = {box: Vertex(box) for box in boxes}
    for box, vertex in vertices.items():
        vertex.view = _View(box.height)
    halves = [
        [Edge(vertices[a], vertices[b]) for a, b in zip(arrow.stops, arrow.stops[1:], strict=False)]
        for arrow in arrows
    ]
    edges = [edge for pair in halves for edge in pair]
    # With those turned round that lead back there is no circle, and grandalf finds our layers.
    backward = [edge for edge in edges if edge.v[0].data.layer > edge.v[1].data.layer]
    layout = SugiyamaLayout(graph_core(list(vertices.values()), edges))
    layout.xspace, layout.dw = SPACE, 1.0  # an arrow that passes a layer is as wide as that
    layout.init_all(roots=[vertices[first]], inverted_edges=backward)
    layout.draw(ROUNDS)
    for box, vertex in vertices.items():
        box.y = vertex.view.xy[0] + box.base
    for arrow, pair in zip(arrows, halves, strict=True):
        arrow.passed = []
        low = min(arrow.stops[1].base, LOW)  # straight on from its text, where that is a line
        for edge in pair:
            begin, end = (vertex.data.layer for vertex in edge.v)
            step = 1 if begin < end else -1
            between = layout.ctrls.get(edge, {})
            layers = range(begin + step, end, step)
            passed = [(layer, between[layer].view.xy[0] + low) for layer in layers]
            arrow.passed.append(passed)
    return _across(boxes, arrows)


@dataclass
class _View:
    """What grandalf wants to know of a box, and fills in; its layers go down, ours right."""

    w: float
    h: float = 1.0
    xy: tuple[float, float] = (0.0, 0.0)


def _across(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> list[tuple[float, float]]:
    layers = max(box.layer for box in boxes) + 1
    width, climb = [0.0] * layers, [0.0] * layers  # climb: in the gap after a layer
    for box in boxes:
        width[box.layer] = max(width[box.layer], box.width)
    for arrow in arrows:
        points = arrow.points()
        for (a, y), (b, z) in zip(points, points[1:], strict=False):
            climb[min(a, b)] = max(climb[min(a, b)], abs(y - z))
    sides, left = [], 0.0
    for layer in range(layers):
        right = left + width[layer]
        sides.append((left, right))
        left = right + min(GAP + climb[layer] / 8, WIDEST_GAP)
    for box in boxes:
        box.x = sum(sides[box.layer]) / 2
    return sides
