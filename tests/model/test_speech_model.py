"""SpeechModel: padding invariance of the whole, and what it refuses."""

import numpy as np
import pytest
import torch

from speechattn.data.batches.batch import Item, collate
from speechattn.errors import ConfigError
from speechattn.frontends import LogMelFbank, MLPFusion
from speechattn.model.directory import build_model
from speechattn.model.speech_model import SpeechModel

VOCAB = 9
FRAMES = (12, 74, 3, 31)  # 3: sound for a single hidden frame


def items(modality: str) -> list[Item]:
    rng = np.random.default_rng(0)
    found = []
    for i, frames in enumerate(FRAMES):
        audio = video = None
        if modality != "video":
            samples = frames * 640 if modality == "av" else frames * 640 + 37 * i
            audio = 0.1 * rng.standard_normal(samples).astype(np.float32)
        if modality != "audio":
            video = rng.integers(0, 256, (frames, 16, 16), dtype=np.uint8)
        tokens = rng.integers(1, VOCAB - 1, 2 + 3 * i).tolist()
        found.append(Item(str(i), "", tokens, audio, video))
    return found


def outputs(model: SpeechModel, batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Everything that the model says of a batch, each with its lengths."""
    encoded = model.encode_streams(
        batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
    )
    found = {
        "hidden": (encoded.hidden, encoded.lengths),
        "ctc": (model.ctc_log_probs(encoded.hidden), encoded.lengths),
    }
    for name, (hidden, lengths) in encoded.streams.items():
        found[name] = (hidden, lengths)
        if model.fusion is not None:
            found[f"{name} ctc"] = (model.stream_log_probs(name, hidden), lengths)
    logits = model.decoder(batch.tokens, batch.token_lengths, encoded.hidden, encoded.lengths)
    found["decoder"] = (logits, batch.token_lengths)
    return found


@pytest.mark.parametrize("encoder", ["conformer", "e_branchformer"])
@pytest.mark.parametrize("modality", ["audio", "video", "av"])
def test_padding_changes_nothing(tiny_model, modality, encoder):
    torch.manual_seed(0)
    model = build_model(tiny_model(modality, encoder, dropout=0.1), VOCAB).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    single = items(modality)
    with torch.inference_mode():
        together = outputs(model, collate(single))
        for i, item in enumerate(single):
            alone = outputs(model, collate([item]))
            assert alone.keys() == together.keys()
            for name, (value, lengths) in alone.items():
                n = int(lengths[0])
                assert n == int(together[name][1][i]) > 0, name
                torch.testing.assert_close(
                    together[name][0][i, :n], value[0, :n], atol=1e-5, rtol=1e-5, msg=name
                )


def test_hidden_frames(tiny_model):
    """25 a second, whatever the modality; conv2d4 pads nothing and loses the last one or two."""
    expected = {
        "audio": [10, 72, 1, 30],
        "video": list(FRAMES),
        "av": [10, 72, 1, 29],
    }
    for modality, frames in expected.items():
        model = build_model(tiny_model(modality), VOCAB).eval()
        batch = collate(items(modality))
        hidden, lengths = model.encode(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )
        assert lengths.tolist() == frames, modality
        assert hidden.shape[2] == model.output_size == 16
        assert (hidden.shape[1] >= lengths).all()
        assert model.modalities == (("audio", "video") if modality == "av" else (modality,))


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 1359])
def test_sound_too_short_for_a_frame(tiny_model, samples):
    model = build_model(tiny_model("audio"), VOCAB).eval()
    hidden, lengths = model.encode(torch.randn(1, samples), torch.tensor([samples]))
    assert lengths.tolist() == [0]
    assert hidden.shape[0] == 1


def test_log_probs_are_probabilities(tiny_model):
    model = build_model(tiny_model("av"), VOCAB).eval()
    hidden = torch.randn(2, 5, 16)
    for log_probs in (model.ctc_log_probs(hidden), model.stream_log_probs("audio", hidden)):
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 5))


def test_needs_its_modalities(tiny_model):
    model = build_model(tiny_model("av"), VOCAB)
    with pytest.raises(ValueError, match="needs video"):
        model.encode(audio=torch.zeros(1, 16000), audio_lengths=torch.tensor([16000]))


def test_refuses_half_a_model(tiny_model):
    with pytest.raises(ConfigError, match="needs `audio`, `video` or both"):
        SpeechModel(VOCAB)
    streams = build_model(tiny_model("av"), VOCAB).streams
    with pytest.raises(ConfigError, match="needs `fusion`"):
        SpeechModel(VOCAB, streams["audio"], streams["video"])
    with pytest.raises(ConfigError, match="frame_shift is 0.02 s.*audio"):
        SpeechModel(VOCAB, streams["audio"], frame_shift=0.02)
    with pytest.raises(ConfigError, match="sample_rate is 8000 Hz.*16000"):
        SpeechModel(VOCAB, streams["audio"], sample_rate=8000)
    with pytest.raises(ConfigError, match="frame_shift is 0.04 s.*video.*0.02"):
        SpeechModel(VOCAB, video=streams["video"], video_fps=50.0)
    assert SpeechModel(VOCAB, streams["audio"], fusion=MLPFusion(1, 1, 1, 1)).fusion is None


def test_masks_features_in_training_only(tiny_model):
    config = tiny_model("audio")
    config["audio"]["augment"] = {"freq_masks": 1, "freq_width": 10}
    torch.manual_seed(0)
    model = build_model(config, VOCAB)
    audio, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 6000])
    model.train()
    assert not torch.equal(model.encode(audio, lengths)[0], model.encode(audio, lengths)[0])
    model.eval()
    torch.testing.assert_close(model.encode(audio, lengths)[0], model.encode(audio, lengths)[0])
    assert isinstance(model.streams["audio"].frontend, LogMelFbank)


def test_num_parameters(tiny_model):
    model = build_model(tiny_model("video"), VOCAB)
    learnt = [v for v in model.state_dict(keep_vars=True).values() if v.requires_grad]
    assert model.num_parameters() == sum(v.numel() for v in learnt)


def conditioned(section: dict, units: int = VOCAB) -> dict:
    """The same `model:` section with three blocks, the first two of which condition the next."""
    for name in ("audio", "video"):
        if name in section:
            section[name]["encoder"]["init_args"].update(
                num_blocks=3, intermediate=[1, 2], self_conditioning=units
            )
    return section


@pytest.mark.parametrize("modality", ["audio", "av"])
def test_intermediate_layers_hear_their_streams_head(tiny_model, modality):
    torch.manual_seed(0)
    section = conditioned(tiny_model(modality))
    section["ctc_dropout"] = 0.5
    model = build_model(section, VOCAB).eval()
    batch = collate(items(modality))

    def encode():
        return model.encode_streams(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )

    with torch.no_grad():
        encoded = encode()
        assert encoded.intermediate.keys() == encoded.streams.keys()
        for name, layers in encoded.intermediate.items():
            hidden, lengths = encoded.streams[name]
            assert sorted(layers) == [1, 2]
            for x in layers.values():
                assert x.shape == hidden.shape
            head = model.ctc if modality == "audio" else model.stream_ctc[name]
            torch.testing.assert_close(
                model.stream_log_probs(name, layers[1]), head(layers[1]).log_softmax(-1)
            )
            x = {"audio": batch.audio, "video": batch.video}[name]
            n = {"audio": batch.audio_lengths, "video": batch.video_lengths}[name]
            alone = model.streams[name](x, n, lambda h, head=head: head(h).log_softmax(-1))
            torch.testing.assert_close(alone.hidden, hidden)
        # The head matters, and its dropout does not.
        model.dropout.train()
        assert torch.equal(encode().hidden, encoded.hidden)
        (model.ctc if modality == "audio" else model.stream_ctc["audio"]).weight.mul_(3)
        assert (encode().hidden - encoded.hidden).abs().max() > 1e-4


def test_intermediate_layers_add_no_weights(tiny_model):
    names = {}
    for kind in ("plain", "intermediate", "conditioned"):
        section = conditioned(tiny_model("audio"), VOCAB if kind == "conditioned" else 0)
        if kind == "plain":
            del section["audio"]["encoder"]["init_args"]["intermediate"]
        names[kind] = set(build_model(section, VOCAB).state_dict())
    assert names["plain"] == names["intermediate"]
    layer = "streams.audio.encoder.conditioning"
    assert names["conditioned"] - names["plain"] == {f"{layer}.weight", f"{layer}.bias"}


def test_conditioning_on_another_vocabulary_is_named(tiny_model):
    with pytest.raises(ConfigError, match="audio.*self_conditioning is 5, but there are 9 units"):
        build_model(conditioned(tiny_model("audio"), 5), VOCAB)


def test_the_decoder_is_any_that_the_configuration_names(tiny_model):
    section = tiny_model("audio")
    section["decoder"]["class_path"] = "speechattn.decoders.BidirectionalDecoder"
    section["decoder"]["init_args"]["reverse_blocks"] = 2
    decoder = build_model(section, VOCAB).decoder
    assert type(decoder).__name__ == "BidirectionalDecoder"
    assert (len(decoder.left.layers), len(decoder.right.layers)) == (1, 2)
    section["decoder"] = section["decoder"]["init_args"]
    del section["decoder"]["reverse_blocks"]
    assert type(build_model(section, VOCAB).decoder).__name__ == "TransformerDecoder"


@pytest.mark.parametrize("decoder", ["TransformerDecoder", "BidirectionalDecoder"])
def test_parts_of_other_widths_are_named(tiny_model, decoder):
    """When the model is made, not when the first batch comes."""
    config = tiny_model("audio")
    config["decoder"]["class_path"] = f"speechattn.decoders.{decoder}"
    build_model(config, VOCAB)
    config["decoder"]["init_args"]["memory_size"] = 24
    message = "decoder.init_args.memory_size is 24, but the hidden frames are 16 wide"
    with pytest.raises(ConfigError, match=message):
        build_model(config, VOCAB)
    config = tiny_model("av")
    config["fusion"]["video_size"] = 20
    with pytest.raises(ConfigError, match="36 together, but the encoders give 16 and 16"):
        build_model(config, VOCAB)
