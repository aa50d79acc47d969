"""Weights of an ensemble: which are tried, and that the best are taken."""

from types import SimpleNamespace

import pytest
import torch

from speechattn.cli import main
from speechattn.data.batches.batch import Item, collate
from speechattn.decoding import JointSearch
from speechattn.model.directory import load_model, read_meta
from speechattn.model.output import ModelOutput
from speechattn.transcribe.combine import choose_weights, shares

V = 6


def posteriors(tokens: list[int], sure: float) -> torch.Tensor:
    """CTC output of a model that spells `tokens` with a blank after each, (T, V)."""
    path = [p for token in tokens for p in (token, 0)]
    return (sure * torch.eye(V)[path]).log_softmax(-1)


class Two:
    """Two models of sound that only have CTC heads; `said` is what each of them reads."""

    def __init__(self, said: dict[str, list[list[int]]], sure: dict[str, float]):
        self.models = {name: None for name in said}
        self.said, self.sure, self.weights = said, sure, {}

    def outputs(self, audio, audio_lengths, video, video_lengths):
        return [
            ModelOutput(
                torch.zeros(len(rows), 6, 1),
                torch.full((len(rows),), 6),
                torch.stack([posteriors(tokens, self.sure[name]) for tokens in rows]),
                name=name,
            )
            for name, rows in self.said.items()
        ]


def batch(texts: list[list[int]]):
    wave = torch.zeros(8).numpy()
    return collate([Item(str(i), "", tokens, wave) for i, tokens in enumerate(texts)])


def test_the_better_model_gets_the_larger_share():
    truth = [[1, 2, 3], [3, 2, 1]]
    wrong = [[1, 2, 4], [4, 2, 1]]
    model = Two({"good": truth, "bad": wrong}, {"good": 5.0, "bad": 5.0})
    options = JointSearch(ctc_weight=1.0, beam_size=10)
    recogniser = SimpleNamespace(model=model, search=options)
    weights, errors = choose_weights(recogniser, {"quiet": [batch(truth)]})
    # From 0.6 on it is right: the least of these is taken.
    assert weights == model.weights == pytest.approx({"good": 0.6, "bad": 0.4})
    assert errors == {"quiet": 0.0}
    _, errors = choose_weights(recogniser, {"quiet": [batch(truth)], "loud": [batch(wrong)]})
    assert sum(errors.values()) == pytest.approx(100 / 3, abs=1e-3)


def test_equal_shares_where_it_makes_no_difference():
    truth = [[1, 2, 3]]
    model = Two({"a": truth, "b": truth, "c": truth}, dict.fromkeys("abc", 5.0))
    options = JointSearch(ctc_weight=1.0, beam_size=4)
    recogniser = SimpleNamespace(model=model, search=options)
    weights, _ = choose_weights(recogniser, {"quiet": [batch(truth)]})
    assert sorted(weights.values()) == pytest.approx([0.3, 0.3, 0.4])


def test_shares():
    assert list(shares(1)) == [(10,)]
    assert list(shares(2, 4)) == [(1, 3), (2, 2), (3, 1)]
    found = list(shares(3))
    assert len(found) == len(set(found)) == 36
    assert all(sum(parts) == 10 and min(parts) > 0 for parts in found)


def test_from_the_command_line(tiny_model_dir, tiny_corpus, tmp_path, capsys):
    models = [f"--model={name}={tiny_model_dir(name)}" for name in ("audio", "video")]
    corpus = tiny_corpus.folder
    output = ["--output", str(tmp_path / "both")]
    assert main(["combine", *models, *output]) == 0
    assert load_model(tmp_path / "both").weights == {"audio": 0.5, "video": 0.5}
    assert main(["combine", *models, *output, "--weight=audio=3", "--weight=video=1"]) == 0
    assert load_model(tmp_path / "both").weights == {"audio": 0.75, "video": 0.25}
    dev = ["--cuts", str(corpus / "cuts_dev.jsonl.gz"), "--crops", str(corpus / "crops")]
    noise = ["--noise", str(corpus / "noise.wav"), "--snr", "3"]
    assert main(["combine", *models, *output, *dev, *noise]) == 0
    assert set(read_meta(tmp_path / "both")["token_errors"]) == {"clean", "at 3 dB"}
    decoded = ["--output", str(tmp_path / "d"), "--model", str(tmp_path / "both"), "--details", "2"]
    assert main(["decode", *dev, *decoded]) == 0
    assert len((tmp_path / "d" / "hyp.tsv").read_text().splitlines()) == 2
    assert len(list((tmp_path / "d" / "details").glob("*.npz"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=audio"], "write NAME=VALUE"),
        (["--model=a=x", "--model=a=y"], "a is given twice"),
        (["--model=a=nowhere"], "nowhere"),
        (["--model=a={audio}", "--weight=a=much"], "--weight"),
        (["--model=a={audio}", "--weight=b=1"], "weights are of b"),
        (["--model=a={audio}", "--weight=a=-1"], "above 0"),
        (["--model=a={audio}", "--weight=a=1", "--cuts=x"], "leave one out"),
        (["--model=a={audio}", "--noise=x"], "give these too"),
    ],
)
def test_what_is_wrong_is_said(tiny_model_dir, tmp_path, capsys, arguments, message):
    arguments = [a.format(audio=tiny_model_dir("audio")) for a in arguments]
    assert main(["combine", *arguments, "--output", str(tmp_path / "o")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
