"""The transducer's losses against k2's, against all alignments one by one, and torchaudio's."""

import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechattn.kernels.lattice import transducer as module
from speechattn.kernels.lattice.pruned_transducer import (
    prune_ranges,
    pruned_transducer,
    simple_transducer,
)
from speechattn.kernels.lattice.transducer import transducer
from tests.k2.transducer_cases import Case, case, occupied, summed

GOLDEN = Path(__file__).with_name("golden_transducer.json")
TOPOLOGIES = ["regular", "modified", "constrained"]

LENGTHS = torch.tensor([4, 3, 2, 4, 1, 0, 0])
TOKEN_LENGTHS = torch.tensor([3, 2, 3, 0, 3, 0, 1])
TOKENS = torch.tensor([[1, 2, 1], [2, 2, 3], [1, 1, 3], [3, 3, 3], [1, 2, 3], [3, 3, 3], [1, 3, 3]])


def native(c: Case, ranges: np.ndarray) -> dict[str, np.ndarray]:
    """Our losses (B,) of a case, and the gradients of those that are finite."""
    am, lm, full, kept = (
        torch.from_numpy(x).requires_grad_() for x in (c.am, c.lm, c.full, c.kept)
    )
    lengths, tokens, counts, ranges = (
        torch.from_numpy(x) for x in (c.lengths, c.tokens, c.token_lengths, ranges)
    )
    options = {"delay_penalty": c.delay_penalty, "topology": c.topology}
    scales = {"lm_only_scale": c.lm_only_scale, "am_only_scale": c.am_only_scale}
    simple, px, py = simple_transducer(am, lm, tokens, lengths, counts, **scales, **options)
    losses = {
        "full": (transducer(full, lengths, tokens, counts, **options), {"full": full}),
        "simple": (simple, {"am": am, "lm": lm}),
        "pruned": (
            pruned_transducer(kept, tokens, ranges, lengths, counts, **options),
            {"kept": kept},
        ),
    }
    found = {"px": px.numpy(), "py": py.numpy()}
    for name, (loss, inputs) in losses.items():
        found[name] = loss.detach().numpy()
        gradients = torch.autograd.grad(loss[loss.isfinite()].sum(), list(inputs.values()))
        for x, gradient in zip(inputs, gradients, strict=True):
            found[f"gradient_{x}"] = gradient.numpy()
    return found


def test_equals_k2():
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 24
    for seed, expected in enumerate(golden):
        c = case(seed)
        first = np.array(expected["ranges"])
        found = native(c, first[..., None] + np.arange(c.kept.shape[2]))
        for name in ("full", "simple", "pruned"):
            for ours, theirs in zip(found[name], expected[name], strict=True):
                assert ours == pytest.approx(math.inf if theirs is None else theirs, rel=1e-4)
        for name in ("full", "am", "lm", "kept"):
            gradient = found[f"gradient_{name}"].astype(np.float64)
            norms = np.sqrt((gradient**2).reshape(len(gradient), -1).sum(1))
            assert norms == pytest.approx(np.array(expected[f"norms_{name}"]), rel=1e-4), seed
            off = summed(c.weights, gradient) - np.array(expected[f"sums_{name}"])
            assert (np.abs(off) <= 1e-3 * norms + 1e-12).all(), (seed, name, off)
    assert {case(seed).topology for seed in range(len(golden))} == set(TOPOLOGIES)


def test_windows_are_k2s():
    for seed, expected in enumerate(json.loads(GOLDEN.read_text())):
        c = case(seed)
        px, py, lengths, counts = (
            torch.from_numpy(x) for x in (*occupied(c), c.lengths, c.token_lengths)
        )
        ours = prune_ranges(px, py, lengths, counts, c.kept.shape[2])[..., 0]
        assert ours.tolist() == expected["windows"], seed


