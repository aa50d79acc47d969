"""Utterances as padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor


@dataclass
class Item:
    """One utterance, ready for a batch."""

    id: str  # the cut's
    text: str  # its transcript, empty if unknown
    tokens: Sequence[int]  # ids of the transcript
    audio: np.ndarray | None = None  # (N,) float32 in [-1, 1]
    video: np.ndarray | None = None  # (T, H, W) uint8 crops
    times: np.ndarray | None = None  # (U, 2) seconds in which each token was said, if known

    def __len__(self) -> int:
        """Return the number of samples, or of pictures where there is no sound."""
        return len(self.audio if self.audio is not None else self.video)


@dataclass
class Batch:
    """Padded items; everything beyond an item's length is zero."""

    ids: list[str]  # B cut ids
    texts: list[str]  # B transcripts
    tokens: Tensor  # (B, U) int64
    token_lengths: Tensor  # (B,) int64
    audio: Tensor | None = None  # (B, N) float32, or None for a model of video alone
    audio_lengths: Tensor | None = None  # (B,) samples
    video: Tensor | None = None  # (B, T, 1, H, W) uint8, or None for a model of sound alone
    video_lengths: Tensor | None = None  # (B,) frames
    # (B, U, 2) seconds in which each token was said, from minus to plus infinity where that is not
    # known; None where it is of no item
    token_times: Tensor | None = None
    failed: list[str] = field(default_factory=list)  # why others could not be read, a line each

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the same batch with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=non_blocking)
        return Batch(**values)


def pad(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Stack arrays that differ in their first axis; (B, longest, ...) and (B,) lengths."""
    lengths = torch.tensor([len(a) for a in arrays], dtype=torch.int64)
    padded = np.zeros((len(arrays), int(lengths.max()), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, a in zip(padded, arrays, strict=True):
        row[: len(a)] = a
    return torch.from_numpy(padded), lengths


def collate(items: Sequence[Item]) -> Batch:
    """Make a batch of items, all of the same modalities; an empty one of none."""
    if not items:
        none = torch.zeros(0, dtype=torch.int64)
        return Batch([], [], none.reshape(0, 0), none)
    tokens, token_lengths = pad([np.asarray(i.tokens, dtype=np.int64) for i in items])
    batch = Batch([i.id for i in items], [i.text for i in items], tokens, token_lengths)
    if items[0].audio is not None:
        batch.audio, batch.audio_lengths = pad([i.audio for i in items])
    if items[0].video is not None:
        video, batch.video_lengths = pad([i.video for i in items])
        batch.video = video.unsqueeze(2)  # (B, T, 1, H, W)
    if any(i.times is not None for i in items):
        unknown = np.array([[-np.inf, np.inf]], dtype=np.float32)
        batch.token_times, _ = pad(
            [unknown.repeat(len(i.tokens), 0) if i.times is None else i.times for i in items]
        )
    return batch
