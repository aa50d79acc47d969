"""A talking face as video frames: head, mouth, head motion, light, camera."""

import cv2
import numpy as np

from speechattn.synth.head import (
    BLINKS,
    EYE_X,
    EYES,
    HEIGHT,
    LEFT,
    MOUTH_Y,
    NOSE,
    TOP,
    UP,
    WIDTH,
    Head,
    build_head,
)
from speechattn.synth.look import Look
from speechattn.synth.mouth import draw_mouth, half_width
from speechattn.synth.visemes import PARAMETERS, Pose

FRAME_WIDTH, FRAME_HEIGHT = 360, 288
WHOLE_FRAME = (0, 0, FRAME_WIDTH, FRAME_HEIGHT)
_JAW = 10.0  # face pixels that the chin falls at jaw 1
_JAW_FROM = 36.0  # skin above this height (face pixels) stays with the skull
_MOUTH = (slice(UP * (TOP + 36), UP * (TOP + 98)), slice(UP * (LEFT - 32), UP * (LEFT + 32)))


class Face:
    """A speaker before a camera.

    Args:
        look: the speaker.
        rng: draws what does not change between this speaker's clips (hair, skin, the wall).
    """

    def __init__(self, look: Look, rng: np.random.Generator):
        self.look = look
        self.head: Head = build_head(look, rng)
        self._scene = _draw_scene(look, rng)
        rows, columns = _MOUTH
        self._x = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] / UP) - LEFT
        self._y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] / UP) - TOP - MOUTH_Y
        light = cv2.GaussianBlur(self.head.light[_MOUTH], (0, 0), 6.0)
        self._mouth_light = (light / light.mean())[:, :, None]
        self._jaw_row = int(UP * (TOP + _JAW_FROM))
        sizes = UP * WIDTH, UP * HEIGHT - self._jaw_row
        self._jaw_x, self._jaw_y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in sizes))
        fall = np.clip((self._jaw_y / UP + _JAW_FROM - 46.0) / 30.0, 0.0, 1.0)
        self._jaw_fall = fall * fall * (3.0 - 2.0 * fall)

    def draw_head(self, pose: Pose, blink: float = 0.0) -> np.ndarray:
        """Draw the head alone, (H, W, 4) uint8, at `UP` times the picture's size."""
        layer = self.head.layer.copy()
        stage = int(round(np.clip(blink, 0.0, 1.0) * (BLINKS - 1)))
        layer[EYES][:, :, :3] = self.head.eyes[stage]
        if pose.jaw > 0.005:
            source = self._jaw_y - (UP * _JAW * pose.jaw) * self._jaw_fall
            below = self.head.layer[self._jaw_row :]
            layer[self._jaw_row :] = cv2.remap(below, self._jaw_x, source, cv2.INTER_LINEAR)
        skin = layer[_MOUTH][:, :, :3]
        drawn = {"look": self.look, "light": self._mouth_light}
        layer[_MOUTH][:, :, :3] = draw_mouth(skin, self._x, self._y, pose, **drawn)
        return layer

    def film(
        self,
        track: np.ndarray,
        rng: np.random.Generator,
        fps: float = 25.0,
        window: tuple[int, int, int, int] = WHOLE_FRAME,
    ):
        """Film a clip.

        Args:
            track: (T, P) mouth parameters of every frame (`visemes.mouth_track`).
            rng: draws what differs between clips: place, motion, blinks, light, noise.
            fps: frames per second of `track`.
            window: left, top, width, height of the part of the frame that is filmed, pixels.

        Yields:
            (height, width, 3) uint8 BGR, and (5, 2) float32 pixels: left eye, right eye (as seen in
            the picture), nose, left and right corner of the mouth.
        """
        left, top, width, height = window
        part = (slice(top, top + height), slice(left, left + width))
        frames = len(track)
        seconds = np.arange(frames) / fps
        motion = _Motion(seconds, self.look.scale, rng)
        blinks = _blink_curve(seconds, rng)
        light = _Light(seconds, rng, part)
        noise = rng.normal(0.0, rng.uniform(1.0, 2.0), (height + 64, width + 64))
        noise = np.repeat(noise.astype(np.float32)[:, :, None], 3, axis=2)
        blur = float(rng.uniform(0.45, 0.8))
        for i, row in enumerate(track):
            pose = Pose(**dict(zip(PARAMETERS, row.tolist(), strict=True)))
            matrix = motion.matrix(i) - np.array([[0, 0, left], [0, 0, top]])
            picture = self._composite(self.draw_head(pose, blinks[i]), matrix, self._scene[part])
            picture = cv2.GaussianBlur(picture, (3, 3), blur)
            picture = cv2.multiply(picture, light.field(i), dtype=cv2.CV_32F)
            dy, dx = rng.integers(0, 64, 2)
            picture = cv2.add(picture, noise[dy : dy + height, dx : dx + width], dtype=cv2.CV_8U)
            half = half_width(pose, self.look)
            points = [(-EYE_X, 0), (EYE_X, 0), NOSE, (-half, MOUTH_Y), (half, MOUTH_Y)]
            points = np.array(points, np.float32) @ matrix[:, :2].T + matrix[:, 2]
            yield picture, points.astype(np.float32)

    def _composite(self, head: np.ndarray, matrix: np.ndarray, scene: np.ndarray) -> np.ndarray:
        """Lay the head over the scene; `matrix` (2, 3) takes face pixels to picture pixels."""
        to_face = np.array([[1 / UP, 0, -LEFT], [0, 1 / UP, -TOP], [0, 0, 1]])
        size = (scene.shape[1], scene.shape[0])
        warped = cv2.warpAffine(head, matrix @ to_face, size, flags=cv2.INTER_LINEAR)
        through = cv2.cvtColor(255 - warped[:, :, 3], cv2.COLOR_GRAY2BGR)
        return cv2.add(cv2.multiply(scene, through, scale=1 / 255), warped[:, :, :3])


