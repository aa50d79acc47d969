"""A training run of seconds."""

import copy
import logging
import multiprocessing
import os
import socket
import sys
import time
import traceback
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


@pytest.fixture(scope="session")
def train_processes(train_tiny):
    """A function that trains in several processes of gloo, as torchrun starts them.

    Args of it: as of `train_tiny`, `count` of processes, and `before`, which each process calls
    with its rank before it begins. A process that is killed takes the others with it. It gives the
    exit codes.
    """
    context = multiprocessing.get_context("fork")  # a fresh Python takes long to import torch

    def work(rank: int, count: int, port: int, config, exp: Path, before) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
            LOCAL_WORLD_SIZE=str(count), GROUP_RANK="0", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
        sys.stderr = (exp / f"log{rank}").open("a", buffering=1)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        if before is not None:
            before(rank)
        try:
            train_tiny(config, exp)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def run(config, exp: Path, count: int = 2, before=None, seconds: float = 120.0) -> list[int]:
        exp.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [
            context.Process(target=work, args=(rank, count, port, config, exp, before))
            for rank in range(count)
        ]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + seconds
        while any(p.is_alive() for p in ranks):
            if time.monotonic() > deadline or any(p.exitcode for p in ranks):
                for process in ranks:
                    process.kill()
            time.sleep(0.05)
        return [process.exitcode for process in ranks]

    return run
