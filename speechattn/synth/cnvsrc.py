"""A SYNTHETIC Mandarin corpus in the layout of CN-CVS and CNVSRC.

CN-CVS (news and speech), CNVSRC-Single and CNVSRC-Multi with their development and evaluation
parts, the organisers' JSON files and the baselines' CSV lists, a list of characters; and clips that
are damaged in ways that large corpora are. It stands in for corpora that need a licence, so that a
recipe can be run from end to end; no figure measured on it says anything about people.
Source of the layout: https://github.com/MKT-Dataoceanai/CNVSRC2023Baseline and
https://github.com/sectum1919/CNVSRC2024Baseline (READMEs and `data/*/*.csv`).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

from speechattn.errors import ConfigError
from speechattn.files import replacing, write_text
from speechattn.synth.clip import (
    FPS,
    SAMPLE_RATE,
    Style,
    film_clip,
    resample,
    speaker_face,
    speaker_voice,
    write_clip,
)
from speechattn.synth.damage import DAMAGE, damaged_video
from speechattn.synth.jobs import SynthSummary, claim, run_jobs
from speechattn.synth.mandarin import CHARACTERS, draw_mandarin
from speechattn.synth.sentences import Sentence
from speechattn.synth.speech import Synthesiser
from speechattn.synth.visemes import mouth_track

GENERATOR = "speechattn synth-corpus cnvsrc 1 (eSpeak NG speech, face drawn by OpenCV)"
# Fast enough, and lips lazy enough at times, that a model has errors left to make.
STYLE = Style("cmn", (180, 210), silence=(0.25, 0.45), effort=(0.6, 1.0), window=(68, 36, 224, 224))
MIN_CLIPS, MIN_SPEAKERS = 16, 4
UNITS = {"<unk>": 1} | {c: i for i, c in enumerate(CHARACTERS, start=2)}
_SINGLE_SHARE = _MULTI_SHARE = 0.242  # of all clips; the rest is CN-CVS
_EVAL_SHARE = {"cnvsrc-single": 0.40, "cnvsrc-multi": 0.43}
_MULTI = ("8010", "8011", "v012", "8013", "v014")  # recorded and "vlog" speakers
# Which part the damaged clip of a kind goes to: index into the training speakers of the dataset.
_DAMAGED_IN = {
    "truncated": ("cncvs", 1),
    "truncated-late": ("cncvs", 0),
    "zero-byte": ("cnvsrc-single", 0),
    "missing": ("cnvsrc-single", 0),
    "no-picture": ("cnvsrc-multi", 1),
    "no-face": ("cncvs", 0),
    "two-faces": ("cnvsrc-multi", 2),
    "frame-rate": ("cncvs", 1),
    "time-stamps": ("cnvsrc-multi", 0),
    "empty-transcript": ("cncvs", 0),
    "non-ascii-name": ("cncvs", 1),
    "audio-missing": ("cncvs", 0),
    "damaged-audio": ("cnvsrc-single", 0),
}


def synth_cnvsrc(
    output: str | Path,
    clips: int = 620,
    speakers: int = 8,
    seed: int = 0,
    *,
    damaged: bool = True,
    workers: int = 2,
    progress: bool = True,
) -> SynthSummary:
    """Make a corpus; run again after an interruption, it makes what is missing.

    Video is H.264, 224x224, 25 frames a second, without sound (in the evaluation sets with AAC, as
    these have no `audio/`); sound is WAV, 16 kHz, mono. All sentences are different, so none of a
    test is in training. The same arguments give the same files, whatever the number of workers.
    Beside the official files there are `char_units.txt`, `damaged.tsv` (path, kind; the kinds are
    explained in `README.md`) and `synthetic.json`.

    Args:
        output: folder, made if need be.
        clips: of all parts together, without the damaged ones: about half CN-CVS, a quarter
            each CNVSRC-Single and -Multi; 16 to 3,000.
        speakers: of CN-CVS, of which one is held out for validation and one for test; at least 4.
            CNVSRC-Single has one other speaker, CNVSRC-Multi five.
        seed: of everything drawn by chance.
        damaged: add one clip of each kind of damage.
        workers: processes; 0 or 1 stays in this one.
        progress: show a progress bar.

    Raises:
        ConfigError: bad arguments, `espeakng-loader` is missing, or the folder holds another
            corpus.
    """
    if clips < MIN_CLIPS:
        raise ConfigError(f"clips: {clips} is less than {MIN_CLIPS}")
    if not MIN_SPEAKERS <= speakers <= clips // 4:
        raise ConfigError(f"speakers: {speakers} is not between {MIN_SPEAKERS} and clips / 4")
    Synthesiser()  # says at once, in this process, if eSpeak NG is missing
    folder = Path(output)
    people = [*_people(speakers), "single", *_MULTI]
    items = _plan(clips, speakers, seed, damaged)
    facts = {"generator": GENERATOR, "layout": "cnvsrc", "clips": clips, "speakers": speakers}
    facts |= {"seed": seed, "damaged": damaged}
    facts["voices"] = {p: asdict(speaker_voice(STYLE, seed, s)) for s, p in enumerate(people)}
    claim(folder, facts, _readme(clips, seed))
    jobs = [_Job(folder, seed, item) for item in items]
    missing = [job for job in jobs if not job.done.exists()]
    run_jobs(_write, missing, len(jobs), workers=workers, progress=progress)
    seconds = _write_lists(folder, items)
    return SynthSummary(folder, len(items), len(missing), seconds, tuple(people))


@dataclass(frozen=True)
class _Item:
    """A clip of the plan."""

    dataset: str  # folder below the corpus
    part: str  # "news/n001", "dev", "eval"...: folder below the dataset that has video/ and audio/.
    name: str  # of the files, without suffix
    who: str  # name of the speaker
    speaker: int  # number of the speaker, for voice and face
    index: int  # place among all clips; with `speaker` it seeds the clip
    share: str  # the list it is in: train, valid, test; "" for the evaluation sets
    sentence: Sentence  # what is said
    kind: str = ""  # of damage, "" for none

    @property
    def text(self) -> str:
        """Return the transcript."""
        return "" if self.kind == "empty-transcript" else "".join(self.sentence.words)

    def file(self, kind: str) -> str:
        """Return the path of "video", "audio" or "text" below the dataset's folder."""
        suffix = {"video": "mp4", "audio": "wav", "text": "txt"}[kind]
        return f"{self.part}/{kind}/{self.name}.{suffix}"


