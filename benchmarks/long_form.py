"""Claim: an hour is transcribed in the memory that ten minutes take, and the joins show nowhere.

Test sentences of known text are joined to one recording, which is transcribed in windows. A word
is doubled by the joining where the text has it once more than was said, the word beside it is the
same, and no window has both; it is lost where the text lacks it though a window had it there.
Beside these stand the words inserted and deleted near the seams for whatever reason, and the error
rate with every sentence read alone: the model's own errors, to which a kind of window that it was
not trained for adds.

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


def join(data: Path, minutes: float, path: Path) -> list[str]:
    """Writes a recording of so many minutes, 16 kHz float32; the texts said in it."""
    import numpy as np
    import soundfile

    from speechattn.data.video import read_audio

    said, texts, read = 0, [], {}
    order = np.random.default_rng(1)
    clips = sentences(data)
    with soundfile.SoundFile(path, "w", 16000, 1, subtype="FLOAT") as out:
        while said < minutes * 60 * 16000:
            for index in order.permutation(len(clips)):
                if said >= minutes * 60 * 16000:
                    break
                file, text = clips[index]
                if file not in read:
                    read[file] = read_audio(file)
                out.write(read[file])
                said += len(read[file])
                texts.append(text)
    return texts


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
    from speechattn.decoding import DecodeOptions
    from speechattn.inference.joining import Joiner, split_units
    from speechattn.inference.long_form import LongFormOptions, transcribe_long

    torch.set_num_threads(2)
    decoding = DecodeOptions.load(options) if options else None
    transcriber = Transcriber.from_pretrained(model, decoding)
    joiners, windows = [], []

    class Watched(Joiner):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            joiners.append(self)

        def add(self, tokens, start, end):
            windows.append([(u.text, u.time) for u in split_units(tokens)])
            super().add(tokens, start, end)

    import speechattn.inference.long_form

    speechattn.inference.long_form.Joiner = Watched
    begun = time.perf_counter()
    found = transcribe_long(transcriber, path, LongFormOptions(**long_form))
    seconds = time.perf_counter() - begun
    return {
        "words": [(w.text, (w.start + w.end) / 2) for w in found.words],
        "windows": windows,
        "seams": joiners[0].seams,
        "seconds": seconds,
        "duration": found.duration,
        "memory": peak_memory(),
    }


def alone(model: Path, options: Path | None, data: Path) -> float:
    """Word error rate with every sentence of the test set read by itself."""
    import kaldialign

    from speechattn import Transcriber
    from speechattn.decoding import DecodeOptions

    decoding = DecodeOptions.load(options) if options else None
    transcriber = Transcriber.from_pretrained(model, decoding)
    clips = sentences(data)
    found = transcriber.transcribe([path for path, _ in clips])
    errors = sum(
        kaldialign.edit_distance(text.split(), t.text.split())["total"]
        for (_, text), t in zip(clips, found, strict=True)
    )
    return errors / sum(len(text.split()) for _, text in clips)


def at_seams(expected: list[str], found: dict) -> dict[str, float]:
    """What became of the words, by what is near a seam."""
    import kaldialign

    words, seams = found["words"], found["seams"]
    pairs = kaldialign.align(expected, [text for text, _ in words], "*")
    doubled = lost = near = errors = 0
    at = 0  # words of the transcript so far
    for said, heard in pairs:
        before, after = words[at - 1 : at] if at else [], words[at : at + 1]
        if heard != "*":
            at += 1
            low = high = after[0][1]
        else:  # somewhere between its neighbours
            low, high = (before or [("", 0.0)])[0][1], (after or [("", found["duration"])])[0][1]
        if said == heard:
            continue
        errors += 1
        if "*" not in (said, heard):
            continue
        # Sentences are 3 s long: a gap over several of them is not of a seam.
        if not any(low - NEAR <= seam <= high + NEAR for seam in seams) or high - low > 3:
            continue
        near += 1
        if said == "*":
            beside = [*before, *words[at : at + 1]]
            wrong = any(text == heard and abs(t - low) < NEAR for text, t in beside)
            wrong = wrong and not any(
                sum(text == heard and abs(t - low) < NEAR for text, t in window) > 1
                for window in found["windows"]
            )
            doubled += wrong
        else:
            wrong = any(
                text == said and low + 0.1 < t < high - 0.1
                for window in found["windows"]
                for text, t in window
            )
            lost += wrong
        if wrong:
            print(f"at {low:.2f} s: said {said}, heard {heard}")
    return {"doubled": doubled, "lost": lost, "near": near, "errors": errors / len(expected)}


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
    parser.add_argument("--options", type=Path, help="decode options, the model's own by default")
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
            texts = in_process(join, options.data, length, path)
            found = in_process(transcribe, options.model, options.options, long_form, path)
            results[length] = found
            print(f"{length:g} min: {found['seconds']:.1f} s, peak {found['memory']:.0f} MB")
    counts = at_seams(" ".join(texts).split(), found)
    words, seams = len(" ".join(texts).split()), len(found["seams"])
    what = f"{minutes:g} min joined of test sentences, {kind}"
    single = in_process(alone, options.model, options.options, options.data)
    more = results[minutes]["memory"] - results[short]["memory"]
    rows = [
        bounded(f"peak memory, {minutes:g} min less {short:g} min, {kind}", more, BOUND, "MB"),
        bounded(f"words doubled at {seams} seams, {what}", counts["doubled"], 0, "words"),
        bounded(f"words lost at {seams} seams, {what}", counts["lost"], 0, "words"),
        row(f"words inserted or deleted near a seam, of {words}, {what}", counts["near"], None,
            None, None, "words", None),
        row(f"word error rate, {what}; peer: every sentence alone", counts["errors"], single,
            counts["errors"] / single if single else None, None, "", None),
        row(f"real-time factor, {what}", found["seconds"] / found["duration"], None, None, None,
            "", None),
    ]  # fmt: skip
    for r in rows:
        print(f"{r['name']}: {r['ours']:.4g} {r['unit']}")
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
