"""Writes a SYNTHETIC talking-face corpus of real media files, in the GRID corpus's layout.

It is for demonstrations and tests: eSpeak NG speaks, OpenCV draws. No figure measured on it says
anything about people; `synthetic.json` in its folder lets every report say so.
"""

import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np
from rich.progress import Progress

from speechattn.data.synth.face import FRAME_HEIGHT, FRAME_WIDTH, Face
from speechattn.data.synth.look import random_look
from speechattn.data.synth.sentences import GRAMMARS, Sentence, draw_sentences
from speechattn.data.synth.speech import Phone, Speech, Synthesiser, Voice, Word
from speechattn.data.synth.visemes import PARAMETERS, mouth_track
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)

FPS = 25
SAMPLE_RATE = 16000
GENERATOR = "speechattn synth-corpus 1 (eSpeak NG speech, face drawn by OpenCV)"
_ALIGN_UNITS = 25000  # of GRID's .align files, per second
_MALE = ("m3", "m1", "Alex", "m7", "m2", "david", "m4", "m5")
_FEMALE = ("f2", "linda", "f3", "f1", "steph", "f4", "Annie", "f5")
_RATES = {"en": (135, 160), "cmn": (190, 230)}  # words a minute, as eSpeak counts them
_OPENING, _WIDTH = PARAMETERS.index("opening"), PARAMETERS.index("width")
_JAW = PARAMETERS.index("jaw")


@dataclass(frozen=True)
class SynthSummary:
    """What `synth_corpus` made.

    Args:
        folder: the corpus.
        clips: files in it.
        written: those written by this call; the others were there.
        seconds: duration of the clips together.
        speakers: names of the speakers.
    """

    folder: Path
    clips: int
    written: int
    seconds: float
    speakers: tuple[str, ...]


