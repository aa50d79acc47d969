"""Word times from a model of short reach: tones of known times."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from speechattn.data.tokenizers import CharTokenizer
from speechattn.errors import ConfigError
from speechattn.masks import padding_mask
from speechattn.training.aligner import Aligner, AlignerOptions, AlignerTask, align

HERTZ = {"a": 300, "b": 700, "c": 1500, "d": 3000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words of one tone each, 0.2 s long, at random places of clips of 2.5 s; when they begin."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    cuts, starts = [], {}
    for i in range(48):
        words = list(rng.choice(list(HERTZ), 3))
        at = np.cumsum(rng.uniform(0.25, 0.7, 3))
        wave = 0.003 * rng.standard_normal(40000)
        for word, start in zip(words, at, strict=True):
            t = np.arange(3200) / 16000
            place = round(start * 16000)
            wave[place : place + 3200] += 0.3 * np.sin(2 * np.pi * HERTZ[word] * t)
        key = f"u{i}"
        soundfile.write(folder / f"{key}.flac", wave, 16000)
        recording = Recording.from_file(folder / f"{key}.flac", recording_id=key)
        said = SupervisionSegment(key, key, 0.0, 2.5, text=" ".join(words))
        cuts.append(MonoCut(key, 0.0, 2.5, 0, recording=recording, supervisions=[said]))
        starts[key] = at
    cuts[45].supervisions[0].text = "a b c d " * 40  # more than there are frames for
    CutSet.from_cuts(cuts[:40]).to_file(folder / "cuts_train.jsonl.gz")
    CutSet.from_cuts(cuts[40:]).to_file(folder / "cuts_test.jsonl.gz")
    return folder, starts


def test_tones(corpus, tmp_path, caplog):
    folder, starts = corpus
    tokenizer = CharTokenizer.train(["a b c d"])
    options = AlignerOptions(epochs=30, width=64, lr=2e-3, batch_seconds=10.0, num_workers=0)
    train, test = folder / "cuts_train.jsonl.gz", folder / "cuts_test.jsonl.gz"
    with caplog.at_level(logging.WARNING):
        written = align(train, [test], tokenizer, tmp_path / "aligned", options)
    assert [path.name for path in written] == [train.name, test.name]
    assert "1 of 8 cuts: u45" in caplog.text
    errors = []
    for path in written:
        for cut in CutSet.from_file(path):
            if cut.id == "u45":
                assert cut.supervisions[0].alignment is None
                continue
            words = cut.supervisions[0].alignment["word"]
            assert [w.symbol for w in words] == cut.supervisions[0].text.split()
            errors += [w.start - at for w, at in zip(words, starts[cut.id], strict=True)]
    # Somewhere in the word, or a frame or two from it.
    assert np.mean((np.array(errors) > -0.1) & (np.array(errors) < 0.3)) > 0.95
    # Done again: what is aligned stays as it is, without looking at the sound.
    again = align(written[0], [], tokenizer, tmp_path / "again", AlignerOptions(epochs=0))
    for a, b in zip(CutSet.from_file(again[0]), CutSet.from_file(written[0]), strict=True):
        assert a.supervisions[0].alignment == b.supervisions[0].alignment


def test_a_stopped_training_goes_on(corpus, tmp_path, monkeypatch):
    cuts = corpus[0] / "cuts_test.jsonl.gz"
    tokenizer = CharTokenizer.train(["a b c d"])
    options = AlignerOptions(epochs=3, width=16, batch_seconds=10.0, num_workers=0)
    epochs, end = [], AlignerTask.on_train_epoch_end

    def stop(self):
        epochs.append(self.current_epoch)
        if len(epochs) == 2:
            raise RuntimeError("stopped")
        end(self)

    monkeypatch.setattr(AlignerTask, "on_train_epoch_end", stop)
    with pytest.raises(RuntimeError, match="stopped"):
        align(cuts, [], tokenizer, tmp_path, options)
    with pytest.raises(ConfigError, match="another `aligner`"):
        align(cuts, [], tokenizer, tmp_path, replace(options, width=8))
    align(cuts, [], tokenizer, tmp_path, options)
    assert epochs == [0, 1, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [cuts.name]


def test_items_do_not_see_each_other():
    torch.manual_seed(0)
    model = Aligner(6, 16, 0.4).eval()
    lengths = torch.tensor([16000, 7777, 640])
    sound = torch.randn(3, 16000) * padding_mask(lengths, 16000)
    together, frames = model(sound, lengths)
    for i, n in enumerate(lengths.tolist()):
        alone, count = model(sound[i : i + 1, :n], lengths[i : i + 1])
        assert int(count) == int(frames[i])
        torch.testing.assert_close(together[i, : int(count)], alone[0, : int(count)], atol=1e-5,
                                   rtol=0)  # fmt: skip


def test_it_hears_a_third_of_a_second():
    torch.manual_seed(0)
    model = Aligner(6, 16, 0.4).eval()
    model.frontend.cmvn = torch.nn.Module()
    model.frontend.cmvn.forward = lambda x, lengths: x  # of the whole utterance, else
    sound = torch.randn(1, 32000)
    other = sound.clone()
    other[:, 16000:] += torch.randn(1, 16000)
    a, b = (model(x, torch.tensor([32000]))[0][0] for x in (sound, other))
    same = (a - b).abs().amax(1) < 1e-5
    assert same[: 25 - 9].all() and not same[25]


def test_where_it_may_not_write(corpus):
    folder, _ = corpus
    path = folder / "cuts_train.jsonl.gz"
    with pytest.raises(ConfigError, match="choose another"):
        align(path, [], CharTokenizer.train(["a b"]), folder)
    with pytest.raises(ConfigError, match="same name"):
        align(path, [path], CharTokenizer.train(["a b"]), folder / "out")
