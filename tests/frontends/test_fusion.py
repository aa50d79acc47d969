"""MLPFusion: two streams that differ in length, padded, and dropped in training."""

import pytest
import torch
from torch import nn

from speechattn.frontends import MLPFusion

AUDIO, VIDEO = torch.tensor([7, 0, 3, 5, 1]), torch.tensor([6, 4, 3, 8, 1])


def small(stream_dropout: float = 0.0) -> MLPFusion:
    torch.manual_seed(0)
    model = MLPFusion(3, 5, 16, 4, stream_dropout=stream_dropout)
    nn.init.normal_(model.norm.running_mean)
    nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    return model.eval()


def test_padding_changes_nothing():
    model = small()
    audio, video = torch.randn(5, 7, 3), torch.randn(5, 9, 5)  # garbage beyond the lengths
    with torch.inference_mode():
        found, lengths = model(audio, AUDIO, video, VIDEO)
        assert lengths.tolist() == [6, 0, 3, 5, 1]
        assert found.shape == (5, 7, 4)
        for i, n in enumerate(lengths.tolist()):
            a, v = int(AUDIO[i]), int(VIDEO[i])
            alone, one = model(
                audio[i : i + 1, :a], AUDIO[i : i + 1], video[i : i + 1, :v], VIDEO[i : i + 1]
            )
            assert one.tolist() == [n]
            torch.testing.assert_close(found[i, :n], alone[0, :n], atol=1e-6, rtol=1e-5)
            assert not found[i, n:].any()


def test_training_is_the_perceptron_on_the_real_frames():
    model = small().train()
    audio, video = torch.randn(5, 7, 3), torch.randn(5, 9, 5)
    found, lengths = model(audio, AUDIO, video, VIDEO)
    rows = [torch.cat([audio[i, :n], video[i, :n]], dim=-1) for i, n in enumerate(lengths.tolist())]
    layers = nn.Sequential(model.up, nn.BatchNorm1d(16), nn.ReLU(), model.down)
    expected = layers(torch.cat(rows))
    real = torch.arange(7) < lengths[:, None]
    torch.testing.assert_close(found[real], expected)


@pytest.mark.parametrize("chance", [0.4, 1.0])
def test_stream_dropout_takes_one_stream_of_whole_utterances(chance):
    model = small(chance).train()
    model.norm.eval()  # an affine map: what is missing can be seen
    n = 2000
    audio, video = torch.randn(n, 2, 3), torch.randn(n, 2, 5)
    full = torch.full((n,), 2)
    found, _ = model(audio, full, video, full)
    cases = {}
    with torch.no_grad():
        model.eval()
        for name, a, v in (("both", 1, 1), ("video", 0, 1), ("audio", 1, 0)):
            expected, _ = model(audio * a, full, video * v, full)
            cases[name] = torch.isclose(found, expected, atol=1e-5).all(-1).all(-1)
    total = sum(c.long() for c in cases.values())
    assert (total == 1).all()
    for name, share in (("both", 1 - chance), ("video", chance / 2), ("audio", chance / 2)):
        assert cases[name].float().mean().item() == pytest.approx(share, abs=0.04)


def test_no_dropout_in_evaluation():
    model = small(1.0)
    audio, video, n = torch.randn(2, 3, 3), torch.randn(2, 3, 5), torch.tensor([3, 2])
    torch.testing.assert_close(model(audio, n, video, n)[0], model(audio, n, video, n)[0])
