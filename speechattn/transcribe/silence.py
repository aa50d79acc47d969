"""Where a recording is quiet, by its energy."""

import numpy as np

# Energy is looked at in stretches of this many seconds.
HOP = 0.02
# Quiet is what is nearer to the softest than to the loudest, by this share of the decibels between.
SHARE = 0.35
# With less between them than this (dB) there is either no speech or no pause.
LEAST_RANGE = 15.0


def quiet_place(
    sound: np.ndarray, sample_rate: float, earliest: float, seconds: float
) -> float | None:
    """Return the middle of the longest quiet stretch of a sound after a moment.

    Args:
        sound: (N,) samples; how loud speech is and how soft a pause is are taken from all of it.
        sample_rate: Hz.
        earliest: seconds; nothing before it is looked at.
        seconds: that the stretch has at least.

    Returns:
        Seconds, or None where it is nowhere quiet for so long.
    """
    hop = max(1, round(HOP * sample_rate))
    count = len(sound) // hop
    if count == 0:
        return None
    power = np.square(sound[: count * hop].reshape(count, hop), dtype=np.float64).mean(1)
    level = 10 * np.log10(power + 1e-10)
    soft, loud = np.percentile(level, (5, 95))
    if loud - soft < LEAST_RANGE:
        return None
    quiet = level < soft + SHARE * (loud - soft)
    first = round(earliest / HOP)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet[first:].astype(np.int8), [0]])))
    starts, stops = edges[::2] + first, edges[1::2] + first
    if not len(starts):
        return None
    longest = int(np.argmax(stops - starts))
    if (stops[longest] - starts[longest]) * HOP < seconds:
        return None
    return float(starts[longest] + stops[longest]) / 2 * HOP
