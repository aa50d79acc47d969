"""Files damaged as files of a large corpus are: what is wrong, and the writing of it."""

from pathlib import Path

import cv2
import numpy as np

from speechattn.synth.clip import FPS, Clip, write_clip

# Kind -> what is wrong with the clip.
DAMAGE = {
    "truncated": "the video is cut off, its index is gone",
    "truncated-late": "the video's index is there, the last of its pictures are gone",
    "zero-byte": "the video is an empty file",
    "missing": "the lists name a video that is not there",
    "no-picture": "the video holds sound alone",
    "no-face": "nobody is in the picture",
    "two-faces": "two people are in the picture, one of them speaks",
    "frame-rate": "30 frames a second instead of 25",
    "time-stamps": "the pictures are stamped twice as fast as the sound",
    "empty-transcript": "the transcript is empty",
    "non-ascii-name": "Chinese characters in the file's name",
    "audio-missing": "there is no sound, neither beside the video nor in it",
    "damaged-audio": "the sound's file is noise",
}
_KEPT = 0.75  # of a truncated file; its first picture alone can be half of it


def damaged_video(path: Path, kind: str, clip: Clip, bystander: list[np.ndarray]) -> None:
    """Write the video of a clip that is damaged in the way of `kind`; at "missing" none.

    A kind of `DAMAGE` that is not about the video leaves it whole. The clip is filmed at 30 frames
    a second for "frame-rate"; `bystander`, frames of another speaker, is for "two-faces".
    """
    frames, speech = clip.frames, clip.speech
    if kind == "missing":
        return
    if kind == "zero-byte":
        path.write_bytes(b"")
        return
    if kind == "no-face":
        frames = _title_card(len(frames), *frames[0].shape[:2])
    elif kind == "two-faces":
        frames = [np.hstack(pair) for pair in zip(frames, bystander, strict=False)]
    fps = {"frame-rate": 30, "time-stamps": 2 * FPS}.get(kind, FPS)
    if kind == "no-picture":
        write_clip(path, [], speech.samples, speech.sample_rate)
    else:
        late = kind == "truncated-late"
        write_clip(path, frames, None, speech.sample_rate, fps=fps, index_first=late)
    if kind.startswith("truncated"):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * _KEPT)])


def _title_card(count: int, height: int, width: int) -> list[np.ndarray]:
    """Draw a chart whose bars grow, as between the pictures of a newsreader."""
    frames = []
    for i in range(count):
        frame = np.full((height, width, 3), (118, 84, 46), np.uint8)
        for k in range(5):
            top = int(height * (0.75 - 0.5 * abs(np.sin(0.8 * k + 0.03 * i))))
            left = int(width * (0.12 + 0.16 * k))
            colour = (60 + 30 * k, 190 - 20 * k, 220)
            cv2.rectangle(frame, (left, top), (left + width // 10, height * 4 // 5), colour, -1)
        frames.append(frame)
    return frames
