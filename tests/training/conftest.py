"""A training run of seconds."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture(scope="session")
def tiny_config(tiny_model):
    """A function of modality and training options that gives a whole configuration."""

    def make(modality: str = "av", **training: Any) -> dict[str, Any]:
        options = {"max_epochs": 2, "lr": 3e-3, "warmup_steps": 2, "keep": 2, "seed": 3}
        config = {
            # Dropout on: resuming has to bring its draws back too.
            "model": tiny_model(modality, dropout=0.1),
            "loss": {"stream_ctc_weight": 0.3},
            "data": {"batch_seconds": 3.0, "num_workers": 0},
            "training": {**options, **training},
            "decode": {"beam_size": 2},
        }
        if modality != "audio":
            config["data"]["video_transforms"] = [
                {"class_path": "speechattn.data.augment.RandomCrop", "init_args": {"size": 16}},
                {"class_path": "speechattn.data.augment.HorizontalFlip"},
            ]
        return copy.deepcopy(config)

    return make


@pytest.fixture(scope="session")
def train_tiny(tiny_corpus):
    """A function of configuration and experiment folder that trains on the tiny corpus."""
    from speechattn.training import train

    def run(config: dict[str, Any], exp: Path, init: Sequence[str | Path] = ()) -> Path:
        data = tiny_corpus.folder
        crops = data / "crops" if "video" in (config["model"] or {}) else None
        # As from a file: a run must not depend on what the last one did to the configuration.
        config = yaml.safe_load(yaml.safe_dump(config))
        return train(
            config,
            data / "cuts_train.jsonl.gz",
            data / "cuts_dev.jsonl.gz",
            data / "tokens",
            exp,
            crops,
            init=init,
        )

    return run
