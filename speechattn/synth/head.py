"""The parts of a face that are drawn once a speaker: skin, nose, hair, ears, eyes as they blink.

The skin is lit as a relief: a height for every pixel (skull, brows, eye sockets, nose, cheeks,
chin), its normal, one light. The layer is drawn at twice the size of the picture, which then
serves as anti-aliasing.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from speechattn.synth.look import Look

UP = 2  # canvas pixels per face pixel
LEFT, TOP, WIDTH, HEIGHT = 98, 112, 196, 236  # face pixels; the origin lies between the eyes
EYE_X, MOUTH_Y, NOSE = 24.5, 57.0, (0.0, 31.0)
BLINKS = 5  # eyes open, three in between, shut
EYES = (slice(UP * (TOP - 14), UP * (TOP + 14)), slice(UP * (LEFT - 44), UP * (LEFT + 44)))

_OUTLINE = np.array(  # height, half the width of the skull there
    [
        (-76, 0), (-74, 16), (-66, 32), (-52, 44), (-35, 50), (-15, 53), (8, 53.5), (28, 52),
        (45, 48.5), (60, 43), (74, 34.5), (85, 24.5), (92, 15), (96, 7), (97, 0),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A head at rest with its mouth left out."""

    layer: np.ndarray  # (H, W, 4) uint8, BGR times alpha, and alpha
    eyes: np.ndarray  # (BLINKS, h, w, 3) uint8, the region `EYES` from open to shut
    light: np.ndarray  # (H, W) float32, brightness of the skin, 1 on average


def build_head(look: Look, rng: np.random.Generator) -> Head:
    """Draw the head of a speaker; `rng` places strands of hair and the grain of the skin."""
    x = (np.arange(WIDTH * UP, dtype=np.float32)[None] / UP) - LEFT  # (1, W) face pixels
    y = (np.arange(HEIGHT * UP, dtype=np.float32)[:, None] / UP) - TOP  # (H, 1)
    half = _half_width(y, look)
    light = _relief(x, y, half, look)
    skin = _skin(x, y, look, light, rng=rng)
    canvas = np.zeros((HEIGHT * UP, WIDTH * UP, 3), np.float32)
    alpha = np.zeros(canvas.shape[:2], np.float32)

    outer, front, strands = _hair(x, y, half, look, rng=rng)
    if look.long_hair:
        _over(canvas, alpha, strands * 0.72, outer)
    else:
        for side in (-1, 1):
            ear = _blob(x - side * 54.0 * look.width, y - 9.0, 7.5, 14.0)
            tone = 0.86 - 0.25 * np.exp(-(_radius(x - side * 56 * look.width, y - 8, 4, 8) ** 2))
            ear_skin = np.array(look.skin, np.float32) * np.array([0.90, 0.90, 1.0], np.float32)
            _over(canvas, alpha, ear_skin * tone[:, :, None], ear)
    face = _step(np.where(half > 0, half - np.abs(x), -1.0), 0.8)
    _over(canvas, alpha, skin, face)
    _over(canvas, alpha, strands, front)

    eyes = []
    for stage in range(BLINKS):
        drawn = canvas[EYES].copy()
        _draw_eyes(drawn, x[:, EYES[1]], y[EYES[0]], look, shut=stage / (BLINKS - 1))
        eyes.append(_round(cv2.GaussianBlur(drawn, (3, 3), 0.7)))
    canvas = cv2.GaussianBlur(canvas * alpha[:, :, None], (3, 3), 0.7)
    alpha = cv2.GaussianBlur(alpha, (3, 3), 0.7)
    layer = np.dstack([_round(canvas), _round(alpha * 255.0)])
    return Head(layer, np.stack(eyes), light)


