"""A frontend of a user's own streams: it says how far it reaches, and no more."""

import numpy as np
import pytest
import torch

from speechattn import Transcriber
from speechattn.data.batches.batch import Item, collate
from speechattn.data.tokenizers import CharTokenizer
from speechattn.decoding import CtcGreedySearch
from speechattn.errors import ConfigError
from speechattn.model.directory import build_model, save_model_dir
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.streaming.session import StreamingSession

# Log energy and change of windows of 20 ms every 10 ms, smoothed over three of them.
PLUGIN = """
import torch
from torch.nn import functional

from speechattn.frontends import Frontend, Reach
from speechattn.masks import padding_mask


class LogEnergy(Frontend):
    frame_shift, sample_rate, hop, window = 0.01, 16000, 160, 320

    def __init__(self, bands: int = 8):
        super().__init__()
        self.output_size = bands

    def forward(self, x, lengths):
        x = functional.pad(x, (0, max(self.window - x.shape[1], 0)))
        lengths = ((lengths - self.window) // self.hop + 1).clamp(min=0)
        frames = x.unfold(1, self.window, self.hop)  # (B, T, 320)
        spectrum = torch.fft.rfft(frames).abs()[..., 1 : 2 * self.output_size + 1]
        y = (spectrum.unflatten(-1, (-1, 2)).mean(-1) + 1e-3).log()  # (B, T, F)
        y = y * padding_mask(lengths, y.shape[1])[..., None]
        sides = functional.pad(y, (0, 0, 1, 1))
        y = (sides[:, :-2] + 2 * y + sides[:, 2:]) / 4
        return y * padding_mask(lengths, y.shape[1])[..., None], lengths

    def reach(self):
        return Reach(self.hop, left=1, right=1, window=self.window)


class NoReach(LogEnergy):
    reach = Frontend.reach
"""


@pytest.fixture
def section(tiny_model, tmp_path, monkeypatch):
    """Make a `model:` section that names a class of the plug-in."""
    (tmp_path / "userfrontend.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str) -> dict:
        config = tiny_model("audio")
        frontend = {"class_path": f"userfrontend.{name}", "init_args": {"bands": 12}}
        config["audio"]["frontend"] = frontend
        encoder = config["audio"]["encoder"]["init_args"]
        encoder |= {"input_size": 12, "chunk_size": 4, "left_context": 8}
        return config

    return make


def test_a_frontend_of_a_user_streams(section, tmp_path):
    assert len(PLUGIN.strip().splitlines()) <= 40
    tokenizer = CharTokenizer.train(["abc ab"])
    torch.manual_seed(2)
    config = section("LogEnergy")
    with pytest.raises(ConfigError, match="userfrontend"):
        build_model(config, tokenizer.vocab_size)
    model = build_model(config, tokenizer.vocab_size, allow=["userfrontend"]).eval()
    folder = tmp_path / "model"
    save_model_dir(folder, {"model": config}, model.state_dict(), tokenizer, {})
    transcriber = Transcriber.from_pretrained(
        folder, search=CtcGreedySearch(), allow=["userfrontend"]
    )
    model = transcriber.recogniser.model

    rng = np.random.default_rng(0)
    tone = np.sin(np.cumsum(rng.uniform(0.1, 0.9, 40).repeat(800)))
    wave = (tone * rng.uniform(0.1, 1, 40).repeat(800)).astype(np.float32)
    batch = collate([Item("x", "", [], wave)])
    with torch.inference_mode():
        logits = model.ctc(model.encode(batch.audio, batch.audio_lengths)[0])
        model.ctc.weight.mul_((4 / logits[0].std(0))[:, None])  # sure of itself
        model.ctc.bias.sub_((4 / logits[0].std(0)) * logits[0].mean(0))
        whole, lengths = model.encode(batch.audio, batch.audio_lengths)
    text = transcriber.recogniser.recognise(batch)[0].text
    assert len(text) > 10

    stream, hidden = StreamingSession(transcriber.recogniser), []
    log_probs = stream.model.ctc_log_probs
    stream.model.ctc_log_probs = lambda h: hidden.append(h) or log_probs(h)
    try:
        pieces = np.split(wave, [1, 700, 5000, 5100, 20000, 31999])
        updates = [u for piece in pieces for u in stream.accept(piece)] + [stream.finish()]
    finally:
        del stream.model.ctc_log_probs
    assert "".join(u.text for u in updates) == text
    torch.testing.assert_close(torch.cat(hidden, 1), whole[:, : int(lengths)], atol=1e-5, rtol=1e-4)
    updates = list(transcriber.stream(pieces))
    assert len(updates) > 3 and "".join(u.text for u in updates) == text


def test_one_that_does_not_say_its_reach_is_refused(section):
    tokenizer = CharTokenizer.train(["abc ab"])
    model = build_model(section("NoReach"), tokenizer.vocab_size, allow=["userfrontend"]).eval()
    message = "audio.frontend cannot stream: NoReach needs the whole utterance"
    with pytest.raises(ConfigError, match=message):
        next(
            Transcriber(Recogniser(model, tokenizer, CtcGreedySearch())).stream(
                [np.zeros(10, np.float32)]
            )
        )
