"""Augmentation of clips: lips and sound. Features are masked by `frontends.SpecAugment`.

Every transform draws from the `torch.Generator` that it is given and from nothing else, so a seed
decides all. `clip_generator(seed, epoch, cut_id)` makes one whose draws do not depend on which
worker, or how many of them, load the clip.

Video is uint8, grey (T, H, W) or colour (T, 3, H, W), from the store to the batch: what a transform
draws holds for the whole clip, as mouths and cameras do not change from frame to frame. Sound is
float (N,) at 16 kHz. Both may be numpy arrays or tensors, and what comes back is of the same kind
and is never the same memory changed.

Rotation belongs before the crop, which then cuts off the corners that it filled; what changes
pixels (colour, flip) after it, where there are fewer.
"""

from speechattn.data.augment.base import ClipTransform, clip_generator
from speechattn.data.augment.sound import AddNoise
from speechattn.data.augment.speed import SpeedPerturb, speed_audio, speed_video
from speechattn.data.augment.video import (
    AdaptiveTimeMask,
    CenterCrop,
    ColorJitter,
    Cutout,
    HorizontalFlip,
    RandomCrop,
    RandomRotation,
)

__all__ = [
    "AdaptiveTimeMask",
    "AddNoise",
    "CenterCrop",
    "ClipTransform",
    "ColorJitter",
    "Cutout",
    "HorizontalFlip",
    "RandomCrop",
    "RandomRotation",
    "SpeedPerturb",
    "clip_generator",
    "speed_audio",
    "speed_video",
]
