"""Claim: an hour is transcribed in the memory that ten minutes take, and the joins show nowhere.

Test sentences of known text are joined to one recording, which is transcribed in windows; the same
model also reads every sentence alone. Near a seam, where one window gives way to the next, a word
counts as lost if the transcript lacks it and the model did not lack it in the sentence alone, and
as doubled if the transcript has one that was not said, and the model did not put one there in the
sentence alone. So a window that hears less than a whole sentence is to blame as much as the joining
is. Every such word is printed with what the windows around it heard, and of how many the joining
alone is guilty (a window had what was lost, none had so often what was doubled). Beside these stand
the same two away from the seams, what windows do everywhere, and the error rates.

    python benchmarks/long_form.py [--quick] [--json FILE] --model DIR --data FOLDER
        [--minutes 60] [--window 20 --overlap 4] [--at-silence [--silence 0.3]]
        [--options FILE]
"""

import argparse
import csv
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

from rows import row, save

SHORT = 10.0  # minutes of the recording that memory is compared with
NEAR = 0.5  # seconds from a seam
BOUND = 300.0  # MB


def bounded(name: str, value: float, target: float, unit: str) -> dict:
    """A row of a value that must not exceed a bound."""
    return row(name, value, "bound", value / target if target else value, target, unit,
               value <= target)  # fmt: skip


def sentences(data: Path) -> list[tuple[Path, str]]:
    """File and text of the test set."""
    with open(data / "manifest.tsv", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if r["split"] == "test"]
    return [(data / r["file"], r["text"]) for r in rows]


def join(data: Path, minutes: float, path: Path) -> list[int]:
    """Write a recording of so many minutes, 16 kHz float32; the numbers of its sentences."""
    import numpy as np
    import soundfile

    from speechattn.data.media import read_audio

    said, numbers, read = 0, [], {}
    order = np.random.default_rng(1)
    clips = sentences(data)
    with soundfile.SoundFile(path, "w", 16000, 1, subtype="FLOAT") as out:
        while said < minutes * 60 * 16000:
            for index in order.permutation(len(clips)):
                if said >= minutes * 60 * 16000:
                    break
                file, _ = clips[index]
                if file not in read:
                    read[file] = read_audio(file)
                out.write(read[file])
                said += len(read[file])
                numbers.append(int(index))
    return numbers


