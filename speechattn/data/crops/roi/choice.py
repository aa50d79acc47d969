"""Which of several faces is the speaker, and what to tell a person about the choice."""

from collections.abc import Sequence

import numpy as np

from speechattn.data.crops.roi.track import Track


def choose(tracks: Sequence[Track], tie: float) -> tuple[Track, str]:
    """Choose the speaker's track; with a note if the choice was not plain.

    It is the face seen longest; of those seen nearly as long the largest, by the mean area of its
    box; of those nearly as large too the one whose mouth moves most, since two people side by side
    take turns at most and a portrait on the wall does not move at all.

    The note is empty where one face was seen longest. `tie` is that of `RoiOptions`.
    """
    longest = max(track.seen for track in tracks)
    rivals = [track for track in tracks if track.seen >= tie * longest]
    if len(rivals) == 1:
        return rivals[0], ""
    largest = max(rivals, key=lambda track: track.area)
    alike = [track for track in rivals if track.area >= tie * largest.area]
    if len(alike) == 1:
        return largest, f"{len(rivals)} faces seen as long, took the largest"
    moves = [_movement(track) for track in alike]
    best = int(np.argmax(moves))
    others = ", ".join(f"{move:.1f}" for i, move in enumerate(moves) if i != best)
    note = f"{len(alike)} faces seen as long and as large, took the one whose mouth moves most"
    return alike[best], f"{note} ({moves[best]:.1f} against {others} grey levels a frame)"


def _movement(track: Track) -> float:
    """Return the mean change of a pixel around the mouth from frame to frame, in grey levels."""
    total, count, previous = 0.0, 0, None
    for crop in track.crops:
        quarter = len(crop) // 4
        mouth = crop[quarter : len(crop) - quarter, quarter : len(crop) - quarter].astype(np.int16)
        if previous is not None:
            total += float(np.abs(mouth - previous).mean())
            count += 1
        previous = mouth
    return total / count if count else 0.0
