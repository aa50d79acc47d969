"""One process of several that train: run by the fixture `train_processes`, as torchrun would.

Not a fork of the tests' process: autograd cannot go on in a fork of a process that has used it.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

from speechattn.losses import JointLoss
from speechattn.training import train
from speechattn.training.task import SpeechTask


def log_batches(rank: int, exp: Path) -> None:
    """Write down what the rank learns from."""
    original = SpeechTask.training_step

    def step(self, batch, index):
        with (exp / f"batches{rank}").open("a") as file:
            print(self.trainer.current_epoch, index, *sorted(batch.ids), file=file)
        return original(self, batch, index)

    SpeechTask.training_step = step


def kill_at(rank: int, at: int) -> None:
    """SIGKILL of the second process before it takes this step."""
    original = SpeechTask.training_step

    def step(self, batch, index):
        if rank == 1 and self.trainer.global_step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, index)

    SpeechTask.training_step = step


def spoil(utterance: str) -> None:
    """The loss of a batch with this utterance is no number."""
    original = JointLoss.forward

    def forward(self, model, encoded, batch):
        parts = original(self, model, encoded, batch)
        if model.training and utterance in batch.ids:
            parts.loss = parts.loss * float("nan")
        return parts

    JointLoss.forward = forward


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    rank, exp, data = int(os.environ["RANK"]), Path(job["exp"]), Path(job["data"])
    logging.basicConfig(level=logging.INFO)
    # The last to be put round a step is the first to run: a killed step has not been written down.
    log_batches(rank, exp)
    if job["kill_at"] is not None:
        kill_at(rank, job["kill_at"])
    if job["spoil"] is not None:
        spoil(job["spoil"])
    config = job["config"]
    train(
        config,
        data / "cuts_train.jsonl.gz",
        data / "cuts_dev.jsonl.gz",
        data / "tokens",
        exp,
        crops=data / "crops" if "video" in config["model"] else None,
    )


if __name__ == "__main__":
    main()