def peak_memory() -> float:
    """MB of this process so far."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def transcribe(model: Path, options: Path | None, long_form: dict, path: Path) -> dict:
    """In a process of its own: the words, those of every window, the seams and what it took."""
    import torch

    from speechattn import Transcriber
    from speechattn.data.long_form import LongFormOptions
    from speechattn.decoding.config import chosen_search
    from speechattn.transcribe.joining import Joiner, split_units
    from speechattn.transcribe.long_files import transcribe_long

    torch.set_num_threads(2)
    search = chosen_search({}, search=str(options)) if options else None
    transcriber = Transcriber.from_pretrained(model, search=search)
    joiners, windows = [], []

    class Watched(Joiner):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            joiners.append(self)

        def add(self, tokens, start, end):
            windows.append([(u.text, u.time) for u in split_units(tokens)])
            super().add(tokens, start, end)

    import speechattn.transcribe.long_files

    speechattn.transcribe.long_files.Joiner = Watched
    begun = time.perf_counter()
    recogniser = transcriber.recogniser
    with recogniser.reader.open(path) as media:
        found = transcribe_long(recogniser, media, LongFormOptions(**long_form))
    seconds = time.perf_counter() - begun
    return {
        "words": [(w.text, (w.start + w.end) / 2) for w in found.words],
        "windows": windows,
        "seams": joiners[0].seams,
        "seconds": seconds,
        "duration": found.duration,
        "memory": peak_memory(),
    }


def alone(model: Path, options: Path | None, data: Path) -> list[list[str]]:
    """What the model hears in every sentence of the test set, read by itself."""
    from speechattn import Transcriber
    from speechattn.decoding.config import chosen_search

    search = chosen_search({}, search=str(options)) if options else None
    transcriber = Transcriber.from_pretrained(model, search=search)
    found = transcriber.transcribe([path for path, _ in sentences(data)])
    return [transcript.text.split() for transcript in found]


def own_errors(said: list[str], heard: list[str]) -> tuple[int, list[bool], list[int]]:
    """Of a sentence alone: all errors, which words are missing, how many extra before each."""
    import kaldialign

    missing, extra, errors = [], [0], 0
    for a, b in kaldialign.align(said, heard, "*"):
        errors += a != b
        if a == "*":
            extra[-1] += 1
        else:
            missing.append(b == "*")
            extra.append(0)
    return errors, missing, extra


def at_seams(texts: list[list[str]], singles: list[list[str]], found: dict) -> dict[str, float]:
    """What became of the words, by what is near a seam.

    Args:
        texts: of the sentences, in order.
        singles: what the model heard in each alone.
        found: of `transcribe`.
    """
    import kaldialign

    words, seams = found["words"], found["seams"]
    own = [own_errors(a, b) for a, b in zip(texts, singles, strict=True)]
    missing = [m for _, part, _ in own for m in part]
    extra = [0] * (len(missing) + 1)
    place = 0
    for text, (_, _, more) in zip(texts, own, strict=True):
        for i, count in enumerate(more):
            extra[place + i] += count
        place += len(text)
    counts = dict.fromkeys(("lost", "doubled", "lost_far", "doubled_far", "by_joining"), 0)
    at = index = errors = 0  # words of the transcript so far, and of the text
    expected = [word for text in texts for word in text]
    for said, heard in kaldialign.align(expected, [text for text, _ in words], "*"):
        before, after = words[at - 1 : at] if at else [], words[at : at + 1]
        errors += said != heard
        if said == "*":
            low = high = after[0][1]
            alike = extra[index] > 0
            extra[index] -= alike
        else:  # where it is missing, somewhere between its neighbours
            low, high = (before or [("", 0.0)])[0][1], (after or [("", found["duration"])])[0][1]
            alike = missing[index]
        at += heard != "*"
        index += said != "*"
        if "*" not in (said, heard) or alike:
            continue
        kind = "doubled" if said == "*" else "lost"
        # Sentences are 3 s long: a gap over several of them is not of a seam.
        near = any(low - NEAR <= seam <= high + NEAR for seam in seams) and high - low <= 3
        counts[kind if near else f"{kind}_far"] += 1
        if not near:
            continue
        around = [[(t, x) for x, t in w if low - 1 < t < high + 1] for w in found["windows"]]
        around = [sorted(w) for w in around if w]
        if said == "*":
            most = max((sum(x == heard for _, x in w) for w in around), default=0)
            now = sum(x == heard and low - 1 < t < high + 1 for x, t in words)
            joining = now > most
        else:
            joining = any(x == said and low + 0.1 < t < high - 0.1 for w in around for t, x in w)
        counts["by_joining"] += joining
        print(f"at {low:.2f} to {high:.2f} s: said {said}, heard {heard}, in the windows:")
        for window in around:
            print("   ", " ".join(f"{x}@{t:.2f}" for t, x in window))
    counts["errors"] = errors / len(expected)
    counts["errors_alone"] = sum(e for e, *_ in own) / len(expected)
    return counts


def in_process(function, *arguments):
    """In a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 minutes against 1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, help="a trained model that hears")
    parser.add_argument("--data", type=Path, help="folder of a manifest.tsv of file, split, text")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--window", type=float, default=20.0, help="seconds")
    parser.add_argument("--overlap", type=float, default=4.0, help="seconds")
    parser.add_argument("--at-silence", action="store_true", help="end windows at silence")
    parser.add_argument("--silence", type=float, default=0.3, help="seconds of it")
    parser.add_argument(
        "--options", type=Path, help="YAML with a section `search`; the model's own by default"
    )
    options = parser.parse_args()
    if options.model is None or options.data is None:
        print("long_form: nothing to read: give --model and --data")
        return 0
    minutes = 4.0 if options.quick else options.minutes
    short = min(SHORT, minutes / 4)
    long_form = {
        "window_seconds": options.window,
        "overlap_seconds": options.overlap,
        "at_silence": options.at_silence,
        "silence_seconds": min(options.silence, options.overlap),
        "max_seconds": max(30.0, options.window),
    }
    kind = f"{options.window:g} s windows, {options.overlap:g} s overlap"
    kind += ", at silence" * options.at_silence
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in (short, minutes):
            path = Path(folder) / "joined.wav"
            numbers = in_process(join, options.data, length, path)
            found = in_process(transcribe, options.model, options.options, long_form, path)
            results[length] = found
            print(f"{length:g} min: {found['seconds']:.1f} s, peak {found['memory']:.0f} MB")
    heard = in_process(alone, options.model, options.options, options.data)
    texts = [text.split() for _, text in sentences(options.data)]
    counts = at_seams([texts[i] for i in numbers], [heard[i] for i in numbers], found)
    words, seams = sum(len(texts[i]) for i in numbers), len(found["seams"])
    what = f"{minutes:g} min joined of test sentences, {kind}"
    more = results[minutes]["memory"] - results[short]["memory"]
    print(f"of the lost and doubled, by the joining alone: {counts['by_joining']}")
    rows = [
        bounded(f"peak memory, {minutes:g} min less {short:g} min, {kind}", more, BOUND, "MB"),
        bounded(f"words doubled at {seams} seams, {what}", counts["doubled"], 0, "words"),
        bounded(f"words lost at {seams} seams, {what}", counts["lost"], 0, "words"),
        row(f"words doubled elsewhere, of {words}, {what}", counts["doubled_far"], None, None,
            None, "words", None),
        row(f"words lost elsewhere, of {words}, {what}", counts["lost_far"], None, None, None,
            "words", None),
        row(f"word error rate, {what}; peer: every sentence alone", counts["errors"],
            counts["errors_alone"], counts["errors"] / max(1e-9, counts["errors_alone"]), None, "",
            None),
        row(f"real-time factor, {what}", found["seconds"] / found["duration"], None, None, None,
            "", None),
    ]  # fmt: skip
    for r in rows:
        beside = "" if not isinstance(r["peer"], float) else f" ({r['peer']:.4g})"
        print(f"{r['name']}: {r['ours']:.4g}{beside} {r['unit']}")
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
