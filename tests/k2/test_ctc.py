"""The native delay-penalised CTC against k2 itself, in a process of its own.

Skipped unless the environment variable K2_PYTHON names a Python with k2 1.23.4.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.k2.ctc_cases import CASES, case
from tests.losses.test_delay_penalised_ctc import GOLDEN, native

PYTHON = os.environ.get("K2_PYTHON")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    if not PYTHON:
        pytest.skip("K2_PYTHON is not set")
    folder = tmp_path_factory.mktemp("k2")
    script = Path(__file__).with_name("golden.py")
    subprocess.run([PYTHON, script, folder / "golden.json", folder / "arrays.npz"], check=True)
    return folder


def test_two_hundred_cases(live):
    arrays = np.load(live / "arrays.npz")
    for seed in range(CASES):
        theirs, gradient = arrays[f"losses{seed}"], arrays[f"gradient{seed}"]
        losses, ours = (x.numpy() for x in native(case(seed)))
        finite = np.isfinite(theirs)
        assert (np.isfinite(losses) == finite).all(), seed
        off = np.abs(losses[finite] - theirs[finite])
        assert (off <= TOLERANCE * np.abs(theirs[finite])).all(), (seed, losses, theirs)
        for b in range(len(theirs)):
            off = np.linalg.norm(ours[b] - gradient[b])
            assert off <= TOLERANCE * np.linalg.norm(gradient[b]), (seed, b, off)


def test_golden_values_are_what_it_says(live):
    kept, new = (json.loads(p.read_text()) for p in (GOLDEN, live / "golden.json"))
    for a, b in zip(kept, new, strict=True):
        assert [x is None for x in a["losses"]] == [x is None for x in b["losses"]]
        for name in a:
            pairs = [(x, y) for x, y in zip(a[name], b[name], strict=True) if x is not None]
            assert all(x == pytest.approx(y, rel=1e-5, abs=1e-5) for x, y in pairs), name
