"""Reading in pieces gives what reading at once gives."""

import av
import numpy as np
import pytest
import soundfile

from speechattn.data.media import Rolling, sound, stream_audio
from speechattn.errors import MediaError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(sound, "_BLOCK", 1000)


def read_audio(path, sample_rate=16000):
    """The file read in as few pieces as there can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sound, "_BLOCK", 1 << 24)
        return sound.read_audio(path, sample_rate)


def write_late(path, delay, rate=16000):
    """A video whose sound starts `delay` seconds after its first picture; before it if negative."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width = video.height = 16
        video.pix_fmt = "gray"
        sound = container.add_stream("pcm_s16le", rate=rate)
        sound.layout = "mono"
        for i in range(25):
            picture = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")
            picture.pts = i + round(25 * max(0, -delay))
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        wave = (8000 * np.sin(np.arange(rate))).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
        frame.sample_rate = rate
        frame.pts = round(rate * max(0, delay))
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_sound_files(tmp_path, rate, channels, name):
    wave = 0.3 * np.random.default_rng(0).standard_normal((2 * rate + 77, channels))
    soundfile.write(tmp_path / name, wave.clip(-1, 1), rate)
    pieces = list(stream_audio(tmp_path / name, 16000))
    assert len(pieces) > 5 and all(len(p) and p.dtype == np.float32 for p in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), read_audio(tmp_path / name, 16000))


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("delay", [0, 0.4, -0.4])
def test_videos(tmp_path, delay, rate):
    path = write_late(tmp_path / "a.mkv", delay, rate)
    whole = read_audio(path, 16000)
    assert abs(len(whole) - 16000 * (1 + delay)) < 100
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(path, 16000))), whole)


def test_real_video(data_dir):
    path = sorted((data_dir / "grid" / "video").glob("*.mp4"))[0]
    np.testing.assert_array_equal(np.concatenate(list(stream_audio(path))), read_audio(path))


@pytest.mark.parametrize("name", ["none.wav", "empty.wav", "text.wav", "gone.wav", "early.mkv"])
def test_the_same_errors(tmp_path, name):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("bin blue " * 99)
    write_late(tmp_path / "early.mkv", -1.5)
    with pytest.raises(MediaError) as expected:
        read_audio(tmp_path / name)
    with pytest.raises(MediaError) as found:
        list(stream_audio(tmp_path / name))
    assert str(found.value) == str(expected.value)


def test_damage_in_the_middle(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.3 * np.random.default_rng(0).standard_normal(64000), 16000)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match="a.flac: damaged"):
        list(stream_audio(path))


def test_rolling():
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((500, 2))
    parts = np.split(whole, np.sort(rng.integers(1, 500, 30)))
    rolling = Rolling(iter(parts))
    for start in range(0, 480, 16):
        rolling.forget(start)
        np.testing.assert_array_equal(rolling.get(start, start + 40), whole[start : start + 40])
        assert rolling.end - rolling.start < 200
    assert rolling.ended and rolling.end == 500
    with pytest.raises(ValueError, match="forgotten"):
        rolling.get(0, 10)
