"""Lips, teeth and tongue of a pose; each edge is a curve y(x), so that it is smooth."""

from typing import NamedTuple

import numpy as np

from speechattn.synth.look import Look
from speechattn.synth.visemes import Pose

_GAP = 19.0  # pixels between the lips at opening 1
_EDGE = 0.7  # pixels over which an edge is soft
_CAVITY = np.array([34.0, 26.0, 52.0], np.float32)
_TEETH = np.array([206.0, 218.0, 226.0], np.float32)
_TONGUE = np.array([104.0, 96.0, 186.0], np.float32)


def half_width(pose: Pose, look: Look) -> float:
    """Return half the distance between the corners of the mouth, in face pixels."""
    return look.mouth * (1.0 + 0.15 * pose.width - 0.34 * pose.rounding)


def lip_gap(pose: Pose) -> float:
    """Return the height of the hole between the lips at its middle, in face pixels."""
    return _GAP * pose.opening * (1.0 - 0.55 * pose.tuck)


def draw_mouth(
    patch: np.ndarray, x: np.ndarray, y: np.ndarray, pose: Pose, *, look: Look, light: np.ndarray
) -> np.ndarray:
    """Draw over a patch of skin, (h, w, 3) uint8 BGR.

    `x` (1, w) and `y` (h, 1) are float32 face pixels from the middle of the mouth, rightwards and
    downwards; `light` (h, w, 1) float32 is the brightness of the skin, 1 on average.
    """
    lips = _lips(x, pose, look)
    half, gap, t = lips.half, lips.gap, lips.t
    out = patch.astype(np.float32)
    under = np.exp(-(((y - lips.lower_out - 3.0) / 2.6) ** 2)) * lips.lower_form
    over = np.exp(-(((y - lips.upper_out + 1.5) / 1.6) ** 2)) * lips.upper_form
    out *= (1.0 - 0.20 * under + 0.05 * over)[:, :, None]

    span = _step((1.0 - t) * half, _EDGE)
    hole = _step(y - lips.upper_in, _EDGE) * _step(lips.lower_in - y, _EDGE)
    hole = hole * _step((0.95 - t) * half, _EDGE)
    if gap > 0.4 or pose.tuck > 0.1:
        inside = _inside(x, y, pose, lips)
        out += (inside * (0.55 + 0.45 * light) - out) * hole[:, :, None]
    for upper in (True, False):
        mask, tone = _lip(x, y, lips, upper=upper)
        colour = np.array(look.lip, np.float32) * (tone[:, :, None] * light)
        out += (colour - out) * (0.92 * (mask * span))[:, :, None]

    # Where the lips meet, and at the corners, hardly any light falls.
    meet = np.exp(-(((y - 0.5 * (lips.upper_in + lips.lower_in)) / 0.75) ** 2)) * np.exp(-gap / 1.2)
    corner = np.exp(-(((t - 0.98) * half / 1.6) ** 2) - ((y - lips.rest) / 1.5) ** 2)
    dark = np.clip(0.62 * meet * span * (1 - pose.tuck) + 0.42 * corner, 0.0, 0.8)
    out *= (1.0 - dark)[:, :, None]

    if pose.tip > 0.75:  # the tongue between the teeth lies upon the lower lip
        amount = min((pose.tip - 0.75) / 0.2, 1.0)
        top, bottom = lips.upper_in + _teeth_height(pose, gap) - 0.6, lips.lower_in + 1.6
        reach = np.sqrt(np.clip(1.0 - (x / (0.58 * half)) ** 2, 0.0, 1.0))
        mask = _step(y - top, 0.7) * _step(bottom - (1 - reach) * 4.0 - y, 0.8) * (reach > 0)
        tone = 0.92 + 0.16 * np.exp(-(((y - bottom + 2.5) / 1.6) ** 2))
        out += (_TONGUE * tone[:, :, None] * light - out) * (amount * mask)[:, :, None]
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)


class _Lips(NamedTuple):
    """The edges of the lips, (1, w) each: heights in face pixels, downwards."""

    half: float  # half the mouth's width
    gap: float  # between the lips, at the middle
    t: np.ndarray  # 0 in the middle, 1 at the corners
    rest: np.ndarray
    upper_form: np.ndarray
    lower_form: np.ndarray
    upper_in: np.ndarray
    lower_in: np.ndarray
    upper_out: np.ndarray
    lower_out: np.ndarray
    upper_thick: float
    lower_thick: float


