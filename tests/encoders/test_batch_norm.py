"""Against `BatchNorm1d` on the real frames laid end to end."""

import pytest
import torch

from speechattn.encoders.batch_norm import MaskedBatchNorm
from speechattn.masks import padding_mask


@pytest.mark.parametrize("lengths", [[7, 3, 5], [4], [6, 0, 1]], ids=str)
def test_equals_torch_on_real_frames(lengths):
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(6), torch.nn.BatchNorm1d(6)
    with torch.no_grad():
        theirs.weight.uniform_(0.5, 2)
        theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict())
    frames = max(lengths) + 2
    real = padding_mask(torch.tensor(lengths), frames)
    for _ in range(3):
        x = torch.randn(len(lengths), frames, 6) * 3 + 5
        x[~real] = 1e3
        results = []
        for module in (ours, theirs):
            module.train()
            module.zero_grad()
            leaf = x.clone().requires_grad_()
            y = module(leaf, torch.tensor(lengths))[real] if module is ours else module(leaf[real])
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
            results.append((y, leaf.grad, module.weight.grad, module.bias.grad))
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
        for name, value in theirs.state_dict().items():
            assert torch.allclose(ours.state_dict()[name], value, atol=1e-5), name
        ours.eval(), theirs.eval()
        y = ours(x, torch.tensor(lengths))[real]
        assert torch.allclose(y, theirs(x[real]), atol=1e-5)


@pytest.mark.parametrize("lengths", [[1], [0, 0]], ids=str)
def test_too_few_frames_stay_finite(lengths):
    module = MaskedBatchNorm(3)
    x = torch.randn(len(lengths), 2, 3, requires_grad=True)
    y = module(x, torch.tensor(lengths))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert all(torch.isfinite(v).all() for v in module.state_dict().values())


@pytest.mark.parametrize("lengths", [[1], [0, 0]], ids=str)
def test_too_few_frames_leave_the_statistics(lengths):
    """One frame has a mean but no variance, no frame has neither."""
    module = MaskedBatchNorm(3)
    module.running_mean.fill_(2.0)
    x = torch.randn(len(lengths), 2, 3)
    module(x, torch.tensor(lengths))
    assert torch.equal(module.running_var, torch.ones(3))
    mean = x[0, 0] if sum(lengths) else module.running_mean
    assert torch.allclose(module.running_mean, 1.8 + 0.1 * mean)


def test_half_precision_keeps_float_statistics():
    module = MaskedBatchNorm(4)
    x = (torch.randn(8, 300, 4) + 20).bfloat16()
    y = module(x, torch.full((8,), 300))
    assert y.dtype == torch.bfloat16
    mean = x.float().mean((0, 1))
    assert torch.allclose(module.running_mean, 0.1 * mean, rtol=1e-3)


def test_survives_conversion_to_sync_batch_norm():
    model = torch.nn.Sequential(MaskedBatchNorm(4))
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[0], MaskedBatchNorm)
