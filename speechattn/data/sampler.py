"""Which items share a batch: similar lengths, a cap on padded frames, a new order each epoch."""

import numpy as np
from torch.utils.data import Sampler


class PaddedFrameBatches(Sampler[list[int]]):
    """Batches of similar length whose padded size stays under a cap.

    An epoch's batches are a function of (seed, epoch) alone. A run that stops after batch n of
    epoch e goes on by setting `epoch` and `position`: nothing is read again to get there, unlike a
    sampler that restores its state by replaying the epoch.

    Args:
        lengths: frames (or seconds) of each item.
        max_padded: the cap: a batch of n items, the longest of them l, has n * l of it. A single
            item over it makes a batch of its own.
        max_items: at most so many items in a batch.
        shuffle: a new order each epoch; otherwise longest first, which shows at once whether the
            largest batch fits.
        seed: of the shuffling.
        jitter: how far lengths are disturbed before they are sorted, as a share, so that batches
            are not always of the same items.
        rank: this process's number in distributed training.
        world_size: how many processes there are; all get equally many batches.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        max_padded: float,
        max_items: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        jitter: float = 0.1,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(lengths) == 0:
            raise ValueError("there is nothing to sample from")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.max_padded, self.max_items = max_padded, max_items
        self.shuffle, self.seed, self.jitter = shuffle, seed, jitter
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from its first batch; called by the trainer before each."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def batches(self) -> list[list[int]]:
        """All batches of this epoch for this rank, whatever the position."""
        rng = np.random.default_rng((self.seed, self.epoch))
        keys = self.lengths
        if self.shuffle:
            keys = keys * rng.uniform(1.0 - self.jitter, 1.0 + self.jitter, len(keys))
            keys = keys + 1e-9 * rng.random(len(keys))
        batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0.0
        for i in np.argsort(-keys, kind="stable").tolist():
            longest_with = max(longest, self.lengths[i])
            full = longest_with * (len(batch) + 1) > self.max_padded
            if batch and (full or len(batch) == self.max_items):
                batches.append(batch)
                batch, longest_with = [], self.lengths[i]
            batch.append(i)
            longest = longest_with
        batches.append(batch)
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        # Every rank must see equally many, or the others wait for it for ever.
        short = -len(batches) % self.world_size
        batches += [batches[i % len(batches)] for i in range(short)]
        return batches[self.rank :: self.world_size]

    def __iter__(self):
        batches = self.batches()
        start, self.position = self.position, 0
        yield from batches[start:]

    def __len__(self) -> int:
        return len(self.batches()) - self.position

    def state_dict(self, consumed: int = 0) -> dict[str, int]:
        """Where to go on after `consumed` batches of this epoch."""
        return {"epoch": self.epoch, "position": consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up where `state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]