def _half_width(y: np.ndarray, look: Look) -> np.ndarray:
    half = np.interp(y[:, 0], _OUTLINE[:, 0], _OUTLINE[:, 1]).astype(np.float32)
    half = cv2.GaussianBlur(half[:, None], (1, 15), 3.0) * (half[:, None] > 0)
    jaw = np.exp(-(((y - 72.0) / 16.0) ** 2))
    return half * look.width * (1.0 + 0.13 * (look.square - 0.5) * jaw)


def _relief(x, y, half, look: Look) -> np.ndarray:
    """Return (H, W) float32 brightness of lit skin, about 1 in the middle of the cheeks."""
    side = np.clip(np.abs(x) / np.maximum(half, 1.0), 0.0, 1.0)
    long = np.clip(np.abs(y - 10.0) / 92.0, 0.0, 1.0)
    z = 46.0 * np.sqrt(np.clip(1.0 - 0.97 * side**2.4, 0.0, 1.0)) * (1.0 - 0.55 * long**3.2)
    n = look.nose
    bumps = [  # x, y, spread in x, spread in y, height
        (0, 10, 5.5 * n, 14, 6.0), (0, 28, 7.5 * n, 7.5, 8.5), (0, 48, 20, 13, 4.0),
        (0, 87, 13, 8, 5.0), (0, 72, 13, 3.6, -2.6), (0, 43, 2.4, 5.5, -1.0), (0, -38, 30, 18, 4.0),
    ]  # fmt: skip
    for s in (-1, 1):
        bumps += [
            (s * 9.0 * n, 31, 4.2, 4.0, 4.2), (s * EYE_X, 1, 12, 7.5, -6.0),
            (s * 25, -15, 15, 4.5, 2.6), (s * 30, 26, 13, 13, 3.8), (s * 13, 5, 4.5, 9, -2.0),
            (s * 25, 56, 5, 9, -1.6),
        ]  # fmt: skip
    for bx, by, sx, sy, height in bumps:
        z = z + height * np.exp(-0.5 * (((x - bx) / sx) ** 2 + ((y - by) / sy) ** 2))
    z = cv2.GaussianBlur(z.astype(np.float32), (0, 0), 2.4 * UP / 2)
    dy, dx = np.gradient(z * UP)
    normal = np.stack([-dx, -dy, np.full_like(dx, 1.6 * UP / 2)])
    normal /= np.linalg.norm(normal, axis=0)
    source = np.array([*look.light, 0.85])
    source /= np.linalg.norm(source)
    diffuse = np.clip(np.tensordot(source, normal, 1), 0.0, 1.0)
    middle = source + (0.0, 0.0, 1.0)
    shine = np.clip(np.tensordot(middle / np.linalg.norm(middle), normal, 1), 0.0, 1.0) ** 24
    light = 0.44 + 0.56 * diffuse + 0.10 * shine
    return (light / 0.98).astype(np.float32)