def alignments(frames, tokens, topology):
    """All ways to write down blanks and tokens; each is a list of (frame, column, is a token)."""
    arcs = frames + tokens if topology == "regular" else frames
    for places in itertools.combinations(range(arcs), tokens):
        t = u = 0
        path = []
        for place in range(arcs):
            said = place in places
            path.append((t, u, said))
            u += said
            t += topology != "regular" or not said
        # The last frame ends with a blank where tokens stay in it.
        if topology != "regular" or not path or not path[-1][2]:
            yield path


def by_enumeration(logits, delay_penalty, topology):
    log_probs = logits.log_softmax(-1)
    losses = []
    for b, (frames, count) in enumerate(zip(LENGTHS.tolist(), TOKEN_LENGTHS.tolist(), strict=True)):
        totals = []
        for path in alignments(frames, count, topology):
            total = logits.new_zeros(()) + 0 * logits[:0].sum()
            for t, u, said in path:
                total = total + log_probs[b, t, u, TOKENS[b, u] if said else 0]
                if said:
                    total = total + delay_penalty * ((frames - 1) / 2 - t)
                    if topology == "constrained":
                        total = total + log_probs[b, t, u + 1, 0]
            totals.append(total)
        none = logits.new_full((), math.inf) + 0 * logits[:0].sum()
        losses.append(-torch.logsumexp(torch.stack(totals), 0) if totals else none)
    return torch.stack(losses)


