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
            are not always of the same items. Three quarters of it is padding: 0.05 wastes 4 %.
        rank: this process's number in distributed training.
        world_size: how many processes there are; all get equally many batches, those of the last
            step divided if need be.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        max_padded: float,
        max_items: int = 64,
        *,
        shuffle: bool = True,
        seed: int = 0,
        jitter: float = 0.05,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(lengths) == 0:
            raise ValueError("there is nothing to sample from")
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.max_padded, self.max_items = max_padded, max_items
        self.shuffle, self.seed, self.jitter = shuffle, seed, jitter
        self.rank, self.world_size = rank, world_size
        self.epoch = self.position = 0
        self._planned: tuple[int, np.ndarray, np.ndarray] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from its first batch; called by the trainer before each."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def batches(self) -> list[list[int]]:
        """Return all batches of this epoch for this rank, whatever the position."""
        order, bounds = self._plan()
        starts, ends = bounds[:-1], bounds[1:]
        chosen = np.arange(len(starts))
        if self.shuffle:
            # Not the generator of the lengths: this order does not depend on how many it drew.
            chosen = np.random.default_rng((self.seed, self.epoch, 1)).permutation(chosen)
        spans = split_evenly([(int(starts[i]), int(ends[i])) for i in chosen], self.world_size)
        return [order[start:end].tolist() for start, end in spans[self.rank :: self.world_size]]

    def _plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Return items in order (M,), and where in it each batch starts, with M at the end.

        Kept for the epoch: a trainer asks for the length many times.
        """
        if self._planned is not None and self._planned[0] == self.epoch:
            return self._planned[1:]
        keys = self.lengths
        if self.shuffle:
            rng = np.random.default_rng((self.seed, self.epoch))
            keys = keys * rng.uniform(1.0 - self.jitter, 1.0 + self.jitter, len(keys))
            keys = keys + 1e-9 * rng.random(len(keys))
        order = np.argsort(-keys, kind="stable")
        bounds, start, longest = [0], 0, 0.0
        for place, length in enumerate(self.lengths[order].tolist()):
            longest = max(longest, length)
            count = place - start
            if count and (longest * (count + 1) > self.max_padded or count == self.max_items):
                bounds.append(place)
                start, longest = place, length
        bounds.append(len(order))
        self._planned = (self.epoch, order, np.array(bounds))
        return self._planned[1:]

    def __iter__(self):
        batches = self.batches()
        start, self.position = self.position, 0
        yield from batches[start:]

    def __len__(self) -> int:
        return -(-(len(self._plan()[1]) - 1) // self.world_size) - self.position


def split_evenly(spans: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Split batches until `count` processes can share them: all wait for one that has none.

    Those of the last step are divided, so that nothing is read twice; only what is too little to
    be divided is repeated. A span is the first item of a batch, and the one after its last.
    """
    spans = list(spans)
    while rest := len(spans) % count:
        for group in (range(len(spans) - rest, len(spans)), range(len(spans))):
            largest = max(group, key=lambda i: spans[i][1] - spans[i][0])
            start, end = spans[largest]
            if end - start > 1:
                middle = (start + end + 1) // 2
                spans[largest : largest + 1] = [(start, middle), (middle, end)]
                break
        else:
            return spans + [spans[i % len(spans)] for i in range(count - rest)]
    return spans
