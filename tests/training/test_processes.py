"""Who started the processes, and what they wait for."""

import logging

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from speechattn.data.batches.batch import Item, collate
from speechattn.errors import ConfigError
from speechattn.losses import JointLoss
from speechattn.model.directory import build_model
from speechattn.training.options import TrainingOptions
from speechattn.training.processes import is_first, leaves_out, processes, quieten
from tests.losses.encoding import loss_of


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID",
                 "SLURM_NTASKS", "SLURM_PROCID", "SLURM_NNODES", "SLURM_JOB_NAME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def torchrun(monkeypatch):
    def start(rank: int, local: int, world: int) -> None:
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank % local), ("WORLD_SIZE", world),
                            ("LOCAL_WORLD_SIZE", local), ("TORCHELASTIC_RUN_ID", "x")):  # fmt: skip
            monkeypatch.setenv(name, str(value))

    return start


@pytest.fixture
def srun(monkeypatch):
    def start(rank: int, tasks: int, nodes: int) -> None:
        values = {"NTASKS": tasks, "PROCID": rank, "NNODES": nodes, "JOB_NAME": "train"}
        values["NTASKS_PER_NODE"] = tasks // nodes
        for name, value in values.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))

    return start


def test_alone_the_options_decide():
    assert processes(TrainingOptions()) == (1, 1, None)
    assert processes(TrainingOptions(devices=4, nodes=2)) == (4, 2, None)
    assert is_first()


def test_torchrun_decides(torchrun):
    torchrun(rank=5, local=4, world=8)
    assert processes(TrainingOptions())[:2] == (4, 2)
    assert processes(TrainingOptions(devices=4, nodes=2))[:2] == (4, 2)
    assert not is_first()
    with pytest.raises(ConfigError, match="training.devices is 8 .*torchrun started 4 .* 2 nodes"):
        processes(TrainingOptions(devices=8))
    torchrun(rank=0, local=1, world=1)
    assert is_first()
    with pytest.raises(ConfigError, match="training.devices is 2"):
        processes(TrainingOptions(devices=2))


def test_slurm_decides(srun):
    srun(rank=0, tasks=8, nodes=2)
    devices, nodes, environment = processes(TrainingOptions())
    assert (devices, nodes) == (4, 2) and is_first()
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue is False
    with pytest.raises(ConfigError, match="training.devices is 2 .*srun started 4"):
        processes(TrainingOptions(devices=2))
    srun(rank=3, tasks=8, nodes=2)
    assert not is_first()


def test_one_slurm_task_starts_the_others(srun):
    srun(rank=0, tasks=1, nodes=1)
    devices, nodes, environment = processes(TrainingOptions(devices=4))
    assert (devices, nodes) == (4, 1) and isinstance(environment, LightningEnvironment)


def test_only_the_first_speaks(torchrun):
    own = logging.getLogger("speechattn")
    level = own.level
    try:
        quieten()
        assert own.level == level
        torchrun(rank=1, local=2, world=2)
        quieten()
        assert own.level == logging.ERROR
    finally:
        own.setLevel(level)


LOSSES = [
    {},
    {"ctc_weight": 1.0},
    {"ctc_weight": 0.0},
    {"stream_ctc_weight": 0.3},
    {"reverse_weight": 0.3},
    {"reverse_weight": 1.0},
    {"intermediate_weight": 0.3},
]


@pytest.mark.parametrize("weights", LOSSES, ids=str)
@pytest.mark.parametrize("modality", ["audio", "av"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_weights_that_a_step_passes_by(tiny_model, modality, both_ways, weights):
    """What the rule says is what a backward pass finds."""
    section = tiny_model(modality)
    if both_ways:
        section["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"
    elif "reverse_weight" in weights:
        return
    arguments = section["audio"]["encoder"]["init_args"]
    arguments.update(
        num_blocks=2, **({"intermediate": [1]} if "intermediate_weight" in weights else {})
    )
    torch.manual_seed(0)
    model, loss = build_model(section, 7), JointLoss(**weights)
    rng = torch.Generator().manual_seed(0)
    items = [
        Item(str(n), "", [2, 3], torch.randn(640 * n, generator=rng).numpy(),
             torch.randint(0, 255, (n, 16, 16), generator=rng, dtype=torch.uint8).numpy())
        for n in (12, 20)
    ]  # fmt: skip
    loss_of(loss, model, collate(items)).loss.backward()
    passed_by = [name for name, p in model.named_parameters() if p.grad is None]
    assert leaves_out(model, loss) == bool(passed_by), passed_by


@pytest.mark.parametrize("name", ["layer_drop", "stochastic_depth"])
def test_blocks_that_chance_skips(tiny_model, name):
    section = tiny_model("audio", "e_branchformer")
    assert not leaves_out(build_model(section, 7), JointLoss())
    section["audio"]["encoder"]["init_args"][name] = 0.1
    assert leaves_out(build_model(section, 7), JointLoss())
