"""Cmvn: by utterance, by statistics of a corpus, from each kind of file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from speechattn.errors import ConfigError
from speechattn.frontends import LogMelFbank
from speechattn.frontends.cmvn import Cmvn, read_statistics

LENGTHS = torch.tensor([5, 0, 3, 1])


def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3.0 * torch.randn(4, 6, 7, generator=generator) + 20.0


@pytest.fixture(params=["espnet", "kaldi", "mean_istd"])
def statistics(request, tmp_path):
    """A file, and the frames it was made of."""
    frames = np.random.default_rng(0).normal(5.0, [1, 2, 3, 4, 5, 6, 7], (100, 7))
    sums = frames.sum(0), np.square(frames).sum(0)
    if request.param == "espnet":
        path = tmp_path / "feats_stats.npz"
        np.savez(path, count=100, sum=sums[0], sum_square=sums[1])
    elif request.param == "kaldi":
        path = tmp_path / "cmvn.npy"
        np.save(path, np.stack([np.append(sums[0], 100), np.append(sums[1], 0)]))
    else:
        path = tmp_path / "cmvn.npz"
        np.savez(path, mean=frames.mean(0), istd=1 / frames.std(0))
    return str(path), frames


def test_global_is_the_corpus_made_standard(statistics):
    path, frames = statistics
    cmvn = Cmvn("global", 7, path)
    x = features()
    found = cmvn(x, LENGTHS)
    for row, item, n in zip(found, x, LENGTHS.tolist(), strict=True):
        expected = (item[:n].numpy() - frames.mean(0)) / frames.std(0)
        np.testing.assert_allclose(row[:n], expected, atol=1e-4, rtol=1e-5)
        assert not row[n:].any()


@pytest.mark.parametrize("kind", ["utterance", "utterance_mean", "none"])
def test_utterance(kind):
    x = features()
    found = Cmvn(kind, 7)(x, LENGTHS)
    for row, item, n in zip(found, x, LENGTHS.tolist(), strict=True):
        expected = item[:n].double()
        if kind != "none":
            expected = expected - expected.mean(0)
        if kind == "utterance" and n > 1:
            expected = expected / expected.square().mean(0).sqrt()
        torch.testing.assert_close(row[:n].double(), expected, atol=1e-4, rtol=1e-5)
        assert not row[n:].any()


def test_a_checkpoint_carries_the_statistics(statistics, tmp_path):
    path, _ = statistics
    trained = LogMelFbank(7, normalise="global", statistics=path)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    elsewhere = LogMelFbank(7, normalise="global", statistics="/no/such/file.npz")
    wave, length = torch.randn(1, 4000), torch.tensor([4000])
    with pytest.raises(ConfigError, match="no such|no statistics"):
        elsewhere(wave, length)
    elsewhere.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(elsewhere(wave, length), trained(wave, length))


def test_files_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "other.npz", mean=np.zeros(7))
    with pytest.raises(ConfigError, match="other.npz.*mean"):
        read_statistics(tmp_path / "other.npz")
    np.savez(tmp_path / "wide.npz", mean=np.zeros(7), istd=np.ones(7))
    with pytest.raises(ConfigError, match="7 bands, but the features have 80"):
        LogMelFbank(normalise="global", statistics=str(tmp_path / "wide.npz"))
    with pytest.raises(ConfigError, match="normalise"):
        LogMelFbank(normalise="utterance", statistics=str(tmp_path / "wide.npz"))
