"""ESPnet models of random weights through `import-checkpoint`: from waveform to log probabilities.

Run one item at a time by ESPnet and as a ragged batch by us: ESPnet's frontend mirrors the sound at
the batch's end, so that its own numbers for an item depend on what it is batched with.
"""

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from speechattn.data.batches.batch import Batch
from speechattn.importing import import_checkpoint
from speechattn.importing.espnet import take
from speechattn.importing.espnet_model import weight_names
from speechattn.losses import JointLoss
from speechattn.model import load_model
from speechattn.transcribe.transcriber import Transcriber
from tests.losses.encoding import loss_of

_INSTALL = "needs ESPnet: pip install --no-deps --ignore-requires-python espnet==202611 typeguard"
espnet_model = pytest.importorskip(
    "espnet2.asr.espnet_model", reason=_INSTALL, exc_type=ImportError
)
torchaudio = pytest.importorskip("torchaudio")

from espnet2.asr.ctc import CTC  # noqa: E402
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder  # noqa: E402
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder  # noqa: E402
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder  # noqa: E402
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder  # noqa: E402
from espnet2.asr.frontend.abs_frontend import AbsFrontend  # noqa: E402
from espnet2.layers.global_mvn import GlobalMVN  # noqa: E402
from espnet2.layers.utterance_mvn import UtteranceMVN  # noqa: E402

TOKENS = ["<blank>", "<unk>", "<space>", *"abcdefg", "<sos/eos>"]
LENGTHS = torch.tensor([9000, 4100, 6789])
MVN = {"global_mvn": GlobalMVN, "utterance_mvn": UtteranceMVN}
COMMON = {"output_size": 32, "attention_heads": 4, "num_blocks": 3, "rel_pos_type": "latest"}
GATE = {"cgmlp_linear_units": 24, "cgmlp_conv_kernel": 7}
# Name: ESPnet's class, its name in configurations, its arguments, normalisation.
CASES = {
    "conformer": (
        ConformerEncoder,
        "conformer",
        {"linear_units": 40, "macaron_style": True, "cnn_module_kernel": 7},
        ("global_mvn", {}),
    ),
    "conformer_self_conditioned": (
        ConformerEncoder,
        "conformer",
        {
            "linear_units": 40,
            "cnn_module_kernel": 7,
            "input_layer": "conv2d6",
            "interctc_layer_idx": [1, 2],
            "interctc_use_conditioning": True,
            "activation_type": "relu",
        },
        ("utterance_mvn", {}),
    ),
    "e_branchformer": (
        EBranchformerEncoder,
        "e_branchformer",
        {**GATE, "linear_units": 40, "use_ffn": True, "macaron_ffn": True, "merge_conv_kernel": 5},
        ("global_mvn", {}),
    ),
    "e_branchformer_without_ffn": (
        EBranchformerEncoder,
        "e_branchformer",
        {**GATE, "use_linear_after_conv": True, "gate_activation": "tanh"},
        ("utterance_mvn", {"norm_vars": True}),
    ),
    "branchformer": (BranchformerEncoder, "branchformer", GATE, ("global_mvn", {})),
    "branchformer_learned": (
        BranchformerEncoder,
        "branchformer",
        {**GATE, "merge_method": "learned_ave", "input_layer": "conv2d2"},
        ("global_mvn", {}),
    ),
    "branchformer_fixed": (
        BranchformerEncoder,
        "branchformer",
        {**GATE, "merge_method": "fixed_ave", "cgmlp_weight": [0.3, 0.0, 1.0]},
        ("global_mvn", {}),
    ),
}


class LogMel(AbsFrontend):
    """`espnet2.asr.frontend.default` in short, as it needs librosa, which has the same filters."""

    def __init__(self):
        super().__init__()
        self.logmel = nn.Module()
        filters = torchaudio.functional.melscale_fbanks(
            257, 0.0, 8000.0, 80, 16000, norm="slaney", mel_scale="slaney"
        )
        self.logmel.register_buffer("melmat", filters)

    def output_size(self):
        return 80

    def forward(self, x, lengths):
        window = torch.hann_window(512)
        spectrum = torch.stft(x, 512, 128, 512, window, center=True, return_complex=True)
        power = spectrum.transpose(1, 2).abs().square()
        return (power @ self.logmel.melmat).clamp(min=1e-10).log(), lengths // 128 + 1


def randomise(model):
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or name.startswith(("frontend", "normalize")):
            continue
        if "running_var" in name:
            value.uniform_(0.5, 2.0)
        elif value.dim() == 1:
            value.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
        else:
            value.normal_(0.0, value[0].numel() ** -0.5)


