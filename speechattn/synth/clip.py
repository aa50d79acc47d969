"""One synthetic clip: a sentence spoken, the speaker filmed, both written as a media file."""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from speechattn.synth.face import WHOLE_FRAME, Face
from speechattn.synth.look import random_look
from speechattn.synth.sentences import Sentence
from speechattn.synth.speech import Phone, Speech, Synthesiser, Voice, Word
from speechattn.synth.visemes import PARAMETERS, mouth_track

FPS = 25
SAMPLE_RATE = 16000
_MALE = ("m3", "m1", "Alex", "m7", "m2", "david", "m4", "m5")
_FEMALE = ("f2", "linda", "f3", "f1", "steph", "f4", "Annie", "f5")
_GAINED = [PARAMETERS.index(name) for name in ("opening", "jaw", "width")]


@dataclass(frozen=True)
class Style:
    """How the speakers of a corpus speak and are filmed."""

    language: str  # 'cmn' (Mandarin) or 'en' (English)
    rate: tuple[int, int]  # slowest and fastest speaker, words a minute as eSpeak counts them
    # shortest and longest silence at each end of a clip, seconds
    silence: tuple[float, float] = (0.25, 0.5)
    # least and most that the lips move in a clip, as a factor; low ones mumble
    effort: tuple[float, float] = (0.93, 1.07)
    # left, top, width, height of the part of the frame that is filmed, pixels
    window: tuple[int, int, int, int] = WHOLE_FRAME


@dataclass(frozen=True)
class Clip:
    """A clip before it is encoded."""

    speech: Speech  # times are those of the clip, the silence at its start included
    track: np.ndarray  # (T, P) mouth parameters
    landmarks: np.ndarray  # (T, 5, 2) float32 pixels
    frames: list[np.ndarray]  # T of (H, W, 3) uint8 BGR


def film_clip(
    sentence: Sentence, style: Style, seed: int, speaker: int, *, index: int, fps: int = FPS
) -> Clip:
    """Speak and film one sentence; `index` is its place among the speaker's sentences.

    The clip lasts a whole number of frames of 1 / `FPS`, also where it is filmed at other `fps`.
    """
    voice, face = speaker_voice(style, seed, speaker), speaker_face(seed, speaker)
    rng = np.random.default_rng([seed, speaker, 2, index])
    speech = Synthesiser().speak(sentence.words, voice, sentence.spoken)
    speech = _place(speech, style.silence, rng)
    times = np.arange(round(len(speech.samples) / speech.sample_rate * fps)) / fps
    track = mouth_track(speech.phones, times)
    gain = face.look.gain * rng.uniform(*style.effort)
    track[:, _GAINED] = np.clip(track[:, _GAINED] * gain, -1.0, 1.0)
    frames, landmarks = zip(*face.film(track, rng, fps, style.window), strict=True)
    return Clip(speech, track, np.stack(landmarks), list(frames))


def speaker_voice(style: Style, seed: int, speaker: int) -> Voice:
    """Draw the voice of a speaker; odd speakers are women."""
    rng = np.random.default_rng([seed, speaker, 3])
    variants = _FEMALE if speaker % 2 else _MALE
    low, high = style.rate
    ranges = ((38, 63), (35, 66), (low, high + 1))  # of pitch, its range and the rate
    draws = (int(rng.integers(*limits)) for limits in ranges)
    return Voice(style.language, variants[speaker // 2 % len(variants)], *draws)


@lru_cache(maxsize=4)
def speaker_face(seed: int, speaker: int) -> Face:
    """Draw the face of a speaker; odd speakers are women."""
    rng = np.random.default_rng([seed, speaker, 4])
    first = int(np.random.default_rng([seed, 5]).integers(0, 60))
    return Face(random_look(rng, first + speaker, female=speaker % 2 == 1), rng)


def _place(speech: Speech, silence: tuple[float, float], rng: np.random.Generator) -> Speech:
    """Put silence around the speech so that it fills whole video frames, with a quiet room."""
    rate = speech.sample_rate
    before, after = rng.uniform(*silence, 2)
    frames = int(np.ceil((before + len(speech.samples) / rate + after) * FPS))
    samples = rng.normal(0.0, rng.uniform(0.0006, 0.002), frames * rate // FPS)
    start = int(before * rate)
    samples[start : start + len(speech.samples)] += speech.samples * rng.uniform(0.6, 1.0)
    shift = start / rate
    phones = tuple(Phone(p.symbol, p.start + shift, p.end + shift) for p in speech.phones)
    words = tuple(Word(w.text, w.start + shift, w.end + shift) for w in speech.words)
    return Speech(np.clip(samples, -1, 1).astype(np.float32), rate, phones, words)


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    samples: np.ndarray | None,
    rate: int,
    *,
    fps: int = FPS,
    index_first: bool = False,
) -> None:
    """Write an mp4: H.264, AAC mono at `SAMPLE_RATE`.

    Args:
        path: the file.
        frames: T of (H, W, 3) uint8 BGR, H and W even; none makes a file of sound alone.
        samples: (N,) float32 in [-1, 1]; None makes a file without sound.
        rate: Hz of `samples`.
        fps: frames per second.
        index_first: put the file's index before the media, so that a reader can start early.
    """
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if index_first else {})
    with av.open(str(path), "w", format="mp4", options=options) as container:
        if frames:
            video = container.add_stream("libx264", rate=fps)
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv420p"
            # So that the same frames give the same bytes: one thread, and no macroblock tree, with
            # which the x264 of PyAV 18's wheel encodes the same frames differently from run to run.
            video.options = {
                "crf": "23",
                "preset": "veryfast",
                "threads": "1",
                "x264-params": "no-mbtree=1",
            }
        if samples is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            audio.bit_rate = 64000
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(video.encode(frame))
        if frames:
            container.mux(video.encode())
        if samples is not None:
            for piece in _resampled(samples, rate, audio.codec_context.frame_size):
                container.mux(audio.encode(piece))
            container.mux(audio.encode())


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample (N,) float32 from `rate` Hz to `SAMPLE_RATE`."""
    length = round(len(samples) * SAMPLE_RATE / rate)
    out = np.concatenate([piece.to_ndarray()[0] for piece in _resampled(samples, rate, None)])
    return np.pad(out[:length], (0, max(0, length - len(out))))


def _resampled(samples: np.ndarray, rate: int, size: int | None) -> list[av.AudioFrame]:
    sound = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
    resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE, size)
    return resampler.resample(sound) + resampler.resample(None)
