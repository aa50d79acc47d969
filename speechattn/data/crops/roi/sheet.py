"""The contact sheet: crops sampled over clips and time in one picture, to be looked at."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from speechattn.data.crops.store import CropStore
from speechattn.files import replacing

_LABEL = 150  # pixels left of each row


def write_contact_sheet(
    store: CropStore, keys: Sequence[str], path: str | Path, *, clips: int = 24, columns: int = 10
) -> None:
    """Write a PNG picture with a row of crops for each of some clips, both evenly spaced."""
    rows = []
    for key in (keys[i] for i in _spread(len(keys), clips)):
        frames, info = store.read(key), store.info(key)
        picked = frames[_spread(len(frames), columns, exact=True)]
        label = np.full((height := frames.shape[1], _LABEL), 255, dtype=np.uint8)
        lines = (key[-24:], f"{info.frames} fr {info.fps:g} fps", f"face {info.detected:.0%}")
        for i, line in enumerate(lines):
            spot = (4, min(16 * (i + 1), height - 4))
            cv2.putText(label, line, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 0, 1, cv2.LINE_AA)
        rows.append(np.concatenate([label, *picked], axis=1))
    with replacing(path) as part:
        cv2.imwrite(str(part), np.concatenate(rows))


def _spread(length: int, count: int, exact: bool = False) -> list[int]:
    """Spread `count` indices over `range(length)`; fewer if there are fewer, unless `exact`."""
    count = count if exact else min(count, length)
    return [int((i + 0.5) * length / count) for i in range(count)]
