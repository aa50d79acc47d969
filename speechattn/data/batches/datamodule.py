"""Training and validation batches of manifests, for Lightning."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from speechattn.data.augment import (
    AddNoise,
    CenterCrop,
    ClipTransform,
    RandomCrop,
)
from speechattn.data.batches.dataset import SpeechDataset, open_cuts
from speechattn.data.batches.joined import JoinedDataset
from speechattn.data.batches.loader import EpochLoader, Readable, collate_read
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.crops.store import CropStore
from speechattn.data.tokenizers.tokenizer import Tokenizer
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataOptions:
    """How training batches are made.

    Attributes:
        batch_seconds: cap on a batch's padded size, in seconds.
        max_items: at most so many utterances in a batch.
        min_seconds: shorter utterances are left out of training.
        max_seconds: longer ones are too.
        join_seconds: training utterances are joined in random order to recordings of up to so
            many seconds, anew each epoch (see `joined`); 0 for none. A model of short clips needs
            it for the times of words and for long files.
        join_chance: that a recording may have more than one utterance, 0..1.
        trim_chance: that a joined recording begins within its first utterance and ends within its
            last, as windows of a long file do; only where the cuts say when words were said.
        scale: side in pixels of the middle of the stored crops that is used (see `RoiOptions`);
            None for all of them.
        num_workers: loading processes.
        audio_transforms: applied to the sound of training utterances, in order; SpeedPerturb
            changes the lips alike.
        noise: file that every AddNoise without a file of its own mixes in; without one these are
            dropped, with a warning.
        video_transforms: applied to their crops, in order; they must leave squares of the model's
            size, as crops without a size of their own do.
    """

    batch_seconds: float = 60.0
    max_items: int = 64
    min_seconds: float = 0.0
    max_seconds: float = 30.0
    join_seconds: float = 0.0
    join_chance: float = 0.75
    trim_chance: float = 0.5
    scale: int | None = None
    num_workers: int = 1
    audio_transforms: list[ClipTransform] | None = None
    noise: str | None = None
    video_transforms: list[ClipTransform] | None = None


def sized(transforms: Sequence[ClipTransform], crop_size: int) -> list[ClipTransform]:
    """The same, crops without a size of their own being of the model's."""
    found = []
    for transform in transforms:
        if isinstance(transform, RandomCrop) and transform.size is None:
            transform = RandomCrop(crop_size)
        found.append(transform)
    return found


def with_noise(transforms: Sequence[ClipTransform], noise: str | None) -> list[ClipTransform]:
    """Give `noise` to every AddNoise without a file; without one drop these."""
    incomplete = [t for t in transforms if isinstance(t, AddNoise) and t.noise is None]
    if incomplete and noise is None:
        logger.warning("data.noise names no file: training without added noise")
    if noise is None:
        return [t for t in transforms if t not in incomplete]
    return [t.mixing(noise) if t in incomplete else t for t in transforms]


class SpeechData(L.LightningDataModule):
    """Training and validation batches.

    Args:
        options: how batches are made.
        train_cuts: Lhotse cuts to learn from.
        valid_cuts: Lhotse cuts to validate on.
        tokenizer: makes the targets.
        modalities: what the model takes.
        crops: folder of mouth crops, for a model that sees.
        crop_size: side of the square that the model sees.
        sample_rate: of the sound that the model hears, in Hz.
        seed: of batches and transforms.
    """

    def __init__(
        self,
        options: DataOptions,
        train_cuts: str | Path,
        valid_cuts: str | Path,
        tokenizer: Tokenizer,
        modalities: Sequence[str],
        crops: str | Path | None = None,
        crop_size: int = 88,
        sample_rate: int = 16000,
        seed: int = 0,
    ):
        super().__init__()
        self.options = options
        store = CropStore(crops) if crops is not None else None
        cuts = open_cuts(train_cuts, modalities, store)
        limits = options.min_seconds, options.max_seconds
        short = cuts.subset((cuts.durations >= limits[0]) & (cuts.durations <= limits[1]))
        if len(short) < len(cuts):
            logger.warning(
                "%d of %d cuts shorter than %g s or longer than %g s left out",
                len(cuts) - len(short), len(cuts), *limits,
            )  # fmt: skip
        if not short:
            raise ConfigError(
                f"data.min_seconds {limits[0]:g} and data.max_seconds {limits[1]:g}: no cut of "
                f"{train_cuts} is between; they have {cuts.durations.min():g} to "
                f"{cuts.durations.max():g} s"
            )
        common = (tokenizer, modalities, store)
        self.train = SpeechDataset(
            short,
            *common,
            with_noise(options.audio_transforms or (), options.noise),
            sized(options.video_transforms or (CenterCrop(crop_size),), crop_size),
            sample_rate,
            seed,
            options.scale,
        )
        if options.join_seconds:
            self.train = JoinedDataset(
                self.train, options.join_seconds, options.join_chance, options.trim_chance
            )
        self.valid = SpeechDataset(
            open_cuts(valid_cuts, modalities, store),
            *common,
            video_transforms=(CenterCrop(crop_size),),
            sample_rate=sample_rate,
        )
        self.seed = seed

    def sampler(self, dataset: SpeechDataset | JoinedDataset, shuffle: bool) -> PaddedFrameBatches:
        trainer = self.trainer
        return PaddedFrameBatches(
            dataset.durations / dataset.speeds,
            self.options.batch_seconds,
            self.options.max_items,
            shuffle,
            self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def loader(self, dataset: SpeechDataset | JoinedDataset, shuffle: bool) -> DataLoader:
        # Epoch and order are functions of the number: a resumed run goes on as if never stopped.
        dataset.epoch = self.trainer.current_epoch if self.trainer and shuffle else 0
        sampler = self.sampler(dataset, shuffle)
        sampler.set_epoch(dataset.epoch)
        return EpochLoader(
            Readable(dataset),
            self.trainer,
            batch_sampler=sampler,
            collate_fn=collate_read,
            num_workers=self.options.num_workers,
        )

    def train_dataloader(self) -> DataLoader:
        """Called anew each epoch (`reload_dataloaders_every_n_epochs=1`)."""
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Longest batches first."""
        return self.loader(self.valid, shuffle=False)
