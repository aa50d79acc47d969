import pytest
import torch

from speechattn.encoders.subsampling import Conv2dSubsampling, build_subsampling

# Factor and shortest input.
KINDS = {
    "conv1d1": (1, 5),
    "conv1d2": (2, 5),
    "conv1d3": (3, 7),
    "conv2d1": (1, 5),
    "conv2d2": (2, 7),
    "conv2d4": (4, 7),
    "conv2d6": (6, 11),
    "conv2d8": (8, 15),
}


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_what_comes_out(kind):
    module = build_subsampling(kind, 19, 4, 0.0)
    factor, shortest = KINDS[kind]
    assert (module.factor, module.shortest) == (factor, shortest)
    for frames in range(1, 60):
        y, lengths = module(torch.randn(1, frames, 19), torch.tensor([frames]))
        assert lengths.item() == max(0, (frames - shortest) // factor + 1)
        assert y.shape[1] == max(1, lengths.item())


@pytest.mark.parametrize("kind", KINDS)
def test_real_frames_do_not_read_padding(kind):
    """For every length, the frames within it do not move when the padding does."""
    module = build_subsampling(kind, 17, 4, 0.0)
    x = torch.randn(1, 50, 17)
    for frames in range(1, 50):
        y, lengths = module(x, torch.tensor([frames]))
        changed = x.clone()
        changed[:, frames:] = 100
        z, _ = module(changed, torch.tensor([frames]))
        assert torch.equal(y[:, : lengths.item()], z[:, : lengths.item()])


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("conv2d")])
def test_equals_a_sum_over_windows(kind):
    """The first convolution and the order in which channels and features are laid out."""
    module = Conv2dSubsampling(16, 3, kind)
    x = torch.randn(2, 30, 16)
    hidden = x[:, None]
    for convolution, (kernel, stride) in zip(module.convolutions, module.shape, strict=True):
        windows = hidden.unfold(2, kernel, stride).unfold(3, kernel, stride)
        hidden = torch.einsum("bctfkl,dckl->bdtf", windows, convolution.weight)
        hidden = (hidden + convolution.bias[:, None, None]).relu()
    rows = torch.stack([hidden[:, c] for c in range(3)], dim=2).reshape(2, hidden.shape[2], -1)
    y, _ = module(x, torch.tensor([30, 20]))
    assert torch.allclose(y, module.projection(rows), atol=1e-5)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("conv1d")])
def test_equals_a_sum_over_windows_in_one_dimension(kind):
    module = build_subsampling(kind, 6, 3, 0.0)
    x = torch.randn(2, 30, 6)
    hidden = x
    for convolution, (kernel, stride) in zip(module.convolutions, module.shape, strict=True):
        windows = hidden.unfold(1, kernel, stride)  # (B, T', C, K)
        hidden = torch.einsum("btck,dck->btd", windows, convolution.weight)
        hidden = (hidden + convolution.bias).relu()
    y, _ = module(x, torch.tensor([30, 20]))
    assert torch.allclose(y, module.projection(hidden), atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", *KINDS])
def test_steps_equal_the_whole(kind):
    module = build_subsampling(kind, 16, 4, 0.0)
    x = torch.randn(2, 50, 16)
    past, outputs = module.init_state(2), []
    for piece in x.split([3, 20, 1, 1, 11, 0, 14], dim=1):
        y, past = module.step(piece, past)
        outputs.append(y)
        assert past.shape[1] < module.shortest
    whole, _ = module(x, torch.tensor([50, 50]))
    assert torch.allclose(torch.cat(outputs, dim=1), whole, atol=1e-5)


def test_linear_keeps_the_rate():
    module = build_subsampling("linear", 6, 4, 0.0)
    x, lengths = torch.randn(2, 5, 6), torch.tensor([5, 3])
    y, new_lengths = module(x, lengths)
    assert module.factor == 1 and new_lengths.tolist() == [5, 3]
    hidden = module.projection(x)
    expected = (hidden - hidden.mean(-1, keepdim=True)) / (
        hidden.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    assert torch.allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "features", "message"),
    [("none", 5, "use 'linear'"), ("conv2d3", 80, "conv2d4"), ("conv2d8", 14, "at least 15")],
)
def test_errors_say_what_to_do(kind, features, message):
    with pytest.raises(ValueError, match=message):
        build_subsampling(kind, features, 4, 0.0)
