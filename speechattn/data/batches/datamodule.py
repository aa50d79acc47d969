"""From manifests to batches: cuts, mouth crops, augmentation, bucketing."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
from lhotse.cut import Cut
from torch.utils.data import DataLoader, Dataset

from speechattn.data.augment import (
    CenterCrop,
    ClipTransform,
    RandomCrop,
    SpeedPerturb,
    clip_generator,
    speed_audio,
    speed_video,
)
from speechattn.data.batches.batch import Item
from speechattn.data.batches.cut_table import CutTable, id_hash
from speechattn.data.batches.joined import JoinedDataset, join_texts
from speechattn.data.batches.loader import EpochLoader, Readable, collate_read, described
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.batches.timed import token_times, trim
from speechattn.data.crops.store import CropStore
from speechattn.data.tokenizers.tokenizer import Tokenizer
from speechattn.errors import ConfigError, MediaError

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
    video_transforms: list[ClipTransform] | None = None


class SpeechDataset(Dataset):
    """Utterances of a cut set, by number.

    What chance decides for an utterance is drawn from (seed, epoch, cut id): it is the same
    whichever worker loads it.

    Args:
        cuts: the utterances; a `CutTable` where there are many.
        tokenizer: makes the targets.
        modalities: what is loaded: 'audio', 'video' or both.
        crops: the mouth crops, by cut id; needed for video.
        audio_transforms: applied to sound, in order.
        video_transforms: applied to crops, in order.
        sample_rate: of the sound, in Hz.
        seed: of the transforms.
        scale: see `DataOptions`.
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
        scale: int | None = None,
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
        self.middle = CenterCrop(scale) if scale is not None else None
        self.audio_transforms = audio_transforms
        self.video_transforms = video_transforms
        self.sample_rate = sample_rate
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.cuts)

    @property
    def durations(self) -> np.ndarray:
        """(N,) seconds of each utterance."""
        if isinstance(self.cuts, CutTable):
            return self.cuts.durations
        return np.array([cut.duration for cut in self.cuts])

    @property
    def speeds(self) -> np.ndarray:
        """(N,) how many times as fast each utterance is in this epoch."""
        if not any(isinstance(t, SpeedPerturb) for t in self._transforms):
            return np.ones(len(self))
        if isinstance(self.cuts, CutTable):
            return self._speeds(self.cuts.hashes)
        return self._speeds(np.array([id_hash(cut.id) for cut in self.cuts], dtype=np.uint64))

    def __getitem__(self, index: int) -> Item:
        return self.joined([index])

    def joined(self, indices: Sequence[int], ends: tuple[float, float] = (0.0, 1.0)) -> Item:
        """Utterances, at least one, one after the other; transformed as the one that they are.

        Args:
            indices: their numbers.
            ends: where in the first the sound begins, and where in the last it ends, as shares of
                them, if it is known when their words were said; words beyond are left out.
        """
        cuts = [self.cuts[index] for index in indices]
        text = join_texts([cut_text(cut) for cut in cuts], self.tokenizer)
        item = Item("+".join(cut.id for cut in cuts), text, self.tokenizer.encode(text))
        heard, seen = zip(*map(self._read, cuts), strict=True)
        fps = self.crops.info(cuts[0].id).fps if self.sees else None
        parts, rate = (heard, self.sample_rate) if self.hears else (seen, fps)
        seconds = [len(part) / rate for part in parts]
        item.times = token_times(cuts, seconds, item.tokens, self.tokenizer)
        if self.hears:
            item.audio = _one(heard)
        if self.sees:
            item.video = _one(seen)
        if ends != (0.0, 1.0):
            stop = sum(seconds[:-1]) + ends[1] * seconds[-1]
            trim(item, ends[0] * seconds[0], stop, self.tokenizer, self.sample_rate, fps)
        length = len(item)
        try:
            # Of several the first decides: `JoinedDataset` has to know before they are loaded.
            self._transform(item, id_hash(cuts[0].id))
        except ValueError as error:  # crops that are smaller than what the model sees
            raise MediaError(item.id, str(error)) from error
        if item.times is not None:  # speed perturbation moves words
            item.times = item.times * np.float32(len(item) / length)
        return item

    @property
    def _transforms(self) -> list[ClipTransform]:
        return [*self.audio_transforms, *self.video_transforms]

    def _speeds(self, hashes: np.ndarray) -> np.ndarray:
        """(N,) of all transforms together, for utterances of these hashes."""
        return math.prod(
            t.draws(hashes, self.seed, self.epoch, place)
            for place, t in enumerate(self._transforms)
            if isinstance(t, SpeedPerturb)
        )

    def _transform(self, item: Item, hashed: int) -> None:
        """What chance does to sound and crops, in place."""
        generator = clip_generator(self.seed, self.epoch, item.id)
        for place, transform in enumerate(self._transforms):
            heard = place < len(self.audio_transforms)
            if isinstance(transform, SpeedPerturb):
                hashes = np.array([hashed], dtype=np.uint64)
                factor = float(transform.draws(hashes, self.seed, self.epoch, place)[0])
                if item.audio is not None and heard:
                    item.audio = speed_audio(item.audio, factor)
                if item.video is not None:
                    item.video = speed_video(item.video, factor)
            elif heard and item.audio is not None:
                item.audio = transform(item.audio, generator)
            elif not heard and item.video is not None:
                item.video = transform(item.video, generator)

    def _read(self, cut: Cut) -> tuple[np.ndarray | None, np.ndarray | None]:
        """As `_load`, but an error names the cut: it may be one of several that are joined."""
        try:
            return self._load(cut)
        except Exception as error:
            raise MediaError(cut.id, described(error)) from error

    def _load(self, cut: Cut) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Sound and crops of a cut, as far as they are wanted."""
        audio = video = None
        if self.sees:
            video = self.crops.read(cut.id)
            if self.middle is not None:
                video = self.middle(video)
        if self.hears:
            audio = load_audio(cut, self.sample_rate)
            if video is not None:
                # Before any transform: a video transform must not change what is heard when.
                samples = round(len(video) / self.crops.info(cut.id).fps * self.sample_rate)
                audio = fit_audio(audio, samples)
        return audio, video


def _one(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def sized(transforms: Sequence[ClipTransform], crop_size: int) -> list[ClipTransform]:
    """The same, crops without a size of their own being of the model's."""
    found = []
    for transform in transforms:
        if isinstance(transform, RandomCrop) and transform.size is None:
            transform = RandomCrop(crop_size)
        found.append(transform)
    return found