def _skin(x, y, look: Look, light: np.ndarray, *, rng) -> np.ndarray:
    shape = light.shape
    red = 0.10 * np.exp(-(_radius(np.abs(x) - 31, y - 28, 13, 12) ** 2))
    red = red + 0.08 * np.exp(-(_radius(x, y - 30, 9, 7) ** 2))
    blotch = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), 9.0) * 0.25
    grain = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), 1.2) * 0.03
    tone = (light + 0.075 * blotch + grain)[:, :, None]
    warm = np.stack([1.0 - 0.9 * red, 1.0 - 0.9 * red, 1.0 + 0.15 * red], axis=2)
    # Light that has gone through skin comes out red: shadows are warmer than the lit parts.
    shadow = np.clip(1.0 - light, 0.0, 1.0)[:, :, None] * np.array([-0.12, -0.06, 0.10])
    skin = np.array(look.skin, np.float32) * tone * warm * (1.0 + shadow)
    lids = 0.16 * np.exp(-(_radius(np.abs(x) - EYE_X, y + 1, 15, 8.5) ** 2))
    beneath = 0.20 * np.exp(-(_radius(x, y - 38.5, 11 * look.nose, 3.0) ** 2))
    skin *= (1.0 - lids - beneath)[:, :, None]
    if not look.long_hair:  # a trace of beard
        beard = np.clip((y - 44.0) / 14.0, 0.0, 1.0) * (0.06 + 0.05 * (look.square - 0.5))
        skin *= 1.0 - beard[:, :, None] * np.array([0.6, 1.0, 1.1])
    for s in (-1, 1):
        nostril = np.exp(-(_radius(x - s * 5.0 * look.nose, y - 35.0, 2.9, 1.6) ** 2))
        wing = np.exp(-(_radius(x - s * 12.5 * look.nose, y - 31.5, 1.6, 4.0) ** 2))
        fold = np.exp(-((((np.abs(x) - 15) - 0.42 * (y - 36)) / 2.2) ** 2)) * (x * s > 0)
        fold = fold * np.clip((y - 34) / 6, 0, 1) * np.clip((62 - y) / 14, 0, 1)
        skin *= (1.0 - np.clip(0.62 * nostril + 0.20 * wing + 0.10 * fold, 0, 0.8))[:, :, None]
        _brow(skin, x, y, s, look=look, rng=rng)
    return skin


def _brow(skin, x, y, side: int, *, look: Look, rng) -> None:
    u = (x * side - EYE_X) / 15.5  # -1 at the nose, 1 outside
    middle = -14.5 - 2.6 * (1.0 - (u - 0.25) ** 2) + 1.0 * u
    thick = look.brow * np.clip(1.0 - np.abs(u) ** 3.5, 0.0, 1.0) * (0.75 - 0.25 * u)
    hairs = cv2.GaussianBlur(rng.standard_normal(skin.shape[:2]).astype(np.float32), (0, 0), 1.3)
    mask = _step(thick - np.abs(y - middle), 0.9) * (np.abs(u) < 1) * (0.78 + 0.5 * hairs)
    colour = np.array(look.hair, np.float32) * 0.9
    skin += (colour - skin) * np.clip(mask * 0.85, 0.0, 0.95)[:, :, None]


