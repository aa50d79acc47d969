"""Landmarks that came with a corpus or from another tool, instead of a face detector.

A `.npy` file holds (T, 5, 2) or (T, 68, 2), x and y in pixels of the video's pictures, a row a
frame; an `.npz` file holds the same under `landmarks` and may state the rows per second under
`fps` (else they are taken to be at the crops' own rate). NaN, or points that all coincide (zeros,
mostly), mark frames without a face.
"""

from pathlib import Path

import numpy as np

from speechattn.errors import MediaError


def five_points(points: np.ndarray) -> np.ndarray:
    """Take the five points of `detector.POINTS`, (..., 5, 2), from the 68 of the iBUG 300-W scheme.

    `points` are (..., 68, 2), or (..., 5, 2), which are returned as they are.
    """
    if points.shape[-2:] == (5, 2):
        return points
    if points.shape[-2:] != (68, 2):
        raise ValueError(f"landmarks must be (T, 5, 2) or (T, 68, 2), not {points.shape}")
    eyes = [points[..., first : first + 6, :].mean(axis=-2) for first in (36, 42)]
    return np.stack([*eyes, *(points[..., i, :] for i in (30, 48, 54))], axis=-2)


def load_landmarks(path: str | Path, fps: float) -> tuple[np.ndarray, float]:
    """Read a landmark file (see the module) and bring it to `fps`, the rate of the crops.

    Returns:
        float32 (T, 5, 2), without NaN (interpolated over time), and the fraction of rows that the
        file had a face in.

    Raises:
        MediaError: unreadable, of another shape, or without a single face.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            rate = float(loaded["fps"]) if "fps" in loaded else fps
            rows = loaded["landmarks"]
        else:
            rate, rows = fps, loaded
        points = five_points(np.asarray(rows, dtype=np.float64))
        if points.ndim != 3:
            raise ValueError(f"landmarks must be (T, 5, 2) or (T, 68, 2), not {rows.shape}")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise MediaError(path, f"not a landmark file ({error})") from error
    good = np.isfinite(points).all(axis=(1, 2))
    good[good] = np.ptp(points[good], axis=1).max(axis=1) > 1e-3
    if not good.any():
        raise MediaError(path, "no face in any row of the landmark file")
    times = np.arange(len(points)) / rate
    wanted = np.arange(max(round(len(points) / rate * fps), 1)) / fps
    flat = points.reshape(len(points), -1)
    columns = [np.interp(wanted, times[good], column[good]) for column in flat.T]
    out = np.stack(columns, axis=1).reshape(-1, 5, 2).astype(np.float32)
    return out, float(good.mean())
