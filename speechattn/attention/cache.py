"""What self-attention remembers of the frames before, when it runs step by step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionCache:
    """Keys and values of the frames kept so far, of B streams side by side. A step makes a new one.

    Attributes:
        key: (B, L, H, Dh).
        value: (B, L, H, Dh).
        start: index in the stream of the first frame that is kept.
        table: (2R-1, H, Dh) projected sinusoids, where attention has use for them: the same for all
            steps until the weights change.
    """

    key: Tensor
    value: Tensor
    start: int = 0
    table: Tensor | None = None

    @property
    def frames(self) -> int:
        """L, frames that are kept."""
        return self.key.shape[1]

    def keep(self, frames: int) -> "AttentionCache":
        """The newest frames only; all of them where there are fewer."""
        gone = max(self.frames - frames, 0)
        return AttentionCache(
            self.key[:, gone:], self.value[:, gone:], self.start + gone, self.table
        )

    def append(self, key: Tensor, value: Tensor) -> "AttentionCache":
        """With c more frames: key and value (B, c, H, Dh)."""
        return AttentionCache(
            torch.cat((self.key.to(key), key), dim=1),
            torch.cat((self.value.to(value), value), dim=1),
            self.start,
            self.table,
        )
