"""Utterances of a manifest: their sound, mouth crops and tokens, augmented."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from speechattn.data.augment import (
    CenterCrop,
    ClipTransform,
    SpeedPerturb,
    clip_generator,
    speed_audio,
    speed_video,
)
from speechattn.data.batches.batch import Item
from speechattn.data.batches.cut_table import CutTable, id_hash
from speechattn.data.batches.joined import join_texts
from speechattn.data.batches.loader import describe_error
from speechattn.data.batches.timed import token_times, trim
from speechattn.data.crops.store import CropStore
from speechattn.data.media import fit_audio
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError, MediaError

if TYPE_CHECKING:
    from lhotse.cut import Cut

logger = logging.getLogger(__name__)


class SpeechDataset(Dataset):
    """Utterances of a cut set, by number.

    Random draws for an utterance start from (seed, epoch, cut id): they are the same whichever
    worker loads it.

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
        cuts: "Sequence[Cut]",
        tokenizer: Tokenizer,
        modalities: Sequence[str],
        crops: CropStore | None = None,
        *,
        audio_transforms: Sequence[ClipTransform] = (),
        video_transforms: Sequence[ClipTransform] = (),
        sample_rate: int = 16000,
        seed: int = 0,
        scale: int | None = None,
    ):
        if "audio" in modalities and any(isinstance(t, SpeedPerturb) for t in video_transforms):
            raise ConfigError(
                "data.video_transforms: SpeedPerturb would put lips and sound out of step; in "
                "data.audio_transforms it changes both"
            )
        self.cuts, self.tokenizer, self.crops = cuts, tokenizer, crops
        self.uses_audio, self.uses_video = "audio" in modalities, "video" in modalities
        self.center = CenterCrop(scale) if scale is not None else None
        self.audio_transforms, self.video_transforms = audio_transforms, video_transforms
        self.sample_rate = sample_rate
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.cuts)

    @property
    def durations(self) -> np.ndarray:
        """Return (M,) seconds of each utterance."""
        if isinstance(self.cuts, CutTable):
            return self.cuts.durations
        return np.array([cut.duration for cut in self.cuts])

    @property
    def speeds(self) -> np.ndarray:
        """Return (M,) how many times as fast each utterance is in this epoch."""
        if not any(isinstance(t, SpeedPerturb) for t in self._transforms):
            return np.ones(len(self))
        if isinstance(self.cuts, CutTable):
            return self._speeds(self.cuts.hashes)
        return self._speeds(np.array([id_hash(cut.id) for cut in self.cuts], dtype=np.uint64))

    def __getitem__(self, index: int) -> Item:
        return self.join([index])

    def join(self, indices: Sequence[int], ends: tuple[float, float] = (0.0, 1.0)) -> Item:
        """Load utterances, at least one, as one recording that is transformed as a whole.

        Args:
            indices: their numbers.
            ends: where in the first the sound begins, and where in the last it ends, as shares of
                them, if it is known when their words were said; words beyond are left out.
        """
        cuts = [self.cuts[index] for index in indices]
        text = join_texts([cut_text(cut) for cut in cuts], self.tokenizer)
        item = Item("+".join(cut.id for cut in cuts), text, self.tokenizer.encode(text))
        audio, video = zip(*map(self._read, cuts), strict=True)
        fps = self.crops.info(cuts[0].id).fps if self.uses_video else None
        parts, rate = (audio, self.sample_rate) if self.uses_audio else (video, fps)
        seconds = [len(part) / rate for part in parts]
        item.times = token_times(cuts, seconds, item.tokens, self.tokenizer)
        if self.uses_audio:
            item.audio = _concatenate(audio)
        if self.uses_video:
            item.video = _concatenate(video)
        if ends != (0.0, 1.0):
            stop = sum(seconds[:-1]) + ends[1] * seconds[-1]
            start = ends[0] * seconds[0]
            trim(item, start, stop, self.tokenizer, sample_rate=self.sample_rate, fps=fps)
        length = len(item)
        try:
            # Of several the first decides: `JoinedDataset` has to know before they are loaded.
            self._transform(item, id_hash(cuts[0].id))
        except ValueError as error:  # crops smaller than the model's pictures
            raise MediaError(item.id, str(error)) from error
        if item.times is not None:  # speed perturbation moves words
            item.times = item.times * np.float32(len(item) / length)
        return item

    @property
    def _transforms(self) -> list[ClipTransform]:
        return [*self.audio_transforms, *self.video_transforms]

    def _speeds(self, hashes: np.ndarray) -> np.ndarray:
        """Return (M,) the speed of all transforms together, for utterances of these hashes."""
        return math.prod(
            t.draws(hashes, self.seed, self.epoch, place)
            for place, t in enumerate(self._transforms)
            if isinstance(t, SpeedPerturb)
        )

    def _transform(self, item: Item, hashed: int) -> None:
        """Apply the transforms to sound and crops, in place."""
        generator = clip_generator(self.seed, self.epoch, item.id)
        for place, transform in enumerate(self._transforms):
            of_audio = place < len(self.audio_transforms)
            if isinstance(transform, SpeedPerturb):
                hashes = np.array([hashed], dtype=np.uint64)
                factor = float(transform.draws(hashes, self.seed, self.epoch, place)[0])
                if item.audio is not None and of_audio:
                    item.audio = speed_audio(item.audio, factor)
                if item.video is not None:
                    item.video = speed_video(item.video, factor)
            elif of_audio and item.audio is not None:
                item.audio = transform(item.audio, generator)
            elif not of_audio and item.video is not None:
                item.video = transform(item.video, generator)

    def _read(self, cut: "Cut") -> tuple[np.ndarray | None, np.ndarray | None]:
        """Load a cut; an error names it, as it may be one of several that are joined."""
        try:
            return self._load(cut)
        except Exception as error:
            raise MediaError(cut.id, describe_error(error)) from error

    def _load(self, cut: "Cut") -> tuple[np.ndarray | None, np.ndarray | None]:
        """Load sound and crops of a cut, as far as they are used."""
        audio = video = None
        if self.uses_video:
            video = self.crops.read(cut.id)
            video = self.center(video) if self.center is not None else video
        if self.uses_audio:
            audio = load_audio(cut, self.sample_rate)
            if video is not None:
                # Before any transform: a video transform must not move the sound.
                samples = round(len(video) / self.crops.info(cut.id).fps * self.sample_rate)
                audio = fit_audio(audio, samples)
        return audio, video


