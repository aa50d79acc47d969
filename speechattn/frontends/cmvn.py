"""Mean and variance normalisation of features, by utterance or by statistics of a corpus."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from speechattn.errors import ConfigError
from speechattn.masks import padding_mask

CmvnName = Literal["utterance", "utterance_mean", "global", "none"]

# Of a variance: below it a band is silent, and is not blown up.
FLOOR = 1e-10


def read_statistics(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read mean and 1 / standard deviation of each band from a file.

    Args:
        path: an `.npz` with `mean` and `istd`, or with the sums `count`, `sum` and `sum_square` as
            ESPnet's `feats_stats.npz` has them; or an `.npy` with Kaldi's matrix (2, F + 1) of
            sums, the count in its corner.

    Returns:
        (F,) float32 each.

    Raises:
        ConfigError: The file is none of these.
    """
    stats = np.load(path, allow_pickle=False)
    if isinstance(stats, np.ndarray):
        if stats.ndim != 2 or stats.shape[0] != 2:
            raise ConfigError(f"{path}: a matrix of sums is (2, bands + 1), not {stats.shape}")
        count, total, squares = stats[0, -1], stats[0, :-1], stats[1, :-1]
    elif {"mean", "istd"} <= set(stats):
        return tuple(torch.from_numpy(stats[name]).float() for name in ("mean", "istd"))
    elif {"count", "sum", "sum_square"} <= set(stats):
        count, total, squares = stats["count"], stats["sum"], stats["sum_square"]
    else:
        raise ConfigError(
            f"{path}: has {sorted(stats)}, but statistics are mean and istd, or count, sum and "
            "sum_square"
        )
    mean = total / count
    variance = np.maximum(squares / count - mean * mean, 1e-20)
    return torch.from_numpy(mean).float(), torch.from_numpy(variance**-0.5).float()


class Cmvn(nn.Module):
    """Shifts and scales each band of features.

    Args:
        kind: 'utterance' takes the mean of each band over the utterance away and divides by its
            standard deviation, 'utterance_mean' only takes the mean away, 'global' does both with
            statistics of a corpus, 'none' leaves features alone.
        size: F, bands.
        statistics: file for 'global' (see `read_statistics`). They are saved with the model's
            weights; a file that is not there, or none, leaves them to be filled from a checkpoint.
    """

    def __init__(self, kind: CmvnName, size: int, statistics: str | None = None):
        super().__init__()
        self.kind, self.statistics = kind, statistics
        if kind != "global":
            if statistics is not None:
                raise ConfigError(f"statistics {statistics} are for normalise: global, not {kind}")
            return
        mean = istd = torch.full((size,), torch.nan)
        if statistics is not None and Path(statistics).exists():
            mean, istd = read_statistics(statistics)
            if mean.shape != (size,):
                raise ConfigError(
                    f"{statistics} has {len(mean)} bands, but the features have {size}"
                )
        self.register_buffer("mean", mean.clone())
        self.register_buffer("istd", istd.clone())

    def check_streaming(self) -> None:
        """Check that a frame is normalised without the others.

        Raises:
            ConfigError: it is not.
        """
        if self.kind not in ("global", "none"):
            raise ConfigError(
                f"`normalise: {self.kind}` needs the whole utterance; train with `normalise: "
                "global` and its statistics, or transcribe files"
            )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Normalise x (B, T, F) of lengths (B,) to (B, T, F), zero beyond an item's length."""
        real = padding_mask(lengths, x.shape[1])[..., None]  # (B, T, 1)
        x = x * real
        if self.kind == "none":
            return x
        if self.kind == "global":
            if self.mean.isnan().any():
                raise ConfigError(
                    f"normalise: global has no statistics: neither the file "
                    f"({self.statistics or 'none'}) nor a checkpoint has them"
                )
            return (x - self.mean) * self.istd * real
        count = lengths.clamp(min=1)[:, None, None]
        # Around the first frame: a sum of energies near 26 rounds as the padding falls.
        x = (x - x[:, :1]) * real
        x = (x - x.sum(1, keepdim=True) / count) * real
        if self.kind == "utterance_mean":
            return x
        # Clamped before the root, whose gradient at 0 is infinite.
        return x / (x.square().sum(1, keepdim=True) / count).clamp(min=FLOOR).sqrt()
