"""Relative self-attention against ESPnet 202611's, with the same random weights."""

import pytest
import torch

from speechattn.attention import RelativeSelfAttention, relative_positions
from speechattn.kernels.attention import relative_tiles, tiles
from speechattn.masks import Chunks, chunk_mask, padding_mask

_INSTALL = "needs ESPnet: pip install --no-deps --ignore-requires-python espnet==202611 typeguard"
espnet = pytest.importorskip(
    "espnet2.legacy.nets.pytorch_backend.transformer.attention",
    reason=_INSTALL,
    exc_type=ImportError,
)

NAMES = {
    "linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_out": "output",
    "linear_pos": "position", "pos_bias_u": "content_bias", "pos_bias_v": "position_bias",
}  # fmt: skip
HEADS, WIDTH = 4, 32


def ours_of(name):
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("dtype, tolerance", [(torch.double, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunks", [None, Chunks(4, 6)], ids=str)
@pytest.mark.parametrize("lengths", [[150], [131, 40, 1, 77], [9, 30, 30]], ids=str)
def test_forward_and_gradients(lengths, chunks, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(tiles, "_SMALLEST", 48)
    monkeypatch.setattr(tiles, "_LARGEST", 48)
    monkeypatch.setattr(relative_tiles, "KEPT_WEIGHTS", 48 * 48)
    torch.manual_seed(0)
    theirs = espnet.RelPositionMultiHeadedAttention(HEADS, WIDTH, 0.0).to(dtype)
    ours = RelativeSelfAttention(WIDTH, HEADS).to(dtype)
    ours.load_state_dict({ours_of(k): v for k, v in theirs.state_dict().items()})
    frames = max(lengths)
    x = torch.randn(len(lengths), frames, WIDTH, dtype=dtype)
    positions = relative_positions(frames, WIDTH).to(dtype)
    real = padding_mask(torch.tensor(lengths), frames)
    mask = real[:, None].expand(-1, frames, -1)
    if chunks is not None:
        mask = mask & chunk_mask(frames, chunks)
    weight = torch.randn_like(x)
    outputs, gradients = [], []
    for module in (theirs, ours):
        leaf, table = x.clone().requires_grad_(), positions.clone().requires_grad_()
        if module is theirs:
            y = module(leaf, leaf, leaf, table[None], mask)
        else:
            y = module(leaf, torch.tensor(lengths), table, chunks)
        y = y * real[..., None]
        outputs.append(y.detach())
        (y * weight).sum().backward()
        found = {n: p.grad for n, p in module.named_parameters()} | {"x": leaf.grad}
        gradients.append({ours_of(n): g for n, g in found.items()} | {"positions": table.grad})
    assert outputs[0].abs().max() > 0.1
    assert (outputs[0] - outputs[1]).abs().max() < tolerance
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        difference = (gradients[1][name] - expected).abs().max()
        assert difference < tolerance * expected.abs().max().clamp(min=1), name
