"""That the public functions come to the kernels, and where autocast and lengths take part."""

import sys

import pytest
import torch

from speechattn.kernels.attention.exact import attention
from speechattn.kernels.attention.relative import relative_attention

pytest.importorskip("triton")


@pytest.fixture
def both(monkeypatch):
    """A function that runs another with the torch path and with the kernels."""

    def run(compute):
        results = []
        for name in ("torch", "triton"):
            monkeypatch.setenv("SPEECHATTN_KERNELS", name)
            results.append(compute())
        return results

    return run


def test_attention(both, device, monkeypatch):
    torch.manual_seed(0)
    q = torch.randn(2, 5, 2, 8, device=device)
    lengths = torch.tensor([5, 3], device=device)
    slopes = torch.tensor([0.5, 0.1], device=device)
    a, b = both(lambda: attention(q, q, q, lengths, query_lengths=lengths, slopes=slopes))
    assert torch.allclose(a, b, atol=1e-6) and b[1, 3:].abs().max() == 0
    with torch.autocast(device, dtype=torch.bfloat16):
        a, b = both(lambda: attention(q, q, q, lengths))
    assert b.dtype == torch.bfloat16 and (a - b).abs().max() < 0.02
    monkeypatch.setattr(sys.modules["speechattn.kernels.attention.triton.exact"], "attention", None)
    with pytest.raises(TypeError):
        both(lambda: attention(q, q, q, lengths))
    both(lambda: attention(q.double(), q.double(), q.double(), lengths))  # without a kernel


def test_relative_attention(both, device, monkeypatch):
    torch.manual_seed(0)
    q, p, bias = (torch.randn(s, device=device) for s in ((2, 5, 2, 8), (9, 2, 8), (2, 8)))
    lengths = torch.tensor([5, 3], device=device)
    a, b = both(lambda: relative_attention(q, q, q, p, bias, bias, lengths=lengths))
    assert torch.allclose(a, b, atol=1e-6)
    module = sys.modules["speechattn.kernels.attention.triton.relative"]
    monkeypatch.setattr(module, "relative_attention", None)
    with pytest.raises(TypeError):
        both(lambda: relative_attention(q, q, q, p, bias, bias, lengths=lengths))
