"""The transducer's losses against k2 itself, in a process of its own.

Skipped unless the environment variable K2_PYTHON names a Python with k2 1.23.4.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from speechattn.kernels.lattice.pruned_transducer import prune_ranges
from tests.k2.transducer_cases import CASES, case
from tests.kernels.lattice.test_transducer import GOLDEN, native

PYTHON = os.environ.get("K2_PYTHON")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    if not PYTHON:
        pytest.skip("K2_PYTHON is not set")
    folder = tmp_path_factory.mktemp("k2")
    script = Path(__file__).with_name("golden.py")
    files = (folder / "golden.json", folder / "arrays.npz")
    # It has a warning for each text that does not fit.
    done = subprocess.run(
        [PYTHON, script, "--transducer", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_two_hundred_cases(live):
    arrays = np.load(live / "arrays.npz")
    penalised = impossible = 0
    for seed in range(CASES):
        c = case(seed)
        found = native(c, arrays[f"ranges{seed}"])
        for name in ("full", "simple", "pruned"):
            theirs, ours = arrays[f"{name}{seed}"], found[name]
            finite = np.isfinite(theirs)
            assert (np.isfinite(ours) == finite).all(), (seed, name, ours, theirs)
            off = np.abs(ours[finite] - theirs[finite])
            assert (off <= TOLERANCE * np.abs(theirs[finite])).all(), (seed, name, ours, theirs)
            penalised += c.delay_penalty > 0
            impossible += (~finite).sum()
        for name in ("gradient_full", "gradient_am", "gradient_lm", "gradient_kept", "px", "py"):
            theirs, ours = arrays[f"{name}{seed}"], found[name]
            # What k2 says of the ways of a text that does not fit is of no meaning.
            fits = np.isfinite(found["simple"]) | (name not in ("px", "py"))
            for b in fits.nonzero()[0]:
                off = np.linalg.norm(ours[b] - theirs[b])
                # k2 has 1e-20 for a scale of 0.
                most = TOLERANCE * np.linalg.norm(theirs[b]) + 1e-12
                assert off <= most, (seed, name, b, off)
    assert penalised > 300
    assert impossible > 50


def test_columns_that_are_kept(live):
    arrays = np.load(live / "arrays.npz")
    differing = items = 0
    for seed in range(CASES):
        c, theirs = case(seed), arrays[f"ranges{seed}"]
        lengths, token_lengths = (torch.from_numpy(x) for x in (c.lengths, c.token_lengths))
        px, py = (torch.from_numpy(arrays[f"{name}{seed}"]) for name in ("px", "py"))
        ours = prune_ranges(px, py, lengths, token_lengths, c.kept.shape[2])
        assert (ours.numpy() == theirs).all(), seed
        # Of our own occupations: where windows are equally good their last digits decide.
        own = native(c, theirs)
        px, py = (torch.from_numpy(own[name]) for name in ("px", "py"))
        ours = prune_ranges(px, py, lengths, token_lengths, c.kept.shape[2]).numpy()
        for b in np.isfinite(own["simple"]).nonzero()[0]:
            items += 1
            differing += (ours[b] != theirs[b]).any()
    assert differing <= 0.05 * items


def test_golden_values_are_what_it_says(live):
    kept, new = (json.loads(p.read_text()) for p in (GOLDEN, live / "golden.json"))
    for a, b in zip(kept, new, strict=True):
        assert a.pop("ranges") == b.pop("ranges")
        assert a.pop("windows") == b.pop("windows")
        for name in a:
            assert [x is None for x in a[name]] == [x is None for x in b[name]], name
            pairs = [(x, y) for x, y in zip(a[name], b[name], strict=True) if x is not None]
            assert all(x == pytest.approx(y, rel=1e-5, abs=1e-5) for x, y in pairs), name