def random_logits(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(7, 4, 4, 5, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_()


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
def test_sum_over_alignments(topology, delay_penalty, monkeypatch):
    logits = random_logits()
    expected = by_enumeration(logits, delay_penalty, topology)
    # Where no frame is left for the tokens.
    impossible = [6] if topology == "regular" else [2, 4, 6]
    possible = [b for b in range(7) if b not in impossible]
    weights = torch.arange(1.0, 8.0)
    (h,) = torch.autograd.grad((expected * weights)[possible].sum(), logits)
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", backend)
        ours = transducer(
            logits, LENGTHS, TOKENS, TOKEN_LENGTHS, delay_penalty=delay_penalty, topology=topology
        )
        assert (~ours.isfinite()).nonzero().flatten().tolist() == impossible
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        (g,) = torch.autograd.grad((ours * weights)[possible].sum(), logits)
        torch.testing.assert_close(g, h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equals_torchaudio(seed):
    functional = pytest.importorskip("torchaudio.functional")
    if not hasattr(functional, "rnnt_loss"):
        pytest.skip("this torchaudio has no rnnt_loss")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 40, 13, 17, generator=generator).mul(3).requires_grad_()
    lengths = torch.tensor([40, 23, 5, 31, 1])
    counts = torch.tensor([12, 7, 12, 0, 4])
    tokens = torch.randint(1, 17, (5, 12), generator=generator)
    ours = transducer(logits, lengths, tokens, counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be gone one day
        theirs = functional.rnnt_loss(
            logits, tokens.int(), lengths.int(), counts.int(), blank=0, reduction="none"
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.arange(1.0, 6.0)
    (g,) = torch.autograd.grad((ours * weights).sum(), logits)
    (h,) = torch.autograd.grad((theirs * weights).sum(), logits)
    torch.testing.assert_close(g, h, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradients_by_differences(topology):
    logits = random_logits()[:2].detach().requires_grad_()
    texts, options = (LENGTHS[:2], TOKENS[:2], TOKEN_LENGTHS[:2]), (0.2, topology)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return transducer(x, *texts, delay_penalty=options[0], topology=options[1])

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_text_at_all(topology):
    logits = torch.randn(2, 5, 1, 4, dtype=torch.float64)
    lengths, tokens, counts = torch.tensor([5, 3]), torch.zeros(2, 0).long(), torch.zeros(2).long()
    blank = logits.log_softmax(-1)[:, :, 0, 0]
    expected = -torch.stack([blank[0].sum(), blank[1, :3].sum()])
    full = transducer(logits, lengths, tokens, counts, delay_penalty=0.1, topology=topology)
    torch.testing.assert_close(full, expected)
    am, lm = logits[:, :, 0], torch.zeros(2, 1, 4, dtype=torch.float64)
    simple, px, py = simple_transducer(am, lm, tokens, lengths, counts, topology=topology)
    torch.testing.assert_close(simple, expected)
    ranges = prune_ranges(px, py, lengths, counts, 3)
    assert ranges.tolist() == [[[0]] * 5] * 2
    pruned = pruned_transducer(
        logits, tokens, ranges, lengths, counts, delay_penalty=0.1, topology=topology
    )
    torch.testing.assert_close(pruned, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    logits = random_logits(dtype)
    loss = transducer(logits, LENGTHS, TOKENS, TOKEN_LENGTHS)
    exact = logits.detach().float().requires_grad_()
    expected = transducer(exact, LENGTHS, TOKENS, TOKEN_LENGTHS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (g,) = torch.autograd.grad(loss[:6].sum(), logits)
    (h,) = torch.autograd.grad(expected[:6].sum(), exact)
    torch.testing.assert_close(g, h.to(dtype))


def test_in_pieces(monkeypatch):
    logits = random_logits()
    whole = transducer(logits, LENGTHS, TOKENS, TOKEN_LENGTHS)
    (g,) = torch.autograd.grad(whole[:6].sum(), logits)
    monkeypatch.setitem(module._AT_ONCE, "cpu", 1)
    ours = transducer(logits, LENGTHS, TOKENS, TOKEN_LENGTHS)
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(torch.autograd.grad(ours[:6].sum(), logits)[0], g)


class Large(TorchDispatchMode):
    """Notes which operations make something of so many numbers."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.made = numbers, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {x.data_ptr() for x in (*args, (kwargs or {}).get("out")) if torch.is_tensor(x)}
        for x in result if isinstance(result, tuple | list) else [result]:
            large = torch.is_tensor(x) and x.numel() * x.element_size() >= 4 * self.numbers
            if large and x.data_ptr() not in known:
                self.made.append(function)
        return result


def test_nothing_is_as_large_as_the_scores_but_their_gradient(monkeypatch):
    monkeypatch.setitem(module._AT_ONCE, "cpu", 500)
    logits = torch.randn(3, 8, 4, 50, requires_grad=True)
    lengths, counts = torch.tensor([8, 5, 8]), torch.tensor([3, 3, 1])
    with Large(logits.numel() // 2) as large:
        loss = transducer(logits, lengths, TOKENS[:3], counts)
        assert large.made == []
        loss.sum().backward()
    assert len(large.made) == 1


def test_long_items_stay_exact():
    # Sums of a thousand scores: what float32 would leave of the gradient are three digits.
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 900, 31, 6, generator=generator).mul(4).requires_grad_()
    lengths, counts = torch.tensor([900]), torch.tensor([30])
    tokens = torch.randint(1, 6, (1, 30), generator=generator)
    (g,) = torch.autograd.grad(transducer(logits, lengths, tokens, counts).sum(), logits)
    exact = logits.detach().double().requires_grad_()
    (h,) = torch.autograd.grad(transducer(exact, lengths, tokens, counts).sum(), exact)
    torch.testing.assert_close(g, h.float(), rtol=1e-3, atol=2e-5)


def test_shapes_that_do_not_go_together():
    logits = random_logits()
    with pytest.raises(ValueError, match=r"transducer: tokens has to be of \(7, 3\)"):
        transducer(logits, LENGTHS, TOKENS[:, :2], TOKEN_LENGTHS)
    with pytest.raises(ValueError, match="lengths"):
        transducer(logits, LENGTHS[:3], TOKENS, TOKEN_LENGTHS)
    with pytest.raises(ValueError, match="token_lengths"):
        transducer(logits, LENGTHS, TOKENS, TOKEN_LENGTHS[:3])
    with pytest.raises(ValueError, match="choose one of regular, modified, constrained"):
        transducer(logits, LENGTHS, TOKENS, TOKEN_LENGTHS, topology="rnnt")
