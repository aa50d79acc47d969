"""What holds for every mechanism of self-attention; `cases.py` lists them."""

import inspect

import pytest
import torch

from speechattn import attention
from speechattn.attention import SelfAttention, relative_positions
from speechattn.attention.grouped import GroupedSelfAttention
from speechattn.attention.strided import StridedSelfAttention
from speechattn.kernels.backend import VARIABLE
from speechattn.masks import Chunks, padding_mask
from tests.attention.cases import CASES, FRAMES, HEADS, WIDTH, Case

LENGTHS = torch.tensor([FRAMES, 9, 1, 0, 16])
CAUSAL = Chunks(1)


@pytest.fixture(params=CASES, ids=str)
def case(request) -> Case:
    return request.param


def randomised(module: SelfAttention, dtype=torch.float64) -> SelfAttention:
    """In eval mode, with every parameter drawn, those that begin as zeros or ones too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.to(dtype).eval()


def inputs(dtype=torch.float64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(len(LENGTHS), FRAMES, WIDTH, dtype=dtype)


def modes(module: SelfAttention) -> list[Chunks | None]:
    """The chunks of its patterns."""
    found: list[Chunks | None] = []
    if "noncausal self" in module.patterns:
        found.append(None)
    if "causal self" in module.patterns:
        found.append(CAUSAL)
    assert found, "it serves no pattern of self-attention"
    return found


def run(module, x, lengths, chunks):
    """With sinusoids where the mechanism wants them."""
    positions = relative_positions(x.shape[1], WIDTH).to(x) if module.uses_positions else None
    return module(x, lengths, positions, chunks)


def real(y: torch.Tensor) -> torch.Tensor:
    return y[padding_mask(LENGTHS, y.shape[1])]


def assert_padding_does_not_matter(module: SelfAttention) -> None:
    x = inputs()
    other = x.masked_fill(~padding_mask(LENGTHS, FRAMES)[..., None], 1e4)
    for chunks in modes(module):
        y = run(module, x, LENGTHS, chunks)
        assert y.shape == x.shape and y.isfinite().all()
        torch.testing.assert_close(real(run(module, other, LENGTHS, chunks)), real(y))
        for row, length in enumerate(LENGTHS.tolist()):
            if length:
                alone = run(module, x[row : row + 1, :length], LENGTHS[row : row + 1], chunks)
                torch.testing.assert_close(alone[0], y[row, :length])


def assert_no_look_ahead(module: SelfAttention) -> None:
    if CAUSAL not in modes(module):
        pytest.skip("not for the causal patterns")
    x = inputs()
    y = run(module, x, LENGTHS, CAUSAL)
    for frame in (1, 7, FRAMES - 1):
        changed = x.clone()
        changed[:, frame:] += torch.randn_like(changed[:, frame:])
        again = run(module, changed, LENGTHS, CAUSAL)
        torch.testing.assert_close(again[:, :frame], y[:, :frame])
        assert not torch.allclose(again[0, frame:], y[0, frame:])


def test_padding_does_not_matter(case):
    assert_padding_does_not_matter(randomised(case.make()))


def test_gradients_ignore_the_padding(case):
    module = randomised(case.make())
    x = inputs().requires_grad_()
    for chunks in modes(module):
        (grad,) = torch.autograd.grad(real(run(module, x, LENGTHS, chunks)).square().sum(), x)
        hidden = ~padding_mask(LENGTHS, FRAMES)
        assert grad.isfinite().all() and (grad[hidden] == 0).all()
        assert (grad[~hidden] != 0).any(-1).all()


def test_no_look_ahead(case):
    assert_no_look_ahead(randomised(case.make()))


def test_whole_sequences_are_seen_to_the_right(case):
    module = randomised(case.make())
    if "noncausal self" not in module.patterns:
        pytest.skip("causal only")
    x = inputs()
    changed = x.clone()
    changed[0, 1:] += 1.0
    same = run(module, changed, LENGTHS, None)[0, 0] == run(module, x, LENGTHS, None)[0, 0]
    assert not same.all()


def test_fast_path_equals_reference(case, monkeypatch):
    """Outputs, gradients of the input and of every parameter."""
    if not case.has_reference:
        pytest.skip("computes the same on both")
    module = randomised(case.make())
    x = inputs().requires_grad_()
    wanted = [x, *module.parameters()]
    for chunks in modes(module):
        results = []
        for backend in ("reference", "torch"):
            monkeypatch.setenv(VARIABLE, backend)
            y = real(run(module, x, LENGTHS, chunks))
            torch.manual_seed(3)
            grads = torch.autograd.grad(y, wanted, torch.randn_like(y), allow_unused=True)
            results.append([y, *(g for g in grads if g is not None)])
        assert len(results[0]) == len(results[1])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_every_parameter_learns(case):
    module = randomised(case.make())
    y = sum(real(run(module, inputs(), LENGTHS, chunks)).square().sum() for chunks in modes(module))
    y.backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None]
    assert not idle


def test_steps_equal_the_parallel_pass(case):
    module = randomised(case.make())
    if type(module).step in (SelfAttention.step, None):
        pytest.skip("cannot stream")
    x = inputs()
    lengths = torch.full((len(x),), FRAMES)
    with torch.no_grad():
        y = run(module, x, lengths, CAUSAL)
        state, parts = module.init_state(len(x)), []
        for frame in range(FRAMES):
            part, state = module.step(x[:, frame : frame + 1], state)
            parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), y)


def test_equals_softmax_attention(case):
    if case.plain is None:
        pytest.skip("never is softmax attention")
    torch.manual_seed(0)
    module = case.make(**case.plain)
    case.prepare(module)
    module = module.double().eval()
    twin = case.twin(WIDTH, HEADS).double().eval()
    twin.load_state_dict({k: v for k, v in module.state_dict().items() if k in twin.state_dict()})
    x = inputs()
    for chunks in modes(module):
        expected = real(run(twin, x, LENGTHS, chunks))
        torch.testing.assert_close(real(run(module, x, LENGTHS, chunks)), expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_lower_precision(case, dtype, tolerance):
    module = randomised(case.make(), dtype)
    exact = randomised(case.make())
    exact.load_state_dict(module.state_dict())
    x = inputs(dtype)
    for chunks in modes(module):
        y = run(module, x, LENGTHS, chunks)
        assert y.dtype == dtype
        expected = run(exact, x.double(), LENGTHS, chunks).detach()
        scale = real(expected).abs().max().item()
        torch.testing.assert_close(
            real(y).double(), real(expected), atol=tolerance * scale, rtol=0.0
        )


def test_other_chunks_are_kept_to_or_refused(case):
    """What a frame may not see changes nothing, or the mechanism says that it cannot."""
    module = randomised(case.make())
    x = inputs()
    for chunks in (Chunks(4), Chunks(4, 4), Chunks(1, 6)):
        try:
            y = run(module, x, LENGTHS, chunks)
        except ValueError as error:
            assert type(module).__name__ in str(error)
            continue
        changed = x.clone()
        changed[:, 8:] += 1.0
        torch.testing.assert_close(run(module, changed, LENGTHS, chunks)[:, :8], y[:, :8])
        if chunks.left >= 0:
            changed = x.clone()
            changed[:, :2] += 1.0
            again = run(module, changed, LENGTHS, chunks)
            torch.testing.assert_close(again[:, 12:], y[:, 12:])


def test_dropout_changes_what_training_gives(case):
    module = case.make(dropout=0.5).train()
    x = inputs(torch.float32)
    torch.manual_seed(0)
    first = run(module, x, LENGTHS, modes(module)[0])
    assert not torch.equal(first, run(module, x, LENGTHS, modes(module)[0]))


def test_every_mechanism_has_a_case():
    kinds = {
        name
        for name in attention.__all__
        if isinstance(kind := getattr(attention, name), type)
        and issubclass(kind, SelfAttention)
        and kind is not SelfAttention
    }
    assert kinds == {case.kind for case in CASES}


@pytest.mark.parametrize(
    "kind", sorted({getattr(attention, c.kind) for c in CASES}, key=str) + [GroupedSelfAttention,
    StridedSelfAttention]
)  # fmt: skip
def test_one_contract(kind):
    """The same constructor and forward pass for all, so that any may stand in an encoder."""
    made = list(inspect.signature(kind).parameters.values())
    assert [p.name for p in made[:3]] == ["width", "heads", "dropout"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in made[3:])
    forward = list(inspect.signature(kind.forward).parameters)
    assert forward == ["self", "x", "lengths", "positions", "chunks"]


@pytest.mark.parametrize("kind", [GroupedSelfAttention, StridedSelfAttention])
def test_only_whole_sequences(kind):
    module = kind(WIDTH, HEADS)
    with pytest.raises(ValueError, match=f"{kind.__name__} sees whole sequences only"):
        module(inputs(torch.float32), LENGTHS, chunks=CAUSAL)
    with pytest.raises(NotImplementedError, match=f"{kind.__name__} cannot stream"):
        module.init_state(2)


class Leaky(attention.SoftmaxSelfAttention):
    """Attends to padding and to what comes."""

    def forward(self, x, lengths, positions=None, chunks=None):
        return super().forward(x, torch.full_like(lengths, x.shape[1]), positions, None)


def test_a_leak_is_found():
    module = randomised(Leaky(WIDTH, HEADS))
    with pytest.raises(AssertionError):
        assert_padding_does_not_matter(module)
    with pytest.raises(AssertionError):
        assert_no_look_ahead(module)
