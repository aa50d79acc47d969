"""A loader that resumes within an epoch, and a dataset that survives damaged files.

A file may be damaged between preparation and training. What cannot be read is left out of its
batch, which says so (`Batch.failed`); the training task reports it, and stops when it is too much.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from speechattn.data.batches.batch import Batch, Item, collate
from speechattn.data.batches.joined import JoinedDataset
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.errors import MediaError

if TYPE_CHECKING:
    import lightning as L

logger = logging.getLogger(__name__)


class TolerantDataset(Dataset):
    """A dataset that returns, for an item that cannot be read, the text that says why.

    Args:
        dataset: a `SpeechDataset`, or such joined.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | str:
        try:
            item = self.dataset[index]
        except MediaError as error:
            return str(error)
        except Exception as error:  # whatever a decoder or a transform makes of a bad file
            return f"{self.names(index)}: {describe_error(error)}"
        if not len(item):
            return f"{self.names(index)}: nothing in it"
        if item.audio is not None and not np.isfinite(item.audio).all():
            return f"{self.names(index)}: its sound has values that are no finite numbers"
        return item

    def names(self, index: int) -> str:
        """Return the ids of the cuts of an item."""
        if isinstance(self.dataset, JoinedDataset):
            cuts, indices = self.dataset.dataset.cuts, self.dataset.utterances(index)
        else:
            cuts, indices = self.dataset.cuts, [index]
        return "+".join(cuts[i].id for i in indices)


def describe_error(error: Exception) -> str:
    """Shorten an error to one line; lhotse's have dozens."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def collate_readable(items: Sequence[Item | str]) -> Batch:
    """Make a batch of the items that could be read; it may be empty. See `Batch.failed`."""
    batch = collate([item for item in items if isinstance(item, Item)])
    batch.failed = [item for item in items if isinstance(item, str)]
    return batch


class EpochLoader(DataLoader):
    """The batches of an epoch, from the first or from where a checkpoint was written.

    Lightning saves and restores it (its protocol of stateful loaders). Nothing is read twice: the
    sampler goes on at the batch where the run stopped. Its length is that of the whole epoch.

    Args:
        dataset: see `DataLoader`.
        batch_sampler: which items make which batch.
        collate_fn: see `DataLoader`.
        num_workers: loading processes.
        trainer: whose epoch it is, if any.
    """

    def __init__(
        self,
        dataset: Any,
        batch_sampler: PaddedFrameBatches,
        *,
        collate_fn: Callable | None = None,
        num_workers: int = 0,
        trainer: "L.Trainer | None" = None,
    ):
        super().__init__(
            dataset, batch_sampler=batch_sampler, collate_fn=collate_fn, num_workers=num_workers
        )
        self.trainer = trainer
        self.total = len(self.batch_sampler)
        self.start = self.done = 0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator:
        self.done, self.start = self.start, 0
        self.batch_sampler.position = self.done
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the batches done, and those of the epoch."""
        return {"done": self.done, "total": self.total}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there; at the same share of the epoch if it has become another.

        It has if processes, batches or data changed, or `training.accumulate`, which has to begin
        with a whole step.
        """
        self.start = state["done"]
        step = self.trainer.accumulate_grad_batches if self.trainer else 1
        if state["total"] == self.total and self.start % step == 0:
            return
        self.start = max(step, self.start * self.total // state["total"] // step * step)
        logger.warning(
            "the epoch that was interrupted at batch %d of %d has %d batches now, and goes on at "
            "%d: some of its utterances are read twice, or not at all",
            state["done"],
            state["total"],
            self.total,
            self.start,
        )
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        progress.ready = progress.started = progress.processed = self.start
        progress.completed = self.start - 1  # checkpoints are written before it is counted
