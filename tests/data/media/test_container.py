"""Reading of media files, against files made here frame by frame with known time stamps."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from speechattn.data.media import iter_frames, iter_video, probe, read_audio
from speechattn.errors import MediaError

TICKS = 12000  # time base of the files made here: divides every rate used


def write_video(
    path: Path,
    times: list[float],
    container: str | None = None,
    tone: tuple[float, float] | None = None,
    picture=None,
    options: dict[str, str] | None = None,
) -> Path:
    """Frame i is a flat grey of level 20 + 4 * i (or `picture(i)`), shown at `times[i]` seconds;
    `tone` is (start, length) in seconds of a 440 Hz sound."""
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        sound = out.add_stream("aac", rate=16000, layout="mono") if tone else None
        for i, time in enumerate(times):
            pixels = (
                np.full((48, 64, 3), min(20 + 4 * i, 250), np.uint8)
                if picture is None
                else picture(i)
            )
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound:
            start, length = tone
            wave = np.sin(2 * np.pi * 440 * np.arange(round(length * 16000)) / 16000) / 2
            for at in range(0, len(wave), 1024):
                chunk = wave[None, at : at + 1024].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
                frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
                frame.pts = round(start * 16000) + at
                out.mux(sound.encode(frame))
            out.mux(sound.encode())
    return path


def indices(path: Path, fps: float) -> list[int]:
    """Which source frames came out, told by their grey level."""
    return [round((float(f.mean()) - 20) / 4) for f in iter_frames(path, fps)]


def nearest(times: list[float], end: float, fps: float) -> list[int]:
    """The definition: for every output time the source frame nearest to it, the earlier in ties."""
    wanted = np.arange(round((end - times[0]) * fps)) / fps + times[0]
    distance = np.abs(np.array(times)[None] - wanted[:, None])
    return [int(np.argmax(row <= row.min() + 1e-6)) for row in distance]


@pytest.mark.parametrize("rate", [10, 24, 25, 29.97, 30, 50, 60])
@pytest.mark.parametrize("fps", [25.0, 12.5, 30.0])
def test_constant_rate_is_resampled_by_time(tmp_path, rate, fps):
    times = [i / rate for i in range(47)]
    path = write_video(tmp_path / "a.mp4", times)
    got = indices(path, fps)
    expected = nearest(times, 47 / rate, fps)
    # The container may round the last frame's duration by a frame's worth.
    assert abs(len(got) - len(expected)) <= max(1, np.ceil(fps / rate))
    common = min(len(got), len(expected))
    assert got[:common] == expected[:common]
    assert set(got[common:]) <= {46}


@pytest.mark.parametrize("start", [0.0, 0.7])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_keeps_its_timing(tmp_path, start, suffix):
    gaps = np.random.default_rng(3).choice([0.01, 0.02, 0.04, 0.15, 0.5], size=40)
    times = [start + float(t) for t in np.concatenate([[0], np.cumsum(gaps)])]
    path = write_video(tmp_path / f"a.{suffix}", times)
    got = indices(path, 25.0)
    # Matroska's clock ticks in milliseconds.
    if suffix == "mkv":
        times = [round(t, 3) for t in times]
    expected = nearest(times, times[-1] + 0.04, 25.0)
    common = min(len(got), len(expected))
    assert abs(len(got) - len(expected)) <= 13  # the last frame's duration is the muxer's guess
    assert got[:common] == expected[:common]
    assert len(set(got)) > 20


def test_frames_have_times_and_formats(tmp_path):
    def picture(i):
        return np.broadcast_to(np.array([200, 20, 20], np.uint8), (48, 64, 3)).copy()

    path = write_video(tmp_path / "a.mp4", [i / 25 for i in range(5)], picture=picture)
    frames = list(iter_video(path, 25.0))
    assert [f.time for f in frames] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    rgb, grey = frames[2].rgb(), frames[2].grey()
    assert rgb.shape == (48, 64, 3) and rgb.dtype == np.uint8
    assert rgb[..., 0].mean() > 150 > 60 > rgb[..., 2].mean()  # red first
    assert grey.shape == (48, 64)
    assert grey.mean() == pytest.approx(0.299 * 200 + 0.587 * 20 + 0.114 * 20, abs=4)


def test_rotation_flag_is_honoured(tmp_path):
    def picture(i):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:24] = 255  # bright on top
        return pixels

    path = write_video(tmp_path / "a.mp4", [0, 0.04, 0.08], picture=picture)
    data = bytearray(path.read_bytes())
    # ISO 14496-12: the matrix of the track header; this one turns clockwise, as a telephone that
    # is held upright writes it.
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    path.write_bytes(data)
    frame = next(iter_frames(path))
    assert frame.shape == (64, 48, 3)
    assert frame[:, 24:].mean() > 200 > 50 > frame[:, :24].mean()  # what was on top is right


def test_reads_in_a_stream_and_once(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", [i / 25 for i in range(60)])
    opened, decoded = [], []
    real = av.open

    def counting(*args, **kwargs):
        opened.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(av, "open", counting)
    for i, _ in enumerate(iter_video(path)):
        decoded.append(i)
        if i == 3:
            break
    assert len(opened) == 1 and decoded == [0, 1, 2, 3]
    assert len(list(iter_video(path))) == 60 and len(opened) == 2


def test_probe(tmp_path):
    path = write_video(tmp_path / "a.mp4", [i / 50 for i in range(100)], tone=(0, 2))
    info = probe(path)
    assert (info.has_video, info.has_audio) == (True, True)
    assert (info.width, info.height, info.frames) == (64, 48, 100)
    assert info.fps == pytest.approx(50, rel=0.02)
    assert info.duration == pytest.approx(2, abs=0.1) and info.sample_rate == 16000
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    sound = probe(tmp_path / "a.wav")
    assert (sound.has_video, sound.has_audio, sound.frames) == (False, True, 0)
    assert sound.duration == pytest.approx(1) and sound.sample_rate == 8000


# ---------------------------------------------------------------------------------- bad files


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)

    def noise(i):
        return rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)

    times = [i / 25 for i in range(50)]
    front = {"movflags": "faststart"}
    fast = write_video(folder / "fast.mp4", times, None, (0, 2), noise, front).read_bytes()
    slow = write_video(folder / "slow.mp4", times, None, (0, 2), noise).read_bytes()
    mkv = write_video(folder / "whole.mkv", times, None, None, noise).read_bytes()
    assert fast.index(b"moov") < fast.index(b"mdat") and slow.index(b"mdat") < slow.index(b"moov")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "junk.mp4").write_bytes(rng.bytes(20000))
    (folder / "text.mp4").write_text("not a film\n" * 300)
    (folder / "index_in_front.mp4").write_bytes(fast[: len(fast) // 2])
    (folder / "index_at_end.mp4").write_bytes(slow[: len(slow) // 2])
    (folder / "no_index.mp4").write_bytes(slow[: slow.index(b"moov") - 4])
    (folder / "cut.mkv").write_bytes(mkv[: len(mkv) // 2])
    (folder / "folder.mp4").mkdir()
    return folder


@pytest.mark.parametrize("function", [probe, lambda p: list(iter_frames(p)), read_audio])
@pytest.mark.parametrize(
    "name, reason",
    [
        ("missing.mp4", "no such file"),
        ("empty.mp4", "empty"),
        ("junk.mp4", "not media"),
        ("text.mp4", "not media"),
        ("index_in_front.mp4", "truncated"),
        ("index_at_end.mp4", "truncated"),
        ("no_index.mp4", "truncated"),
        ("folder.mp4", "not a file"),
    ],
)
def test_bad_files_are_named_with_a_reason(bad, name, reason, function):
    with pytest.raises(MediaError, match=reason) as caught:
        function(bad / name)
    assert caught.value.path == str(bad / name)
    assert str(bad / name) in str(caught.value)


def test_matroska_cut_short_is_an_error(bad):
    with pytest.raises(MediaError, match="truncated"):
        list(iter_frames(bad / "cut.mkv"))
    assert len(list(iter_frames(bad / "whole.mkv"))) == 50


def test_missing_streams(tmp_path):
    silent = write_video(tmp_path / "silent.mp4", [0, 0.04, 0.08])
    with pytest.raises(MediaError, match="no sound"):
        read_audio(silent)
    soundfile.write(tmp_path / "sound.flac", np.zeros(1000), 16000)
    with pytest.raises(MediaError, match="no video"):
        next(iter_frames(tmp_path / "sound.flac"))
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    with pytest.raises(MediaError, match="no sound"):
        read_audio(tmp_path / "nothing.wav")


def test_rate_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="positive"):
        next(iter_frames(tmp_path / "any.mp4", 0))


# ---------------------------------------------------------------------------------- sound


def test_audio_files_are_mixed_down_and_resampled(tmp_path):
    rng = np.random.default_rng(0)
    two = rng.uniform(-0.5, 0.5, (5000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "two.wav", two, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "two.wav"), two.mean(axis=1), atol=1e-6)
    time = np.arange(44100) / 44100
    soundfile.write(tmp_path / "cd.wav", 0.5 * np.sin(2 * np.pi * 300 * time), 44100)
    got = read_audio(tmp_path / "cd.wav")
    assert got.dtype == np.float32 and abs(len(got) - 16000) <= 2
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16000) / 16000)
    np.testing.assert_allclose(got[200:15800], expected[200:15800], atol=2e-3)


@pytest.mark.parametrize("video_start, sound_start", [(0, 0), (0, 0.5), (1, 1), (0.4, 0)])
def test_sound_starts_with_the_first_picture(tmp_path, video_start, sound_start):
    times = [video_start + i / 25 for i in range(50)]
    path = write_video(tmp_path / "a.mkv", times, tone=(sound_start, 2))
    wave = read_audio(path)
    sounding = np.flatnonzero(np.abs(wave) > 0.1)
    assert sounding[0] / 16000 == pytest.approx(max(sound_start - video_start, 0), abs=0.07)
    end = sound_start + 2 - video_start
    assert sounding[-1] / 16000 == pytest.approx(end, abs=0.07)


def test_sound_of_a_video_survives_flac(tmp_path):
    path = write_video(tmp_path / "a.mp4", [i / 25 for i in range(25)], tone=(0, 1))
    wave = read_audio(path)
    assert len(wave) >= 15000 and np.abs(wave).max() > 0.4
    soundfile.write(tmp_path / "a.flac", (wave * 32768).astype(np.int16), 16000)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac"), wave)


def test_real_clip(data_dir):
    path = data_dir / "grid" / "video" / "bbas2p.mp4"
    if not path.exists():
        pytest.skip("needs the GRID clips of the shared test data")
    info = probe(path)
    assert (info.width, info.height, info.frames, info.fps) == (360, 288, 75, 25.0)
    frames = list(iter_frames(path))
    assert len(frames) == 75 and frames[0].shape == (288, 360, 3)
    assert len(read_audio(path)) == pytest.approx(48000, abs=600)