class _Motion:
    """Where the head is: it sways, nods and tilts a little, slowly."""

    def __init__(self, seconds: np.ndarray, scale: float, rng: np.random.Generator):
        self._x = FRAME_WIDTH / 2 + rng.uniform(-14, 14) + _sway(seconds, 2.5, rng)
        self._y = 132.0 + rng.uniform(-6, 6) + _sway(seconds, 2.0, rng)
        self._roll = rng.uniform(-2.0, 2.0) + _sway(seconds, 1.5, rng)  # degrees
        self._scale = scale * (1.0 + rng.uniform(-0.03, 0.03) + 0.008 * _sway(seconds, 1.0, rng))

    def matrix(self, i: int) -> np.ndarray:
        """Return the matrix (2, 3) from face pixels to picture pixels in frame `i`."""
        c, s = (self._scale[i] * f(np.deg2rad(self._roll[i])) for f in (np.cos, np.sin))
        return np.array([[c, -s, self._x[i]], [s, c, self._y[i]]])


class _Light:
    """A lamp that leans to one side and drifts in strength, place and colour."""

    def __init__(self, seconds: np.ndarray, rng: np.random.Generator, part: tuple[slice, slice]):
        y, x = np.mgrid[-1 : 1 : FRAME_HEIGHT * 1j, -1 : 1 : FRAME_WIDTH * 1j].astype(np.float32)
        angle = rng.uniform(0, 2 * np.pi)
        lean = rng.uniform(0.04, 0.14)
        fade = 1.0 - 0.10 * (x**2 + y**2)
        colour = rng.uniform(0.94, 1.06, 3) * rng.uniform(0.82, 1.10)
        base = (fade + lean * (x * np.cos(angle) + y * np.sin(angle)))[:, :, None] * colour
        self._base = np.ascontiguousarray(base.astype(np.float32)[part])
        side = x * np.cos(angle + 1.5) + y * np.sin(angle + 1.5)
        self._drift = np.repeat(side[part][:, :, None], 3, axis=2).astype(np.float32)
        self._strength = 1.0 + 0.02 * _sway(seconds, 1.0, rng)
        self._lean = 0.02 * _sway(seconds, 1.0, rng)

    def field(self, i: int) -> np.ndarray:
        """Return (height, width, 3) float32 factors of the filmed part."""
        strength, lean = float(self._strength[i]), float(self._lean[i])
        return cv2.addWeighted(self._base, strength, self._drift, lean, 0.0)


