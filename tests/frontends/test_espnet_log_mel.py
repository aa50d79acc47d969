"""EspnetLogMel against torch's STFT, torchaudio's mel filters, and ESPnet itself."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from speechattn.frontends import EspnetLogMel

INSTALL = (
    "needs ESPnet's frontend: pip install --no-deps --ignore-requires-python espnet==202611, "
    "pip install librosa typeguard humanfriendly torch_complex"
)
SETTINGS = {
    "default": ({}, {}),
    "hop160": ({"hop": 160, "window_size": 400}, {"hop_length": 160, "win_length": 400}),
    "htk": ({"htk": True, "low": 20, "high": 7600}, {"htk": True, "fmin": 20, "fmax": 7600}),
}


def waves(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [0.05 * torch.randn(n, generator=generator) for n in sizes]


@pytest.mark.parametrize("size", [300, 12345, 16000, 16001])
@pytest.mark.parametrize("name", SETTINGS)
def test_equals_torch_and_torchaudio(name, size):
    functional = pytest.importorskip("torchaudio.functional")
    ours, _ = SETTINGS[name]
    htk = ours.get("htk", False)
    filters = functional.melscale_fbanks(
        257,
        float(ours.get("low", 0)),
        float(ours.get("high", 8000)),
        80,
        16000,
        norm="slaney",
        mel_scale="htk" if htk else "slaney",
    )
    (wave,) = waves(size)
    window = ours.get("window_size", 512)
    spectrum = torch.stft(
        wave,
        512,
        ours.get("hop", 128),
        window,
        torch.hann_window(window),
        center=True,
        return_complex=True,
    )
    expected = (spectrum.abs().square().T @ filters).clamp(min=1e-10).log()
    model = EspnetLogMel(normalise="none", **ours)
    found, frames = model(wave[None], torch.tensor([size]))
    assert frames.tolist() == [len(expected)]
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_espnet(name, tmp_path):
    default = pytest.importorskip(
        "espnet2.asr.frontend.default", reason=INSTALL, exc_type=ImportError
    )
    layer = pytest.importorskip("espnet2.layers.global_mvn", reason=INSTALL, exc_type=ImportError)
    by_utterance = pytest.importorskip(
        "espnet2.layers.utterance_mvn", reason=INSTALL, exc_type=ImportError
    )
    ours, theirs = SETTINGS[name]
    frontend = default.DefaultFrontend(**theirs)
    rng = np.random.default_rng(0)
    frames = rng.normal(-3.0, 2.0, (500, 80))
    path = tmp_path / "feats_stats.npz"
    np.savez(path, count=500, sum=frames.sum(0), sum_square=np.square(frames).sum(0))
    norms = {
        "global": layer.GlobalMVN(path),
        "utterance_mean": by_utterance.UtteranceMVN(),
        "utterance": by_utterance.UtteranceMVN(norm_vars=True),
        "none": lambda x, lengths: (x, lengths),
    }
    for normalise, norm in norms.items():
        statistics = str(path) if normalise == "global" else None
        model = EspnetLogMel(normalise=normalise, statistics=statistics, **ours)
        for wave in waves(300, 16001):
            length = torch.tensor([len(wave)])
            expected, lengths = norm(*frontend(wave[None], length))
            found, count = model(wave[None], length)
            assert count.tolist() == lengths.tolist()
            torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("normalise", ["utterance", "none"])
def test_padding_changes_nothing(normalise):
    model = EspnetLogMel(normalise=normalise)
    items = waves(16000, 0, 1, 100, 5000, 255, 257)
    lengths = torch.tensor([len(w) for w in items])
    batch = pad_sequence(items, batch_first=True, padding_value=0.7)  # garbage beyond the end
    found, frames = model(batch, lengths)
    assert frames.tolist() == [126, 0, 1, 1, 40, 2, 3]
    for row, n, wave in zip(found, frames.tolist(), items, strict=True):
        assert not row[n:].any()
        if n:
            alone, one = model(wave[None], torch.tensor([len(wave)]))
            assert one.tolist() == [n]
            torch.testing.assert_close(row[:n], alone[0], atol=1e-4, rtol=1e-5)


def test_only_statistics_are_saved():
    assert set(EspnetLogMel().state_dict()) == {"cmvn.mean", "cmvn.istd"}
    assert EspnetLogMel(normalise="none").state_dict() == {}
