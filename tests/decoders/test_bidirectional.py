"""BidirectionalDecoder: its halves against decoders fed by hand, one sequence at a time."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from speechattn.decoders import BidirectionalDecoder, TransformerDecoder, reverse_tokens

V, M, D, H = 11, 12, 16, 4
SOS = V - 1
SENTENCES = [[3, 4, 4, 9, 2], [5, 6], [], [7, 1, 2]]
TOKENS = torch.full((4, 6), -1)
for i, sentence in enumerate(SENTENCES):
    TOKENS[i, : len(sentence) + 1] = torch.tensor([SOS, *sentence])
TOKEN_LENGTHS = torch.tensor([len(s) + 1 for s in SENTENCES])
MEMORY_LENGTHS = torch.tensor([5, 9, 3, 1])


def make(**options) -> BidirectionalDecoder:
    torch.manual_seed(0)
    return BidirectionalDecoder(
        V, M, D, H, linear_units=32, num_blocks=2, reverse_blocks=1, **options
    ).eval()


def make_memory() -> torch.Tensor:
    return torch.randn(4, 9, M, generator=torch.Generator().manual_seed(1))


def item(i: int, memory: torch.Tensor):
    """The arguments of utterance i alone, without padding."""
    t, u = int(MEMORY_LENGTHS[i]), int(TOKEN_LENGTHS[i])
    return (
        TOKENS[i : i + 1, :u],
        TOKEN_LENGTHS[i : i + 1],
        memory[i : i + 1, :t],
        MEMORY_LENGTHS[i : i + 1],
    )


def test_reverse_tokens_by_their_own_lengths():
    lengths = torch.tensor([5, 2, 0, 3])
    turned = reverse_tokens(TOKENS[:, 1:], lengths)
    for row, sentence, n in zip(turned.tolist(), SENTENCES, lengths.tolist(), strict=True):
        assert row == sentence[::-1] + [-1] * (5 - n)
    assert torch.equal(reverse_tokens(turned, lengths), TOKENS[:, 1:])


def test_the_left_half_is_a_transformer_decoder():
    decoder, memory = make(), make_memory()
    alone = TransformerDecoder(V, M, D, H, linear_units=32, num_blocks=2).eval()
    state = decoder.state_dict()
    alone.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("left.")})
    assert set(state) == {f"left.{name}" for name in alone.state_dict()} | {
        f"right.{name}"
        for name in TransformerDecoder(V, M, D, H, linear_units=32, num_blocks=1).state_dict()
    }
    arguments = (TOKENS, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    assert torch.equal(decoder(*arguments), alone(*arguments))
    assert torch.equal(decoder.cross_attention(*arguments), alone.cross_attention(*arguments))
    states = [d.init_state(memory, MEMORY_LENGTHS) for d in (decoder, alone)]
    for token in ([SOS] * 4, [3, 5, 1, 7]):
        found, states[0] = decoder.step(torch.tensor(token), states[0])
        wanted, states[1] = alone.step(torch.tensor(token), states[1])
        assert torch.equal(found, wanted)
    assert (decoder.vocab_size, decoder.width) == (V, D)


def test_the_right_half_reads_each_sequence_back_to_front():
    """Outputs and gradients of a ragged batch, against sequences reversed as lists."""
    decoder, memory = make(), make_memory().requires_grad_()
    together = decoder.reverse(TOKENS, TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    weight = torch.randn(together.shape)
    real = torch.arange(6) < TOKEN_LENGTHS[:, None]
    found = torch.autograd.grad((together * weight)[real].sum(), [memory, *decoder.parameters()],
                                allow_unused=True)  # fmt: skip
    total = torch.zeros(())
    for i, sentence in enumerate(SENTENCES):
        _, lengths, frames, frame_lengths = item(i, memory)
        turned = torch.tensor([[SOS, *reversed(sentence)]])
        alone = decoder.right(turned, lengths, frames, frame_lengths)
        assert_close(together[i : i + 1, : len(sentence) + 1], alone, atol=1e-5, rtol=0)
        total = total + (alone * weight[i : i + 1, : len(sentence) + 1]).sum()
    wanted = torch.autograd.grad(total, [memory, *decoder.parameters()], allow_unused=True)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_right_to_left_sees_nothing_to_the_left():
    decoder, memory = make(), make_memory()
    arguments = (TOKEN_LENGTHS, memory, MEMORY_LENGTHS)
    before = decoder.reverse(TOKENS, *arguments)
    changed = TOKENS.clone()
    changed[:, 2] = torch.where(changed[:, 2] >= 0, (changed[:, 2] + 1) % V, -1)
    after = decoder.reverse(changed, *arguments)
    # The second token of 5 is fed as the fifth of six, <sos> among them; of 3 as the third of 4.
    for i, first in ((0, 4), (3, 2)):
        n = int(TOKEN_LENGTHS[i])
        assert torch.equal(before[i, :first], after[i, :first])
        assert (before[i, first:n] - after[i, first:n]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("direction", ["left", "right"])
def test_steps_equal_the_parallel_pass(direction):
    decoder, memory = make(), make_memory()
    half = getattr(decoder, direction)
    tokens = torch.randint(1, SOS, (4, 7))
    tokens[:, 0] = SOS
    lengths = torch.full((4,), 7)
    if direction == "left":
        fed, logits = tokens, decoder(tokens, lengths, memory, MEMORY_LENGTHS)
    else:
        fed = torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], 1)
        logits = decoder.reverse(tokens, lengths, memory, MEMORY_LENGTHS)
    expected = logits.log_softmax(-1)
    state = half.init_state(memory, MEMORY_LENGTHS)
    for u in range(7):
        log_probs, state = half.step(fed[:, u], state)
        assert_close(log_probs, expected[:, u], atol=1e-5, rtol=0)


@pytest.mark.parametrize("reverse", [False, True])
def test_several_sequences_share_an_utterance(reverse):
    """Three an utterance, of their own lengths, against a memory repeated three times."""
    decoder, memory = make(), make_memory().requires_grad_()
    tokens = torch.randint(1, SOS, (12, 5), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = SOS
    lengths = torch.tensor([5, 1, 3] * 4)
    score = decoder.reverse if reverse else decoder
    shared = score(tokens, lengths, memory, MEMORY_LENGTHS)
    repeated = score(
        tokens, lengths, memory.repeat_interleave(3, 0), MEMORY_LENGTHS.repeat_interleave(3)
    )
    real = torch.arange(5) < lengths[:, None]
    assert_close(shared[real], repeated[real], atol=1e-5, rtol=0)
    weight = torch.randn(repeated[real].shape)
    (found,) = torch.autograd.grad((shared[real] * weight).sum(), memory)
    (wanted,) = torch.autograd.grad((repeated[real] * weight).sum(), memory)
    assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_a_shared_embedding_is_one(tmp_path):
    torch.manual_seed(3)
    decoder = make(share_embedding=True)
    names = set(decoder.state_dict())
    assert "left.embed.weight" in names and "right.embed.weight" not in names
    assert names == {name for name, _ in decoder.named_parameters()}
    arguments = (TOKENS, TOKEN_LENGTHS, make_memory(), MEMORY_LENGTHS)

    separate = make()
    state = decoder.state_dict()
    separate.load_state_dict({**state, "right.embed.weight": state["left.embed.weight"]})
    assert torch.equal(decoder.reverse(*arguments), separate.reverse(*arguments))
    for model in (decoder, separate):
        (model(*arguments)[:, 0].sum() + model.reverse(*arguments).square()[:, 0].sum()).backward()
    both = separate.left.embed.weight.grad + separate.right.embed.weight.grad
    assert_close(decoder.left.embed.weight.grad, both)

    twin = copy.deepcopy(decoder)
    with torch.no_grad():
        twin.left.embed.weight.zero_()
    assert twin.right.embed.weight.abs().max() == 0
    assert decoder.right.embed.weight.abs().max() > 0
    save_file(state, tmp_path / "weights.safetensors")  # refuses tensors that share memory
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(decoder.reverse(*arguments), twin.reverse(*arguments))
    twin.double()
    assert twin.right.embed.weight.dtype == torch.float64


def test_no_right_half_is_refused():
    with pytest.raises(ValueError, match="reverse_blocks is 0"):
        BidirectionalDecoder(V, M, reverse_blocks=0)