def _people(speakers: int) -> list[str]:
    """Name CN-CVS speakers: news and speech to train, the last two to validate and to test."""
    news = (speakers - 2 + 1) // 2
    names = [f"news/n{i + 1:03d}" for i in range(news)]
    names += [f"speech/s{i + 1:05d}" for i in range(speakers - 2 - news)]
    return [*names, "speech/s02270", "speech/s02350"]


def _plan(clips: int, speakers: int, seed: int, damaged: bool) -> list[_Item]:
    rng = np.random.default_rng([seed, 1])
    kinds = list(DAMAGE) if damaged else []
    sentences = draw_mandarin(clips + len(kinds), rng)
    single, multi = round(clips * _SINGLE_SHARE), round(clips * _MULTI_SHARE)
    places = [*_cncvs_places(clips - single - multi, speakers), *_single_places(single, speakers)]
    places += _multi_places(multi, speakers + 1)
    pairs = enumerate(zip(places, sentences, strict=False))
    items = [_Item(*place[:5], i, place[5], sentence) for i, (place, sentence) in pairs]
    people = _people(speakers)
    for number, (kind, sentence) in enumerate(zip(kinds, sentences[clips:], strict=True)):
        dataset, which = _DAMAGED_IN[kind]
        if dataset == "cncvs":  # the first of news, the first of speech
            s = which * ((speakers - 1) // 2)
            place = _cncvs_place(people[s], 900 + number, s)
        elif dataset == "cnvsrc-single":
            place = (dataset, "dev", f"{20000 + number:08d}", "s01", speakers)
        else:
            place = _multi_place("dev", which, 900 + number, speakers + 1)
        if kind == "non-ascii-name":
            place = (*place[:2], place[2] + "_演讲", *place[3:])
        items.append(_Item(*place, clips + number, "train", sentence, kind))
    return items


def _cncvs_place(person: str, number: int, speaker: int) -> tuple[str, str, str, str, int]:
    kind, who = person.split("/")
    name = f"{who}_{number:05d}_001" if kind == "news" else f"{who}_001_{number:05d}"
    return "cncvs", person, name, who, speaker


def _cncvs_places(count: int, speakers: int) -> Iterator[tuple]:
    people = _people(speakers)
    held_out = max(1, round(0.05 * count))
    for i in range(count - 2 * held_out):
        s = i % (speakers - 2)
        yield *_cncvs_place(people[s], i // (speakers - 2) + 1, s), "train"
    for s, share in ((speakers - 2, "valid"), (speakers - 1, "test")):
        for i in range(held_out):
            yield *_cncvs_place(people[s], i + 1, s), share


def _single_places(count: int, speaker: int) -> Iterator[tuple]:
    evaluation = round(_EVAL_SHARE["cnvsrc-single"] * count)
    valid = max(1, round((count - evaluation) / 9))
    for i in range(count - evaluation - valid):
        yield "cnvsrc-single", "dev", f"{i + 1:08d}", "s01", speaker, "train"
    for i in range(valid):
        yield "cnvsrc-single", "dev", f"{23065 + i:08d}", "s01", speaker, "valid"
    for i in range(evaluation):
        yield "cnvsrc-single", "eval", f"{30001 + i:08d}", "s01", speaker, ""


def _multi_place(part: str, which: int, number: int, first: int) -> tuple[str, str, str, str, int]:
    which %= len(_MULTI)
    return "cnvsrc-multi", part, f"{_MULTI[which]}{number:04d}", _MULTI[which], first + which


def _multi_places(count: int, first: int) -> Iterator[tuple]:
    evaluation = round(_EVAL_SHARE["cnvsrc-multi"] * count)
    development = count - evaluation
    for i in range(development):
        # A quarter of every speaker is for validation; of a very small corpus the last clip.
        last = development < 4 * len(_MULTI) and i == development - 1
        share = "valid" if i // len(_MULTI) % 4 == 3 or last else "train"
        yield *_multi_place("dev", i, i // len(_MULTI) + 1, first), share
    for i in range(evaluation):
        yield *_multi_place("eval", i, 1001 + i // len(_MULTI), first), ""


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    item: _Item

    @property
    def done(self) -> Path:
        """Return the file that is written last."""
        last = self.item.file("audio" if self.item.kind == "missing" else "video")
        return self.folder / self.item.dataset / last


def _write(job: _Job) -> None:
    item, root = job.item, job.folder / job.item.dataset
    fps = 30 if item.kind == "frame-rate" else FPS
    clip = film_clip(item.sentence, STYLE, job.seed, item.speaker, index=item.index, fps=fps)
    speech = clip.speech
    if item.dataset == "cncvs":
        write_text(root / item.file("text"), item.text + "\n")
    if item.share and item.kind != "audio-missing":
        path = root / item.file("audio")
        if item.kind == "damaged-audio":
            write_text(path, "This was a sound file once.\n" * 40)
        else:
            with replacing(path) as part:
                samples = resample(speech.samples, speech.sample_rate)
                soundfile.write(part, samples, SAMPLE_RATE, "PCM_16", format="WAV")
    if item.kind == "missing":
        return
    with replacing(root / item.file("video")) as part:
        if item.kind:
            bystander = _bystander(job, len(clip.frames)) if item.kind == "two-faces" else []
            damaged_video(part, item.kind, clip, bystander)
        else:
            sound = None if item.share else speech.samples
            write_clip(part, clip.frames, sound, speech.sample_rate)


def _bystander(job: _Job, frames: int) -> list[np.ndarray]:
    """Film the first news speaker, who says nothing."""
    rng = np.random.default_rng([job.seed, job.item.index, 6])
    track = mouth_track([], np.arange(frames) / FPS)
    return [frame for frame, _ in speaker_face(job.seed, 0).film(track, rng, FPS, STYLE.window)]


def _write_lists(folder: Path, items: list[_Item]) -> float:
    """Write everything beside the clips; return the seconds of the clips together."""
    frames = [_frames(folder, item) for item in items]
    lists: dict[tuple[str, str], list[str]] = {}
    infos: dict[tuple[str, str], dict[str, dict]] = {}
    for item, count in zip(items, frames, strict=True):
        if item.share:
            ids = " ".join(str(UNITS[c]) for c in item.text)
            row = f"{item.dataset},{item.file('video')},{count},{ids}\n"
            lists.setdefault((item.dataset, item.share), []).append(row)
        if item.dataset != "cncvs":
            info = {"text": item.text, "speaker": item.who, "frames": count}
            info["duration"] = count / FPS
            if item.dataset == "cnvsrc-multi":
                info["type"] = "vlog" if item.who.startswith("v") else "record"
            infos.setdefault((item.dataset, item.part), {})[item.name] = info
    for (dataset, share), rows in lists.items():
        write_text(folder / dataset / f"{share}.csv", "".join(rows))
    for (dataset, part), info in infos.items():
        content = json.dumps(info, ensure_ascii=False, indent=1) + "\n"
        write_text(folder / dataset / f"{dataset}-{part}-infos.json", content)
    for dataset in ("cnvsrc-single", "cnvsrc-multi"):
        write_text(folder / dataset / "README.TXT", _NOTE)
    units = "".join(f"{unit} {number}\n" for unit, number in UNITS.items())
    write_text(folder / "char_units.txt", units)
    rows = [f"{i.dataset}/{_damaged_file(i)}\t{i.kind}\n" for i in items if i.kind]
    write_text(folder / "damaged.tsv", "path\tkind\n" + "".join(rows))
    return sum(frames) / FPS


def _damaged_file(item: _Item) -> str:
    kinds = {"audio-missing": "audio", "damaged-audio": "audio", "empty-transcript": "text"}
    return item.file(kinds.get(item.kind, "video"))


def _frames(folder: Path, item: _Item) -> int:
    """Count the frames of the clip at 25 a second, from the sound where there is any."""
    root = folder / item.dataset
    if item.share and item.kind not in ("audio-missing", "damaged-audio"):
        return round(soundfile.info(root / item.file("audio")).duration * FPS)
    with av.open(str(root / item.file("video"))) as container:
        return container.streams.video[0].frames


_NOTE = "SYNTHETIC: not the licensed corpus of this name. See README.md in the folder above.\n"


def _readme(clips: int, seed: int) -> str:
    kinds = "\n".join(f"- `{kind}`: {what}" for kind, what in DAMAGE.items())
    return f"""# SYNTHETIC talking-face corpus in the layout of CN-CVS and CNVSRC

Nobody speaks here: the voices are eSpeak NG's and the faces are drawn by OpenCV. It stands in for
licensed corpora so that a recipe can be run from end to end. **An error rate measured on it says
nothing about real speech or real lips**; name it synthetic wherever such a number is shown
(`synthetic.json` marks the folder).

{clips} clips, seed {seed}; Mandarin sentences of a closed grammar, 27 words of two characters,
chosen so that lips can tell them apart; no sentence comes twice. `cncvs`, `cnvsrc-single`,
`cnvsrc-multi` are laid out as the organisers do, with lists as their baselines have them and
`char_units.txt` for the ids in these. Unlike theirs, the evaluation sets have transcripts, and
sound inside the video, so that results can be scored.

`damaged.tsv` lists clips that were damaged on purpose, all of them in training parts:

{kinds}
"""
