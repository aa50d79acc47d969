"""auto_avsr's and the CNVSRC baselines' checkpoints, against a plain computation by their names."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from auto_avsr_reference import Reference, first_generation, random_state, shapes  # noqa: E402

from speechattn.decoding.config import search_of
from speechattn.errors import ConfigError
from speechattn.importing import import_checkpoint
from speechattn.importing.auto_avsr import read_sizes, weight_names
from speechattn.model.directory import build_model, load_model, read_config
from speechattn.transcribe.transcriber import Transcriber

UNITS = ["<unk>", *"abcdef"]
VOCAB = len(UNITS) + 2


@pytest.fixture
def units(tmp_path):
    path = tmp_path / "char_units.txt"
    path.write_text("".join(f"{u} {i}\n" for i, u in enumerate(UNITS, 1)), encoding="utf-8")
    return path


def imported(tmp_path, units, state, source="auto_avsr", **options):
    path = tmp_path / "model.pth"
    torch.save(state, path)
    return import_checkpoint(source, path, tmp_path / "out", tokens=units, **options)


def batch_of(modality):
    """A ragged batch, what is beyond an item's end random too."""
    generator = torch.Generator().manual_seed(3)
    if modality == "video":
        x = torch.randint(0, 256, (3, 7, 1, 88, 88), dtype=torch.uint8, generator=generator)
        return x, torch.tensor([7, 3, 5])
    return torch.randn(3, 4700, generator=generator) * 0.1, torch.tensor([4700, 1300, 3200])


def alone(reference, modality, x, length):
    """The reference's hidden frames of one item."""
    if modality == "video":
        return reference.encode(reference.video(x[:length, 0]))
    return reference.encode(reference.audio(x[:length]))


@pytest.mark.parametrize("names", [lambda s: s, first_generation], ids=["new_names", "old_names"])
@pytest.mark.parametrize("prelu", [False, True], ids=["swish", "prelu"])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_numbers(tmp_path, units, modality, prelu, names):
    state = random_state(shapes(modality, VOCAB, prelu=prelu))
    model = load_model(imported(tmp_path, units, names(state)))
    assert model.modalities == (modality,)
    reference = Reference(state, heads=2)
    x, lengths = batch_of(modality)
    tokens = torch.tensor([[8, 2, 3, 1], [8, 5, 0, 0], [8, 4, 4, 0]])
    token_lengths = torch.tensor([4, 2, 3])
    with torch.no_grad():
        hidden, frames = model.encode(**{modality: x, f"{modality}_lengths": lengths})
        ctc = model.ctc_log_probs(hidden)
        said = model.decoder(tokens, token_lengths, hidden, frames).log_softmax(-1)
    for i, (length, n, u) in enumerate(zip(lengths, frames, token_lengths, strict=True)):
        expected = alone(reference, modality, x[i], int(length))
        assert len(expected) == n
        assert expected.abs().max() > 0.5
        torch.testing.assert_close(hidden[i, :n], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ctc[i, :n], reference.ctc(expected), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            said[i, :u], reference.decode(tokens[i, :u], expected), atol=1e-4, rtol=1e-4
        )


