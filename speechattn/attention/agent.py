"""A few agents between queries and keys (Agent Attention, 2312.08874). Legend: A agents."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechattn.attention.base import SelfAttention, check_heads, split_heads
from speechattn.dropout import Dropout
from speechattn.kernels.attention.exact import attention
from speechattn.masks import padding_mask, without_padding


class AgentSelfAttention(SelfAttention):
    """Agent attention (2312.08874, section 3.2): softmax twice, through A agents.

        agents = queries of the item, pooled to A
        context = softmax(agents k^T / sqrt(Dh)) v
        y = output(softmax(q agents^T / sqrt(Dh)) context + convolution of v)

    Time and memory are linear in T, since A is fixed. The depthwise convolution restores the detail
    that a mixture of so few vectors loses.
    Differences: the paper's images become sequences. An utterance's A agents are the means of equal
    parts of its real frames, as near as whole frames allow; with fewer frames than A there is an
    agent for each. The convolution is over time. The agents' position biases are left out: they
    belong to images of a fixed size, and an encoder's convolutions bring positions.

    Time and memory O(T) for T frames.

    Args:
        width: D.
        heads: H; divides D.
        dropout: of the attention weights, both times.
        agents: A; the paper has 9 to 49.
        kernel: frames that the convolution reads, odd; the paper's is 3 x 3. 0 for none.
    """

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, agents: int = 49, kernel: int = 3
    ):
        super().__init__()
        check_heads("AgentSelfAttention", width, heads)
        if agents < 1:
            raise ValueError(f"AgentSelfAttention: agents is at least 1, not {agents}")
        if kernel and (kernel < 0 or kernel % 2 == 0):
            raise ValueError(f"AgentSelfAttention: kernel is 0 or odd, not {kernel}")
        self.heads, self.agents = heads, agents
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.local = _Local(width, kernel) if kernel else None
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def attend(self, x: Tensor, lengths: Tensor, causal: bool) -> Tensor:
        q, k, v = split_heads(self.heads, self.query(x), self.key(x), self.value(x))
        dropout = self.dropout.p if self.training else 0.0
        agents, count = pool(q, lengths, self.agents)
        context = attention(agents, k, v, lengths, dropout=dropout, query_lengths=count)
        y = attention(q, agents, context, count, dropout=dropout, query_lengths=lengths).flatten(2)
        if self.local is not None:
            y = y + self.local(v.flatten(2), lengths)
        return self.output(y)


def pool(x: Tensor, lengths: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Average equal parts of each utterance.

    Frame t of n is in part floor(t A / n) of A parts; with n < A each frame is a part.

    Args:
        x: (B, T, H, Dh), lengths (B,) int64.
        parts: A.

    Returns:
        (B, A, H, Dh), zero where there is no such part, and the numbers of parts, (B,) int64.
    """
    frames = x.shape[1]
    count = lengths.clamp(max=parts)
    t = torch.arange(frames, device=x.device)
    part = (t * count[:, None]).div(lengths.clamp(min=1)[:, None], rounding_mode="floor")  # (B, T)
    within = part[:, None] == torch.arange(parts, device=x.device)[:, None]  # (B, A, T)
    within = within & padding_mask(lengths, frames)[:, None]
    # A sum and then a division: in half precision 1/n would not be exact.
    total = torch.bmm(within.to(x), without_padding(x, lengths).flatten(2))  # (B, A, D)
    mean = total / within.sum(-1, keepdim=True).clamp(min=1).to(x)
    return mean.unflatten(-1, x.shape[2:]), count


class _Local(nn.Module):
    """Depthwise convolution over time by an odd kernel, as a sum of a few shifted copies."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        bound = kernel**-0.5  # as nn.Conv1d begins
        self.weight = nn.Parameter(torch.empty(kernel, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Convolve (B, T, C); frames beyond an utterance's length count as zero."""
        frames, half = x.shape[1], len(self.weight) // 2
        x = functional.pad(without_padding(x, lengths), (0, 0, half, half))
        y = self.bias.to(x)
        for shift, weight in enumerate(self.weight.to(x)):
            y = y + weight * x[:, shift : shift + frames]
        return y
