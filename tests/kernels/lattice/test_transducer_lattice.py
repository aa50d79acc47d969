"""The recursion of a transducer against its definition, and what its occupations are."""

import math

import pytest
import torch

from speechattn.kernels.lattice.transducer_lattice import lattice, occupied_lattice


def lattice_inputs(regular):
    generator = torch.Generator().manual_seed(5)
    lengths, counts = torch.tensor([6, 4, 5, 2]), torch.tensor([5, 0, 3, 1])
    px = torch.randn(4, 5, 6 + regular, generator=generator, dtype=torch.float64)
    py = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    return px.requires_grad_(), py.requires_grad_(), lengths, counts


@pytest.mark.parametrize("regular", [True, False])
def test_occupations(regular):
    px, py, lengths, counts = lattice_inputs(regular)
    assert torch.autograd.gradcheck(lambda x, y: lattice(x, y, lengths, counts), (px, py))
    total, by_token, by_blank = occupied_lattice(px, py, lengths, counts)
    assert not by_token.requires_grad
    g, h = torch.autograd.grad(total.sum(), (px, py))
    torch.testing.assert_close(by_token, g)
    torch.testing.assert_close(by_blank, h)
    # Every alignment says every token, and leaves every frame by a blank or else by a token.
    torch.testing.assert_close(by_token.sum((1, 2)), counts.double())
    blanks = lengths if regular else lengths - counts
    torch.testing.assert_close(by_blank.sum((1, 2)), blanks.double())


@pytest.mark.parametrize("regular", [True, False])
def test_arcs_that_may_not_be(regular, monkeypatch):
    px, py, lengths, counts = lattice_inputs(regular)
    with torch.no_grad():
        px[0, 2, :3] = -math.inf
        py[2, 1, 2:] = -math.inf
        px[3] = -math.inf
        px[1:, :, lengths.max() :] = math.nan
        px[1, 0], py[1, 1:] = math.nan, math.nan  # beyond its text
    found = {}
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SPEECHATTN_KERNELS", backend)
        total = lattice(px, py, lengths, counts)
        assert total.isfinite().tolist() == [True, True, True, False]
        found[backend] = (total, *torch.autograd.grad(total[:3].sum(), (px, py)))
        assert found[backend][1].isfinite().all()
    torch.testing.assert_close(found["torch"], found["reference"])


def test_shapes_that_do_not_go_together():
    px, py, lengths, counts = lattice_inputs(True)
    with pytest.raises(ValueError, match="lattice: px has to be of"):
        lattice(px[:, 1:], py, lengths, counts)
    with pytest.raises(ValueError, match="lattice: token_lengths"):
        lattice(px, py, lengths, counts[:2])
