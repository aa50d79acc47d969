"""LocalSelfAttention against loops over its windows; layers of it beside layers that see all."""

import jsonargparse
import pytest
import torch

from speechattn.attention import LocalSelfAttention, SoftmaxSelfAttention
from speechattn.attention.rotary import rotate
from speechattn.encoders import ConformerEncoder, Encoder
from speechattn.kernels.attention.window import AttentionWindow
from speechattn.masks import Chunks
from tests.attention.test_conformance import (
    FRAMES,
    assert_no_look_ahead,
    assert_padding_does_not_matter,
    inputs,
    randomised,
)

D, H = 16, 2
DILATED = {"window": (4, 3), "stride": 2, "dilation": 3}
OPTIONS = [{"window": 5}, {"window": (6, 0), "sink": True, "rotary": False}, DILATED]


def make(**options) -> LocalSelfAttention:
    return randomised(LocalSelfAttention(D, H, **options))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_formula(options, causal):
    """Each query over the keys that its window has, written out for an item."""
    module, x = make(**options), inputs()[:1]
    window = AttentionWindow.from_size(
        *(options.get(k, 1) for k in ("window", "stride", "dilation"))
    )
    q, k, v = (f(x).unflatten(-1, (H, -1)) for f in (module.query, module.key, module.value))
    if options.get("rotary", True):
        q, k = rotate(q), rotate(k)
    y, frames = torch.zeros_like(q), torch.arange(FRAMES)
    for i in range(FRAMES):
        seen = window.visible(torch.tensor(i), frames)
        if causal:
            seen = seen & (frames <= i)
        for h in range(H):
            scores = k[0, seen, h] @ q[0, i, h] / (D // H) ** 0.5
            if module.sink is not None:
                scores = torch.cat((scores, module.sink[h : h + 1]))
            y[0, i, h] = scores.softmax(0)[: seen.sum()] @ v[0, seen, h]
    found = module(x, torch.tensor([FRAMES]), chunks=Chunks(1) if causal else None)
    torch.testing.assert_close(found, module.output(y.flatten(2)))


def test_dilated_windows_conform():
    assert_padding_does_not_matter(make(**DILATED))
    assert_no_look_ahead(make(**DILATED))


@pytest.mark.parametrize("sizes", [[1] * 23, [7, 1, 15], [22, 1]], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_streams_keep_what_they_need(options, sizes):
    """Steps of any size give what the parallel pass gives, from a cache that does not grow."""
    module, x = make(**options), inputs()
    with torch.no_grad():
        expected = module(x, torch.full((len(x),), FRAMES), chunks=Chunks(1))
        state, parts = module.init_state(len(x)), []
        for part in x.split(sizes, dim=1):
            y, state = module.step(part, state)
            parts.append(y)
            assert state.frames <= module.window.reach
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    assert state.start + state.frames == FRAMES


def test_frames_beyond_the_window_are_not_seen():
    module, x = make(window=(4, 2)), inputs()[:1]
    y = module(x, torch.tensor([FRAMES]))
    x[:, 10] += 1.0
    changed = (module(x, torch.tensor([FRAMES])) != y)[0].any(-1).nonzero()[:, 0]
    assert changed.tolist() == list(range(8, 15))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 0}, "at least 1 frame"),
        ({"window": 4, "stride": 5}, "smaller stride or a larger window"),
        ({"heads": 3}, "3 heads do not cut width 16 into even parts"),
        ({"heads": 16}, "16 heads do not cut"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        LocalSelfAttention(D, **{"heads": H, **options})


def test_chunks_that_it_does_not_know():
    with pytest.raises(ValueError, match="LocalSelfAttention sees whole sequences, or one frame"):
        make()(inputs(), torch.full((5,), FRAMES), chunks=Chunks(4))


def local_and_full(full: int, **options) -> ConformerEncoder:
    """Three layers from a config's list, the last `full` of them softmax attention (MASFormer)."""
    local = {
        "class_path": "speechattn.attention.LocalSelfAttention",
        "init_args": {"window": [1, 1]},
    }
    options = {
        "input_size": D,
        "output_size": D,
        "attention_heads": H,
        "linear_units": 8,
        "num_blocks": 3,
        "subsampling": "linear",
        "dropout": 0.0,
        "conv_kernel": 3,
        "attention": [local] * (3 - full) + ["SoftmaxSelfAttention"] * full,
        **options,
    }
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoder", type=Encoder)
    config = {"encoder": {"class_path": "ConformerEncoder", "init_args": options}}
    torch.manual_seed(0)
    return parser.instantiate_classes(parser.parse_object(config)).encoder.double()


@pytest.mark.parametrize("full", [0, 1])
def test_local_layers_beside_full_ones(full):
    encoder = local_and_full(full)
    kinds = [type(block.attention) for block in encoder.blocks]
    assert kinds == [LocalSelfAttention] * (3 - full) + [SoftmaxSelfAttention] * full
    x, lengths = inputs()[:3], torch.tensor([FRAMES, 9, 4])
    encoder.eval()
    y = encoder(x, lengths)[0]
    changed = x.clone()
    changed[:, 0] += torch.randn(D)
    reached = ((encoder(changed, lengths)[0] - y).abs() > 1e-12).any(-1)[0]
    # A layer's window and its convolution look one frame far each.
    assert reached.tolist() == [full == 1 or t <= 6 for t in range(FRAMES)]
    encoder.train()(x, lengths)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_such_an_encoder_streams():
    encoder = local_and_full(1, causal=True, chunk_size=1).eval()
    x, lengths = inputs()[:2], torch.tensor([FRAMES, FRAMES])
    with torch.no_grad():
        state, parts = encoder.init_state(2), []
        for part in x.split([4, 1, 18], dim=1):
            y, state = encoder.step(part, state)
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), encoder(x, lengths)[0])
