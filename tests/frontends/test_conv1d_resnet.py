"""Conv1dResNet: frame counts, ragged batches, batch norm over real positions."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechattn.frontends import Conv1dResNet
from speechattn.frontends.conv1d_resnet import MaskedBatchNorm1d

SIZES = (640, 74 * 640, 639, 5 * 640 + 1, 7 * 640 - 1, 0)


def small(activation: str = "swish") -> Conv1dResNet:
    torch.manual_seed(0)
    model = Conv1dResNet((4, 6, 8, 10), (2, 1, 1, 1), activation)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def ragged(sizes=SIZES) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = [0.1 * torch.randn(n, generator=generator) for n in sizes]
    batch = pad_sequence(items, batch_first=True, padding_value=0.9)  # garbage beyond the end
    return items, batch, torch.tensor(sizes)


@pytest.mark.parametrize("activation", ["relu", "prelu", "swish"])
def test_padding_changes_nothing(activation):
    model = small(activation)
    items, batch, lengths = ragged()
    with torch.inference_mode():
        found, frames = model(batch, lengths)
        assert frames.tolist() == [1, 74, 0, 5, 6, 0]
        assert found.shape == (6, 74, 10)
        for row, n, wave in zip(found, frames.tolist(), items, strict=True):
            alone, one = model(wave[None], torch.tensor([len(wave)]))
            assert one.tolist() == [n]
            torch.testing.assert_close(row[:n], alone[0, :n], atol=1e-5, rtol=1e-5)
            assert not row[n:].any()


def test_resnet18_has_the_published_size():
    """The 1-D ResNet-18 of 1802.06424, 512 features at 25 Hz."""
    model = Conv1dResNet()
    assert model.output_size == 512
    assert sum(isinstance(m, nn.Conv1d) for m in model.modules()) == 1 + 8 * 2 + 3
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.85e6, rel=0.01)


def test_waveform_is_normalised_as_published():
    """Over all samples, the part of the last frame included, with 1e-8 beside the variance."""
    model = small()
    wave = 1e-4 * torch.randn(1, 3 * 640 + 500)
    seen = []
    model.stem.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model(wave, torch.tensor([wave.shape[1]]))
    expected = nn.functional.layer_norm(wave[0], wave.shape[1:], eps=1e-8)[: 3 * 640]
    torch.testing.assert_close(seen[0][0, 0], expected)


def test_loudness_does_not_matter():
    model = small()
    _, batch, lengths = ragged()
    with torch.inference_mode():
        found, louder = model(batch, lengths)[0], model(7 * batch + 0.3, lengths)[0]
    torch.testing.assert_close(louder, found, atol=1e-4, rtol=1e-4)


def test_masked_norm_is_torchs_over_the_real_positions():
    ours, torchs = MaskedBatchNorm1d(5), nn.BatchNorm1d(5)
    x = torch.randn(3, 5, 7)
    real = torch.arange(7) < torch.tensor([7, 2, 4])[:, None]
    for _ in range(2):
        found = ours(x, real)
        expected = torchs(x.transpose(1, 2)[real])
    torch.testing.assert_close(found.transpose(1, 2)[real], expected)
    assert not found.transpose(1, 2)[~real].any()
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())


def test_training_statistics_do_not_see_the_padding():
    """More padding changes neither the output nor the running statistics nor a gradient."""
    results = []
    for extra in (0, 3 * 640):
        model = small().train()
        _, batch, lengths = ragged()
        batch = nn.functional.pad(batch, (0, extra), value=5.0)
        found, frames = model(batch, lengths)
        (found * torch.linspace(-1, 1, 10)).sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        results.append((found[:, : int(frames.max())], grads, dict(model.named_buffers())))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=1e-3)


def test_gradient_is_finite_for_silence():
    model = small().train()
    batch = torch.stack([torch.zeros(1280), torch.randn(1280)]).requires_grad_()
    model(batch, torch.tensor([1280, 1000]))[0].sum().backward()
    assert torch.isfinite(batch.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