def _hair(x, y, half, look: Look, *, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks of the hair behind and before the face (H, W), and its colour (H, W, 3)."""
    shape = (y.shape[0], x.shape[1])
    strand = rng.standard_normal(shape).astype(np.float32)
    strand = cv2.GaussianBlur(strand, (0, 0), sigmaX=1.1, sigmaY=22.0)
    strand = strand / strand.std()
    ragged = cv2.GaussianBlur(rng.standard_normal((1, shape[1])).astype(np.float32), (0, 0), 3.5)
    ragged = ragged / ragged.std()

    crown = np.sqrt(np.clip(1.0 - (np.minimum(y + 18.0, 0.0) / 67.0) ** 2, 0.0, 1.0))
    wide = np.where(y < -18.0, 57.0 * crown * look.width, np.maximum(half, 50 * look.width) + 4.0)
    fall = 12.0
    if look.long_hair:
        fall = 102.0
        wide = wide + 5.0 * crown + 3.0 * np.exp(-(((y - 45.0) / 40.0) ** 2))
        wide = wide - 0.10 * np.clip(y - 55.0, 0.0, None)
    outer = _step(np.where(crown > 0, wide - np.abs(x) + 0.6 * ragged, -9.0), 1.2)
    outer = outer * _step(fall - y + 2.0 * ragged, 2.5)
    outer = outer * (1.0 - _step(31.0 - np.abs(x), 4.0) * (y > 72))  # the neck stays free

    t = np.abs(x) / (50.0 * look.width)
    part = 5.0 * np.exp(-(((x / 50.0 - look.parting) / 0.28) ** 2))
    line = -look.hairline - part + look.fringe * (0.35 * ragged) + 6.0 * t**2 + 46.0 * t**7
    front = outer * _step(line - y, 1.6)
    sheen = 0.30 * np.exp(-(((y + 62.0 - 12.0 * t**2) / 9.0) ** 2))
    tone = 0.82 + 0.14 * strand + sheen - 0.25 * np.clip(t - 0.7, 0.0, 1.0)
    tone = tone + look.light[0] * x / 220
    colour = np.array(look.hair, np.float32) + 10.0
    return outer, front, colour * np.clip(tone, 0.25, 2.0)[:, :, None]


def _draw_eyes(canvas, x, y, look: Look, *, shut: float) -> None:
    for s in (-1, 1):
        u = (x * s - EYE_X) / 11.5  # -1 at the nose, 1 outside
        form = np.clip(1.0 - np.abs(u) ** 2.3, 0.0, 1.0)
        tilt = -0.8 * u
        lower = tilt + 0.42 * look.eye * form**0.9
        upper = tilt - 0.62 * look.eye * form**0.75
        lid = upper + (lower - upper) * shut
        white = _step(y - lid, 0.6) * _step(lower - y, 0.6) * (np.abs(u) < 1)
        ball = np.array([206.0, 212.0, 218.0]) * (0.92 - 0.28 * u[:, :, None] ** 2)
        ball = ball * (1.0 - 0.35 * np.exp(-np.clip(y - lid, 0, None) / 1.3))[:, :, None]
        r = np.sqrt((x - s * EYE_X) ** 2 + (y + 0.4) ** 2)
        iris = np.array(look.iris) * (0.75 + 0.5 * np.clip(r / 5.0, 0, 1))[:, :, None]
        iris = iris * (1.0 - 0.5 * _step(r - 4.2, 0.6))[:, :, None]
        ball = ball + (iris - ball) * _step(4.9 - r, 0.6)[:, :, None]
        ball = ball * (1.0 - 0.92 * _step(2.2 - r, 0.5))[:, :, None]
        glint = np.exp(-(((x - s * EYE_X - 1.5) / 0.9) ** 2) - ((y + 2.0) / 0.9) ** 2)
        ball = ball + (250.0 - ball) * glint[:, :, None]
        if shut > 0:  # the lid comes down over what was the eye
            cover = _step(y - upper, 0.6) * _step(lower - y, 0.6) * (np.abs(u) < 1)
            skin = np.array(look.skin) * 0.86
            canvas += (skin - canvas) * cover[:, :, None]
        canvas += (ball - canvas) * white[:, :, None]
        lash = np.exp(-(((y - lid + 0.3) / 0.95) ** 2)) * form**0.3 * (np.abs(u) < 1)
        crease = np.exp(-(((y - upper + 3.0) / 1.1) ** 2)) * form**0.5 * (1.0 - 0.6 * shut)
        below = np.exp(-(((y - lower - 0.6) / 0.8) ** 2)) * form**0.5
        dark = np.clip(0.80 * lash + 0.25 * crease + 0.25 * below, 0.0, 0.9)
        canvas *= (1.0 - dark)[:, :, None]


def _over(canvas, alpha, colour, mask) -> None:
    """Lay a colour over a canvas that is not multiplied by its alpha."""
    total = mask + alpha * (1.0 - mask)
    share = (mask / np.maximum(total, 1e-6))[:, :, None]
    canvas += (colour - canvas) * share
    alpha[:] = total


def _radius(dx, dy, sx: float, sy: float) -> np.ndarray:
    return np.sqrt((dx / sx) ** 2 + (dy / sy) ** 2)


def _blob(dx, dy, sx: float, sy: float) -> np.ndarray:
    return _step((1.0 - _radius(dx, dy, sx, sy)) * min(sx, sy), 0.8)


def _step(distance, soft: float) -> np.ndarray:
    s = np.clip(distance / (2.0 * soft) + 0.5, 0.0, 1.0)
    return (s * s * (3.0 - 2.0 * s)).astype(np.float32)


def _round(image: np.ndarray) -> np.ndarray:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
