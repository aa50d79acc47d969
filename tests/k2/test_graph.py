"""Graphs and the search over them against k2's own, in a process of its own.

Skipped unless the environment variable K2_PYTHON names a Python with k2 1.23.4.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from speechattn.decoding.fst.k2_search import lattice_of
from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.lattice import Lattice, best, expanded, total
from speechattn.decoding.fst.openfst import grammar_fst
from speechattn.decoding.fst.path import GraphPath
from speechattn.decoding.fst.width import SearchWidth
from speechattn.k2.intersection import Columns
from tests.k2.ctc_cases import case as ctc_case
from tests.k2.graph_cases import CASES, Case, case
from tests.losses.test_delay_penalised_ctc import native

PYTHON = os.environ.get("K2_PYTHON")
ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3
WIDE = SearchWidth(1e4, 1e4, 10000000, 20)


def write(c: Case, folder: Path) -> None:
    """A case as graph_oracle.py reads it."""
    entries = c.lexicon.disambiguated()
    given = {
        "units": c.graph.vocab_size - 1,
        "words": len(c.lexicon.words),
        "symbols": max(symbol for _, _, symbol in entries),
        "entries": entries,
        "topology": c.graph.topology,
    }
    if c.arpa is not None:
        text = grammar_fst(c.arpa, c.lexicon).to_str(show_weight_one=True)
        (folder / "grammar.txt").write_text(text)
    c.graph.arcs.save(folder / "graph.npz")
    np.savez(folder / "scores.npz", **{f"item{i}": s for i, s in enumerate(c.scores)})
    (folder / "lexicon.json").write_text(json.dumps(given))


def ask(python: str, folder: Path) -> None:
    """Run graph_oracle.py on what was written."""
    done = subprocess.run(
        [python, Path(__file__).with_name("graph_oracle.py"), folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    if not PYTHON:
        pytest.skip("K2_PYTHON is not set")
    folder = tmp_path_factory.mktemp("k2")
    cases = []
    for seed in range(CASES):
        cases.append(case(seed, folder / f"{seed:03}"))
        write(cases[-1], folder / f"{seed:03}")
    ask(PYTHON, folder)
    return folder, cases


def words_of(c: Case, events: tuple[int, ...]) -> list[int]:
    return [word for event in events for word in c.graph.events[event - 1].words]


def says(c: Case, lattice: Lattice, found: GraphPath, words: list[int]) -> bool:
    """Whether the best path says words, or these score the same to five digits."""
    if words_of(c, found.events) == words:
        return True

    def step(done: np.ndarray, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        after, kept = done.copy(), np.ones(len(done), bool)
        for i in np.flatnonzero(output):
            written = list(c.graph.events[output[i] - 1].words)
            after[i] += len(written)
            kept[i] = words[done[i] : after[i]] == written
        return after, np.zeros(len(done)), kept

    others = expanded(lattice, np.zeros(1), len(words) + 1, step)
    final = np.where(others.memory == len(words), lattice.final[others.state], -np.inf)
    other = best(others.with_graph(lattice.graph[others.arc], final))
    return other is not None and abs(other.score - found.score) < 1e-5 * abs(found.score)


def test_two_hundred_graphs(live):
    """The best path over the graph that k2 composes by itself.

    The sum of all paths is compared over our graph: k2 takes epsilons out for the best path only,
    and the ways of a sentence through back-offs that it merges then are missing in its sum.
    """
    folder, cases = live
    for seed, c in enumerate(cases):
        search = KaldiSearch(c.graph, WIDE)
        theirs = json.loads((folder / f"{seed:03}" / "k2.json").read_text())
        for item, scores in enumerate(c.scores):
            alone, over_ours = theirs["k2's"][item], theirs["ours"][item]
            lattice = search.lattice(scores)
            found, everything = best(lattice), total(lattice)
            assert abs(found.score - alone["best"]) < TOLERANCE, (seed, item)
            assert abs(found.score - over_ours["best"]) < TOLERANCE, (seed, item)
            assert abs(everything - over_ours["total"]) < TOLERANCE, (seed, item)
            assert everything > alone["total"] - TOLERANCE, (seed, item)
            assert says(c, lattice, found, alone["words"]), (seed, item)


def test_the_search_that_users_with_k2_have(live):
    """Over our graph, a batch at once: the same lattices as Kaldi's decoder."""
    folder, cases = live
    for seed, c in enumerate(cases):
        search = KaldiSearch(c.graph, WIDE)
        with np.load(folder / f"{seed:03}" / "lattices.npz") as file:
            for item, scores in enumerate(c.scores):
                names = Columns.__dataclass_fields__
                lattice = lattice_of(Columns(*(file[f"{name}{item}"] for name in names)))
                wanted = search.lattice(scores)
                a, b = best(lattice), best(wanted)
                assert says(c, wanted, b, words_of(c, a.events)), (seed, item)
                # In the other topology a unit may go on or begin anew at the same score.
                assert a.starts == b.starts or c.graph.topology == "modified", (seed, item)
                assert a.score == pytest.approx(b.score, abs=TOLERANCE)
                assert a.graph == pytest.approx(b.graph, abs=TOLERANCE)
                assert total(lattice) == pytest.approx(total(wanted), abs=TOLERANCE)


@pytest.mark.skipif(not PYTHON, reason="K2_PYTHON is not set")
def test_ctc_by_k2_in_any_order(tmp_path):
    """`DelayPenalisedCTC(backend="k2")` calls it with batches that are not sorted by length."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [PYTHON, program, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(tmp_path / "found.npz") as file:
        for seed in range(0, 40, 3):
            order = file[f"order{seed}"]
            losses, gradient = (x.numpy()[order] for x in native(ctc_case(seed)))
            fits = np.isfinite(losses)
            assert (np.isfinite(file[f"losses{seed}"]) == fits).all()
            assert file[f"losses{seed}"][fits] == pytest.approx(losses[fits], rel=1e-4)
            off = np.linalg.norm(gradient - file[f"gradient{seed}"])
            assert off <= 1e-4 * np.linalg.norm(gradient), seed


PROGRAM = """
import sys
import numpy as np
import torch
from speechattn.k2.ctc import ctc_losses
from tests.k2.ctc_cases import case

found = {}
for seed in range(0, 40, 3):
    c = case(seed)
    order = np.random.default_rng(seed).permutation(len(c.lengths))
    logits = torch.from_numpy(c.logits[order]).requires_grad_()
    texts = [c.texts[i] for i in order]
    lengths = torch.tensor([len(t) for t in texts])
    tokens = torch.tensor([t + [0] * (max(lengths) - len(t)) for t in texts])
    given = torch.from_numpy(c.lengths[order]), tokens, lengths
    options = {"delay_penalty": c.delay_penalty, "modified": c.modified}
    losses = ctc_losses(logits.log_softmax(-1), *given, **options)
    (gradient,) = torch.autograd.grad(losses[losses.isfinite()].sum(), logits)
    found.update({f"order{seed}": order, f"losses{seed}": losses.detach().numpy(),
                  f"gradient{seed}": gradient.numpy()})
np.savez(sys.argv[1] + "/found.npz", **found)
"""
