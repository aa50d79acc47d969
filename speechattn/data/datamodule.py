"""From manifests to batches: cuts, mouth crops, augmentation, bucketing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from torch.utils.data import DataLoader, Dataset

from speechattn.data.augment import (
    CenterCrop,
    ClipTransform,
    SpeedPerturb,
    clip_generator,
    speed_audio,
    speed_video,
)
from speechattn.data.batch import Item, collate
from speechattn.data.sampler import PaddedFrameBatches
from speechattn.data.store import CropStore
from speechattn.data.tokenizer import Tokenizer
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataOptions:
    """How training batches are made.

    Attributes:
        batch_seconds: cap on a batch's padded size, in seconds.
        max_items: at most so many utterances in a batch.
        max_seconds: longer utterances are left out of training.
        num_workers: loading processes.
        audio_transforms: applied to the sound of training utterances, in order; SpeedPerturb
            changes the lips alike.
        video_transforms: applied to their crops, in order; they must leave squares of the model's
            size.
    """

    batch_seconds: float = 60.0
    max_items: int = 64
    max_seconds: float = 30.0
    num_workers: int = 1
    audio_transforms: list[ClipTransform] | None = None
    video_transforms: list[ClipTransform] | None = None


class SpeechDataset(Dataset):
    """Utterances of a cut set, by number.

    What chance decides for an utterance is drawn from (seed, epoch, cut id): it is the same
    whichever worker loads it.

    Args:
        cuts: the utterances.
        tokenizer: makes the targets.
        modalities: what is loaded: 'audio', 'video' or both.
        crops: the mouth crops, by cut id; needed for video.
        audio_transforms: applied to sound, in order.
        video_transforms: applied to crops, in order.
        sample_rate: of the sound, in Hz.
        seed: of the transforms.
    """

    def __init__(
        self,
        cuts: Sequence[Cut],
        tokenizer: Tokenizer,
        modalities: Sequence[str],
        crops: CropStore | None = None,
        audio_transforms: Sequence[ClipTransform] = (),
        video_transforms: Sequence[ClipTransform] = (),
        sample_rate: int = 16000,
        seed: int = 0,
    ):
        self.cuts = cuts
        self.tokenizer = tokenizer
        if "audio" in modalities and any(isinstance(t, SpeedPerturb) for t in video_transforms):
            raise ConfigError(
                "data.video_transforms: SpeedPerturb would put lips and sound out of step; in "
                "data.audio_transforms it changes both"
            )
        self.hears, self.sees = "audio" in modalities, "video" in modalities
        self.crops = crops
        self.audio_transforms = audio_transforms
        self.video_transforms = video_transforms
        self.sample_rate = sample_rate
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index: int) -> Item:
        cut = self.cuts[index]
        text = cut_text(cut)
        audio = video = None
        generator = clip_generator(self.seed, self.epoch, cut.id)
        if self.sees:
            video = self.crops.read(cut.id)
        if self.hears:
            audio = load_audio(cut, self.sample_rate)
            if video is not None:
                # Before any transform: a video transform must not change what is heard when.
                samples = round(len(video) / self.crops.info(cut.id).fps * self.sample_rate)
                audio = fit_audio(audio, samples)
            for transform in self.audio_transforms:
                if isinstance(transform, SpeedPerturb) and video is not None:
                    factor = transform.draw(generator)
                    audio, video = speed_audio(audio, factor), speed_video(video, factor)
                else:
                    audio = transform(audio, generator)
        if video is not None:
            for transform in self.video_transforms:
                if isinstance(transform, SpeedPerturb):
                    video = speed_video(video, transform.draw(generator))
                else:
                    video = transform(video, generator)
        return Item(cut.id, text, self.tokenizer.encode(text), audio, video)


def cut_text(cut: Cut) -> str:
    """The transcript of a cut, of all its supervisions in order."""
    return " ".join(s.text for s in cut.supervisions)


def load_audio(cut: Cut, sample_rate: int) -> np.ndarray:
    """The sound of a cut, (N,) float32 at `sample_rate`."""
    if cut.sampling_rate != sample_rate:
        cut = cut.resample(sample_rate)
    return cut.load_audio()[0].astype(np.float32, copy=False)


def fit_audio(audio: np.ndarray, samples: int) -> np.ndarray:
    """Cuts sound, or lengthens it with silence, to `samples`: lips and voice then end together."""
    if len(audio) >= samples:
        return audio[:samples]
    return np.pad(audio, (0, samples - len(audio)))


def read_cuts(
    path: str | Path, modalities: Sequence[str], crops: CropStore | None = None
) -> list[Cut]:
    """The cuts of a manifest that a model of these modalities can use; the others are reported.

    Raises:
        ConfigError: there is no such file, none can be used, or the model sees and there are no
            crops.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such manifest")
    cuts = list(CutSet.from_file(path))
    usable = cuts
    if "video" in modalities:
        if crops is None:
            raise ConfigError("a model that sees needs mouth crops: --crops FOLDER")
        usable = [cut for cut in usable if cut.id in crops]
    if "audio" in modalities:
        usable = [cut for cut in usable if has_audio(cut)]
    if len(usable) < len(cuts):
        kept = {cut.id for cut in usable}
        lost = [cut.id for cut in cuts if cut.id not in kept]
        logger.warning(
            "%s: %d of %d cuts left out, they lack a mouth crop or sound: %s%s",
            path,
            len(lost),
            len(cuts),
            " ".join(lost[:5]),
            " ..." if len(lost) > 5 else "",
        )
    if not usable:
        raise ConfigError(f"{path}: no cut has {' and '.join(modalities)}")
    return usable


def has_audio(cut: Cut) -> bool:
    """Whether a cut's sound was recorded, rather than filled with silence for a mute video."""
    return cut.has_recording and (cut.custom or {}).get("has_audio", True)


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
        cuts = read_cuts(train_cuts, modalities, store)
        short = [cut for cut in cuts if cut.duration <= options.max_seconds]
        if len(short) < len(cuts):
            logger.warning(
                "%d cuts longer than %g s left out", len(cuts) - len(short), options.max_seconds
            )
        if not short:
            raise ConfigError(
                f"data.max_seconds: all of {train_cuts} is longer than {options.max_seconds:g} s"
            )
        common = (tokenizer, modalities, store)
        self.train = SpeechDataset(
            short,
            *common,
            options.audio_transforms or (),
            options.video_transforms or (CenterCrop(crop_size),),
            sample_rate,
            seed,
        )
        self.valid = SpeechDataset(
            read_cuts(valid_cuts, modalities, store),
            *common,
            video_transforms=(CenterCrop(crop_size),),
            sample_rate=sample_rate,
        )
        self.seed = seed

    def sampler(self, dataset: SpeechDataset, shuffle: bool) -> PaddedFrameBatches:
        trainer = self.trainer
        return PaddedFrameBatches(
            np.array([cut.duration for cut in dataset.cuts]),
            self.options.batch_seconds,
            self.options.max_items,
            shuffle,
            self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )

    def loader(self, dataset: SpeechDataset, shuffle: bool) -> DataLoader:
        sampler = self.sampler(dataset, shuffle)
        # Epoch and order are functions of the number: a resumed run goes on as if never stopped.
        dataset.epoch = self.trainer.current_epoch if self.trainer and shuffle else 0
        sampler.set_epoch(dataset.epoch)
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.options.num_workers,
        )

    def train_dataloader(self) -> DataLoader:
        """Called anew each epoch (`reload_dataloaders_every_n_epochs=1`)."""
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Longest batches first."""
        return self.loader(self.valid, shuffle=False)
