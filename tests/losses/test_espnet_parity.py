"""The joint loss and its gradients against ESPnet's whole model, with the same weights."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.encoders import ConformerEncoder, EBranchformerEncoder
from speechattn.frontends.base import Frontend
from speechattn.importing.espnet import decoder_weights, encoder_weights
from speechattn.losses import JointLoss
from speechattn.model.speech_model import SpeechModel, Stream
from tests.losses.encoding import loss_of

INSTALL = "needs ESPnet: pip install --no-deps --ignore-requires-python espnet==202611 typeguard"


def oracle(module: str):
    return pytest.importorskip(f"espnet2.{module}", reason=INSTALL, exc_type=ImportError)


model_ = oracle("asr.espnet_model")
ctc_ = oracle("asr.ctc")
conformer = oracle("asr.encoder.conformer_encoder")
e_branchformer = oracle("asr.encoder.e_branchformer_encoder")
decoder_ = oracle("asr.decoder.transformer_decoder")
sos_eos = oracle("legacy.nets.pytorch_backend.transformer.add_sos_eos")

V, F, D, HEADS, UNITS, BLOCKS = 17, 20, 32, 4, 48, 3
SOS = V - 1
LENGTHS = {"ragged": [83, 40, 66], "even": [60, 60, 60]}
TOKENS = torch.tensor([[3, 4, 4, 9, 2], [5, 6, -1, -1, -1], [7, 1, 2, 11, -1]])
TOKEN_LENGTHS = torch.tensor([5, 2, 4])
CTC_WEIGHT, SMOOTHING = 0.3, 0.1


class Given(Frontend):
    """Features as they come."""

    output_size = F
    frame_shift = 0.01

    def forward(self, x, lengths):
        return x, lengths


def their_model(kind: str, layers: list[int], conditioning: bool, per_token: bool, weight: float):
    common = dict(
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        interctc_layer_idx=layers,
        interctc_use_conditioning=conditioning,
    )
    if kind == "conformer":
        encoder = conformer.ConformerEncoder(
            F, D, HEADS, UNITS, BLOCKS, macaron_style=True, rel_pos_type="latest",
            cnn_module_kernel=7, **common,
        )  # fmt: skip
    else:
        encoder = e_branchformer.EBranchformerEncoder(
            F, D, HEADS, cgmlp_linear_units=64, cgmlp_conv_kernel=7, num_blocks=BLOCKS,
            use_ffn=True, macaron_ffn=True, linear_units=UNITS, merge_conv_kernel=5, **common,
        )  # fmt: skip
    return model_.ESPnetASRModel(
        vocab_size=V,
        token_list=[str(i) for i in range(V)],
        frontend=None,
        specaug=None,
        normalize=None,
        preencoder=None,
        encoder=encoder,
        postencoder=None,
        decoder=their_decoder(2),
        ctc=ctc_.CTC(V, D),
        joint_network=None,
        ctc_weight=CTC_WEIGHT,
        interctc_weight=weight,
        lsm_weight=SMOOTHING,
        length_normalized_loss=per_token,
        report_cer=False,
        report_wer=False,
    )


def their_decoder(blocks: int):
    return decoder_.TransformerDecoder(
        V, D, HEADS, UNITS, blocks, dropout_rate=0.0, positional_dropout_rate=0.0
    )


def our_model(kind: str, layers: list[int], conditioning: bool, decoder) -> SpeechModel:
    common = dict(dropout=0.0, intermediate=layers, self_conditioning=V if conditioning else 0)
    if kind == "conformer":
        encoder = ConformerEncoder(
            F, D, HEADS, linear_units=UNITS, num_blocks=BLOCKS, conv_kernel=7, **common
        )
    else:
        encoder = EBranchformerEncoder(
            F, D, HEADS, linear_units=UNITS, cgmlp_units=64, num_blocks=BLOCKS, cgmlp_kernel=7,
            merge_kernel=5, **common,
        )  # fmt: skip
    return SpeechModel(V, Stream(Given(), encoder), decoder=decoder, ctc_dropout=0.0)


def in_ours(theirs, tensors: dict) -> dict:
    """Weights or gradients of ESPnet's model under our names."""

    def part(prefix):
        return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}  # fmt: skip

    encoder = encoder_weights(part("encoder."))
    decoder = decoder_weights(part("decoder."))
    return (
        {f"streams.audio.encoder.{k}": v for k, v in encoder.items()}
        | {f"decoder.{k}": v for k, v in decoder.items()}
        | {f"ctc.{k}": v for k, v in part("ctc.ctc_lo.").items()}
    )


def make_batch(lengths: str):
    frames = torch.tensor(LENGTHS[lengths])
    features = torch.randn(3, int(frames.max()), F)
    return SimpleNamespace(
        audio=features,
        audio_lengths=frames,
        video=None,
        video_lengths=None,
        tokens=TOKENS.clamp(min=0),
        token_lengths=TOKEN_LENGTHS,
    )


