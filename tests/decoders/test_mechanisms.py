"""Decoders of every mechanism: what search and rescoring do equals the parallel pass."""

import copy
import math
from functools import partial
from itertools import product

import pytest
import torch
from torch.nn.functional import ctc_loss
from torch.testing import assert_close

from speechattn.attention import (
    DynamicConvolutionCrossAttention,
    GmmCrossAttention,
    LatentTokenAttention,
    SoftmaxCrossAttention,
    SoftmaxTokenAttention,
)
from speechattn.config import ConfigError, build
from speechattn.decoders import BidirectionalDecoder, TransformerDecoder
from speechattn.decoding import JointSearch
from speechattn.decoding.prefix_tree import tree_scores
from speechattn.deploy.packing import pack
from speechattn.deploy.quantization import quantize
from speechattn.lm.transformer import TransformerLm, sequence_scores
from speechattn.model.output import ModelOutput

V, M, D, H, T = 9, 6, 16, 4, 8
EOS = V - 1
LENGTHS = torch.tensor([5, 8, 1])
TOKENS = {
    "softmax": SoftmaxTokenAttention,
    "grouped": partial(SoftmaxTokenAttention, kv_heads=2),
    "one-head": partial(SoftmaxTokenAttention, kv_heads=1),
    "latent-2": partial(LatentTokenAttention, rank=12),
    "latent-3-rotary": partial(LatentTokenAttention, rank=12, stride=3, rotary=4),
}
MEMORY = {
    "softmax": SoftmaxCrossAttention,
    "one-head": partial(SoftmaxCrossAttention, kv_heads=1),
    "gmm": partial(GmmCrossAttention, mixtures=2, move=1.0, spread=1.0),
    "convolution": partial(
        DynamicConvolutionCrossAttention, filters=2, filter_length=3, reach=4, alpha=1.0, beta=2.0
    ),
}
EVERY = pytest.mark.parametrize("tokens, memory", list(product(TOKENS, MEMORY)))
EACH = pytest.mark.parametrize(
    "tokens, memory",
    [*((t, "gmm") for t in TOKENS), *(("latent-2", m) for m in MEMORY if m != "gmm")],
)


