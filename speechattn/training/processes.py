"""The processes of a training: who started them, who writes files, what they wait for."""

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

# Arguments of encoders, their blocks and frontends that leave whole parts out by chance.
CHANCES = ("layer_drop", "stochastic_depth", "attention_drop")


def processes(options: TrainingOptions) -> tuple[int, int, ClusterEnvironment | None]:
    """Processes a node, nodes, and what Lightning has to know of who started them.

    Raises:
        ConfigError: the options say another number than torchrun or srun started.
    """
    asked = options.devices, options.nodes
    if TorchElasticEnvironment.detect():
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        found, launcher = (local, int(os.environ["WORLD_SIZE"]) // local), "torchrun"
        environment = TorchElasticEnvironment()
    elif SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        found, launcher = (int(os.environ["SLURM_NTASKS"]) // nodes, nodes), "srun"
        if found == (1, 1):  # a task that starts the others itself, as outside of Slurm
            return *asked, LightningEnvironment()
        # A job that was requeued runs the same command, which goes on from its own checkpoint.
        environment = SLURMEnvironment(auto_requeue=False)
    else:
        return *asked, None
    if asked not in ((1, 1), found):
        raise ConfigError(
            f"training.devices is {asked[0]} and training.nodes {asked[1]}, but {launcher} started "
            f"{found[0]} processes on each of {found[1]} nodes; leave the two out, they follow"
        )
    return *found, environment


def is_first() -> bool:
    """Whether this process writes and reports, of those that train together."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["RANK"]) == 0
    return not any(
        int(os.environ.get(name, 0)) for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    )


def quieten() -> None:
    """Leave what the package says to the first process."""
    if not is_first():
        logging.getLogger("speechattn").setLevel(logging.ERROR)


def leaves_out(model: nn.Module, loss: JointLoss) -> bool:
    """Whether a step may pass by some weights, for which DDP would wait.

    They are those of blocks that chance skips, of heads and decoders that the loss does not weigh,
    and, for all that is known, of classes of other packages.
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
        # The simple joiner learns from the pruned loss alone.
        spare = model.transducer.simple_am is not None
        if not loss.transducer_weight or (
            spare and not isinstance(loss.transducer, PrunedTransducerLoss)
        ):
            return True
    return bool(model.stream_ctc) and loss.stream_ctc_weight == 0.0
