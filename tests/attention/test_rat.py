"""Recurrence in chunks and attention across them: against loops that write the definition out."""

import math

import pytest
import torch

from speechattn.attention import RecurrentSelfAttention
from speechattn.attention.rotary import rotate
from speechattn.masks import Chunks

WIDTH, HEADS, CHUNK = 8, 2, 3


def by_loops(module: RecurrentSelfAttention, x: torch.Tensor, causal: bool) -> torch.Tensor:
    """One item (T, D), a frame at a time."""

    def heads(layer):
        return layer(x).unflatten(-1, (-1, WIDTH // HEADS))

    q, k, v = heads(module.query), heads(module.key), heads(module.value)
    q, k = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in (q, k))
    g, z = heads(module.forget).sigmoid(), heads(module.gate).sigmoid()
    chunks = [list(range(t, min(t + CHUNK, len(x)))) for t in range(0, len(x), CHUNK)]

    def state(frames):
        key, value = torch.zeros_like(k[0]), torch.zeros_like(v[0])
        for t in frames:
            key, value = g[t] * key + (1 - g[t]) * k[t], g[t] * value + (1 - g[t]) * v[t]
        return key, value

    def turned(row, index):
        return rotate(row[None, None], index)[0, 0]

    rows = []
    for t in range(len(x)):
        own = t // CHUNK
        seen = [(c, *state(chunks[c])) for c in range(own if causal else len(chunks)) if c != own]
        seen.append((own, *state(chunks[own][: t % CHUNK + 1])))
        if not causal and t + 1 in chunks[own]:
            seen.append((own, *state(reversed(chunks[own][t % CHUNK + 1 :]))))
        query = turned(q[t], own)
        scores = [(query * turned(key, c)).sum(-1) for c, key, _ in seen]  # (H,) each
        weights = (torch.stack(scores) / math.sqrt(WIDTH / HEADS)).softmax(0)
        y = sum(w[:, None] * value for w, (_, _, value) in zip(weights, seen, strict=True))
        rows.append((y * z[t]).flatten())
    return module.output(torch.stack(rows))


@pytest.mark.parametrize("key_heads", [0, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_the_definition_and_its_gradients(causal, key_heads):
    torch.manual_seed(0)
    module = RecurrentSelfAttention(WIDTH, HEADS, chunk=CHUNK, key_heads=key_heads).double().eval()
    x = torch.randn(2, 10, WIDTH, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([10, 5])
    y = module(x, lengths, chunks=Chunks(1) if causal else None)
    wanted = (x, *module.parameters())
    for row, n in enumerate(lengths.tolist()):
        expected = by_loops(module, x[row, :n], causal)
        torch.testing.assert_close(y[row, :n], expected)
        given = torch.randn_like(expected)
        found, by_hand = (
            torch.autograd.grad(part, wanted, given, retain_graph=True)
            for part in (y[row, :n], expected)
        )
        torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("frames", [1, 7])
def test_a_chunk_of_all_frames_is_a_recurrence(frames):
    """However long: attention is to one state, so its weight is 1."""
    torch.manual_seed(0)
    module = RecurrentSelfAttention(WIDTH, HEADS, chunk=10**9).double().eval()
    x = torch.randn(1, frames, WIDTH, dtype=torch.float64)
    v, g, z = module.value(x), module.forget(x).sigmoid(), module.gate(x).sigmoid()
    state, rows = torch.zeros(1, WIDTH, dtype=torch.float64), []
    for t in range(frames):
        state = g[:, t] * state + (1 - g[:, t]) * v[:, t]
        rows.append(module.output(state * z[:, t]))
    y = module(x, torch.tensor([frames]), chunks=Chunks(1))
    torch.testing.assert_close(y, torch.stack(rows, 1))


def test_gates_begin_as_averages_of_up_to_a_chunk():
    g = RecurrentSelfAttention(64, 2, chunk=16).forget.bias.sigmoid()
    frames = 1 / (1 - g)  # time constant of each channel
    assert frames.min() >= 2 - 1e-4 and 12 < frames.max() <= 16 + 1e-3
    torch.testing.assert_close(
        RecurrentSelfAttention(8, 2, chunk=1).forget.bias.detach(), torch.zeros(8)
    )


def test_steps_of_any_size():
    torch.manual_seed(0)
    module = RecurrentSelfAttention(WIDTH, HEADS, chunk=CHUNK).double().eval()
    x = torch.randn(2, 17, WIDTH, dtype=torch.float64)
    y = module(x, torch.tensor([17, 17]), chunks=Chunks(1))
    state, parts, at = module.init_state(2), [], 0
    for size in (1, 4, 3, 7, 2):
        part, state = module.step(x[:, at : at + size], state)
        parts.append(part)
        at += size
        assert state.pending.shape[2] < CHUNK and state.key.shape[1] == at // CHUNK
    torch.testing.assert_close(torch.cat(parts, 1), y)


def test_streams_do_not_forget():
    with pytest.raises(ValueError, match="left_context -1"):
        RecurrentSelfAttention(WIDTH, HEADS).init_state(1).keep(3)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="divides 2 heads, not 3"):
        RecurrentSelfAttention(WIDTH, HEADS, key_heads=3)


def test_a_chunk_has_a_frame():
    with pytest.raises(ValueError, match="at least 1 frame"):
        RecurrentSelfAttention(WIDTH, HEADS, chunk=0)
