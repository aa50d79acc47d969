"""How long a run will take and how much disk it will fill, from the first clips that it crops."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from speechattn.data.crops.roi.workers import Outcome, RoiItem

SAMPLE = 12  # clips that are measured
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Estimate:
    """Time and disk that a run over many videos needs."""

    clips: int  # videos to crop
    video_seconds: float  # their length together
    seconds: float  # wall time
    disk: float  # bytes of crops and faces
    free: float  # bytes free where they go
    workers: int  # processes
    measured: int  # clips that were measured

    def __str__(self) -> str:
        return (
            f"{self.clips} videos, {_hours(self.video_seconds)} of video: about "
            f"{_hours(self.seconds)} with {max(self.workers, 1)} workers and {_size(self.disk)} of "
            f"disk ({_size(self.free)} free); measured on {self.measured} of them"
        )


def spread_first(items: Sequence[_Item], count: int = SAMPLE) -> list[_Item]:
    """Reorder items, some from all over the list first: a corpus begins with one kind of video."""
    if len(items) <= count:
        return list(items)
    chosen = {round((i + 0.5) * len(items) / count - 0.5) for i in range(count)}
    rest = (item for i, item in enumerate(items) if i not in chosen)
    return [*(items[i] for i in sorted(chosen)), *rest]


def estimate_run(
    items: Sequence[RoiItem], outcomes: Sequence[Outcome], fps: float, *, workers: int, folder: Path
) -> Estimate | None:
    """Estimate the run over `items` from the outcomes of some; None if none of these had a crop.

    Failures count with the time they took; the crops go, or will, to `folder`.
    """
    packed = [(o.crop, o.faces) for o in outcomes if o.crop is not None]
    frames = sum(crop.info.frames for crop, _ in packed)
    if not frames:
        return None
    taken = sum(outcome.seconds for outcome in outcomes)
    disk = sum(
        sum(map(len, crop.blocks)) + (len(faces.data) if faces else 0) for crop, faces in packed
    )
    known = [item.seconds for item in items if item.seconds is not None]
    if len(known) == len(items):
        video = sum(known)
        share = len(packed) / len(outcomes)  # a video that fails fills no disk
    else:
        video, share = frames / fps / len(outcomes) * len(items), 1.0
    while not folder.exists():
        folder = folder.parent
    seconds = taken / frames * video * fps * share / max(workers, 1)
    space, free = disk / frames * video * fps * share, shutil.disk_usage(folder).free
    return Estimate(len(items), video, seconds, space, free, workers, len(outcomes))


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"