def _sway(seconds: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a slow curve that swings by about `size`, of three sines between 0.1 and 1.3 Hz."""
    curve = np.zeros_like(seconds)
    for low, high, share in ((0.1, 0.3, 0.6), (0.3, 0.7, 0.35), (0.7, 1.3, 0.15)):
        phase = 2 * np.pi * (rng.uniform(low, high) * seconds + rng.uniform())
        curve = curve + size * share * np.sin(phase)
    return curve


def _blink_curve(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw (T,) how far the eyes are shut; every few seconds a blink takes a fifth of a second."""
    shut = np.zeros_like(seconds)
    when = rng.uniform(0.0, 2.5)
    while when < (seconds[-1] if len(seconds) else 0.0):
        shut = np.maximum(shut, 1.4 * np.clip(1.0 - np.abs(seconds - when) / 0.11, 0.0, 1.0))
        when += rng.uniform(1.2, 4.0)
    return np.clip(shut, 0.0, 1.0)


def _draw_scene(look: Look, rng: np.random.Generator) -> np.ndarray:
    """Draw wall, shoulders and neck, (FRAME_HEIGHT, FRAME_WIDTH, 3) uint8 BGR."""
    y, x = np.mgrid[:FRAME_HEIGHT, :FRAME_WIDTH].astype(np.float32)
    middle, chin = FRAME_WIDTH / 2, 132.0 + 97.0 * look.scale
    glow = 1.05 - 0.35 * np.hypot((x - 110) / 360, (y - 60) / 300)
    blotch = cv2.GaussianBlur(rng.standard_normal(x.shape).astype(np.float32), (0, 0), 25.0)
    scene = np.array(look.wall, np.float32) * (glow + 0.4 * blotch)[:, :, None]

    d = np.abs(x - middle)
    shoulder = chin + 12.0 + 28.0 * np.clip(d / 120.0, 0, None) ** 2.2 - 6.0 * np.exp(-d / 30.0)
    cloth = np.array(look.shirt, np.float32)
    weave = cv2.GaussianBlur(rng.standard_normal(x.shape).astype(np.float32), (0, 0), 1.5)
    tone = 0.85 + 0.25 * np.clip((y - shoulder) / 40.0, 0, 1) - 0.002 * d + 0.10 * weave
    scene = _lay(scene, cloth * tone[:, :, None], np.clip(y - shoulder, 0, 1))
    neck_half = 30.0 * look.width * look.scale + 10.0 * np.clip((y - chin - 4) / 18.0, 0, 1) ** 2
    neck = np.clip(neck_half - d, 0, 1) * np.clip((chin + 34.0 - 0.016 * d**2) - y, 0, 1)
    shade = 0.60 + 0.22 * np.clip((y - chin) / 34.0, 0, 1) - 0.25 * (d / neck_half) ** 2
    shade = shade + 0.12 * look.light[0] * (x - middle) / neck_half
    neck_skin = np.array(look.skin, np.float32) * np.array([0.92, 0.95, 1.0]) * shade[:, :, None]
    return np.clip(_lay(scene, neck_skin, neck * (y > chin - 60)), 0, 255).astype(np.uint8)


def _lay(under: np.ndarray, over: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return under + (over - under) * mask[:, :, None]
