"""Claim: search over a graph of 10,000 words and their trigrams is 50 times faster than speech.

The most frequent words of a text, a trigram model of its sentences but those that are read, 500 BPE
units. No model of such a vocabulary is at hand, so the posteriors are SYNTHETIC: each sentence at
15 characters a second in frames of 40 ms, its units at places drawn at random, between them blank;
the logit of the unit that is said is 8 above those of the others, that of three others 5; in 12 of
100 places one of these has 9; noise is added to all. They are softer and more wrong than a good
model's: how many units are wrong without a graph has a row. What a real model's posteriors cost is
shown by

    python benchmarks/graph_search.py --model DIR --cuts FILE --graph DIR [--graph-weight 1]

with a model of sound, Lhotse cuts, and a graph that `speechattn graph` made.

    python benchmarks/graph_search.py --text FILE [--quick] [--json FILE]

FILE holds a sentence a line. The search alone is timed, recording after recording, at the default
width, by each library and by the search of streams, which is given 16 frames at a time; seconds of
speech are the frames' number times their shift. Words that are wrong show what a width is worth, so
one row is as wide as Kaldi's own default. Memory and the seconds until a first search can begin are
those of a process of its own, above what Python and torch take. All searches use one core.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kaldialign import edit_distance
from rows import in_turn, row, save, spread

from speechattn.data.tokenizers import SentencePieceTokenizer, Tokenizer
from speechattn.decoding import CtcGreedySearch
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.decode import DecodingGraph
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lexicon import Lexicon, most_frequent
from speechattn.decoding.fst.online_search import OnlineSearch
from speechattn.decoding.fst.width import SearchWidth
from speechattn.evaluation.text import normalize, split_units
from speechattn.lm.word_ngram import train_word_ngram

WORDS, UNITS, READ, TARGET = 10_000, 500, 60, 50.0
FRAME, RATE, CHUNK = 0.04, 15.0, 16  # seconds; characters a second; frames of a stream
SURE, ALIKE, MISTAKEN, NOISE, CONFUSED = 8.0, 5.0, 9.0, 1.0, 0.12
DEFAULT = "kaldi-decoder (default)"
# By name, the library and the width of the search.
WIDTHS = {
    DEFAULT: ("kaldi", SearchWidth(12.0, max_active=2000)),
    "kaldi-decoder, beam 16, 7,000 states": ("kaldi", SearchWidth(16.0, max_active=7000)),
    "search of streams": ("", SearchWidth(12.0, max_active=2000)),
}


@dataclass(frozen=True)
class Task:
    """What is searched.

    Attributes:
        title: of its rows.
        folder: of the graph, and of `scores.npz`.
        graph: loaded.
        tokenizer: of its units.
        scores: (T, V) log-probabilities of each recording.
        said: units of text (words, or ideographs) of each.
        shift: seconds a frame.
    """

    title: str
    folder: Path
    graph: Graph
    tokenizer: Tokenizer
    scores: list[np.ndarray]
    said: list[list[str]]
    shift: float


def value(name: str, number: float, unit: str) -> dict:
    """A row of something that has no target."""
    return row(name, number, "bound", None, "none", unit, True)


def sentences_of(path: Path) -> list[list[str]]:
    """Lower case, letters and apostrophes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [re.findall(r"[a-z']+", line.lower()) for line in lines]
    return [words for words in found if words]


