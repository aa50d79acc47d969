"""Writes what k2 finds over the graphs of graph_cases.py, for tests that have no k2.

    K2_PYTHON=PYTHON python -m tests.k2.graph_golden tests/decoding/fst/golden_graph.json

PYTHON is one with torch 1.13.1 and k2 1.23.4.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.k2.graph_cases import case
from tests.k2.test_graph import ask, write

KEPT = 16


def main(path: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / f"{seed:03}" for seed in range(KEPT)]
        for seed, folder in enumerate(folders):
            write(case(seed, folder), folder)
        ask(os.environ["K2_PYTHON"], Path(scratch))
        found = [json.loads((folder / "k2.json").read_text()) for folder in folders]
    lines = ",\n".join(json.dumps(f) for f in found)
    Path(path).write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
