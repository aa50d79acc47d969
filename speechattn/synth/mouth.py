"""Draws lips, teeth and tongue for a pose, each edge being a curve y(x), so that it is smooth."""

import numpy as np

from speechattn.synth.look import Look
from speechattn.synth.visemes import Pose

_GAP = 19.0  # pixels between the lips at opening 1
_CAVITY = np.array([34.0, 26.0, 52.0], np.float32)
_TEETH = np.array([206.0, 218.0, 226.0], np.float32)
_TONGUE = np.array([104.0, 96.0, 186.0], np.float32)


def half_width(pose: Pose, look: Look) -> float:
    """Half the distance between the corners of the mouth, in face pixels."""
    return look.mouth * (1.0 + 0.15 * pose.width - 0.34 * pose.rounding)


def lip_gap(pose: Pose) -> float:
    """Height of the hole between the lips at its middle, in face pixels."""
    return _GAP * pose.opening * (1.0 - 0.55 * pose.tuck)


def draw_mouth(
    patch: np.ndarray, x: np.ndarray, y: np.ndarray, pose: Pose, look: Look, light: np.ndarray
) -> np.ndarray:
    """Draw over skin.

    Args:
        patch: (h, w, 3) uint8 skin around the mouth, BGR.
        x: (1, w) float32 face pixels from the middle of the mouth.
        y: (h, 1) float32 the same downwards.
        pose: the mouth's shape.
        look: the speaker.
        light: (h, w, 1) float32, brightness of the skin there, 1 on average.

    Returns:
        (h, w, 3) uint8.
    """
    r, press, tuck = pose.rounding, pose.press, pose.tuck
    half = half_width(pose, look)
    gap = lip_gap(pose)
    t = np.abs(x) / half  # (1, w), 0 in the middle, 1 at the corners
    inner = np.clip(1.0 - (t / 0.93) ** (2.4 - 0.4 * r), 0.0, 1.0) ** (0.62 - 0.12 * r)
    lower_form = np.clip(1.0 - t**2.2, 0.0, 1.0) ** 0.7
    bow = 0.15 * np.exp(-((x / 3.0) ** 2)) - 0.08 * np.exp(-(((np.abs(x) - 5.0) / 4.0) ** 2))
    upper_form = np.clip(np.clip(1.0 - t**1.7, 0.0, 1.0) ** 0.85 - bow * (1 - t), 0.0, 2.0)

    rest = 0.9 * (t**2) * (1.0 - r) - 0.5  # the corners hang a little
    shrink = 1.0 - 0.12 * pose.opening
    upper_thick = 5.6 * look.fullness * (1 + 0.35 * r) * (1 - 0.62 * press) * shrink
    lower_thick = 7.2 * look.fullness * (1 + 0.30 * r) * (1 - 0.55 * press) * (1 - 0.45 * tuck)
    lower_thick *= shrink
    up, down = 0.24 * gap + 2.4 * tuck, 0.76 * gap + 0.6 * tuck
    upper_in = rest - up * inner
    lower_in = rest + down * inner
    upper_out = upper_in - upper_thick * upper_form
    lower_out = lower_in + lower_thick * lower_form

    out = patch.astype(np.float32)
    under = np.exp(-(((y - lower_out - 3.0) / 2.6) ** 2)) * lower_form
    over = np.exp(-(((y - upper_out + 1.5) / 1.6) ** 2)) * upper_form
    out *= (1.0 - 0.20 * under + 0.05 * over)[:, :, None]

    edge_soft = 0.7
    span = _step((1.0 - t) * half, edge_soft)
    hole = _step(y - upper_in, edge_soft) * _step(lower_in - y, edge_soft)
    hole = hole * _step((0.95 - t) * half, edge_soft)
    if gap > 0.4 or tuck > 0.1:
        inside = _inside(x, y, t, pose, gap, upper_in, lower_in)
        out += (inside * (0.55 + 0.45 * light) - out) * hole[:, :, None]

    # Each lip: redder and darker towards the mouth, the lower one with a wet highlight.
    for sign, edge_in, edge_out, thick in (
        (-1.0, upper_in, upper_out, upper_thick),
        (1.0, lower_in, lower_out, lower_thick),
    ):
        depth = (y - edge_in) * sign / max(thick, 1.0)  # 0 at the mouth, 1 at the skin
        mask = _step((y - edge_in) * sign + 0.3, edge_soft)
        mask = mask * _step((edge_out - y) * sign, 1.1) * span
        tone = 0.80 + 0.22 * np.clip(depth, 0.0, 1.0) if sign < 0 else 0.93 + 0.0 * depth
        if sign > 0:
            shine = np.exp(-(((depth - 0.42) / 0.22) ** 2) - (x / (0.5 * half)) ** 2)
            tone = tone + 0.20 * shine - 0.14 * np.clip(depth - 0.6, 0.0, 1.0)
        colour = np.array(look.lip, np.float32) * (tone[:, :, None] * light)
        out += (colour - out) * (0.92 * mask)[:, :, None]

    # Where the lips meet, and at the corners, hardly any light falls.
    meet = np.exp(-(((y - 0.5 * (upper_in + lower_in)) / 0.75) ** 2)) * np.exp(-gap / 1.2)
    corner = np.exp(-(((t - 0.98) * half / 1.6) ** 2) - ((y - rest) / 1.5) ** 2)
    dark = np.clip(0.62 * meet * span * (1 - tuck) + 0.42 * corner, 0.0, 0.8)
    out *= (1.0 - dark)[:, :, None]

    if pose.tip > 0.75:  # the tongue between the teeth lies upon the lower lip
        amount = min((pose.tip - 0.75) / 0.2, 1.0)
        top, bottom = upper_in + _teeth_height(pose, gap) - 0.6, lower_in + 1.6
        reach = np.sqrt(np.clip(1.0 - (x / (0.58 * half)) ** 2, 0.0, 1.0))
        mask = _step(y - top, 0.7) * _step(bottom - (1 - reach) * 4.0 - y, 0.8) * (reach > 0)
        tone = 0.92 + 0.16 * np.exp(-(((y - bottom + 2.5) / 1.6) ** 2))
        out += (_TONGUE * tone[:, :, None] * light - out) * (amount * mask)[:, :, None]
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)