def synthetic(units: list[int], characters: int, vocab: int, draw) -> np.ndarray:
    """(T, V) log-probabilities of a sentence; see above."""
    frames = max(round(characters / RATE / FRAME), 2 * len(units) + 1)
    logits = NOISE * draw.standard_normal((frames, vocab))
    logits[:, 0] += SURE
    places = np.sort(draw.choice(frames // 2, len(units), replace=False)) * 2
    for place, unit in zip(places, units, strict=True):
        alike = draw.integers(1, vocab - 1, 3)
        logits[place, 0] -= SURE - 2
        logits[place, alike] += ALIKE
        logits[place, unit] += SURE
        if draw.random() < CONFUSED:
            logits[place, alike[0]] += MISTAKEN - ALIKE
    logits = torch.from_numpy(logits.astype(np.float32))
    return logits.log_softmax(-1).numpy()


def wrong(found: list[list], said: list[list]) -> float:
    """Percent."""
    errors = sum(edit_distance(a, b)["total"] for a, b in zip(said, found, strict=True))
    return 100 * errors / sum(map(len, said))


def greedy(scores: np.ndarray) -> list[int]:
    """Units of the best label of each frame."""
    path = scores.argmax(1).tolist()
    return [u for u, last in zip(path, [0, *path[:-1]], strict=True) if u and u != last]


def words(tokenizer: Tokenizer, units: Sequence[int]) -> list[str]:
    """As they are counted."""
    return split_units(normalize(tokenizer.decode(list(units))), "word")


def read_text(path: Path, folder: Path, quick: bool) -> tuple[Task, list[dict]]:
    """A graph of a text, and sentences of it that it was not counted from."""
    said = sentences_of(path)
    random.Random(0).shuffle(said)
    tenth = len(said) // 10
    vocabulary = most_frequent(said[tenth:], 2000 if quick else WORDS)
    known = set(vocabulary)
    read = [s for s in said[:tenth] if known.issuperset(s) and 6 <= len(s) <= 25]
    read = read[: 8 if quick else READ]
    kept = {tuple(s) for s in read}
    rest = [s for s in said if tuple(s) not in kept]
    tokenizer = SentencePieceTokenizer.train(
        [" ".join(s) for s in rest], vocab_size=200 if quick else UNITS
    )
    begun = time.perf_counter()
    train_word_ngram(rest, vocabulary, folder / "counted.arpa", order=3)
    counted = time.perf_counter() - begun
    begun = time.perf_counter()
    graph = build_graph(
        Lexicon.spelled(vocabulary, tokenizer), tokenizer, folder, folder / "counted.arpa"
    )
    built = time.perf_counter() - begun
    draw = np.random.default_rng(0)
    spelled = [tokenizer.encode(" ".join(s)) for s in read]
    scores = [
        synthetic(units, len(" ".join(s)), tokenizer.vocab_size, draw)
        for units, s in zip(spelled, read, strict=True)
    ]
    title = f"{len(vocabulary):,} words and their trigrams, synthetic posteriors"
    said = [split_units(normalize(" ".join(s)), "word") for s in read]
    rows = [
        value(f"{title}: counting the n-grams", counted, "s"),
        value(f"{title}: making the graph", built, "s"),
        value(f"{title}: units wrong without it", wrong(list(map(greedy, scores)), spelled), "%"),
    ]
    return Task(title, folder, graph, tokenizer, scores, said, FRAME), rows


def read_model(model: Path, cuts: Path, graph: Path, weight: float, count: int) -> Task:
    """A trained model's posteriors of the first recordings of a manifest, divided by the weight."""
    from lhotse import CutSet

    from speechattn.data.batches.batch import Item, collate
    from speechattn.transcribe.transcriber import Transcriber

    recogniser = Transcriber.from_pretrained(model, search=CtcGreedySearch()).recogniser
    scores, said = [], []
    for cut in CutSet.from_file(cuts).subset(first=count):
        batch = collate([Item(cut.id, "", [], cut.load_audio()[0].astype(np.float32))])
        with torch.inference_mode():
            (output,) = recogniser.model.outputs(batch.audio, batch.audio_lengths, None, None)
        scores.append(output.log_probs[0].float().numpy() / weight)
        text = " ".join(s.text for s in cut.supervisions)
        said.append(split_units(normalize(text), "word"))
    made = Graph.load(graph)
    title = f"{len(made.words):,} words of {graph.name}, a model's {len(scores)} recordings"
    shift = recogniser.model.frame_shift
    return Task(title, graph, made, recogniser.tokenizer, scores, said, shift)


def search_of(graph: Graph, name: str) -> Callable[[np.ndarray], Sequence[int]]:
    """From (T, V) to the events of the best path."""
    library, width = WIDTHS[name]
    if library:
        search = DecodingGraph(graph).search(library, width)
        return lambda scores: search.search(scores).events

    def streamed(scores: np.ndarray) -> list[int]:
        search, events = OnlineSearch(graph, width.beam, width.max_active), []
        for start in range(0, len(scores), CHUNK):
            events += search.accept(scores[start : start + CHUNK])
            search.best()  # which a stream shows
        return [event for event, _ in events + search.finish()]

    return streamed


def search_rows(task: Task, rounds: int) -> list[dict]:
    """Of each search."""
    found: dict[str, list[list[int]]] = {}

    def over_all(name: str) -> Callable[[], None]:
        search = search_of(task.graph, name)

        def run() -> None:
            found[name] = [task.graph.units(search(s)) for s in task.scores]

        return run

    times = in_turn({name: over_all(name) for name in WIDTHS}, rounds)
    seconds = task.shift * sum(map(len, task.scores))
    rows = []
    for name, values in times.items():
        title = f"{task.title}, {name}"
        texts = [words(task.tokenizer, units) for units in found[name]]
        print(f"{title}, s for {seconds:.0f} s of speech: {spread(values)}", flush=True)
        faster = seconds / statistics.median(values)
        speed = f"{title}: speech in a second of search"
        if name == DEFAULT:
            met = faster >= TARGET
            rows.append(row(speed, faster, "bound", faster / TARGET, f">= {TARGET:g}", "s", met))
        else:
            rows.append(value(speed, faster, "s"))
        rows.append(value(f"{title}: words wrong", wrong(texts, task.said), "%"))
    return rows


def status(field: str) -> float:
    """MB, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def serve(folder: Path, scores: Path, name: str) -> None:
    """In a process of its own: seconds until a search is ready, MB at the peak, MB in the end."""
    with np.load(scores) as file:
        given = [file[key] for key in file.files]
    before, begun = status("VmRSS"), time.perf_counter()
    search = search_of(Graph.load(folder), name)
    ready = time.perf_counter() - begun
    for s in given:
        search(s)
    print(json.dumps([ready, status("VmHWM") - before, status("VmRSS") - before]))


def memory_rows(task: Task, scratch: Path) -> list[dict]:
    """Of each search."""
    file = scratch / "scores.npz"
    np.savez(file, *task.scores)
    rows = []
    for name, (_, width) in WIDTHS.items():
        if width:
            continue
        command = [sys.executable, __file__, "--serve", str(task.folder), str(file), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        numbers = json.loads(done.stdout.splitlines()[-1])
        for what, number, unit in zip(
            ("graph read, ready to search", "memory at its peak", "memory after the search"),
            numbers, ("s", "MB", "MB"), strict=True,
        ):  # fmt: skip
            rows.append(value(f"{task.title}, {name}: {what}", number, unit))
    return rows


def benchmark(task: Task, scratch: Path, rounds: int) -> list[dict]:
    """All of one task."""
    arcs = task.graph.arcs
    title = task.title
    size = (task.folder / "graph.npz").stat().st_size / 1e6
    alone = [words(task.tokenizer, greedy(s)) for s in task.scores]
    return [
        value(f"{title}: states of the graph", arcs.states, ""),
        value(f"{title}: arcs of the graph", len(arcs), ""),
        value(f"{title}: graph on disk", size, "MB"),
        value(f"{title}: words wrong without it", wrong(alone, task.said), "%"),
        *search_rows(task, rounds),
        *memory_rows(task, scratch),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="a sentence a line")
    parser.add_argument("--model", type=Path, help="model directory, of sound")
    parser.add_argument("--cuts", type=Path, help="manifest of recordings with texts")
    parser.add_argument("--graph", type=Path, help="decoding graph of the model's units")
    parser.add_argument("--graph-weight", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="2,000 words, 8 sentences, 2 rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.serve:
        folder, scores, name = options.serve
        serve(Path(folder), Path(scores), name)
        return 0
    given = [options.model, options.cuts, options.graph]
    if None in given and given != [None] * 3:
        parser.error("--model, --cuts and --graph go together")
    if options.text is None and options.model is None:
        print("graph_search: --text names a file of sentences; nothing was measured")
        return 0
    rows, rounds, count = [], 2 if options.quick else 5, 8 if options.quick else READ
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if options.text is not None:
            task, found = read_text(options.text, scratch, options.quick)
            rows += found + benchmark(task, scratch, rounds)
        if options.model is not None:
            task = read_model(*given, options.graph_weight, count)
            rows += benchmark(task, scratch, rounds)
    for r in rows:
        print(f"{r['name']}: {r['ours']:.4g} {r['unit']}, target {r['target']}")
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
