"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

import pytest
import torch

# Tests run on tiny tensors, where a second thread costs more than it gives.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real speech and lip video, if there is any: $SPEECHATTN_TEST_DATA or ../shared/data."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPEECHATTN_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data: set SPEECHATTN_TEST_DATA to a folder like {default}")
    return folder
