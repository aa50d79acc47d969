"""Claim: words come out soon after they were said, faster than they are said, in bounded memory.

Sentences are joined to one recording (or left apart, each a stream of its own), which a model of
chunks hears piece by piece as a microphone gives it, by every search that can stream. From the end
of a word in the reference to the moment that it is shown (as partial, and from then on to the end)
and that it is final:

    algorithm   by the clock of the input: waiting for the chunk to be complete, and for the search
                to be sure
    in all      with what this machine takes to compute: a chunk is begun when its input is there
                and the one before it is done

Only words that were recognised count; of their delays there are the median and what nine of ten are
below. Words that were shown and taken back or changed are counted for each final one (Shangguan et
al., 2006.01416). The text is compared with that of the whole recording with the same chunks, and
what is remembered after ten seconds with what is at the end.

    python benchmarks/streaming.py [--quick] [--json FILE] [--model DIR --cuts FILE]
        [--minutes 1] [--piece 0.01] [--threads 1] [--chunk-size N] [--left-context N]
        [--endpoint 0] [--apart] [--graph DIR] [--beam-size 4] [--title TEXT] [--show]

CUTS is a Lhotse manifest with word alignments (`speechattn align` makes one). Without a model its
weights are random and the sound is noise, which shows the times of computing alone.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rows import row, save, spread

WARM = 10.0  # seconds, after which memory is not to grow
RATE = 16000
VOCABULARY = 500


@dataclass
class Run:
    """A recording that was streamed.

    Attributes:
        shown: by word, in their order, when it was first shown, by the two clocks.
        final: likewise, when it was final.
        text: of all.
        seconds: that each chunk took to compute.
        sizes: numbers remembered after each chunk, and when.
        spent: seconds of all computing.
        taken_back: words that were shown and are not there, or otherwise.
        lines: when what was shown changed, and to what: final words | partial ones.
    """

    words: list[str]
    shown: list[tuple[float, float]]
    final: list[tuple[float, float]]
    text: str
    seconds: list[float]
    sizes: list[tuple[float, int]]
    spent: float
    taken_back: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)


def listen(transcriber, options, sound: np.ndarray, piece: int) -> Run:
    """Stream a recording by the clock of its input."""
    from speechattn.transcribe.streaming.session import StreamingSession

    stream = StreamingSession(transcriber.recogniser, options)
    run = Run([], [], [], "", [], [], 0.0)
    done = 0.0  # when the computer has time again
    waiting: list[tuple[str, float, float]] = []  # words that are shown, not final
    for start in [*range(0, len(sound), piece), None]:
        arrived = len(sound) if start is None else min(start + piece, len(sound))
        begun = time.perf_counter()
        heard = sound[:0] if start is None else sound[start : start + piece]
        updates = [stream.finish()] if start is None else stream.accept(heard)
        took = time.perf_counter() - begun
        run.spent += took
        done = max(done, arrived / RATE) + took
        if not updates:
            continue
        run.seconds.append(took)
        run.sizes.append((arrived / RATE, stream.size()))
        for update in updates:
            run.text += update.text + "\n" * update.endpoint
            words = [w.text for w in (*update.final, *update.partial)]
            kept = next(
                (i for i, (a, b) in enumerate(zip(waiting, words, strict=False)) if a[0] != b),
                min(len(waiting), len(words)),
            )
            run.taken_back += len(waiting) - kept
            now = update.seconds, done
            waiting = waiting[:kept] + [(word, *now) for word in words[kept:]]
            for word, *at in waiting[: len(update.final)]:
                run.words.append(word)
                run.shown.append(tuple(at))
                run.final.append(now)
            waiting = waiting[len(update.final) :]
            line = " ".join([*run.words, "|", *(word for word, *_ in waiting)])
            if not run.lines or run.lines[-1][1] != line:
                run.lines.append((update.seconds, line))
    return run


def random_model(layers: int):
    """A Conformer of 12 layers and 256 units, by chunks of 640 ms."""
    from speechattn.data.tokenizers import CharTokenizer
    from speechattn.decoding import CtcGreedySearch
    from speechattn.encoders import ConformerEncoder
    from speechattn.frontends import LogMelFbank
    from speechattn.model.speech_model import SpeechModel, Stream
    from speechattn.transcribe.recogniser import Recogniser
    from speechattn.transcribe.transcriber import Transcriber

    torch.manual_seed(0)
    frontend = LogMelFbank(normalise="none")
    encoder = ConformerEncoder(
        80, num_blocks=layers, conv_kernel=15, chunk_size=16, left_context=64
    )
    tokenizer = CharTokenizer.train(["".join(map(chr, range(0x4E00, 0x4E00 + VOCABULARY)))])
    model = SpeechModel(tokenizer.vocab_size, Stream(frontend, encoder)).eval()
    return Transcriber(Recogniser(model, tokenizer, CtcGreedySearch()))


def recordings(cuts, seconds: float, apart: bool) -> list[tuple[np.ndarray, list]]:
    """Sound of so many seconds or a little more in all, and the words in it in time."""
    from speechattn.evaluation.delay import Word, reference_words

    found, at = [], 0
    for cut in cuts:
        sound = cut.load_audio()[0].astype(np.float32)
        (said,) = reference_words([cut]).values()
        found.append((sound, said, at / RATE))
        at += len(sound)
        if at >= seconds * RATE:
            break
    if apart:
        return [(sound, said) for sound, said, _ in found]
    words = [Word(w.text, at + w.start, at + w.end) for _, said, at in found for w in said]
    return [(np.concatenate([sound for sound, *_ in found]), words)]


def bounded(name: str, value: float, target: float, unit: str) -> dict:
    """A row of a value that must not exceed a bound."""
    return row(name, value, "bound", value / target, f"<= {target:g}", unit, value <= target)


def delay_rows(title: str, runs: list[Run], words: list[list]) -> list[dict]:
    """From the end of a word to when it is shown and when it is final."""
    from speechattn.evaluation.delay import Word, matches
    from speechattn.evaluation.text import normalize

    rows = []
    for what in ("shown", "final"):
        for clock, name in enumerate(("algorithm", "in all")):
            delays = []
            for run, said in zip(runs, words, strict=True):
                heard = [
                    Word(normalize(word), at[clock], at[clock])
                    for word, at in zip(run.words, getattr(run, what), strict=True)
                ]
                delays += [1000 * (heard[j].end - said[i].end) for i, j in matches(said, heard)]
            if delays:
                found = f"{len(delays)} of {sum(map(len, words))} words"
                name = f"{title}: end of a word to {what}, {name}, {found}"
                for part, value in (
                    ("median", statistics.median(delays)),
                    ("90 %", float(np.percentile(delays, 90))),
                ):
                    rows.append(row(f"{name}, {part}", value, "bound", None, "none", "ms", True))
    return rows


def whole_text(transcriber, options, sound: np.ndarray) -> str:
    """Of the whole recording with the chunks of the stream."""
    from speechattn.data.batches.batch import Item, collate

    encoder = transcriber.recogniser.model.streams["audio"].encoder
    own = encoder.chunks
    encoder.chunks = encoder.stream_chunks(options.chunk_size, options.left_context)
    text = transcriber.recogniser.recognise(collate([Item("all", "", [], sound)]))[0].text
    encoder.chunks = own
    return text


def measure(transcriber, search, options, given, args) -> list[dict]:
    """The rows of one search."""
    from dataclasses import replace

    from speechattn.transcribe.recogniser import Recogniser
    from speechattn.transcribe.transcriber import Transcriber

    r = transcriber.recogniser
    fusion = r.fusion if search.needs_graph else replace(r.fusion, graph=None)
    roi = r.reader.cropper.options
    transcriber = Transcriber(Recogniser(r.model, r.tokenizer, search, fusion, roi=roi))
    method = type(search).__name__
    piece = max(int(args.piece * RATE), 1)
    listen(transcriber, options, given[0][0][: 3 * RATE], piece)  # warm
    runs = [listen(transcriber, options, sound, piece) for sound, _ in given]
    encoder, shift = (
        transcriber.recogniser.model.streams["audio"].encoder,
        transcriber.recogniser.model.frame_shift,
    )
    chunk = (options.chunk_size or encoder.chunks.size) * shift
    length = sum(len(sound) for sound, _ in given) / RATE
    apart = f" in {len(given)} streams" if len(given) > 1 else ""
    title = f"{args.title}{method}, {length:.0f} s{apart} by chunks of {1000 * chunk:.0f} ms"
    seconds = [s for run in runs for s in run.seconds]
    print(f"{title}: computing a chunk, s: {spread(seconds)}", flush=True)
    rows = delay_rows(title, runs, [words for _, words in given])
    if final := sum(len(run.words) for run in runs):
        share = sum(run.taken_back for run in runs) / final
        name = f"{title}: words taken back or changed, for each final one"
        rows.append(row(name, share, "bound", None, "none", "", True))
    p90 = float(np.percentile(seconds, 90))
    rows += [
        bounded(f"{title}: real-time factor", sum(r.spent for r in runs) / length, 0.5, "s/s"),
        bounded(f"{title}: computing a chunk, median", statistics.median(seconds), chunk, "s"),
        bounded(f"{title}: computing a chunk, 90 %", p90, chunk, "s"),
    ]
    before = [size for run in runs for at, size in run.sizes if at <= WARM]
    after = [size for run in runs for at, size in run.sizes if at > WARM]
    if before and after:
        growth = max(after) / max(before)
        rows.append(bounded(f"{title}: numbers remembered after 10 s", growth, 1.2, "times"))
    texts = [whole_text(transcriber, options, sound) for sound, _ in given]
    if not options.endpoint_seconds:
        equal = statistics.mean(
            run.text.removesuffix("\n") == text for run, text in zip(runs, texts, strict=True)
        )
        name = f"{title}: share of texts that are those of the whole"
        rows.append(row(name, equal, "bound", equal, 1, "", equal == 1))
    if args.show:
        for run, text, (_, words) in zip(runs, texts, given, strict=True):
            print(*(f"{at:7.2f} s  {line}" for at, line in run.lines), sep="\n")
            print(f"stream: {run.text.strip()}\nwhole:  {text}")
            print("said:  ", " ".join(w.text for w in words))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15 seconds, a small model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", type=Path, help="model directory, of sound and of chunks")
    parser.add_argument("--cuts", type=Path, help="manifest with word alignments")
    parser.add_argument("--graph", type=Path, help="decoding graph; measures ctc_graph too")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--piece", type=float, default=0.01, help="seconds that come at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk-size", type=int)
    parser.add_argument("--left-context", type=int)
    parser.add_argument("--endpoint", type=float, default=0.0, help="seconds of silence; 0: none")
    parser.add_argument("--apart", action="store_true", help="a stream for each sentence")
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument("--title", default="", help="of the model, before the rows' names")
    parser.add_argument("--show", action="store_true", help="print the texts, and how they grew")
    args = parser.parse_args()
    args.title += ", " if args.title else ""
    if (args.model is None) != (args.cuts is None):
        parser.error("--model and --cuts go together")
    torch.set_num_threads(args.threads)

    from speechattn.decoding import CtcBeamSearch, CtcGreedySearch, GraphSearch
    from speechattn.transcribe.streaming.session import StreamOptions
    from speechattn.transcribe.transcriber import Transcriber

    seconds = 15.0 if args.quick else 60 * args.minutes
    options = StreamOptions(args.chunk_size, args.left_context, endpoint_seconds=args.endpoint)
    searches = [CtcGreedySearch(), CtcBeamSearch(beam_size=args.beam_size)]
    if args.model is None:
        transcriber = random_model(2 if args.quick else 12)
        draw = np.random.default_rng(0)
        noise = 0.1 * draw.standard_normal(int(seconds * RATE))
        given = [(noise.astype(np.float32), [])]
    else:
        from lhotse import CutSet

        search = CtcGreedySearch() if args.graph is None else GraphSearch()
        transcriber = Transcriber.from_pretrained(args.model, search=search, graph=args.graph)
        given = recordings(CutSet.from_file(args.cuts), seconds, args.apart)
        if args.graph is not None:
            searches.append(GraphSearch())
    rows = []
    for search in searches:
        rows += measure(transcriber, search, options, given, args)
    for r in rows:
        print(f"{r['name']}: {r['ours']:.4g} {r['unit']}, target {r['target']}")
    save(rows, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
