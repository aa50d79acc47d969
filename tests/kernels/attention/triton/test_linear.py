"""Linear attention in Triton against the sum written out, forwards and all gradients."""

import pytest
import torch

from speechattn.masks import padding_mask

pytest.importorskip("triton")


def kernel(*arguments, **settings):
    from speechattn.kernels.attention.triton.linear import linear_attention

    return linear_attention(*arguments, **settings)


def definition(q, k, v, lengths, decay, causal=True):
    """Quadratic; each weight by itself."""
    i = torch.arange(q.shape[1], device=q.device)
    apart = i[:, None] - i
    kept = (decay.double()[:, None, None] * apart.abs()).exp()  # (H, T, T)
    if causal:
        kept = kept * (apart >= 0)
    real = padding_mask(lengths, q.shape[1])
    kept = kept * (real[:, None, None] & real[:, None, :, None])
    return torch.einsum("bihd,bjhd,bhij,bjhe->bihe", q, k, kept, v)


def compare(
    lengths, device, tolerance, depths=(8, 8), decay=(-0.3, 0.0), dtype=torch.float, **settings
):
    torch.manual_seed(0)
    frames, depth, width = max(*lengths, 1), *depths
    decay = torch.tensor(decay, device=device)
    shapes = [(len(lengths), frames, len(decay), d) for d in (depth, depth, width)]
    tensors = [torch.randn(s).to(device, dtype).requires_grad_() for s in shapes]
    doubles = [x.detach().double().requires_grad_() for x in tensors]
    lengths = torch.tensor(lengths, device=device)
    y = definition(*doubles, lengths=lengths, decay=decay, **settings)
    z = kernel(*tensors, lengths=lengths, decay=decay, **settings)
    assert torch.isfinite(z).all()
    assert (y - z).abs().max() < tolerance * max(1, y.abs().max())
    weight = torch.randn_like(y)
    expected = torch.autograd.grad((y * weight).sum(), doubles)
    found = torch.autograd.grad((z * weight.to(z.dtype)).sum(), tensors)
    for name, a, b in zip("qkv", expected, found, strict=True):
        assert (a - b).abs().max() < tolerance * max(1, a.abs().max()), name


@pytest.mark.parametrize("lengths", [[34, 0, 16], [1, 17], [0, 0]], ids=str)
def test_equals_definition(lengths, device):
    compare(lengths, device, 1e-5)


def test_both_sides(device):
    compare([20, 17], device, 1e-5, decay=(-0.3,), causal=False)


def test_no_decay(device):
    q = torch.randn(1, 5, 1, 8, device=device)
    y = kernel(q, q, q, lengths=torch.tensor([5], device=device))
    expected = (q[0, :, 0] @ q[0, :, 0].T).tril() @ q[0, :, 0]
    assert torch.allclose(y[0, :, 0], expected, atol=1e-5)


def test_widths(device):
    """The state wider than a program's columns, and neither a power of two."""
    compare([20], device, 1e-5, depths=(20, 37), decay=(-0.1,))


def test_halves(device):
    compare([20], device, 0.03, dtype=torch.bfloat16)


def test_strong_decay_over_many_frames(device):
    """exp(-g t) by itself would be infinite within a block."""
    compare([50], device, 1e-5, decay=(-60.0, -1e-4))


def test_what_stands_in_the_padding(device):
    torch.manual_seed(0)
    lengths = torch.tensor([5, 20], device=device)
    q, k, v = (torch.randn(2, 20, 1, 8, device=device) for _ in range(3))
    decay = torch.tensor([-0.2], device=device)
    y = kernel(q, k, v, lengths=lengths, decay=decay)
    hidden = ~padding_mask(lengths, 20)[..., None, None]
    z = kernel(*(x.masked_fill(hidden, 1e30) for x in (q, k, v)), lengths=lengths, decay=decay)
    assert torch.equal(y, z) and y[0, 5:].abs().max() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float, 5e-5), (torch.bfloat16, 0.04)], ids=str)
@pytest.mark.parametrize("depths", [(64, 64), (128, 128), (80, 96)], ids=str)
def test_on_a_gpu(depths, dtype, tolerance, device):
    compare([700, 0, 513, 64], device, tolerance, depths, (-0.3, -0.01, 0.0), dtype)
