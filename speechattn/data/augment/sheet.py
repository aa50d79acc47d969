"""The picture of a configuration's augmentation: each transform, and all together, on one clip."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from speechattn.data.augment.base import ClipTransform, clip_generator
from speechattn.data.augment.speed import SpeedPerturb, speed_video
from speechattn.data.augment.video import RandomCrop
from speechattn.files import replacing

_LABEL = 150  # pixels left of each row


def write_augment_sheet(
    clip: np.ndarray,
    transforms: Sequence[ClipTransform],
    path: str | Path,
    *,
    draws: int = 3,
    columns: int = 12,
    seed: int = 0,
) -> None:
    """Write a picture: a row for the clip, `draws` rows for each transform and for all in turn.

    A row shows pictures at even steps of the clip's own time: a clip that is faster ends earlier.

    Args:
        clip: uint8 (T, H, W).
        transforms: of lips, in order, `SpeedPerturb` among them.
        path: PNG file to write.
        draws: how many different draws are shown, those apart that leave the clip as it is.
        columns: pictures in a row.
        seed: of the draws.
    """
    step = max(1, len(clip) // columns)
    longest = columns + 2  # for what is slower
    rows = [_row("as stored", f"{len(clip)} frames", clip[::step][:longest], clip, longest=longest)]

    def together(x: np.ndarray, generator: torch.Generator) -> np.ndarray:
        for transform in transforms:
            x = _applied(transform, x, generator)
        return x

    shown: list[tuple[str, Callable]] = [
        (type(t).__name__, lambda x, g, t=t: _applied(t, x, g)) for t in transforms
    ]
    for name, function in [*shown, ("all", together)]:
        seen = {clip.tobytes()}
        for draw in range(20 * draws):  # what changes nothing is not worth a row
            if len(seen) > draws:
                break
            changed = function(clip, clip_generator(seed, draw, name))
            if changed.tobytes() not in seen:
                seen.add(changed.tobytes())
                label = f"{len(changed)} frames, draw {draw}"
                rows.append(_row(name, label, changed[::step][:longest], clip, longest=longest))
    with replacing(path) as part:
        cv2.imwrite(str(part), np.concatenate(rows))


def _applied(transform: ClipTransform, clip: np.ndarray, generator: torch.Generator) -> np.ndarray:
    if isinstance(transform, SpeedPerturb):
        return speed_video(clip, transform.draw(generator))
    if isinstance(transform, RandomCrop) and transform.size is None:
        transform = RandomCrop(min(clip.shape[1:]) * 11 // 12)  # 88 of 96
    return transform(clip, generator)


def _row(
    name: str, note: str, pictures: np.ndarray, clip: np.ndarray, *, longest: int
) -> np.ndarray:
    """Draw a label and pictures, each in the middle of a field of the clip's own size."""
    height, width = clip.shape[1:]
    row = np.full((height + 2, _LABEL + longest * (width + 2)), 255, dtype=np.uint8)
    for i, line in enumerate((name, note)):
        spot = (4, 16 * (i + 1))
        cv2.putText(row, line, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 0, 1, cv2.LINE_AA)
    for i, picture in enumerate(pictures):
        top = (height - picture.shape[0]) // 2
        left = _LABEL + i * (width + 2) + (width - picture.shape[1]) // 2
        row[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return row