def cut_text(cut: Cut) -> str:
    """The transcript of a cut, of all its supervisions in order."""
    return " ".join(s.text for s in cut.supervisions)


def load_audio(cut: Cut, sample_rate: int) -> np.ndarray:
    """The sound of a cut, (N,) float32 at `sample_rate`."""
    if cut.sampling_rate != sample_rate:
        cut = cut.resample(sample_rate)
    return cut.load_audio()[0].astype(np.float32, copy=False)


def fit_audio(audio: np.ndarray, samples: int) -> np.ndarray:
    """Cut sound, or lengthens it with silence, to `samples`: lips and voice then end together."""
    if len(audio) >= samples:
        return audio[:samples]
    return np.pad(audio, (0, samples - len(audio)))


def open_cuts(
    path: str | Path, modalities: Sequence[str], crops: CropStore | None = None
) -> CutTable:
    """The cuts of a manifest that a model of these modalities can use; the others are reported.

    Raises:
        ConfigError: there is no such file, none can be used, or the model sees and there are no
            crops.
    """
    cuts = CutTable(path)
    usable = np.ones(len(cuts), dtype=bool)
    if "video" in modalities:
        if crops is None:
            raise ConfigError("a model that sees needs mouth crops: --crops FOLDER")
        usable &= np.fromiter((name in crops for name in cuts.ids()), bool, len(cuts))
    if "audio" in modalities:
        usable &= cuts.hears
    lost = cuts.subset(~usable)
    if len(lost):
        logger.warning(
            "%s: %d of %d cuts left out, they lack a mouth crop or sound: %s%s",
            path,
            len(lost),
            len(cuts),
            " ".join(lost[:5].ids()),
            " ..." if len(lost) > 5 else "",
        )
    if not usable.any():
        raise ConfigError(f"{path}: no cut has {' and '.join(modalities)}")
    return cuts.subset(usable)


def read_cuts(
    path: str | Path, modalities: Sequence[str], crops: CropStore | None = None
) -> list[Cut]:
    """The cuts of `open_cuts` as objects in memory, which may be changed; some 4 kB each."""
    return list(open_cuts(path, modalities, crops))


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
            options.audio_transforms or (),
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
