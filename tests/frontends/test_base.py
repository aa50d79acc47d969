"""Frontends step by step: pieces of any size give what the whole input gives."""

import numpy as np
import pytest
import torch

from speechattn.deploy.visual_frontend import fold_frontend
from speechattn.errors import ConfigError
from speechattn.frontends import (
    Conv1dResNet,
    EnhancedResNet3D,
    EspnetLogMel,
    FrontendState,
    LogMelFbank,
    ResNet3D,
)

FRONTENDS = {
    "fbank": lambda: LogMelFbank(20, normalise="none"),
    "espnet": lambda: EspnetLogMel(20, normalise="none"),
    "espnet_long_hop": lambda: EspnetLogMel(20, fft_size=200, hop=160, normalise="none"),
    "resnet": lambda: ResNet3D(4, [4, 4, 6, 8], [1, 1, 1, 1]),
    "folded": lambda: fold_frontend(ResNet3D(4, [4, 4, 6, 8], [1, 1, 1, 1]).eval()),
    "enhanced": lambda: EnhancedResNet3D(
        stem_channels=4,
        channels=[8, 8, 8, 8],
        blocks=[1, 1, 1, 1],
        temporal=["shift", "none", "conv", "none"],
    ),
}


@pytest.mark.parametrize("name", FRONTENDS)
@pytest.mark.parametrize(("length", "streams"), [(0, 1), (1, 1), (2, 1), (7, 2), (40, 1)])
@torch.no_grad()
def test_steps_give_what_the_whole_gives(name, length, streams):
    torch.manual_seed(0)
    frontend = FRONTENDS[name]().eval()
    reach = frontend.reach()
    if name in ("fbank", "espnet", "espnet_long_hop"):
        x, most = torch.randn(streams, 170 * length + length % 3), 500
    else:
        x, most = torch.randint(0, 256, (streams, length, 1, 24, 24)).float(), 5
    for seed in range(3):
        state, got, start = FrontendState(), [], 0
        rng = np.random.default_rng(seed)
        while start < x.shape[1]:
            size = int(rng.integers(0, most))
            y, state = frontend.step(x[:, start : start + size], state)
            got.append(y)
            start += size
            features = sum(g.shape[1] for g in got)
            # As many as `inputs` says, no sooner and no later.
            assert features == reach.features(min(start, x.shape[1]))
            assert not features or reach.inputs(features) <= min(start, x.shape[1])
        y, _ = frontend.step(x[:, :0], state, last=True)
        got = torch.cat([*got, y], 1)
        if x.shape[1]:
            wanted, lengths = frontend(x, torch.full((streams,), x.shape[1]))
            wanted = wanted[:, : int(lengths[0])]
        else:
            wanted = got[:, :0]
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [FRONTENDS["resnet"], FRONTENDS["folded"]])
@torch.no_grad()
def test_pictures_at_the_sides_go_through_no_trunk(make):
    """A step of one picture runs the trunk on one, whatever the window holds."""
    frontend, counts = make().eval(), []
    frontend.trunk[0].register_forward_hook(lambda m, args, y: counts.append(len(args[0])))
    state = FrontendState()
    for _ in range(6):
        _, state = frontend.step(torch.rand(1, 1, 1, 24, 24) * 255, state)
    assert counts == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogMelFbank(20), "`normalise: utterance` needs.*normalise: global"),
        (lambda: EspnetLogMel(20, normalise="utterance_mean"), "normalise: utterance_mean"),
        (lambda: ResNet3D(normalise="clip"), "`normalise: clip` needs.*normalise: fixed"),
        (lambda: fold_frontend(ResNet3D(normalise="clip").eval()), "normalise: clip"),
        (Conv1dResNet, "Conv1dResNet needs the whole utterance; use LogMelFbank"),
    ],
)
def test_what_needs_the_whole_utterance_says_so(make, message):
    with pytest.raises(ConfigError, match=message):
        make().step(torch.zeros(1, 0), FrontendState())
