"""Small media files and corpora, made here."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile


def write_video(
    path: Path, seconds: float = 1.0, fps: int = 25, sound: bool = True, codec: str = "mpeg4"
) -> Path:
    """A grey 32x32 video that changes with time, with a tone of 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = None
        if sound:
            audio = container.add_stream("mp2" if path.suffix == ".mpg" else "aac", rate=16000)
            audio.layout = "mono"
        for index in range(round(seconds * fps)):
            picture = np.full((32, 32, 3), 40 + 3 * index % 200, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            time = np.arange(round(seconds * 16000)) / 16000
            tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate = 16000
            resampler = av.AudioResampler(format=audio.format, layout="mono", rate=16000)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


def write_sound(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    samples = rng.uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return path


def write_table(folder: Path, rows: list, header: str = "file speaker split text") -> Path:
    lines = ["\t".join(header.split()), *("\t".join(row) for row in rows)]
    path = folder / "manifest.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make():
    """The functions above, as attributes: test modules cannot import a conftest."""

    class Make:
        video = staticmethod(write_video)
        sound = staticmethod(write_sound)
        table = staticmethod(write_table)

    return Make
