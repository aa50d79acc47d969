"""Training and validation batches of manifests, for Lightning."""

import logging
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from speechattn.data.augment import AddNoise, CenterCrop, ClipTransform, RandomCrop
from speechattn.data.batches.dataset import SpeechDataset, open_cuts
from speechattn.data.batches.joined import JoinedDataset
from speechattn.data.batches.loader import EpochLoader, TolerantDataset, collate_readable
from speechattn.data.batches.options import DataOptions
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.crops.store import CropStore
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


def _with_size(transform: ClipTransform, crop_size: int) -> ClipTransform:
    """Give a random crop without a size that of the model."""
    if isinstance(transform, RandomCrop) and transform.size is None:
        return RandomCrop(crop_size)
    return transform


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
        modalities: of the model: 'audio', 'video' or both.
        crops: folder of mouth crops, for a model of video.
        crop_size: side of the model's square pictures.
        sample_rate: of the model's sound, in Hz.
        seed: of batches and transforms.
    """

    def __init__(
        self,
        options: DataOptions,
        train_cuts: str | Path,
        valid_cuts: str | Path,
        tokenizer: Tokenizer,
        *,
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
        common, rate = (tokenizer, modalities, store), {"sample_rate": sample_rate}
        middle = (CenterCrop(crop_size),)
        audio = with_noise(options.audio_transforms or (), options.noise)
        video = [_with_size(t, crop_size) for t in options.video_transforms or middle]
        transforms = {"audio_transforms": audio, "video_transforms": video}
        self.train = SpeechDataset(
            short, *common, **transforms, **rate, seed=seed, scale=options.scale
        )
        if options.join_seconds:
            chances = options.join_chance, options.trim_chance
            self.train = JoinedDataset(self.train, options.join_seconds, *chances)
        held_out = open_cuts(valid_cuts, modalities, store)
        self.valid = SpeechDataset(held_out, *common, video_transforms=middle, **rate)
        self.seed = seed

    def sampler(self, dataset: SpeechDataset | JoinedDataset, shuffle: bool) -> PaddedFrameBatches:
        """Make the sampler of this process."""
        trainer = self.trainer
        return PaddedFrameBatches(
            dataset.durations / dataset.speeds,
            self.options.batch_seconds,
            self.options.max_items,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def loader(self, dataset: SpeechDataset | JoinedDataset, shuffle: bool) -> DataLoader:
        """Make the loader of an epoch."""
        # Epoch and order are functions of the number: a resumed run goes on as if never stopped.
        dataset.epoch = self.trainer.current_epoch if self.trainer and shuffle else 0
        sampler = self.sampler(dataset, shuffle)
        sampler.set_epoch(dataset.epoch)
        return EpochLoader(
            TolerantDataset(dataset),
            sampler,
            collate_fn=collate_readable,
            num_workers=self.options.num_workers,
            trainer=self.trainer,
        )

    def train_dataloader(self) -> DataLoader:
        """Load training batches; called anew each epoch."""
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Load validation batches, longest first."""
        return self.loader(self.valid, shuffle=False)
