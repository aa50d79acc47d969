"""Claim: search over a graph of 10,000 words and their trigrams is 50 times faster than speech.

The most frequent words of a text, a trigram model of its sentences but those that are read, and 500
BPE units. No model of such a vocabulary is at hand, so the posteriors are made up: each sentence at
15 characters a second in frames of 40 ms, its units where they would be, between them blank; the
true unit's logit is `SURE` above those of the other units but for some confused ones, and noise is
added; the share of the units that is wrong without a graph is printed. Real time is the frames' 40
ms. The search alone is timed, sentence after sentence, by each library at the default width and by
the search of streams; words that are wrong show what a width is worth.

    python benchmarks/graph_search.py --text FILE [--quick] [--json FILE]

FILE holds a sentence a line. Without one nothing is measured.
"""

import argparse
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from kaldialign import edit_distance
from rows import row, save, spread

from speechattn.data.tokenizer import SentencePieceTokenizer
from speechattn.decoding import DecodeOptions
from speechattn.decoding.fst.build import build_graph
from speechattn.decoding.fst.decode import GraphDecoder
from speechattn.decoding.fst.graph import Graph
from speechattn.decoding.fst.lexicon import Lexicon, most_frequent
from speechattn.decoding.fst.online_search import OnlineSearch
from speechattn.decoding.fst.word_ngram import train_word_ngram

WORDS, UNITS, READ, TARGET = 10_000, 500, 60, 50.0
FRAME, RATE = 0.04, 15.0  # seconds; characters a second
SURE, NOISE, CONFUSED = 8.0, 1.0, 0.12


def sentences_of(path: Path) -> list[list[str]]:
    """Lower case, letters and apostrophes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [re.findall(r"[a-z']+", line.lower()) for line in lines]
    return [words for words in found if words]


def posteriors(units: list[int], characters: int, vocab: int, draw) -> np.ndarray:
    """(T, V) log-probabilities of a sentence."""
    frames = max(round(characters / RATE / FRAME), 2 * len(units) + 1)
    logits = NOISE * draw.standard_normal((frames, vocab))
    logits[:, 0] += SURE
    places = np.sort(draw.choice(frames // 2, len(units), replace=False)) * 2
    for place, unit in zip(places, units, strict=True):
        likely = draw.integers(1, vocab - 1, 3)
        logits[place, 0] -= SURE - 2
        logits[place, likely] += SURE - 2
        logits[place, unit] += SURE
        if draw.random() < CONFUSED:
            logits[place, likely[0]] += SURE - 1
    logits = torch.from_numpy(logits.astype(np.float32))
    return logits.log_softmax(-1).numpy()


def wrong(found: list[list], said: list[list]) -> float:
    """Percent."""
    errors = sum(edit_distance(a, b)["total"] for a, b in zip(said, found, strict=True))
    return 100 * errors / sum(map(len, said))


def searches(graph: Graph) -> dict:
    """By name, from (T, V) to words."""
    decoder = GraphDecoder(graph)

    def library(name: str):
        search = decoder.search(DecodeOptions(method="ctc_graph", graph_library=name))
        return lambda scores: graph.text(search.search(scores).events)

    def online(scores: np.ndarray) -> list[str]:
        options = DecodeOptions(method="ctc_graph")
        search = OnlineSearch(graph, options.graph_beam, options.graph_states)
        events = search.accept(scores)
        return graph.text(event for event, _ in events + search.finish())

    return {"kaldi-decoder (default)": library("kaldi"), "k2py": library("k2py"),
            "search of streams": online}  # fmt: skip


def benchmark(path: Path, quick: bool) -> list[dict]:
    said = sentences_of(path)
    random.Random(0).shuffle(said)
    count = 8 if quick else READ
    vocabulary = most_frequent(said, 500 if quick else WORDS)
    known = set(vocabulary)
    read = [s for s in said if known.issuperset(s) and 6 <= len(s) <= 25][:count]
    kept = {tuple(s) for s in read}
    rest = [s for s in said if tuple(s) not in kept]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = SentencePieceTokenizer.train(
            [" ".join(s) for s in rest], vocab_size=200 if quick else UNITS
        )
        train_word_ngram(rest, vocabulary, folder / "words.arpa", 3)
        begun = time.perf_counter()
        lexicon = Lexicon.spelled(vocabulary, tokenizer)
        graph = build_graph(lexicon, tokenizer, folder, folder / "words.arpa")
        built = time.perf_counter() - begun
    arcs = graph.arcs
    print(f"{len(vocabulary)} words, {arcs.states} states, {len(arcs)} arcs in {built:.1f} s")
    draw = np.random.default_rng(0)
    units = [tokenizer.encode(" ".join(s)) for s in read]
    scores = [
        posteriors(u, len(" ".join(s)), tokenizer.vocab_size, draw)
        for u, s in zip(units, read, strict=True)
    ]
    seconds = FRAME * sum(map(len, scores))
    greedy = [[u for u, last in zip(b, [0, *b[:-1]], strict=True) if u and u != last]
              for b in (s.argmax(1).tolist() for s in scores)]  # fmt: skip
    print(
        f"{seconds:.0f} s of frames; {wrong(greedy, units):.1f} % of the units wrong without graph"
    )
    rows = []
    for name, search in searches(graph).items():
        search(scores[0])
        times = []
        for _ in range(2 if quick else 5):
            begun = time.perf_counter()
            texts = [search(s) for s in scores]
            times.append(time.perf_counter() - begun)
        errors = wrong(texts, read)
        faster = seconds / statistics.median(times)
        print(f"{name}: {faster:.0f} times real time, {errors:.1f} % WER, {spread(times)} s")
        title = (f"graph of {len(vocabulary):,} words and trigrams, {name}, times real time "
                 f"(WER {errors:.1f} %)")  # fmt: skip
        target = TARGET if "default" in name else "none"
        met = target == "none" or faster >= target
        rows.append(row(title, faster, None, None, target, "times real time", met))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(row("the same, peak of the process, graph built in it", peak, None, None, "none",
                    "MB", True))  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="a sentence a line")
    parser.add_argument("--quick", action="store_true", help="500 words, 8 sentences")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.text is None:
        print("graph_search: --text names a file of sentences; nothing was measured")
        return 0
    torch.set_num_threads(2)
    rows = benchmark(options.text, options.quick)
    save(rows, options.json)
    return 0 if all(r["met"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