def synth_corpus(
    output: str | Path,
    language: str = "cmn",
    speakers: int = 2,
    utterances: int = 60,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> SynthSummary:
    """Makes a corpus; run again after an interruption, it makes what is missing.

    Writes `s1/<name>.mp4` (H.264 360x288 25 fps, AAC 16 kHz mono), `align/s1/<name>.align` (GRID's
    format: start, end in 1/25000 s, word; `sil` at both ends), `landmarks/s1/<name>.npz` (key
    `landmarks`: (T, 5, 2) float32 pixels: left eye, right eye, nose, mouth corners; left as seen in
    the picture), `synthetic.json` and `README.md`. The same arguments give the same files, whatever
    the number of workers.

    Args:
        output: folder, made if need be.
        language: 'cmn' (Mandarin) or 'en' (English, GRID's sentences).
        speakers: how many; men's and women's voices and faces alternate.
        utterances: of each speaker.
        seed: of everything drawn by chance.
        workers: processes; 0 or 1 stays in this one.
        progress: show a progress bar.

    Raises:
        ConfigError: bad arguments, `espeakng-loader` is missing, or the folder holds another
            corpus.
    """
    if language not in GRAMMARS:
        raise ConfigError(f"language {language!r}: choose from {sorted(GRAMMARS)}")
    if speakers < 1:
        raise ConfigError(f"speakers: {speakers} is not positive")
    Synthesiser()  # says at once, in this process, if eSpeak NG is missing
    folder = Path(output)
    jobs = []
    for s in range(speakers):
        rng = np.random.default_rng([seed, s, 1])
        for u, sentence in enumerate(draw_sentences(language, utterances, rng)):
            jobs.append(_Job(folder, language, seed, s, u, sentence))
    _claim(folder, language, speakers, utterances, seed)
    missing = [job for job in jobs if not job.done()]
    with Progress(disable=not progress) as bar:
        task = bar.add_task("synthetic corpus", total=len(jobs), completed=len(jobs) - len(missing))
        for _ in _run(missing, workers):
            bar.advance(task)
    seconds = sum(_align_seconds(job.align) for job in jobs)
    names = tuple(f"s{s + 1}" for s in range(speakers))
    return SynthSummary(folder, len(jobs), len(missing), seconds, names)


@dataclass(frozen=True)
class _Job:
    folder: Path
    language: str
    seed: int
    speaker: int
    index: int
    sentence: Sentence

    @property
    def video(self) -> Path:
        return self.folder / f"s{self.speaker + 1}" / f"{self.sentence.name}.mp4"

    @property
    def align(self) -> Path:
        return self.folder / "align" / f"s{self.speaker + 1}" / f"{self.sentence.name}.align"

    @property
    def landmarks(self) -> Path:
        return self.folder / "landmarks" / f"s{self.speaker + 1}" / f"{self.sentence.name}.npz"

    def done(self) -> bool:
        return self.video.exists()  # written last, under another name until it is whole


@dataclass(frozen=True)
class Clip:
    """A clip before it is encoded.

    Args:
        speech: times are those of the clip, the silence at its start included.
        track: (T, P) mouth parameters.
        landmarks: (T, 5, 2) float32 pixels.
        frames: T of (288, 360, 3) uint8 BGR.
    """

    speech: Speech
    track: np.ndarray
    landmarks: np.ndarray
    frames: list[np.ndarray]


def make_clip(sentence: Sentence, language: str, seed: int, speaker: int, index: int) -> Clip:
    """Speaks and films one sentence; `index` is its place among the speaker's sentences."""
    voice, face = _voice(language, seed, speaker), _face(seed, speaker)
    rng = np.random.default_rng([seed, speaker, 2, index])
    speech = _place(Synthesiser().speak(sentence.words, voice, sentence.spoken), rng)
    times = np.arange(round(len(speech.samples) / speech.sample_rate * FPS)) / FPS
    track = mouth_track(speech.phones, times)
    gain = face.look.gain * rng.uniform(0.93, 1.07)
    for column in (_OPENING, _JAW, _WIDTH):
        track[:, column] = np.clip(track[:, column] * gain, -1.0, 1.0)
    shots = list(face.film(track, rng, FPS))
    landmarks = np.stack([points for _, points in shots])
    return Clip(speech, track, landmarks, [frame for frame, _ in shots])


def _voice(language: str, seed: int, speaker: int) -> Voice:
    rng = np.random.default_rng([seed, speaker, 3])
    variants = _FEMALE if speaker % 2 else _MALE
    low, high = _RATES[language]
    return Voice(
        language,
        variants[speaker // 2 % len(variants)],
        pitch=int(rng.integers(38, 63)),
        pitch_range=int(rng.integers(35, 66)),
        rate=int(rng.integers(low, high + 1)),
    )


@lru_cache(maxsize=4)
def _face(seed: int, speaker: int) -> Face:
    rng = np.random.default_rng([seed, speaker, 4])
    first = int(np.random.default_rng([seed, 5]).integers(0, 60))
    return Face(random_look(rng, first + speaker, female=speaker % 2 == 1), rng)


def _place(speech: Speech, rng: np.random.Generator) -> Speech:
    """Puts silence around the speech so that it fills whole video frames, with a quiet room."""
    rate = speech.sample_rate
    before, after = rng.uniform(0.25, 0.5, 2)
    frames = int(np.ceil((before + len(speech.samples) / rate + after) * FPS))
    samples = rng.normal(0.0, rng.uniform(0.0006, 0.002), frames * rate // FPS)
    start = int(before * rate)
    samples[start : start + len(speech.samples)] += speech.samples * rng.uniform(0.6, 1.0)
    shift = start / rate
    phones = tuple(Phone(p.symbol, p.start + shift, p.end + shift) for p in speech.phones)
    words = tuple(Word(w.text, w.start + shift, w.end + shift) for w in speech.words)
    return Speech(np.clip(samples, -1, 1).astype(np.float32), rate, phones, words)


def _run(jobs: list[_Job], workers: int) -> Iterator[None]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield _write(job)
        return
    # eSpeak has one state a process; "spawn", as the caller may hold threads that a fork would cut.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_be_single) as pool:
        yield from pool.map(_write, jobs, chunksize=2)


def _be_single() -> None:
    cv2.setNumThreads(1)  # the processes share the cores already


def _write(job: _Job) -> None:
    clip = make_clip(job.sentence, job.language, job.seed, job.speaker, job.index)
    for path in (job.video, job.align, job.landmarks):
        path.parent.mkdir(parents=True, exist_ok=True)
    job.align.write_text(format_align(clip.speech), encoding="utf-8")
    np.savez_compressed(job.landmarks, landmarks=clip.landmarks)
    partial = job.video.with_suffix(".mp4.partial")
    write_clip(partial, clip.frames, clip.speech.samples, clip.speech.sample_rate)
    partial.replace(job.video)


def format_align(speech: Speech) -> str:
    """GRID's alignment of a sentence: `start end word`, in 1/25000 s, `sil` first and last."""
    total = len(speech.samples) / speech.sample_rate
    edges = [0.0, *(w.start for w in speech.words), speech.words[-1].end, total]
    units = [round(edge * _ALIGN_UNITS) for edge in edges]
    labels = ["sil", *(w.text for w in speech.words), "sil"]
    rows = zip(units, units[1:], labels, strict=False)
    return "".join(f"{start} {end} {label}\n" for start, end, label in rows)


def _align_seconds(path: Path) -> float:
    return int(path.read_text(encoding="utf-8").splitlines()[-1].split()[1]) / _ALIGN_UNITS


def write_clip(path: Path, frames: list[np.ndarray], samples: np.ndarray, rate: int) -> None:
    """Writes an mp4: H.264 at `FPS`, AAC mono at `SAMPLE_RATE`.

    Args:
        path: the file.
        frames: T of (H, W, 3) uint8 BGR.
        samples: (N,) float32 in [-1, 1].
        rate: Hz of `samples`.
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = FRAME_WIDTH, FRAME_HEIGHT, "yuv420p"
        # So that the same frames give the same bytes: one thread, and no macroblock tree, with
        # which the x264 of PyAV 18's wheel encodes the same frames differently from run to run.
        video.options = {
            "crf": "23",
            "preset": "veryfast",
            "threads": "1",
            "x264-params": "no-mbtree=1",
        }
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64000
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE, audio.codec_context.frame_size)
        for piece in resampler.resample(sound) + resampler.resample(None):
            container.mux(audio.encode(piece))
        container.mux(audio.encode())


def _claim(folder: Path, language: str, speakers: int, utterances: int, seed: int) -> None:
    """Writes what the corpus is; refuses to mix two in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = {
        "synthetic": True,
        "generator": GENERATOR,
        "language": language,
        "speakers": speakers,
        "utterances": utterances,
        "seed": seed,
        "voices": [asdict(_voice(language, seed, s)) for s in range(speakers)],
    }
    path = folder / "synthetic.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != marker:
            raise ConfigError(f"{folder} holds another synthetic corpus: take a new folder")
    readme = _README.format(
        language={"en": "English", "cmn": "Mandarin"}[language],
        speakers=speakers,
        utterances=utterances,
        seed=seed,
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    path.write_text(json.dumps(marker, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_README = """# SYNTHETIC talking-face corpus

Nobody speaks here: the voices are eSpeak NG's and the faces are drawn by OpenCV. It is for
demonstrations and tests. **An error rate measured on it says nothing about real speech or real
lips**; name it synthetic wherever such a number is shown (`synthetic.json` marks the folder).

{language}, {speakers} speakers, {utterances} utterances each, sentences of a closed six-word
grammar, seed {seed}. The layout is the GRID corpus's:

- `s1/<name>.mp4`: H.264 360x288, 25 frames a second; AAC, 16 kHz, mono
- `align/s1/<name>.align`: start and end of each word in 1/25000 s, `sil` at both ends
- `landmarks/s1/<name>.npz`: `landmarks` (frames, 5, 2) float32 pixels: left eye, right eye (as seen
  in the picture), nose, left and right corner of the mouth, as drawn
"""