def statistics(path):
    generator = np.random.default_rng(0)
    mean, deviation = generator.normal(-6.0, 1.0, 80), generator.uniform(1.0, 3.0, 80)
    np.savez(path, count=100, sum=100 * mean, sum_square=100 * (deviation**2 + mean**2))
    return path


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    """An ESPnet model, what import-checkpoint makes of what it saved, and the folder."""
    make_encoder, name, arguments, (norm, norm_conf) = CASES[request.param]
    torch.manual_seed(0)
    encoder_conf = {**COMMON, **arguments}
    decoder_conf = {"attention_heads": 4, "linear_units": 48, "num_blocks": 2}
    if norm == "global_mvn":
        norm_conf = {"stats_file": str(statistics(tmp_path / "feats_stats.npz"))}
    theirs = espnet_model.ESPnetASRModel(
        vocab_size=len(TOKENS),
        token_list=TOKENS,
        frontend=LogMel(),
        specaug=None,
        normalize=MVN[norm](**norm_conf),
        preencoder=None,
        encoder=make_encoder(input_size=80, **encoder_conf),
        postencoder=None,
        decoder=TransformerDecoder(len(TOKENS), 32, **decoder_conf),
        ctc=CTC(odim=len(TOKENS), encoder_output_size=32),
        joint_network=None,
        ctc_weight=0.3,
        lsm_weight=0.1,
        report_cer=False,
        report_wer=False,
    ).eval()
    randomise(theirs)
    config = {
        "max_epoch": 60,
        "optim": "adam",
        "token_list": TOKENS,
        "token_type": "char",
        "frontend": "default",
        "frontend_conf": {"fs": "16k"},
        "specaug": "specaug",
        "specaug_conf": {"apply_time_warp": True},
        "normalize": norm,
        "normalize_conf": norm_conf,
        "encoder": name,
        "encoder_conf": encoder_conf,
        "decoder": "transformer",
        "decoder_conf": decoder_conf,
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
        "preencoder": None,
        "version": "202611",
    }
    exp = tmp_path / "exp"
    exp.mkdir()
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(theirs.state_dict(), exp / "valid.acc.ave.pth")
    folder = import_checkpoint("espnet", exp, tmp_path / "model")
    return theirs, load_model(folder), folder


def encode(theirs, x):
    """ESPnet's hidden frames of one item (1, N)."""
    hidden, _ = theirs.encode(x, torch.tensor([x.shape[1]]))
    return hidden[0] if isinstance(hidden, tuple) else hidden


def test_waveform_to_log_probabilities(pair):
    theirs, ours, _ = pair
    torch.manual_seed(1)
    x = torch.randn(3, int(LENGTHS.max())) * 0.1
    tokens = torch.tensor([[10, 3, 4, 4, 2], [10, 5, 0, 0, 0], [10, 9, 1, 6, 0]])
    token_lengths = torch.tensor([5, 2, 4])
    with torch.no_grad():
        hidden, lengths = ours.encode(audio=x, audio_lengths=LENGTHS)
        ctc = ours.ctc_log_probs(hidden)
        said = ours.decoder(tokens, token_lengths, hidden, lengths).log_softmax(-1)
        worst = 0.0
        for i, (n, u) in enumerate(zip(LENGTHS.tolist(), token_lengths.tolist(), strict=True)):
            memory = encode(theirs, x[i : i + 1, :n])
            t = memory.shape[1]
            assert t == lengths[i]
            assert memory.abs().max() > 0.5
            logits, _ = theirs.decoder(
                memory, torch.tensor([t]), tokens[i : i + 1, :u], torch.tensor([u])
            )
            for mine, expected in (
                (hidden[i, :t], memory[0]),
                (ctc[i, :t], theirs.ctc.log_softmax(memory)[0]),
                (said[i, :u], logits[0].log_softmax(-1)),
            ):
                worst = max(worst, (mine - expected).abs().max().item())
    print(f"difference {worst:.1e}")
    assert worst < 1e-4


def test_gradients_of_the_joint_loss(pair):
    """Of sound of one length and ragged texts, see above.

    A seed is good where no unit of the first convolution is so near to zero that rounding in the
    features decides on which side of the ReLU it falls: a gradient jumps there.
    """
    theirs, ours, _ = pair
    torch.manual_seed(3)
    x, lengths = torch.randn(3, 8000) * 0.1, torch.tensor([8000] * 3)
    tokens = torch.tensor([[3, 4, 4, 2], [5, 0, 0, 0], [9, 1, 6, 0]])
    token_lengths = torch.tensor([4, 1, 3])
    padded = tokens.masked_fill(torch.arange(4) >= token_lengths[:, None], -1)
    loss, _, _ = theirs(x, lengths, padded, token_lengths)
    loss.backward()
    batch = Batch(["a", "b", "c"], [""] * 3, tokens, token_lengths, x, lengths)
    mine = loss_of(JointLoss(ctc_weight=0.3, label_smoothing=0.1), ours, batch).loss
    mine.backward()
    torch.testing.assert_close(mine, loss.squeeze(), atol=1e-4, rtol=1e-5)
    state = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    expected = take(state, weight_names(state))
    worst = {}
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            assert name not in expected
            continue
        scale = expected[name].abs().max().clamp(min=1)
        worst[name] = ((parameter.grad - expected[name]).abs().max() / scale).item()
    print(f"gradient {max(worst.values()):.1e}")
    assert worst.keys() == expected.keys()
    assert max(worst.values()) < 1e-4, max(worst, key=worst.get)


def test_it_decodes(pair, tmp_path):
    import soundfile

    _, _, folder = pair
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 9000), 16000)
    text = Transcriber.from_pretrained(folder).transcribe(tmp_path / "a.wav").text
    assert set(text) <= set("abcdefg \u2047")
