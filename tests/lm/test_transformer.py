"""TransformerLm against ESPnet's on the same weights, and its steps against its full pass."""

import re

import pytest
import torch
from torch.testing import assert_close

from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.lm.scorers import InternalLmScorer, LmScorer
from speechattn.lm.transformer import TransformerLm, sequence_scores

V, D = 13, 16
EOS = V - 1
TOKENS = torch.tensor([[12, 3, 4, 4, 9, 2], [12, 5, 6, -1, -1, -1], [12, 7, 1, 2, -1, -1]])
LENGTHS = torch.tensor([6, 3, 4])


def make(positions="none"):
    torch.manual_seed(0)
    return TransformerLm(V, D, 4, 32, num_blocks=3, embed_size=8, positions=positions).eval()


def our_weights(state):
    """ESPnet's state dict under our names."""
    ours = {}
    for name, value in state.items():
        name = re.sub(r"^encoder\.embed\.(\d)\.", r"input.\1.", name)
        name = re.sub(r"^encoder\.encoders\.", "layers.", name.replace("encoder.after", "after"))
        name = re.sub(r"^decoder\.", "output.", name)
        for theirs, name_of_ours in [
            (".feed_forward.w_1.", ".feed_forward.0."),
            (".feed_forward.w_2.", ".feed_forward.3."),
            (".self_attn.linear_out.", ".self_attention.output."),
            (".norm1.", ".norm_self."),
            (".norm2.", ".norm_feed_forward."),
        ]:
            name = name.replace(theirs, name_of_ours)
        if part := re.match(r"(.*)\.self_attn\.linear_[qkv]\.(.*)", name):
            name = f"{part[1]}.self_attention.project.{part[2]}"  # q, k, v come in this order
            value = torch.cat([ours[name], value]) if name in ours else value
        ours[name] = value
    return ours


def espnet_pair(positions):
    espnet = pytest.importorskip(
        "espnet2.lm.transformer_lm", reason="pip install espnet==202611 to compare with ESPnet"
    )
    ours = make(positions)
    pos_enc = None if positions == "none" else positions
    theirs = espnet.TransformerLM(V, pos_enc, 8, D, 4, 32, 3, attention_dropout_rate=0.0).eval()
    ours.load_state_dict(our_weights(theirs.state_dict()))
    return ours, theirs


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_espnet_logits_and_gradients(positions):
    ours, theirs = espnet_pair(positions)
    real = torch.arange(6) < LENGTHS[:, None]
    left = ours(TOKENS, LENGTHS)[real]
    right = theirs(TOKENS.clamp(min=0), None)[0][real]
    assert_close(left, right, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(left)
    (left * weight).sum().backward()
    (right * weight).sum().backward()
    gradients = our_weights({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], atol=2e-5, rtol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_espnet_steps(positions):
    ours, theirs = espnet_pair(positions)
    state, states = ours.init_state(2), [None, None]
    for u in range(1, 6):
        left, state = ours.step(TOKENS[[0, 0], u - 1], state)
        right, states = theirs.batch_score(TOKENS[[0, 0], :u], states, torch.zeros(2, 1, 1))
        assert_close(left, right, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
@pytest.mark.parametrize("even", [True, False])
def test_steps_equal_the_full_pass(positions, even):
    """Hypotheses that split, swap and die, in a batch of two utterances."""
    lm = make(positions)
    scorer = LmScorer(lm, 2)
    state, token = scorer.start(), torch.full((2,), EOS)
    texts = token[:, None]
    torch.manual_seed(1)
    picks = [[0, 0, 1, 1], [1, 0, 3, 3], [0, 1, 2, 3], [2, 3], [0, 1, 1, 1, 0, 0]]
    if not even:
        picks = [[0, 0, 1], [2, 2, 0, 1], [3, 1, 0], [1], [0, 0, 0]]
    for index in picks:
        rows, state = scorer.score(token, state)
        full = lm(texts, torch.full((len(texts),), texts.size(1)))[:, -1]
        assert_close(rows, full.log_softmax(-1), atol=1e-5, rtol=1e-5)
        again, _ = scorer.score(token, state)  # a state is a value: stepping twice changes nothing
        assert again.shape == rows.shape
        index = torch.tensor(index)
        token = torch.randint(1, EOS, index.shape)
        state = scorer.select(state, index)
        texts = torch.cat([texts[index], token[:, None]], 1)


@torch.no_grad()
def test_long_sequences_extend_the_positions():
    lm = make("sinusoidal")
    tokens = torch.randint(1, EOS, (1, 300))
    full = lm(tokens, torch.tensor([300]))
    short = lm(tokens[:, :200], torch.tensor([200]))
    assert_close(full[:, :200], short, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing():
    lm = make()
    together = lm(TOKENS, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = lm(TOKENS[row : row + 1, :length], LENGTHS[row : row + 1])
        assert_close(together[row, :length], alone[0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_sequence_scores(monkeypatch):
    lm = make()
    for limit in [2**26, 5 * V]:  # all at once, and in pieces that end within sequences
        monkeypatch.setattr("speechattn.decoders.scoring.MAX_LOGITS", limit)
        scores = sequence_scores(lm, TOKENS, LENGTHS)
        assert scores.shape == (3,) and scores.dtype == torch.float64
        for row, length in enumerate(LENGTHS.tolist()):
            state, total = lm.init_state(1), 0.0
            text = [*TOKENS[row, :length].tolist(), EOS]
            for token, after in zip(text, text[1:], strict=False):
                log_probs, state = lm.step(torch.tensor([token]), state)
                total += log_probs[0, after].item()
            assert scores[row].item() == pytest.approx(total, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("both_ways", [True, False])
def test_internal_lm_is_the_decoder_over_a_memory_of_zeros(both_ways):
    torch.manual_seed(0)
    decoder = (
        BidirectionalDecoder(V, 10, D, 4, linear_units=32, num_blocks=2, reverse_blocks=1)
        if both_ways
        else TransformerDecoder(V, 10, D, 4, linear_units=32, num_blocks=2)
    ).eval()
    scorer = InternalLmScorer(decoder, 3)
    state = scorer.start()
    lengths = torch.tensor([9, 4, 1])
    wanted = decoder.init_state(torch.zeros(3, 9, 10), lengths)
    heard = decoder.init_state(torch.randn(3, 9, 10), lengths)
    token = torch.full((3,), EOS)
    for index in [[0, 0, 1, 1, 2, 2], [1, 1, 4, 5], [3, 0]]:
        left, state = scorer.score(token, state)
        right, wanted = decoder.step(token, wanted)
        other, heard = decoder.step(token, heard)
        assert_close(left, right, atol=1e-5, rtol=1e-5)
        assert (left - other).abs().max() > 0.01
        index = torch.tensor(index)
        token = torch.randint(1, EOS, index.shape)
        state, wanted, heard = (
            scorer.select(state, index),
            wanted.select(index),
            heard.select(index),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 15}, "even"),
        ({"width": 18}, "multiple"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"positions": "rotary"}, "positions"),
    ],
)
def test_arguments_that_are_refused(change, message):
    arguments = {"width": D, "attention_heads": 4, "linear_units": 32, "num_blocks": 1}
    with pytest.raises(ValueError, match=message):
        TransformerLm(V, **(arguments | change))
