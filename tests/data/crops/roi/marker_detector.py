"""A detector for the tests that worker processes can import, and videos for it."""

import os
import time

import av
import numpy as np

from speechattn.data.crops.roi import Face
from speechattn.data.crops.roi.crop import MEAN_FACE
from speechattn.errors import ConfigError


def square_video(path, colour=(200, 220, 210), frames=12, rate=25) -> str:
    """Write a bright square that moves through a dark picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(frames):
            picture = np.zeros((64, 96, 3), np.uint8)
            picture[10:50, 20 + i % 30 : 60 + i % 30] = colour
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return str(path)


class Marker:
    """Finds the bright square; quits the whole process where it is red only, hangs where blue."""

    def detect(self, frame):
        if os.environ.get("MARKER_LOG"):  # one byte a call, from any process
            with open(os.environ["MARKER_LOG"], "ab") as log:
                log.write(b".")
        if os.environ.get("MARKER_SLEEP"):
            time.sleep(float(os.environ["MARKER_SLEEP"]))
        if frame[..., 0].max() > 128 and frame[..., 1].max() < 128:
            os._exit(1)
        if frame[..., 2].max() > 128 and frame[..., 1].max() < 100:
            time.sleep(1000)
        y, x = np.nonzero(frame.mean(axis=2) > 128)
        if len(x) < 20:
            return []
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=np.float32)
        points = MEAN_FACE / 112 * (box[2:] - box[:2]) + box[:2]
        return [Face(box, 1.0, points.astype(np.float32))]


class Unavailable:
    """A detector whose package is missing."""

    def __init__(self):
        raise ConfigError("pip install something")
