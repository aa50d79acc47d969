"""LogMelFbank against torchaudio's Kaldi features, alone and in ragged batches."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from speechattn.frontends import LogMelFbank


def waves(*sizes: int) -> list[torch.Tensor]:
    """Coloured noise with a tone, of a different loudness each."""
    generator = torch.Generator().manual_seed(sum(sizes))
    found = []
    for i, n in enumerate(sizes):
        noise = torch.randn(n, generator=generator)
        noise[1:] += 0.9 * noise[:-1].clone()
        tone = torch.sin(2 * torch.pi * (300 + 500 * i) * torch.arange(n) / 16000)
        found.append(0.02 * (i + 1) * (noise + tone))
    return found


@pytest.mark.parametrize("size", [400, 401, 559, 560, 16000, 47360 - 1])
@pytest.mark.parametrize("bins", [80, 40])
def test_equals_kaldi(size, bins):
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    (wave,) = waves(size)
    expected = kaldi.fbank(wave[None] * 2**15, dither=0.0, num_mel_bins=bins)
    found, lengths = LogMelFbank(bins, normalise="none")(wave[None], torch.tensor([size]))
    assert lengths.tolist() == [len(expected)]
    assert found.shape == (1, *expected.shape)
    torch.testing.assert_close(found[0], expected, atol=3e-4, rtol=0)


def test_equals_kaldi_at_another_rate():
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    (wave,) = waves(8000)
    expected = kaldi.fbank(wave[None] * 2**15, dither=0.0, num_mel_bins=23, sample_frequency=8000.0)
    found, _ = LogMelFbank(23, sample_rate=8000, normalise="none")(wave[None], torch.tensor([8000]))
    torch.testing.assert_close(found[0], expected, atol=3e-4, rtol=0)


@pytest.mark.parametrize("normalise", ["utterance", "none"])
def test_padding_changes_nothing(normalise):
    fbank = LogMelFbank(normalise=normalise)
    items = waves(400, 47360, 399, 12345, 640, 0)
    lengths = torch.tensor([len(w) for w in items])
    batch = pad_sequence(items, batch_first=True, padding_value=0.7)  # garbage beyond the end
    found, frames = fbank(batch, lengths)
    assert frames.tolist() == [1, 294, 0, 75, 2, 0]
    assert frames.dtype == torch.int64
    for row, n, wave in zip(found, frames.tolist(), items, strict=True):
        alone, one = fbank(wave[None], torch.tensor([len(wave)]))
        assert one.tolist() == [n]
        torch.testing.assert_close(row[:n], alone[0, :n], atol=1e-5, rtol=1e-5)
        assert not row[n:].any()


def test_frames_of_a_clip_of_74_pictures():
    _, frames = LogMelFbank()(torch.zeros(1, 74 * 640), torch.tensor([74 * 640]))
    assert frames.tolist() == [294]  # (74 * 640 - 400) // 160 + 1


def test_utterance_normalisation():
    fbank = LogMelFbank()
    wave = waves(16000)[0][None]
    found, frames = fbank(wave, torch.tensor([16000]))
    torch.testing.assert_close(found.mean(1), torch.zeros(1, 80), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.square().mean(1), torch.ones(1, 80), atol=1e-4, rtol=0)
    louder, _ = fbank(wave * 7, torch.tensor([16000]))
    torch.testing.assert_close(louder, found, atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalise", ["utterance", "none"])
def test_gradient_is_finite(normalise):
    """Silence, one frame and no frame at all included."""
    items = [*waves(4000), torch.zeros(2000), waves(401)[0], waves(100)[0], torch.zeros(0)]
    lengths = torch.tensor([len(w) for w in items])
    batch = pad_sequence(items, batch_first=True).requires_grad_()
    found, _ = LogMelFbank(normalise=normalise)(batch, lengths)
    (found * torch.randn(found.shape)).sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(batch.grad).all()
    assert batch.grad[0].any()


def test_gradient_is_the_slope():
    fbank = LogMelFbank(8)
    wave = waves(900)[0].double()[None].float().requires_grad_()
    weight = torch.randn(1, 4, 8)
    (fbank(wave, torch.tensor([900]))[0] * weight).sum().backward()
    direction = torch.randn(1, 900) * wave.detach().std()
    with torch.no_grad():
        up, down = (
            (fbank(wave + s * direction, torch.tensor([900]))[0] * weight).sum()
            for s in (1e-3, -1e-3)
        )
    torch.testing.assert_close(
        (wave.grad * direction).sum(), (up - down) / 2e-3, atol=2e-2, rtol=2e-2
    )


def test_half_precision_does_not_overflow():
    fbank, wave = LogMelFbank(), torch.ones(1, 1600) * torch.tensor([1.0, -1.0]).repeat(800)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = fbank(wave, torch.tensor([1600]))
    torch.testing.assert_close(found, fbank(wave, torch.tensor([1600]))[0])
    assert torch.isfinite(found).all()


def test_nothing_is_saved():
    assert LogMelFbank().state_dict() == {}
