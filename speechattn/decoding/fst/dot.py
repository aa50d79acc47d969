"""A decoding graph as Graphviz DOT, and drawn by Graphviz' `dot` where that is installed.

States are circles, double where a sentence may end. An arc is labelled `unit:words/score`: what it
reads, what it writes, and the natural logarithm of its weight; no words and scores of 0.00 are left
out. Arcs between the same two states are one arrow with a line of text each.

Legend: V units.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.fst.graph import Graph
from speechattn.errors import ConfigError
from speechattn.files import replacing, write_text

MAX_STATES, MAX_ARCS = 200, 600  # larger drawings cannot be read
FORMATS = (".svg", ".pdf", ".png")  # that `dot` renders
# What a quoted DOT label gives a meaning of its own, and characters that SVG cannot hold.
_ESCAPES = {"\\": "\\\\", '"': '\\"', "&": "&amp;", **dict.fromkeys(map(chr, range(32)), "\ufffd")}
_ESCAPED = str.maketrans(_ESCAPES)


def draw_graph(graph_folder: str | Path, picture: str | Path, tokens: str | Path) -> None:
    """Draw a saved graph.

    Args:
        graph_folder: folder that `speechattn graph` has made.
        picture: file to write: `.dot`, or `.svg`, `.pdf` or `.png` with Graphviz installed.
        tokens: folder of the tokenizer that the graph was made with.

    Raises:
        ConfigError: the file's suffix is another, the graph cannot be drawn (see `graph_dot`), or
            Graphviz is not installed or fails; the DOT text is then written beside `picture`.
    """
    picture = Path(picture)
    if picture.suffix not in (".dot", *FORMATS):
        raise ConfigError(f"{picture}: name it {picture.stem}.dot, .svg, .pdf or .png")
    text = graph_dot(Graph.load(graph_folder), Tokenizer.load(tokens).tokens)
    source = picture.with_suffix(".dot")
    if picture == source:
        write_text(source, text)
        return
    program = shutil.which("dot")
    if program is None:
        write_text(source, text)
        raise ConfigError(
            f"{picture} needs Graphviz, which is not installed; wrote {source} instead. Install "
            "it (apt install graphviz, brew install graphviz) and repeat the command"
        )
    with replacing(picture) as part:
        command = [program, f"-T{picture.suffix[1:]}", "-o", str(part)]
        done = subprocess.run(command, input=text.encode(), capture_output=True)
        if done.returncode:
            write_text(source, text)
            reason = done.stderr.decode(errors="replace").strip()
            raise ConfigError(f"{program} could not draw {source}: {reason}")


def graph_dot(graph: Graph, tokens: Sequence[str]) -> str:
    """Return a graph as DOT text.

    Args:
        graph: at most `MAX_STATES` states and `MAX_ARCS` arcs.
        tokens: (V,) names of the model's units, `tokenizer.tokens`.

    Raises:
        ConfigError: the graph is too large, or made for another vocabulary.
    """
    arcs = graph.arcs
    if len(tokens) != graph.vocab_size:
        raise ConfigError(
            f"the graph was made for {graph.vocab_size} units, but the tokenizer has "
            f"{len(tokens)}: give the tokenizer that the graph was made with"
        )
    if arcs.states > MAX_STATES or len(arcs) > MAX_ARCS:
        raise ConfigError(
            f"the graph has {arcs.states} states and {len(arcs)} arcs; at most {MAX_STATES} states "
            f"and {MAX_ARCS} arcs can be drawn: make one of fewer words (`speechattn graph` with "
            "a short --lexicon, or --max-words 5)"
        )
    labels: dict[tuple[int, int], list[str]] = {}
    rows = zip(*(column.tolist() for column in arcs.columns), strict=True)
    for source, target, label, output, score in rows:
        words = " ".join(graph.text([output] if output else []))
        text = tokens[label] + (f":{words}" if words else "") + _score(score, "/")
        labels.setdefault((source, target), []).append(text)
    lines = ["digraph {", "  rankdir=LR", "  node [shape=circle]"]
    lines.append('  start [shape=point, label=""]')
    for state, score in enumerate(arcs.final.tolist()):
        final = score > float("-inf")
        shape = ", shape=doublecircle" if final else ""
        lines.append(f"  {state} [label={_quoted([str(state), *_score(score).split()])}{shape}]")
    lines.append("  start -> 0")
    lines += [f"  {s} -> {t} [label={_quoted(texts)}]" for (s, t), texts in labels.items()]
    return "\n".join([*lines, "}"]) + "\n"


def _score(score: float, mark: str = "") -> str:
    """Return a finite score with a mark before it; an empty string for what rounds to 0.00."""
    text = f"{score:.2f}"
    return f"{mark}{text}" if score > float("-inf") and float(text) else ""


def _quoted(lines: Sequence[str]) -> str:
    return '"' + "\\n".join(line.translate(_ESCAPED) for line in lines) + '"'