def _inside(x, y, t, pose: Pose, gap: float, upper_in, lower_in) -> np.ndarray:
    """(h, w, 3) float32: what shows through the lips, before it is masked by them."""
    depth = np.clip((y - upper_in) / max(gap, 1.0), 0.0, 1.0)
    out = _CAVITY * (0.75 + 0.4 * depth[:, :, None])

    teeth_end = upper_in + _teeth_height(pose, gap)
    low = lower_in - pose.tongue * (0.55 * gap + 1.0) + 3.0 * t**2
    lift = min(pose.tip / 0.5, 1.0)  # the tip behind the upper teeth
    top = low + lift * (teeth_end + 0.3 - low) * np.clip(1.2 - t, 0.0, 1.0)
    tongue = _step(y - top, 1.0) * _step((0.82 - t) * 12.0, 1.5)
    shade = 0.66 + 0.40 * np.clip((y - top) / 4.0, 0.0, 1.0) - 0.12 * np.exp(-((x / 1.2) ** 2))
    out += (_TONGUE * shade[:, :, None] - out) * tongue[:, :, None]

    column = (1.0 - 0.45 * t**2) * (1.0 - 0.14 * np.exp(-((_to_gap(x) / 0.45) ** 2)))
    wide = _step((0.86 - t) * 12.0, 1.2)
    if pose.lower_teeth > 0.05:
        start = np.maximum(teeth_end + 0.7, lower_in - 4.5 * pose.lower_teeth)
        mask = _step(y - start, 0.6) * wide * min(pose.lower_teeth * 1.5, 1.0)
        out += (0.88 * _TEETH * column[:, :, None] - out) * mask[:, :, None]
    mask = _step(teeth_end - y, 0.6) * wide * min(pose.teeth * 2.0, 1.0)
    out += (_TEETH * column[:, :, None] - out) * mask[:, :, None]
    return out


def _teeth_height(pose: Pose, gap: float) -> float:
    """Face pixels of upper teeth below the upper lip."""
    return pose.teeth * (2.2 + 0.22 * gap + 1.4 * pose.tuck)


def _to_gap(x: np.ndarray) -> np.ndarray:
    """Distance to the nearest gap between teeth, which are 4.4 pixels wide."""
    return np.abs((x + 2.2) % 4.4 - 2.2)


def _step(distance: np.ndarray, soft: float) -> np.ndarray:
    """0 outside, 1 inside, across `soft` pixels either side of the edge."""
    s = np.clip(distance / (2.0 * soft) + 0.5, 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)