def _concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def cut_text(cut: "Cut") -> str:
    """Return the transcript of a cut, of all its supervisions in order."""
    return " ".join(s.text for s in cut.supervisions)


def load_audio(cut: "Cut", sample_rate: int) -> np.ndarray:
    """Load the sound of a cut, (N,) float32 at `sample_rate`."""
    if cut.sampling_rate != sample_rate:
        cut = cut.resample(sample_rate)
    return cut.load_audio()[0].astype(np.float32, copy=False)


def open_cuts(
    path: str | Path, modalities: Sequence[str], crops: CropStore | None = None
) -> CutTable:
    """Open the cuts of a manifest that a model can use; the number of others is logged.

    Raises:
        ConfigError: there is no such file, none can be used, or a model of video has no crops.
    """
    cuts = CutTable(path)
    usable = np.ones(len(cuts), dtype=bool)
    if "video" in modalities:
        if crops is None:
            raise ConfigError("a model of video needs mouth crops: --crops FOLDER")
        usable &= np.fromiter((name in crops for name in cuts.ids()), bool, len(cuts))
    if "audio" in modalities:
        usable &= cuts.has_audio
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
) -> "list[Cut]":
    """Read the cuts of `open_cuts` into memory, where they may be changed; some 4 kB each."""
    return list(open_cuts(path, modalities, crops))
