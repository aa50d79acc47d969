"""A training run of seconds."""

import copy
import json
import os
import socket
import subprocess
import sys
import time
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
            "search": {"class_path": "JointSearch", "init_args": {"beam_size": 2}},
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
            crops=crops,
            init=init,
        )

    return run


@pytest.fixture(scope="session")
def train_processes(tiny_corpus):
    """A function that trains in several processes of gloo, as torchrun starts them.

    Args of it: the configuration; the experiment folder, where a process writes `log0` and
    `batches0`, the next one `log1` and `batches1`; `kill_at` and `spoil`, see `rank.py`. A process
    that is killed takes the others with it. It gives the exit codes.
    """

    def run(
        config: dict[str, Any],
        exp: Path,
        kill_at: int | None = None,
        spoil: str | None = None,
        count: int = 2,
        seconds: float = 240.0,
    ) -> list[int]:
        exp.mkdir(parents=True, exist_ok=True)
        job = {"config": config, "exp": str(exp), "data": str(tiny_corpus.folder),
               "kill_at": kill_at, "spoil": spoil}  # fmt: skip
        (exp / "job.json").write_text(json.dumps(job))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = dict(
            os.environ, WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
            OMP_NUM_THREADS="1",
        )  # fmt: skip
        ranks = []
        for rank in range(count):
            with (exp / f"log{rank}").open("a") as log:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, Path(__file__).with_name("rank.py"), exp / "job.json"],
                        env=dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)),
                        stdout=log,
                        stderr=log,
                    )
                )
        deadline = time.monotonic() + seconds
        while any(p.poll() is None for p in ranks):
            if time.monotonic() > deadline or any(p.returncode for p in ranks):
                for process in ranks:
                    process.kill()
                    process.wait()
            time.sleep(0.05)
        for rank, process in enumerate(ranks):  # shown where a test fails
            if process.returncode:
                print(f"rank {rank}:", (exp / f"log{rank}").read_text()[-2000:])
        return [process.returncode for process in ranks]

    return run
