"""The processes of a training run: who started them, which one writes, what they wait for."""

import logging
import os

from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import nn

from speechattn.decoders import BidirectionalDecoder
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss, PrunedTransducerLoss
from speechattn.training.options import TrainingOptions

# Arguments of encoders, their blocks and frontends that skip whole parts by chance.
CHANCES = ("layer_drop", "stochastic_depth", "attention_drop")


def processes(options: TrainingOptions) -> tuple[int, int, ClusterEnvironment | None]:
    """Return processes a node, nodes, and the Lightning environment of their launcher.

    Raises:
        ConfigError: the options say another number than torchrun or srun started.
    """
    wanted = options.devices, options.nodes
    if TorchElasticEnvironment.detect():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        started, launcher = (local, int(os.environ["WORLD_SIZE"]) // local), "torchrun"
        environment = TorchElasticEnvironment()
    elif SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        started, launcher = (int(os.environ["SLURM_NTASKS"]) // nodes, nodes), "srun"
        if started == (1, 1):  # a task that starts the others itself, as outside of Slurm
            return *wanted, LightningEnvironment()
        # A requeued job runs the same command, which resumes from its own checkpoint.
        environment = SLURMEnvironment(auto_requeue=False)
    else:
        return *wanted, None
    if wanted not in ((1, 1), started):
        raise ConfigError(
            f"training.devices is {wanted[0]} and training.nodes {wanted[1]}, but {launcher} "
            f"started {started[0]} processes on each of {started[1]} nodes; omit the two settings"
        )
    return *started, environment


def is_first() -> bool:
    """Return whether this is the process that writes files and reports."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["RANK"]) == 0
    ranks = ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return not any(int(os.environ.get(name, 0)) for name in ranks)


def quieten() -> None:
    """Log in the first process only."""
    if not is_first():
        logging.getLogger("speechattn").setLevel(logging.ERROR)


def leaves_out(model: nn.Module, loss: JointLoss) -> bool:
    """Return whether a step may leave some weights without a gradient, for which DDP would wait.

    These are weights of blocks that are skipped by chance, of heads and decoders that the loss does
    not weigh, and possibly of classes of other packages.
    """
    for module in model.modules():
        ours = type(module).__module__.split(".")[0] in ("speechattn", "torch")
        if not ours or any(getattr(module, name, 0) for name in CHANCES):
            return True
    if model.decoder is not None and loss.ctc_weight == 1.0:
        return True
    if isinstance(model.decoder, BidirectionalDecoder) and loss.reverse_weight in (0.0, 1.0):
        return True
    if model.transducer is not None:
        if not loss.transducer_weight:
            return True
        # Only the pruned loss trains the simple joiner.
        pruned = isinstance(loss.transducer, PrunedTransducerLoss)
        if model.transducer.simple_am is not None and not pruned:
            return True
    return bool(model.stream_ctc) and loss.stream_ctc_weight == 0.0