def _lips(x: np.ndarray, pose: Pose, look: Look) -> _Lips:
    r, press, tuck = pose.rounding, pose.press, pose.tuck
    half, gap = half_width(pose, look), lip_gap(pose)
    t = np.abs(x) / half
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
    upper_in, lower_in = rest - up * inner, rest + down * inner
    upper_out = upper_in - upper_thick * upper_form
    lower_out = lower_in + lower_thick * lower_form
    return _Lips(
        half, gap, t, rest, upper_form, lower_form,
        upper_in, lower_in, upper_out, lower_out, upper_thick, lower_thick,
    )  # fmt: skip


def _lip(x, y, lips: _Lips, *, upper: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mask and brightness (h, w) of one lip: darker towards the mouth, the lower one wet."""
    sign, edge_in, edge_out, thick = 1.0, lips.lower_in, lips.lower_out, lips.lower_thick
    if upper:
        sign, edge_in, edge_out, thick = -1.0, lips.upper_in, lips.upper_out, lips.upper_thick
    depth = (y - edge_in) * sign / max(thick, 1.0)  # 0 at the mouth, 1 at the skin
    mask = _step((y - edge_in) * sign + 0.3, _EDGE) * _step((edge_out - y) * sign, 1.1)
    if upper:
        return mask, 0.80 + 0.22 * np.clip(depth, 0.0, 1.0)
    shine = np.exp(-(((depth - 0.42) / 0.22) ** 2) - (x / (0.5 * lips.half)) ** 2)
    return mask, 0.93 + 0.0 * depth + 0.20 * shine - 0.14 * np.clip(depth - 0.6, 0.0, 1.0)


def _inside(x, y, pose: Pose, lips: _Lips) -> np.ndarray:
    """Draw the inside of the mouth, (h, w, 3) float32, before the lips mask it."""
    t, gap, upper_in, lower_in = lips.t, lips.gap, lips.upper_in, lips.lower_in
    depth = np.clip((y - upper_in) / max(gap, 1.0), 0.0, 1.0)
    out = _CAVITY * (0.75 + 0.4 * depth[:, :, None])

    teeth_end = upper_in + _teeth_height(pose, gap)
    low = lower_in - pose.tongue * (0.55 * gap + 1.0) + 3.0 * t**2
    lift = min(pose.tip / 0.5, 1.0)  # the tip behind the upper teeth
    top = low + lift * (teeth_end + 0.3 - low) * np.clip(1.2 - t, 0.0, 1.0)
    tongue = _step(y - top, 1.0) * _step((0.82 - t) * 12.0, 1.5)
    shade = 0.66 + 0.40 * np.clip((y - top) / 4.0, 0.0, 1.0) - 0.12 * np.exp(-((x / 1.2) ** 2))
    out += (_TONGUE * shade[:, :, None] - out) * tongue[:, :, None]

    to_gap = np.abs((x + 2.2) % 4.4 - 2.2)  # to the nearest one between teeth 4.4 pixels wide
    column = (1.0 - 0.45 * t**2) * (1.0 - 0.14 * np.exp(-((to_gap / 0.45) ** 2)))
    wide = _step((0.86 - t) * 12.0, 1.2)
    if pose.lower_teeth > 0.05:
        start = np.maximum(teeth_end + 0.7, lower_in - 4.5 * pose.lower_teeth)
        mask = _step(y - start, 0.6) * wide * min(pose.lower_teeth * 1.5, 1.0)
        out += (0.88 * _TEETH * column[:, :, None] - out) * mask[:, :, None]
    mask = _step(teeth_end - y, 0.6) * wide * min(pose.teeth * 2.0, 1.0)
    out += (_TEETH * column[:, :, None] - out) * mask[:, :, None]
    return out


def _teeth_height(pose: Pose, gap: float) -> float:
    """Return the face pixels of upper teeth below the upper lip."""
    return pose.teeth * (2.2 + 0.22 * gap + 1.4 * pose.tuck)


def _step(distance: np.ndarray, soft: float) -> np.ndarray:
    """Return 0 outside and 1 inside, rising across `soft` pixels either side of the edge."""
    s = np.clip(distance / (2.0 * soft) + 0.5, 0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)
