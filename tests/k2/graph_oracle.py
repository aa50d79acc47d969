"""What k2 makes of graphs: composed by itself, and ours searched by it.

    python tests/k2/graph_oracle.py FOLDER

in an environment with torch 1.13.1 and k2 1.23.4 and this package's folder on PYTHONPATH. FOLDER
holds what `write` of test_graph.py put there: for each case `lexicon.json` (words' units and the
symbols that end them), `grammar.txt` (OpenFst's text, may be missing), `graph.npz`, `scores.npz`.
Writes `k2.json` beside them, and `lattices.npz` of our graph.
"""

import json
import sys
from pathlib import Path

import k2
import numpy as np
import torch

from speechattn.k2.intersection import Columns, Intersection


def lexicon_fsa(entries: list, disambiguation: list[int], backoff: list[int]) -> k2.Fsa:
    """L: units of 1 and more to words; a self-loop passes the back-off symbol of G."""
    arcs, state = [(0, 0, *backoff, 0.0)] if backoff else [], 1
    for word, units, symbol in entries:
        labels = units + ([disambiguation[symbol]] if symbol else [])
        at = 0
        for i, label in enumerate(labels):
            to = 0 if i == len(labels) - 1 else state
            arcs.append((at, to, label, word if i == 0 else 0, 0.0))
            at, state = to, state + (to != 0)
    arcs.append((0, state, -1, -1, 0.0))
    arcs.sort(key=lambda arc: arc[0])
    text = "\n".join(" ".join(map(str, arc)) for arc in arcs) + f"\n{state}"
    return k2.Fsa.from_str(text, acceptor=False)


def hlg(folder: Path) -> k2.Fsa:
    """H o L o G as icefall's recipes compile it."""
    given = json.loads((folder / "lexicon.json").read_text())
    units, words = given["units"], given["words"]
    grammar = folder / "grammar.txt"
    backoff = [units + 1, words + 1] if grammar.exists() else []
    symbols = [0, *range(units + 2, units + 2 + given["symbols"])]
    lg = k2.arc_sort(lexicon_fsa(given["entries"], symbols, backoff))
    if grammar.exists():
        g = k2.arc_sort(k2.Fsa.from_openfst(grammar.read_text(), acceptor=False))
        lg = k2.connect(k2.compose(lg, g))
        lg = k2.connect(k2.determinize(lg))
    lg.labels[lg.labels > units] = 0
    outputs = lg.aux_labels
    outputs = outputs.values if isinstance(outputs, k2.RaggedTensor) else outputs
    outputs[outputs > words] = 0
    lg.__dict__["_properties"] = None
    lg = k2.connect(k2.remove_epsilon(lg))
    lg.aux_labels = lg.aux_labels.remove_values_eq(0)
    lg = k2.arc_sort(lg)
    topology = k2.ctc_topo(units, modified=given["topology"] == "modified")
    return k2.arc_sort(k2.connect(k2.compose(topology, lg, inner_labels="tokens")))


def best_and_total(graph: k2.Fsa, scores: np.ndarray) -> dict:
    """Words and score of the best path, and the score of all."""
    segment = torch.tensor([[0, 0, len(scores)]], dtype=torch.int32)
    dense = k2.DenseFsaVec(torch.from_numpy(scores)[None], segment)
    lattice = k2.intersect_dense(
        k2.create_fsa_vec([graph]), dense, 1e9, a_to_b_map=torch.zeros(1, dtype=torch.int32)
    )
    best = k2.shortest_path(lattice, use_double_scores=True)
    words = best.aux_labels
    words = words.values if isinstance(words, k2.RaggedTensor) else words
    found = [lattice.get_tot_scores(True, log_semiring).item() for log_semiring in (False, True)]
    return {"words": [w for w in words.tolist() if w > 0], "best": found[0], "total": found[1]}


def columns(folder: Path) -> Columns:
    """Our graph."""
    with np.load(folder / "graph.npz") as file:
        return Columns(
            *(file[n] for n in ("source", "target", "label", "output", "score", "final"))
        )


def fsa(graph: Columns) -> k2.Fsa:
    """Our graph without our module."""
    last, arcs = len(graph.final), []
    for row in zip(graph.source, graph.target, graph.label, graph.output, graph.score):  # noqa: B905
        arcs.append(row)
    arcs += [(s, last, -1, -1, x) for s, x in enumerate(graph.final) if np.isfinite(x)]
    arcs.sort(key=lambda arc: arc[0])
    text = "\n".join(" ".join(map(str, arc)) for arc in arcs) + f"\n{last}"
    return k2.Fsa.from_str(text, acceptor=False)


def lattices(graph: Columns, scores: list) -> dict:
    """Of our graph, by the module that users with k2 have."""
    found = Intersection(graph).lattices(scores, 1e4, 1e4, 30, 10000000)
    return {f"{name}{i}": value for i, c in enumerate(found) for name, value in vars(c).items()}


def main(root: Path) -> None:
    for folder in sorted(path.parent for path in root.glob("*/lexicon.json")):
        with np.load(folder / "scores.npz") as file:
            scores = [file[f"item{i}"] for i in range(len(file.files))]
        graph = columns(folder)
        found = {
            name: [best_and_total(searched, s) for s in scores]
            for name, searched in (("k2's", hlg(folder)), ("ours", fsa(graph)))
        }
        (folder / "k2.json").write_text(json.dumps(found))
        np.savez(folder / "lattices.npz", **lattices(graph, scores))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