def make(tokens: str, memory: str, vocab_size: int = V, **options) -> TransformerDecoder:
    torch.manual_seed(0)
    options |= {"self_attention": TOKENS[tokens], "cross_attention": MEMORY[memory]}
    decoder = (
        TransformerDecoder(vocab_size, M, D, H, linear_units=32, num_blocks=2, **options)
        .double()
        .eval()
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder


def make_memory(b: int = 3) -> torch.Tensor:
    return torch.randn(b, T, M, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@EVERY
@torch.no_grad()
def test_steps_of_reordered_hypotheses_equal_the_parallel_pass(tokens, memory):
    """As a search does it: few ancestors survive, utterances leave, states may be stepped twice."""
    decoder, frames = make(tokens, memory), make_memory()
    generator = torch.Generator().manual_seed(2)
    state = decoder.init_state(frames, LENGTHS)
    histories: list[list[int]] = [[] for _ in range(3)]
    owner, places = [0, 1, 2], []
    for u in range(14):
        fed = torch.randint(0, V, (len(histories),), generator=generator)
        histories = [[*h, int(t)] for h, t in zip(histories, fed, strict=True)]
        before = state
        log_probs, state = decoder.step(fed, state)
        again, _ = decoder.step(fed, before)
        assert torch.equal(again, log_probs)
        rows = torch.tensor(owner)
        expected = decoder(
            torch.tensor(histories), torch.full((len(rows),), u + 1), frames[rows], LENGTHS[rows]
        )[:, -1].log_softmax(-1)
        assert_close(log_probs, expected)
        k = len(histories) // state.utterances
        alive = list(range(state.utterances))
        if u == 6:
            alive.pop(1)
        index = [b * k + int(torch.rand((), generator=generator) ** 3 * k) for b in alive
                 for _ in range(4)]  # fmt: skip
        if u == 12:
            index = index[:5]  # runs of 4 and 1: each goes on with a memory of its own
        state = state.select(torch.tensor(index))
        histories, owner = [histories[i] for i in index], [owner[i] for i in index]
        places.append(state.tree.path.sum(2).unique().tolist())
    assert state.utterances == 5
    stride = decoder.layers[0].self_attention.stride
    assert places == [[math.ceil(u / stride)] for u in range(1, 15)]


@EVERY
def test_a_batch_gives_what_its_items_give(tokens, memory):
    decoder, frames = make(tokens, memory), make_memory()
    frames.masked_fill_((torch.arange(T) >= LENGTHS[:, None])[..., None], 1e3).requires_grad_()
    fed = torch.tensor([[8, 3, 4, 4, 7, 2], [8, 5, 6, -1, -1, -1], [8, 7, 1, 2, -1, -1]])
    counts = torch.tensor([6, 3, 4])
    together = decoder(fed, counts, frames, LENGTHS)
    weights = decoder.cross_attention(fed, counts, frames, LENGTHS)
    assert weights.shape == (2, 3, H, 6, T)
    assert_close(weights.sum(-1), torch.ones(2, 3, H, 6).double())
    parts = []
    for i, (u, t) in enumerate(zip(counts.tolist(), LENGTHS.tolist(), strict=True)):
        item = (fed[i : i + 1, :u], counts[i : i + 1], frames[i : i + 1, :t], LENGTHS[i : i + 1])
        alone = decoder(*item)
        assert_close(together[i : i + 1, :u], alone)
        assert_close(weights[:, i, :, :u, :t], decoder.cross_attention(*item)[:, 0])
        assert (weights[:, i, ..., t:] == 0).all()
        parts.append(alone.square().sum())
    parameters = [frames, *decoder.parameters()]
    wanted = torch.autograd.grad(sum(parts), parameters, allow_unused=True)
    total = sum(together[i, :u].square().sum() for i, u in enumerate(counts))
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None and one.isfinite().all()
        assert_close(one, other, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("tokens, memory", [*((t, "softmax") for t in TOKENS),
                                            *(("softmax", m) for m in MEMORY)])  # fmt: skip
def test_gradients_against_differences(tokens, memory):
    decoder, frames = make(tokens, memory), make_memory(1)[:, :4].requires_grad_()
    fed, counts = torch.tensor([[8, 3, 4, 1]]), torch.tensor([4])
    weight = torch.randn(4, V, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (decoder(fed, counts, frames, torch.tensor([4]))[0].log_softmax(-1) * weight).sum()

    parameters = [frames, *decoder.layers[0].parameters()]
    gradients = torch.autograd.grad(loss(), parameters)
    torch.manual_seed(3)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        way = torch.randn_like(parameter)
        with torch.no_grad():
            sides = []
            for step in (1e-6, -2e-6):
                parameter.add_(step * way)
                sides.append(loss())
            parameter.add_(1e-6 * way)
        difference = (sides[0] - sides[1]) / 2e-6
        assert_close((gradient * way).sum(), difference, atol=1e-6, rtol=1e-5)


@EVERY
@torch.no_grad()
def test_trees_of_prefixes_score_as_each_sequence_alone(tokens, memory):
    torch.manual_seed(0)
    options = {"self_attention": TOKENS[tokens], "cross_attention": MEMORY[memory]}
    decoder = (
        BidirectionalDecoder(V, M, D, H, linear_units=32, num_blocks=2, reverse_blocks=1, **options)
        .double()
        .eval()
    )
    frames = make_memory()
    nbest = [[[1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 5, 4], [], [7, 2, 3, 4]], [], [[6], [6, 6, 6]]]
    for predict, half in (
        (decoder.predict_tree, decoder.left),
        (decoder.reverse_tree, decoder.right),
    ):
        found = tree_scores(predict, nbest, frames, LENGTHS, V)
        for b, sequences in enumerate(nbest):
            for score, sequence in zip(found[b], sequences, strict=True):
                fed = torch.tensor([[EOS, *sequence]])
                out = half(fed, torch.tensor([fed.size(1)]), frames[b : b + 1], LENGTHS[b : b + 1])
                after = torch.tensor([*sequence, EOS])[:, None]
                wanted = out[0].log_softmax(-1).gather(1, after).sum().item()
                assert score == pytest.approx(wanted, abs=1e-6)


@EACH
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all(tokens, memory):
    v, lengths = 4, torch.tensor([4, 3, 2])
    decoder = make(tokens, memory, v)
    hidden = make_memory()[:, :4]
    ctc = (2 * torch.randn(3, 4, v, generator=torch.Generator().manual_seed(5))).log_softmax(-1)
    options = JointSearch(beam_size=40, ctc_weight=0.3, nbest=2, pre_beam_ratio=1.0)
    results = options.search([ModelOutput(hidden, lengths, ctc, decoder)])
    for b, t in enumerate(lengths.tolist()):
        found = []
        for sequence in (s for u in range(t + 1) for s in product((1, 2), repeat=u)):
            count = torch.tensor([len(sequence)])
            fed = torch.tensor([[v - 1, *sequence]])
            out = decoder(fed, count + 1, hidden[b : b + 1, :t], lengths[b : b + 1])[0]
            after = torch.tensor([*sequence, v - 1])[:, None]
            score = 0.7 * out.log_softmax(-1).gather(1, after).sum().item()
            target = torch.tensor(sequence, dtype=torch.int64)
            frames = ctc[b, :t].double()
            score -= 0.3 * ctc_loss(frames, target, lengths[b], count[0], reduction="sum").item()
            found.append((score, list(sequence)))
        found.sort(reverse=True)
        for hypothesis, (score, sequence) in zip(results[b], found, strict=False):
            assert hypothesis.tokens == sequence
            assert hypothesis.score == pytest.approx(score, abs=1e-5)


@EACH
@torch.no_grad()
def test_a_narrow_beam_gives_true_scores_and_the_same_in_a_batch(tokens, memory):
    decoder, frames = make(tokens, memory), make_memory()
    ctc = torch.randn(3, T, V, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    options = JointSearch(beam_size=4, nbest=3, length_bonus=0.5)
    together = options.search([ModelOutput(frames, LENGTHS, ctc, decoder)])
    for b, t in enumerate(LENGTHS.tolist()):
        one = ModelOutput(frames[b : b + 1, :t], LENGTHS[b : b + 1], ctc[b : b + 1, :t], decoder)
        (alone,) = options.search([one])
        assert [h.tokens for h in alone] == [h.tokens for h in together[b]]
        for h in alone:
            fed = torch.tensor([[EOS, *h.tokens]])
            out = decoder(fed, torch.tensor([fed.size(1)]), one.hidden, one.lengths)[0]
            after = torch.tensor([*h.tokens, EOS])[:, None]
            wanted = out.log_softmax(-1).gather(1, after).sum().item()
            assert h.scores["decoder"] == pytest.approx(wanted, abs=1e-5)


@EACH
def test_mixed_precision(tokens, memory):
    """Means and alignments are kept in float32 where products are in bfloat16."""
    decoder, frames = make(tokens, memory).float(), make_memory(1).float()
    sequence = [1, 4, 2, 7, 3, 3, 5]
    fed, lengths = torch.tensor([[EOS, *sequence]]), LENGTHS[1:2]
    exact = decoder(fed, torch.tensor([8]), frames, lengths).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        whole = decoder(fed, torch.tensor([8]), frames, lengths).float().log_softmax(-1)
        path = torch.ones(1, 8, 8, dtype=torch.bool).tril()
        tree = decoder.predict_tree(fed, torch.arange(8)[None], path, frames, lengths)
        state, steps = decoder.init_state(frames, lengths), []
        for token in fed[0]:
            log_probs, state = decoder.step(token[None], state)
            steps.append(log_probs.float())
    for found in (whole, tree.float().log_softmax(-1), torch.stack(steps, 1)):
        assert_close(found, exact, atol=0.15, rtol=0.02)
    whole.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


@EACH
@torch.inference_mode()
def test_packed_and_quantised_layers(tokens, memory):
    """Nothing reads the weight of a layer that inference replaces."""
    frames, ctc = make_memory().float(), torch.randn(3, T, V).log_softmax(-1)
    options = JointSearch(beam_size=3)
    plain = make(tokens, memory).float()
    (wanted, *_) = options.search([ModelOutput(frames, LENGTHS, ctc, plain)])
    packed = pack(copy.deepcopy(plain))
    (found, *_) = options.search([ModelOutput(frames, LENGTHS, ctc, packed)])
    assert found[0].score == pytest.approx(wanted[0].score, abs=1e-3)
    quantised = quantize(copy.deepcopy(plain), "int8", smallest=0)
    (found, *_) = options.search([ModelOutput(frames, LENGTHS, ctc, quantised)])
    assert math.isfinite(found[0].score)


@pytest.mark.parametrize("tokens", TOKENS)
@torch.no_grad()
def test_language_models(tokens):
    torch.manual_seed(0)
    lm = TransformerLm(V, D, H, 32, num_blocks=2, embed_size=8, self_attention=TOKENS[tokens])
    lm = lm.double().eval()
    fed = torch.randint(0, V, (3, 9))
    expected = lm(fed, torch.full((3,), 9)).log_softmax(-1)
    tree = lm.init_state(3)
    for u in range(9):
        log_probs, tree = lm.step(fed[:, u], tree)
        assert_close(log_probs, expected[:, u])
        tree, _ = tree.select(torch.arange(3))
    assert tree.path.size(2) <= math.ceil(9 / lm.layers[0].self_attention.stride) / 0.75
    scores = sequence_scores(lm, fed, torch.tensor([9, 4, 1]))
    alone = sequence_scores(lm, fed[1:2, :4], torch.tensor([4]))
    assert scores[1].item() == pytest.approx(alone.item(), abs=1e-9)


SIZES = {"vocab_size": V, "memory_size": M, "width": D, "attention_heads": H, "num_blocks": 2}


@pytest.mark.parametrize("kind", [TransformerDecoder, BidirectionalDecoder])
def test_config_names_them(kind):
    config = {
        "self_attention": {
            "class_path": "speechattn.attention.LatentTokenAttention",
            "init_args": {"rank": 12, "stride": 3},
        },
        "cross_attention": {
            "class_path": "speechattn.attention.GmmCrossAttention",
            "init_args": {"mixtures": 2},
        },
    }
    decoder = build(kind, SIZES | config, "decoder")
    left = getattr(decoder, "left", decoder)
    for layer in left.layers:
        assert isinstance(layer.self_attention, LatentTokenAttention)
        assert (layer.self_attention.rank, layer.self_attention.stride) == (12, 3)
        assert isinstance(layer.cross_attention, GmmCrossAttention)
        assert layer.cross_attention.mixtures == 2
        assert layer.cross_attention.value.in_features == M
    plain = build(kind, SIZES, "decoder")
    assert isinstance(getattr(plain, "left", plain).layers[0].self_attention, SoftmaxTokenAttention)


def test_config_refuses_other_code_and_other_options():
    for name, config in (
        ("self_attention", {"class_path": "os.path.join"}),
        ("self_attention", {"class_path": "speechattn.attention.LatentTokenAttention",
                            "init_args": {"strides": 3}}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=name):
            build(TransformerDecoder, SIZES | {name: config}, "decoder")
