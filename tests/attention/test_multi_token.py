"""MultiTokenSelfAttention: the module around the kernel (whose own test has the definition)."""

import pytest
import torch

from speechattn.attention import MultiTokenSelfAttention
from speechattn.attention.rotary import rotate
from speechattn.kernels.attention import tiles
from speechattn.masks import Chunks

D, H = 8, 2


def make(**options) -> MultiTokenSelfAttention:
    """Every parameter drawn."""
    torch.manual_seed(0)
    module = MultiTokenSelfAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def defined(module, x, causal) -> torch.Tensor:
    """One item (T, D), all scores at once; a convolution by shifted copies."""
    n = len(x)
    q, k, v = (f(x).unflatten(-1, (H, -1)) for f in (module.query, module.key, module.value))
    q, k = rotate(q[None])[0], rotate(k[None])[0]
    seen = torch.ones(n, n).tril().bool() if causal else torch.ones(n, n).bool()
    scores = torch.einsum("ihd,jhd->hij", q, k) / (D // H) ** 0.5
    scores = scores.masked_fill(~seen, 0.0)
    _, above, width = module.filters.shape
    filtered = torch.zeros_like(scores)
    for i in range(n):
        for j in range(n):
            for a in range(above):
                for b in range(width):
                    row, column = i - a, j + b - width // 2
                    if row >= 0 and 0 <= column < n:
                        weight = module.filters[:, above - 1 - a, b]
                        filtered[:, i, j] = filtered[:, i, j] + weight * scores[:, row, column]
    weights = filtered.masked_fill(~seen, -torch.inf).softmax(-1)
    if len(module.mix) == 1:
        weights = torch.einsum("hg,gij->hij", module.mix[0], weights)
    else:
        weights = weights * module.mix[:, 0, 0, None, None]
    y = torch.einsum("hij,jhd->ihd", weights, v)
    if module.norm is not None:
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.norm.weight
        y = y * (y @ module.gate.weight[0] + module.gate.bias).sigmoid()[..., None]
    return module.output(y.flatten(1))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"queries": 2, "keys": 4, "mixed": 1, "normalise": False}], ids=str
)
def test_the_definition_and_its_gradients(options, causal, monkeypatch):
    monkeypatch.setattr(tiles, "_SMALLEST", 3)
    monkeypatch.setattr(tiles, "_LARGEST", 3)
    module, lengths = make(**options), torch.tensor([8, 5])
    x = torch.randn(2, 8, D, dtype=torch.float64, requires_grad=True)
    y = module(x, lengths, chunks=Chunks(1) if causal else None)
    parts, expected = [], []
    for row, n in enumerate(lengths.tolist()):
        parts.append(y[row, :n])
        expected.append(defined(module, x[row, :n], causal))
    parts, expected = torch.cat(parts), torch.cat(expected)
    torch.testing.assert_close(parts, expected)
    given, wanted = torch.randn_like(parts), (x, *module.parameters())
    found = torch.autograd.grad(parts, wanted, given)
    torch.testing.assert_close(found, torch.autograd.grad(expected, wanted, given))


@pytest.mark.parametrize("sizes", [[1] * 13, [2, 7, 1, 3], [13]], ids=str)
@pytest.mark.parametrize("queries", [1, 4])
def test_steps_of_any_size(queries, sizes):
    """From all keys and no more queries than the filter reads."""
    module = make(queries=queries)
    x = torch.randn(2, 13, D, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x, torch.tensor([13, 13]), chunks=Chunks(1))
        state, parts = module.init_state(2), []
        for part in x.split(sizes, dim=1):
            y, state = module.step(part, state)
            parts.append(y)
            assert state.queries.shape[1] < queries
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_begins_as_attention_without_filters():
    """Identity filters and mixing."""
    torch.manual_seed(0)
    module = MultiTokenSelfAttention(D, H, normalise=False)
    plain = MultiTokenSelfAttention(D, H, queries=1, keys=1, mixed=1, normalise=False)
    weights = {k: v for k, v in module.state_dict().items() if k not in ("filters", "mix")}
    plain.load_state_dict(weights, strict=False)
    x, lengths = torch.randn(2, 9, D), torch.tensor([9, 4])
    for chunks in (None, Chunks(1)):
        one, other = (m(x, lengths, chunks=chunks) for m in (module, plain))
        torch.testing.assert_close(one[0], other[0])


def test_dropout_is_the_same_backwards(monkeypatch):
    """Tile are computed again in the backward pass, with the weights that were dropped."""
    monkeypatch.setattr(tiles, "_SMALLEST", 3)
    monkeypatch.setattr(tiles, "_LARGEST", 3)
    module = MultiTokenSelfAttention(4, 2, dropout=0.4, queries=2, keys=3).double().train()
    x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)

    def seeded(x):
        torch.manual_seed(3)
        return module(x, torch.tensor([7, 4]))[0]

    assert torch.autograd.gradcheck(seeded, (x,), fast_mode=True)


def test_streams_do_not_forget():
    with pytest.raises(ValueError, match="left_context"):
        make().init_state(1).keep(3)


@pytest.mark.parametrize(
    "options, message", [({"keys": 0}, "not 6 and 0"), ({"mixed": 3}, "groups of 3 do not divide")]
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTokenSelfAttention(D, H, **options)
