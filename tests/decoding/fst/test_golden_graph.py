"""Graphs and the searches over them against what k2 found, which was kept."""

import json
from pathlib import Path

import pytest

from speechattn.decoding.fst.k2_search import K2Search
from speechattn.decoding.fst.kaldi_search import KaldiSearch
from speechattn.decoding.fst.lattice import best, total
from speechattn.errors import ConfigError
from tests.k2.graph_cases import case
from tests.k2.test_graph import TOLERANCE, WIDE, says

pytest.importorskip("kaldi_decoder")
GOLDEN = json.loads(Path(__file__).with_name("golden_graph.json").read_text())


@pytest.mark.parametrize("seed", range(len(GOLDEN)))
def test_what_k2_found(seed, tmp_path):
    """Scores of the best path and of all; the words, where no others are as good."""
    c, theirs = case(seed, tmp_path), GOLDEN[seed]
    kaldi = KaldiSearch(c.graph, WIDE)
    for item, scores in enumerate(c.scores):
        lattice = kaldi.lattice(scores)
        found, alone = best(lattice), theirs["k2's"][item]
        assert abs(found.score - alone["best"]) < TOLERANCE
        assert abs(total(lattice) - theirs["ours"][item]["total"]) < TOLERANCE
        assert says(c, lattice, found, alone["words"])


def test_without_k2(graph):
    try:
        import k2  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="wheel for your torch"):
            K2Search(graph)
    else:
        pytest.skip("k2 is there")
