"""A SYNTHETIC talking-face corpus of real media files, in the GRID corpus's layout.

It is for demonstrations and tests: eSpeak NG speaks, OpenCV draws. No figure measured on it says
anything about people; `synthetic.json` in its folder lets every report say so.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from speechattn.errors import ConfigError
from speechattn.files import replacing, write_text
from speechattn.synth.clip import Clip, Style, film_clip, speaker_voice, write_clip
from speechattn.synth.jobs import SynthSummary, claim, run_jobs
from speechattn.synth.sentences import GRAMMARS, Sentence, draw_sentences
from speechattn.synth.speech import Speech, Synthesiser

GENERATOR = "speechattn synth-corpus grid 1 (eSpeak NG speech, face drawn by OpenCV)"
_ALIGN_UNITS = 25000  # of GRID's .align files, per second
_STYLES = {"en": Style("en", (135, 160)), "cmn": Style("cmn", (190, 230))}


def synth_corpus(
    output: str | Path,
    language: str = "cmn",
    speakers: int = 2,
    utterances: int = 60,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> SynthSummary:
    """Make a corpus; run again after an interruption, it makes what is missing.

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
        sentences = draw_sentences(language, utterances, np.random.default_rng([seed, s, 1]))
        jobs += [_Job(folder, language, seed, s, u, one) for u, one in enumerate(sentences)]
    _claim(folder, language, speakers, utterances, seed=seed)
    missing = [job for job in jobs if not job.video.exists()]
    run_jobs(_write, missing, len(jobs), workers=workers, progress=progress)
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

    def file(self, suffix: str, below: str = "") -> Path:
        name = f"{self.sentence.name}{suffix}"
        return self.folder / below / f"s{self.speaker + 1}" / name

    @property
    def video(self) -> Path:
        """Return the file that is written last."""
        return self.file(".mp4")

    @property
    def align(self) -> Path:
        return self.file(".align", "align")


def make_clip(sentence: Sentence, language: str, seed: int, speaker: int, *, index: int) -> Clip:
    """Speak and film one sentence of the corpus; `index` is its place among the speaker's."""
    return film_clip(sentence, _STYLES[language], seed, speaker, index=index)


def _write(job: _Job) -> None:
    clip = make_clip(job.sentence, job.language, job.seed, job.speaker, index=job.index)
    write_text(job.align, format_align(clip.speech))
    with replacing(job.file(".npz", "landmarks")) as part:
        np.savez_compressed(part, landmarks=clip.landmarks)
    with replacing(job.video) as part:
        write_clip(part, clip.frames, clip.speech.samples, clip.speech.sample_rate)


def format_align(speech: Speech) -> str:
    """Format GRID's alignment: lines of `start end word`, in 1/25000 s, `sil` first and last."""
    total = len(speech.samples) / speech.sample_rate
    edges = [0.0, *(w.start for w in speech.words), speech.words[-1].end, total]
    units = [round(edge * _ALIGN_UNITS) for edge in edges]
    labels = ["sil", *(w.text for w in speech.words), "sil"]
    rows = zip(units, units[1:], labels, strict=False)
    return "".join(f"{start} {end} {label}\n" for start, end, label in rows)


def _align_seconds(path: Path) -> float:
    return int(path.read_text(encoding="utf-8").splitlines()[-1].split()[1]) / _ALIGN_UNITS


def _claim(folder: Path, language: str, speakers: int, utterances: int, *, seed: int) -> None:
    facts = {"generator": GENERATOR, "language": language, "speakers": speakers}
    facts |= {"utterances": utterances, "seed": seed}
    voices = (speaker_voice(_STYLES[language], seed, s) for s in range(speakers))
    facts["voices"] = [asdict(voice) for voice in voices]
    said = {**facts, "language": {"en": "English", "cmn": "Mandarin"}[language]}
    claim(folder, facts, _README.format(**said))


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