def test_reversed_decoder(tmp_path, units):
    """CNVSRC 2024: the second decoder reads the same tokens back to front."""
    state = random_state(shapes("video", VOCAB, reverse_layers=1))
    folder = imported(tmp_path, units, first_generation(state), "cnvsrc2024")
    model = load_model(folder)
    reference = Reference(state, heads=2)
    tokens, token_lengths = torch.tensor([[8, 2, 3, 1], [8, 5, 4, 0]]), torch.tensor([4, 3])
    memory, lengths = torch.randn(2, 6, 16), torch.tensor([6, 4])
    with torch.no_grad():
        forwards = model.decoder(tokens, token_lengths, memory, lengths).log_softmax(-1)
        backwards = model.decoder.reverse(tokens, token_lengths, memory, lengths).log_softmax(-1)
    for i, turned in enumerate(([8, 1, 3, 2], [8, 4, 5])):
        n = len(turned)
        expected = reference.decode(tokens[i, :n], memory[i, : lengths[i]])
        torch.testing.assert_close(forwards[i, :n], expected, atol=1e-4, rtol=1e-4)
        turned = torch.tensor(turned)
        expected = reference.decode(turned, memory[i, : lengths[i]], "r_decoder")
        torch.testing.assert_close(backwards[i, :n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("source", "weight", "reverse"),
    [("auto_avsr", 0.1, 0), ("cnvsrc2023", 0.5, 0), ("cnvsrc2024", 0.5, 1)],
)
def test_it_decodes(tmp_path, units, source, weight, reverse):
    state = random_state(shapes("video", VOCAB, reverse_layers=reverse))
    folder = imported(tmp_path, units, state, source)
    search = search_of(read_config(folder))
    assert (search.beam_size, search.ctc_weight) == (40, weight)
    transcriber = Transcriber.from_pretrained(folder)
    crops = tmp_path / "crops.npy"
    np.save(crops, np.random.default_rng(0).integers(0, 256, (6, 96, 96), dtype=np.uint8))
    assert set(transcriber.transcribe(crops).text) <= set("abcdef\u2047")


def test_published_sizes():
    """The sizes of auto_avsr's own and of the CNVSRC baselines', from names and shapes alone."""
    sizes = {"width": 768, "heads": 12, "units": 3072, "kernel": 31, "layers": 12}
    channels = (64, 128, 256, 512)
    for vocab, reverse, millions in ((5049, 0, 250.38), (4470, 3, 284.28), (5906, 0, 252.36)):
        found = shapes(
            "video", vocab, **sizes, decoder_layers=6, reverse_layers=reverse, channels=channels
        )
        state = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
        section = read_sizes(state, {}, "model.pth")
        assert section["video"]["encoder"]["init_args"]["attention_heads"] == 12
        assert section["decoder"]["init_args"]["attention_heads"] == 12
        with torch.device("meta"):
            model = build_model(section, vocab)
        assert round(model.num_parameters() / 1e6, 2) == millions
        assert set(weight_names(state)) == set(model.state_dict())


def test_configuration_of_theirs(tmp_path, units):
    config = tmp_path / "train.yaml"
    config.write_text(
        "model:\n  visual_backbone:\n    adim: 16\n    aheads: 2\n    dheads: 4\n"
        "    rel_pos_type: latest\n    zero_triu: false\n    relu_type: swish\n"
    )
    state = random_state(shapes("video", VOCAB))
    folder = imported(tmp_path, units, state, config=config)
    assert read_config(folder)["model"]["decoder"]["init_args"]["attention_heads"] == 4


def test_configuration_that_changes_numbers(tmp_path, units):
    config = tmp_path / "train.yaml"
    config.write_text(
        "model:\n  visual_backbone:\n    zero_triu: true\n    new_key: 3\n"
        "    rel_pos_type: legacy\n"
    )
    with pytest.raises(ConfigError) as error:
        imported(tmp_path, units, random_state(shapes("video", VOCAB)), config=config)
    for key in ("zero_triu: True", "new_key: 3: this key is not known", "rel_pos_type: 'legacy'"):
        assert key in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unknown_and_missing_weights(tmp_path, units):
    state = random_state(shapes("video", VOCAB))
    del (
        state["encoder.encoders.1.norm_ff.bias"],
        state["decoder.decoders.0.self_attn.linear_k.bias"],
    )
    state["encoder.encoders.1.extra.weight"] = torch.ones(2)
    state["proj_decoder.weight"] = torch.ones(2, 2)
    with pytest.raises(ConfigError) as error:
        imported(tmp_path, units, state)
    message = str(error.value)
    assert "encoder.encoders.1.extra.weight" in message
    assert "proj_decoder.weight" in message
    assert "streams.video.encoder.blocks.1.feed_forward_norm.bias" in message
    assert "decoder.layers.0.self_attention.project.bias" in message
    assert not (tmp_path / "out").exists()


def test_other_errors(tmp_path, units):
    state = random_state(shapes("video", VOCAB))
    with pytest.raises(ConfigError, match="--tokens"):
        imported(tmp_path, None, state)
    with pytest.raises(ConfigError, match="is no checkpoint of auto_avsr"):
        imported(tmp_path, units, {"a": torch.ones(1)})
    with pytest.raises(ConfigError, match="audio-visual"):
        imported(tmp_path, units, {**state, "aux_encoder.embed.0.weight": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"ctc\.ctc_lo\.weight is \(12, 16\)"):
        imported(tmp_path, units, random_state(shapes("video", VOCAB + 3)))
    with pytest.raises(ConfigError, match="choose one of espnet"):
        imported(tmp_path, units, state, "wenet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("kept")
    with pytest.raises(ConfigError, match="is there already"):
        imported(tmp_path, units, state)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("proj_encoder.weight", (), r"proj_encoder\.weight is \(\)"),
        ("decoder.embed.0.weight", (VOCAB,), r"decoder\.embed\.0\.weight is"),
        ("frontend.trunk.layer9.0.conv1.weight", (2,), r"frontend\.trunk\.layer9\.0\.conv1"),
    ],
)
def test_odd_weights(tmp_path, units, name, shape, reason):
    state = {**random_state(shapes("video", VOCAB)), name: torch.ones(shape)}
    with pytest.raises(ConfigError, match=reason):
        imported(tmp_path, units, state)


def test_no_backbone_in_the_configuration(tmp_path, units):
    config = tmp_path / "train.yaml"
    config.write_text("model:\n  visual_backbone:\n")
    with pytest.raises(ConfigError, match="visual_backbone: None: is no section"):
        imported(tmp_path, units, random_state(shapes("video", VOCAB)), config=config)
