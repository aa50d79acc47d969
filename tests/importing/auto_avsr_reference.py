"""What auto_avsr computes, by its own names of weights: slow, plain, one utterance at a time.

Written from the description of its modules (3-D or 1-D stem, ResNet-18, a Linear, Conformer with
relative positions, Transformer decoders), with nothing of speechattn in it.
"""

import math

import torch
from torch.nn import functional as F

EPS = 1e-12  # of its LayerNorm


class Reference:
    """A model of given weights.

    Args:
        state: weights by the names of auto_avsr's second generation.
        heads: of encoder and decoders.
    """

    def __init__(self, state, heads):
        self.state = state
        self.heads = heads

    def w(self, name):
        return self.state[name]

    def has(self, name):
        return name in self.state

    def linear(self, name, x):
        bias = self.w(f"{name}.bias") if self.has(f"{name}.bias") else None
        return F.linear(x, self.w(f"{name}.weight"), bias)

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.w(f"{name}.weight"), self.w(f"{name}.bias"), EPS)

    def batch_norm(self, name, x):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.w(f"{name}.{n}") for n in names))

    def act(self, name, x):
        if self.has(f"{name}.weight"):
            return F.prelu(x, self.w(f"{name}.weight"))
        return F.silu(x)

    # ---------------------------------------------------------------- frontends

    def video(self, crops):
        """(T, H, W) uint8 -> (T, F)."""
        x = (crops / 255.0 - 0.421) / 0.165
        x = F.conv3d(
            x[None, None], self.w("frontend.frontend3D.0.weight"), None, (1, 2, 2), (2, 3, 3)
        )
        x = self.act("frontend.frontend3D.2", self.batch_norm("frontend.frontend3D.1", x))
        x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        x = self.trunk(x[0].transpose(0, 1), F.conv2d)
        return x.mean((2, 3))

    def audio(self, wave):
        """(N,) -> (N // 640, F)."""
        x = F.layer_norm(wave, wave.shape, eps=1e-8)[: len(wave) // 640 * 640]
        x = F.conv1d(x[None, None], self.w("frontend.trunk.conv1.weight"), None, 4, 38)
        x = self.act("frontend.trunk.relu", self.batch_norm("frontend.trunk.bn1", x))
        return F.avg_pool1d(self.trunk(x, F.conv1d), 20, 20)[0].T

    def trunk(self, x, conv):
        for stage in range(1, 5):
            block = 0
            while self.has(f"frontend.trunk.layer{stage}.{block}.conv1.weight"):
                x = self.block(f"frontend.trunk.layer{stage}.{block}", x, conv)
                block += 1
        return x

    def block(self, name, x, conv):
        stride, shortcut = 1, x
        if self.has(f"{name}.downsample.0.weight"):
            stride = 2
            shortcut = conv(x, self.w(f"{name}.downsample.0.weight"), None, stride)
            shortcut = self.batch_norm(f"{name}.downsample.1", shortcut)
        y = conv(x, self.w(f"{name}.conv1.weight"), None, stride, 1)
        y = self.act(f"{name}.relu1", self.batch_norm(f"{name}.bn1", y))
        y = self.batch_norm(f"{name}.bn2", conv(y, self.w(f"{name}.conv2.weight"), None, 1, 1))
        return self.act(f"{name}.relu2", y + shortcut)

    # ---------------------------------------------------------------- encoder

    def encode(self, features):
        """(T, F) -> (T, D)."""
        x = self.linear("proj_encoder", features)
        x = x * math.sqrt(x.shape[1])
        layer = 0
        while self.has(f"encoder.encoders.{layer}.norm_mha.weight"):
            x = self.conformer(f"encoder.encoders.{layer}", x)
            layer += 1
        return self.norm("encoder.after_norm", x)

    def conformer(self, name, x):
        y = self.norm(f"{name}.norm_ff_macaron", x)
        x = x + 0.5 * self.feed(f"{name}.feed_forward_macaron", y, F.silu)
        x = x + self.relative(f"{name}.self_attn", self.norm(f"{name}.norm_mha", x))
        x = x + self.convolve(f"{name}.conv_module", self.norm(f"{name}.norm_conv", x))
        y = self.norm(f"{name}.norm_ff", x)
        x = x + 0.5 * self.feed(f"{name}.feed_forward", y, F.silu)
        return self.norm(f"{name}.norm_final", x)

    def feed(self, name, x, act):
        return self.linear(f"{name}.w_2", act(self.linear(f"{name}.w_1", x)))

    def relative(self, name, x):
        frames, width = x.shape
        depth = width // self.heads
        q, k, v = (
            self.linear(f"{name}.linear_{c}", x).view(frames, self.heads, depth) for c in "qkv"
        )
        u, b = self.w(f"{name}.pos_bias_u"), self.w(f"{name}.pos_bias_v")
        scores = torch.empty(self.heads, frames, frames, dtype=x.dtype)
        for i in range(frames):
            for j in range(frames):
                p = self.linear(f"{name}.linear_pos", sinusoid(i - j, width).to(x)).view(-1, depth)
                scores[:, i, j] = ((q[i] + u) * k[j] + (q[i] + b) * p).sum(-1)
        weights = (scores / math.sqrt(depth)).softmax(-1)
        y = torch.einsum("hij,jhd->ihd", weights, v)
        return self.linear(f"{name}.linear_out", y.reshape(frames, width))

    def convolve(self, name, x):
        y = F.conv1d(
            x.T[None],
            self.w(f"{name}.pointwise_cov1.weight"),
            self.w(f"{name}.pointwise_cov1.bias"),
        )
        y = F.glu(y, dim=1)
        weight = self.w(f"{name}.depthwise_conv.weight")
        y = F.conv1d(
            y,
            weight,
            self.w(f"{name}.depthwise_conv.bias"),
            1,
            weight.shape[2] // 2,
            1,
            len(weight),
        )
        y = F.silu(self.batch_norm(f"{name}.norm", y))
        y = F.conv1d(
            y, self.w(f"{name}.pointwise_cov2.weight"), self.w(f"{name}.pointwise_cov2.bias")
        )
        return y[0].T

    # ---------------------------------------------------------------- decoder

    def decode(self, tokens, memory, name="decoder"):
        """Tokens from <sos> on (U,) and (T, D) -> log probabilities (U, V)."""
        width = memory.shape[1]
        x = self.w(f"{name}.embed.0.weight")[tokens] * math.sqrt(width)
        x = x + torch.stack([sinusoid(i, width) for i in range(len(tokens))]).to(x)
        layer = 0
        while self.has(f"{name}.decoders.{layer}.norm1.weight"):
            here = f"{name}.decoders.{layer}"
            y = self.norm(f"{here}.norm1", x)
            x = x + self.attend(f"{here}.self_attn", y, y, causal=True)
            x = x + self.attend(f"{here}.src_attn", self.norm(f"{here}.norm2", x), memory)
            x = x + self.feed(f"{here}.feed_forward", self.norm(f"{here}.norm3", x), F.relu)
            layer += 1
        x = self.norm(f"{name}.after_norm", x)
        return self.linear(f"{name}.output_layer", x).log_softmax(-1)

    def attend(self, name, x, memory, causal=False):
        q, k, v = (
            self.linear(f"{name}.linear_{c}", y).unflatten(-1, (self.heads, -1)).transpose(0, 1)
            for c, y in (("q", x), ("k", memory), ("v", memory))
        )
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if causal:
            scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
        return self.linear(
            f"{name}.linear_out", (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        )

    def ctc(self, memory):
        return self.linear("ctc.ctc_lo", memory).log_softmax(-1)


def sinusoid(position, width):
    """Sines in even places, cosines in odd ones."""
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([(position * rate).sin(), (position * rate).cos()], -1).flatten()


# -------------------------------------------------------------------- names and shapes


def shapes(
    modality,
    vocab,
    width=16,
    heads=2,
    units=24,
    kernel=5,
    layers=2,
    decoder_layers=2,
    reverse_layers=0,
    channels=(6, 8, 10, 12),
    prelu=False,
):
    """Name and shape of each weight, in auto_avsr's second generation of names."""
    found = {}

    def linear(name, out, size, bias=True):
        found[f"{name}.weight"] = (out, size)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name, size=width):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (size,)

    def batch_norm(name, size):
        norm(name, size)
        found[f"{name}.running_mean"] = found[f"{name}.running_var"] = (size,)
        found[f"{name}.num_batches_tracked"] = ()

    def act(name, size):
        if prelu:
            found[f"{name}.weight"] = (size,)

    def attention(name):
        for part in ("linear_q", "linear_k", "linear_v", "linear_out"):
            linear(f"{name}.{part}", width, width)

    def feed(name):
        linear(f"{name}.w_1", units, width)
        linear(f"{name}.w_2", width, units)

    side = (3, 3) if modality == "video" else (3,)
    if modality == "video":
        found["frontend.frontend3D.0.weight"] = (channels[0], 1, 5, 7, 7)
        batch_norm("frontend.frontend3D.1", channels[0])
        act("frontend.frontend3D.2", channels[0])
    else:
        found["frontend.trunk.conv1.weight"] = (channels[0], 1, 80)
        batch_norm("frontend.trunk.bn1", channels[0])
        act("frontend.trunk.relu", channels[0])
    size = channels[0]
    for stage, out in enumerate(channels, 1):
        for block in range(2):
            name = f"frontend.trunk.layer{stage}.{block}"
            found[f"{name}.conv1.weight"] = (out, size, *side)
            found[f"{name}.conv2.weight"] = (out, out, *side)
            for i in (1, 2):
                batch_norm(f"{name}.bn{i}", out)
                act(f"{name}.relu{i}", out)
            if stage > 1 and block == 0:
                found[f"{name}.downsample.0.weight"] = (out, size, *(1 for _ in side))
                batch_norm(f"{name}.downsample.1", out)
            size = out
    linear("proj_encoder", width, size)
    for layer in range(layers):
        name = f"encoder.encoders.{layer}"
        attention(f"{name}.self_attn")
        linear(f"{name}.self_attn.linear_pos", width, width, bias=False)
        for bias in ("pos_bias_u", "pos_bias_v"):
            found[f"{name}.self_attn.{bias}"] = (heads, width // heads)
        feed(f"{name}.feed_forward")
        feed(f"{name}.feed_forward_macaron")
        convolution = f"{name}.conv_module"
        for i, out in ((1, 2 * width), (2, width)):
            found[f"{convolution}.pointwise_cov{i}.weight"] = (out, width, 1)
            found[f"{convolution}.pointwise_cov{i}.bias"] = (out,)
        found[f"{convolution}.depthwise_conv.weight"] = (width, 1, kernel)
        found[f"{convolution}.depthwise_conv.bias"] = (width,)
        batch_norm(f"{convolution}.norm", width)
        for part in ("ff", "mha", "ff_macaron", "conv", "final"):
            norm(f"{name}.norm_{part}")
    norm("encoder.after_norm")
    for name, depth in (("decoder", decoder_layers), ("r_decoder", reverse_layers)):
        for layer in range(depth):
            attention(f"{name}.decoders.{layer}.self_attn")
            attention(f"{name}.decoders.{layer}.src_attn")
            feed(f"{name}.decoders.{layer}.feed_forward")
            for i in (1, 2, 3):
                norm(f"{name}.decoders.{layer}.norm{i}")
        if depth:
            found[f"{name}.embed.0.weight"] = (vocab, width)
            norm(f"{name}.after_norm")
            linear(f"{name}.output_layer", vocab, width)
    linear("ctc.ctc_lo", vocab, width)
    return found


def random_state(shapes, seed=0):
    """Weights of a sensible size for every name."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.2
            if name.endswith("weight"):  # of norms and PReLU
                state[name] += 1.0
    return state


def first_generation(state):
    """The same weights by the names of before 2023: the frontend is in the encoder."""
    found = {}
    for name, value in state.items():
        if name.startswith("frontend."):
            name = f"encoder.{name}"
        found[name.replace("proj_encoder", "encoder.embed.0")] = value
    return found
