"""TransformerDecoder against torch's own layers, and what search relies on."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from speechattn.decoders import TransformerDecoder
from speechattn.decoders.transformer import sinusoids

V, M, D, H = 11, 12, 16, 4
TOKENS = torch.tensor([[10, 3, 4, 4, 9, 2], [10, 5, 6, -1, -1, -1], [10, 7, 1, 2, -1, -1]])
TOKEN_LENGTHS = torch.tensor([6, 3, 4])
MEMORY_LENGTHS = torch.tensor([5, 9, 1])


def make(memory_size: int = M, **options) -> TransformerDecoder:
    torch.manual_seed(0)
    return TransformerDecoder(V, memory_size, D, H, linear_units=32, num_blocks=2, **options).eval()


def make_memory(memory_size: int = M) -> torch.Tensor:
    return torch.randn(3, 9, memory_size, generator=torch.Generator().manual_seed(1))


def test_equals_torch_layers_forward_and_backward():
    decoder = make(memory_size=D)
    layers = []
    for ours in decoder.layers:
        layer = nn.TransformerDecoderLayer(
            D, H, 32, 0.0, layer_norm_eps=1e-12, batch_first=True, norm_first=True
        )
        cross = ours.cross_attention
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": ours.self_attention.project.weight,
                "self_attn.in_proj_bias": ours.self_attention.project.bias,
                "self_attn.out_proj.weight": ours.self_attention.output.weight,
                "self_attn.out_proj.bias": ours.self_attention.output.bias,
                "multihead_attn.in_proj_weight": torch.cat(
                    [cross.query.weight, cross.key_value.weight]
                ),
                "multihead_attn.in_proj_bias": torch.cat([cross.query.bias, cross.key_value.bias]),
                "multihead_attn.out_proj.weight": cross.output.weight,
                "multihead_attn.out_proj.bias": cross.output.bias,
                "linear1.weight": ours.feed_forward[0].weight,
                "linear1.bias": ours.feed_forward[0].bias,
                "linear2.weight": ours.feed_forward[3].weight,
                "linear2.bias": ours.feed_forward[3].bias,
                "norm1.weight": ours.norm_self.weight,
                "norm1.bias": ours.norm_self.bias,
                "norm2.weight": ours.norm_cross.weight,
                "norm2.bias": ours.norm_cross.bias,
                "norm3.weight": ours.norm_feed_forward.weight,
                "norm3.bias": ours.norm_feed_forward.bias,
            }
        )
        layers.append(layer)
    tokens = TOKENS.clamp(min=0)
    memory = make_memory(D).requires_grad_()
    x = decoder.embed(tokens) * D**0.5 + sinusoids(6, D)
    for layer in layers:
        x = layer(
            x,
            memory,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(6),
            memory_key_padding_mask=torch.arange(9) >= MEMORY_LENGTHS[:, None],
            tgt_is_causal=True,
        )
    expected = decoder.output(decoder.after_norm(x))
    logits = decoder(tokens, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    real = torch.arange(6) < TOKEN_LENGTHS[:, None]
    assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)

    weight = torch.randn(V)
    (gradient,) = torch.autograd.grad((logits[real] * weight).sum(), memory)
    (wanted,) = torch.autograd.grad((expected[real] * weight).sum(), memory)
    assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_a_batch_gives_what_its_items_give():
    decoder, memory = make(), make_memory().requires_grad_()
    together = decoder(TOKENS, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    weights = decoder.cross_attention(TOKENS, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    sums = []
    for i, (u, t) in enumerate(zip(TOKEN_LENGTHS, MEMORY_LENGTHS, strict=True)):
        item = (TOKENS[i : i + 1, :u], TOKEN_LENGTHS[i : i + 1])
        item += (memory[i : i + 1, :t], MEMORY_LENGTHS[i : i + 1])
        alone = decoder(*item)
        assert_close(together[i : i + 1, :u], alone, atol=1e-5, rtol=0)
        assert_close(weights[:, i, :, :u, :t], decoder.cross_attention(*item)[:, 0])
        sums.append(alone.square().sum())
    (alone_grad,) = torch.autograd.grad(sum(sums), memory)
    total = sum(together[i, :u].square().sum() for i, u in enumerate(TOKEN_LENGTHS))
    (together_grad,) = torch.autograd.grad(total, memory)
    assert_close(together_grad, alone_grad, atol=1e-4, rtol=1e-4)


def test_no_look_ahead():
    decoder, memory = make(), make_memory()
    lengths = torch.full((3,), 6)
    tokens = TOKENS.clamp(min=0)
    before = decoder(tokens, lengths, memory, MEMORY_LENGTHS)
    tokens[:, 4] = (tokens[:, 4] + 1) % V
    after = decoder(tokens, lengths, memory, MEMORY_LENGTHS)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-4


def test_steps_equal_the_parallel_pass():
    decoder, memory = make(), make_memory()
    tokens = TOKENS.clamp(min=0)
    expected = decoder(tokens, torch.full((3,), 6), memory, MEMORY_LENGTHS).log_softmax(-1)
    state = decoder.init_state(memory, MEMORY_LENGTHS)
    for u in range(6):
        previous = state
        log_probs, state = decoder.step(tokens[:, u], state)
        assert_close(log_probs, expected[:, u], atol=1e-5, rtol=0)
        again, _ = decoder.step(tokens[:, u], previous)  # states are values
        assert torch.equal(again, log_probs)


@pytest.mark.parametrize(
    "index",
    [[0, 1, 2], [0, 0, 1, 1, 2, 2], [2, 0], [1, 1, 1], [0, 0, 1, 2], [2, 0, 2], [1]],
    ids=str,
)
def test_selected_hypotheses_go_on_as_their_own(index):
    decoder, memory = make(), make_memory()
    tokens = TOKENS.clamp(min=0)
    state = decoder.init_state(memory, MEMORY_LENGTHS)
    _, state = decoder.step(tokens[:, 0], state)
    first = torch.tensor([0, 0, 1, 1, 2, 2])
    state = state.select(first)
    second = torch.arange(6)
    _, state = decoder.step(second, state)
    chosen = torch.tensor([2 * i + k % 2 for k, i in enumerate(index)])
    state = state.select(chosen)
    third = torch.arange(len(index)) + 3
    log_probs, _ = decoder.step(third, state)
    owner = first[chosen]
    history = torch.stack([tokens[owner, 0], second[chosen], third], 1)
    expected = decoder(history, torch.full((len(index),), 3), memory[owner], MEMORY_LENGTHS[owner])[
        :, -1
    ].log_softmax(-1)
    assert_close(log_probs, expected, atol=1e-5, rtol=0)


def test_memory_stays_shared_while_hypotheses_multiply():
    state = make().init_state(make_memory(), MEMORY_LENGTHS)
    grown = state.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    assert grown.hypotheses == 6
    assert grown.memory is state.memory
    left = grown.select(torch.tensor([1, 0, 5, 5]))
    assert left.utterances == 2


def test_cross_attention_is_a_distribution_over_real_frames():
    weights = make().cross_attention(TOKENS, TOKEN_LENGTHS, make_memory(), MEMORY_LENGTHS)
    assert weights.shape == (2, 3, H, 6, 9)
    assert_close(weights.sum(-1), torch.ones(2, 3, H, 6))
    assert weights[:, 0, :, :, 5:].abs().max() == 0


def test_positions_grow_beyond_the_table():
    decoder, memory = make(), make_memory()[:1]
    tokens = torch.randint(0, V, (1, 600))
    lengths = (torch.tensor([600]), torch.tensor([9]))
    with torch.inference_mode():
        decoder(tokens, lengths[0], memory, lengths[1])
    expected = decoder(tokens, lengths[0], memory, lengths[1])
    expected.sum().backward()
    prefix = make()(tokens[:, :10], torch.tensor([10]), memory, lengths[1])
    assert_close(expected[:, :10], prefix, atol=1e-5, rtol=0)
    assert not any("position" in name for name in decoder.state_dict())
    half = make().bfloat16()(TOKENS, TOKEN_LENGTHS, make_memory().bfloat16(), MEMORY_LENGTHS)
    assert half.dtype == torch.bfloat16


def test_dropout_only_in_training():
    decoder, memory = make(attention_dropout=0.5), make_memory()
    arguments = (TOKENS, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    assert torch.equal(decoder(*arguments), decoder(*arguments))
    decoder.train()
    assert not torch.equal(decoder(*arguments), decoder(*arguments))


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="attention_heads 3"):
        TransformerDecoder(V, M, 16, 3)
    with pytest.raises(ValueError, match="attention_heads 0"):
        TransformerDecoder(V, M, D, attention_heads=0)
    with pytest.raises(ValueError, match="attention_dropout is 2"):
        TransformerDecoder(V, M, D, attention_dropout=2.0)
    with pytest.raises(ValueError, match="num_blocks"):
        TransformerDecoder(V, M, num_blocks=0)
