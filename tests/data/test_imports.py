"""What recognition needs of data imports no training library."""

import subprocess
import sys

import pytest

HEAVY = ("jsonargparse", "lhotse", "lightning", "matplotlib", "tensorboard")


@pytest.mark.parametrize(
    "modules",
    [
        "speechattn.data.batches",
        "speechattn.data.augment, speechattn.data.crops.roi, speechattn.data.tokenizers",
        "speechattn.data.corpora",
        "speechattn.data.reader",
    ],
)
def test_imports_stay_light(modules):
    code = f"import sys, {modules}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
