"""Keys and values of earlier frames, for self-attention that runs step by step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionCache:
    """Keys and values of the last L frames of B streams. A step makes a new one.

    Attributes:
        key, value: (B, L, H, Dh).
        start: index in the stream of the first frame.
        table: projected sinusoids of at least 2L-1 distances (.., H, Dh), for relative positions;
            valid until the weights change.
    """

    key: Tensor
    value: Tensor
    start: int = 0
    table: Tensor | None = None

    @property
    def frames(self) -> int:
        """Return L."""
        return self.key.shape[1]

    def keep(self, frames: int) -> "AttentionCache":
        """Keep the newest frames; all where there are fewer."""
        gone = max(self.frames - frames, 0)
        return AttentionCache(
            self.key[:, gone:], self.value[:, gone:], self.start + gone, self.table
        )

    def append(self, key: Tensor, value: Tensor) -> "AttentionCache":
        """Return a cache with c more frames: key and value (B, c, H, Dh)."""
        return AttentionCache(
            torch.cat((self.key.to(key), key), dim=1),
            torch.cat((self.value.to(value), value), dim=1),
            self.start,
            self.table,
        )