def check_gradients(ours, wanted: dict) -> None:
    found = dict(ours.named_parameters())
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = gradient.abs().max().clamp(min=1.0)
        difference = (found[name].grad - gradient).abs().max() / scale
        assert difference < 1e-4, (name, difference)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(
    "layers, conditioning, weight",
    [([], False, 0.0), ([1, 2], False, 0.4), ([1], True, 0.3)],
    ids=["plain", "intermediate", "conditioned"],
)
@pytest.mark.parametrize("kind", ["conformer", "e_branchformer"])
def test_loss_and_gradients(kind, layers, conditioning, weight, per_token, mode):
    torch.manual_seed(0)
    theirs = their_model(kind, layers, conditioning, per_token, weight)
    ours = our_model(
        kind,
        layers,
        conditioning,
        TransformerDecoder(V, D, D, HEADS, linear_units=UNITS, num_blocks=2, dropout=0.0),
    )
    ours.load_state_dict(in_ours(theirs, theirs.state_dict()))
    # ESPnet counts padding in the batch statistics, so items of one length where they matter.
    batch = make_batch("ragged" if mode == "eval" else "even")
    theirs.train(mode == "train")
    ours.train(mode == "train")

    total, parts, _ = theirs(batch.audio, batch.audio_lengths, TOKENS.clone(), TOKEN_LENGTHS)
    total.sum().backward()
    loss = JointLoss(CTC_WEIGHT, SMOOTHING, per_token, intermediate_weight=weight)
    loss.check(ours)
    found = loss_of(loss, ours, batch)
    found.loss.backward()
    assert_close(found.loss, total.reshape(()), atol=1e-4, rtol=1e-5)
    assert_close(found.att_loss, parts["loss_att"].reshape(()), atol=1e-4, rtol=1e-5)
    if weight == 0:
        assert_close(found.ctc_loss, parts["loss_ctc"].reshape(()), atol=1e-4, rtol=1e-5)
    else:
        per_layer = [parts[f"loss_interctc_layer{n}"].reshape(()) for n in layers]
        assert_close(found.intermediate_loss, torch.stack(per_layer).mean(), atol=1e-4, rtol=1e-5)
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    check_gradients(ours, in_ours(theirs, gradients))


@pytest.mark.parametrize("per_token", [False, True])
def test_right_to_left(per_token):
    """As the CNVSRC 2024 baseline: a second ESPnet decoder on flipped labels."""
    torch.manual_seed(0)
    reverse_weight = 0.3
    theirs = their_model("conformer", [], False, per_token, 0.0)
    right = their_decoder(1).eval()
    ours = our_model(
        "conformer",
        [],
        False,
        BidirectionalDecoder(
            V, D, D, HEADS, linear_units=UNITS, num_blocks=2, reverse_blocks=1, dropout=0.0
        ),
    )

    def both(tensors, right_tensors):
        named = in_ours(theirs, tensors)
        named = {k.replace("decoder.", "decoder.left.", 1) if k.startswith("decoder.") else k: v
                 for k, v in named.items()}  # fmt: skip
        found = decoder_weights(right_tensors)
        return named | {f"decoder.right.{k}": v for k, v in found.items()}

    ours.load_state_dict(both(theirs.state_dict(), right.state_dict()))
    theirs.eval()
    ours.eval()
    batch = make_batch("ragged")

    hidden, lengths = theirs.encode(batch.audio, batch.audio_lengths)
    ctc, _ = theirs._calc_ctc_loss(hidden, lengths, TOKENS, TOKEN_LENGTHS)
    left, *_ = theirs._calc_att_loss(hidden, lengths, TOKENS, TOKEN_LENGTHS)
    inputs, targets = sos_eos.add_sos_eos(TOKENS.flip(1), SOS, SOS, -1)
    logits, _ = right(hidden, lengths, inputs, TOKEN_LENGTHS + 1)
    reverse = theirs.criterion_att(logits, targets)
    attention = (1 - reverse_weight) * left + reverse_weight * reverse
    total = CTC_WEIGHT * ctc + (1 - CTC_WEIGHT) * attention
    total.backward()

    loss = JointLoss(CTC_WEIGHT, SMOOTHING, per_token, reverse_weight=reverse_weight)
    loss.check(ours)
    found = loss_of(loss, ours, batch)
    found.loss.backward()
    for value, wanted in (
        (found.loss, total),
        (found.ctc_loss, ctc),
        (found.att_loss, left),
        (found.reverse_loss, reverse),
    ):
        assert_close(value, wanted, atol=1e-4, rtol=1e-5)
    check_gradients(
        ours,
        both(
            {n: p.grad for n, p in theirs.named_parameters()},
            {n: p.grad for n, p in right.named_parameters()},
        ),
    )
