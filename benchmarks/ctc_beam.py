"""Claim: CTC prefix beam search over a batch in tensors is faster than a loop over utterances.

16 utterances of 250 to 125 frames, made-up posteriors, beam 10, two threads. The peer is prefix
beam search in the manner of WeNet's: one utterance after another, a dictionary of prefixes, a score
object for each; with the same 20 units a frame, and with as many as the beam, which is WeNet's
rule. Beside it, for those who would say that it is slowly written, the same search with tuples of
numbers and as little work as Python lets one do; and pyctcdecode as shipped, with beam 10, where it
is installed: it looks at no unit below exp(-5), so at nothing in a frame of sure blank, and is set
against ours with such frames skipped. Also how many best texts are the same, and a bigram fused in.

    python benchmarks/ctc_beam.py [--quick] [--json FILE]
"""

import argparse
import logging
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from rows import against_peer, in_turn, row, save, spread
from torch import Tensor

from speechattn.decoding.ctc_beam import ctc_beam_search

THREADS, BEAM, BATCH, FRAMES = 2, 10, 16, 250
TARGET = 10.0
LM_WEIGHT = 0.3
BLANK_SKIP = 0.99
SEED = 0


def posteriors(b: int, t: int, v: int) -> Tensor:
    """Draw (B, T, V): mostly clear blanks, and in one frame of five a less clear token."""
    generator = torch.Generator().manual_seed(SEED)
    logits = 2.0 * torch.randn(b, t, v, generator=generator)
    # Whatever V, a blank of 0.999 where nothing is said.
    blank = 9.0 + math.log(v)
    logits[..., 0] += blank
    spoken = torch.rand(b, t, 1, generator=generator) < 0.2
    for strength in (blank + 1.0, blank):
        said = torch.randint(1, v - 1, (b, t, 1), generator=generator)
        logits.scatter_add_(2, said, spoken * strength)
    return logits.log_softmax(-1)


class Bigram:
    """A table as a scorer; the state of a hypothesis is its last token."""

    def __init__(self, table: Tensor, batch: int):
        self.table = table
        self.batch = batch

    def start(self) -> Tensor:
        return torch.zeros(self.batch, dtype=torch.int64)

    def score(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.table[token], token

    def select(self, state: Tensor, index: Tensor) -> Tensor:
        return state[index]


def log_sum(*values: float) -> float:
    top = max(values)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in values))


class Score:
    """The score of a prefix, by whether its paths end in a blank."""

    def __init__(self, blank: float = -math.inf, label: float = -math.inf):
        self.blank = blank
        self.label = label

    def total(self) -> float:
        return log_sum(self.blank, self.label)


def loop_search(log_probs: Tensor, units: int) -> list[int]:
    """Search one utterance (T, V) as the peer does; return the best text.

    Args:
        log_probs: of one utterance.
        units: best units of a frame that are looked at, blank among them.
    """
    beam = [((), Score(0.0))]
    for frame in log_probs:
        new: defaultdict[tuple, Score] = defaultdict(Score)
        for index in frame.topk(units).indices:
            u = index.item()
            p = frame[u].item()
            for prefix, score in beam:
                if u == 0:
                    same = new[prefix]
                    same.blank = log_sum(same.blank, score.total() + p)
                elif prefix and prefix[-1] == u:
                    same, grown = new[prefix], new[(*prefix, u)]
                    same.label = log_sum(same.label, score.label + p)
                    grown.label = log_sum(grown.label, score.blank + p)
                else:
                    grown = new[(*prefix, u)]
                    grown.label = log_sum(grown.label, score.total() + p)
        beam = sorted(new.items(), key=lambda item: item[1].total(), reverse=True)[:BEAM]
    return list(beam[0][0])


def log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def lean_search(log_probs: Tensor, units: int, table: list[list[float]] | None = None) -> list[int]:
    """Search as `loop_search`, with less work for Python, and with a bigram if there is one.

    Args:
        log_probs: of one utterance.
        units: best units of a frame that are looked at, blank among them.
        table: bigram log-probabilities, fused with LM_WEIGHT.
    """
    none = -math.inf
    beam = [((), (0.0, none, 0.0))]
    for frame in log_probs:
        best, index = frame.topk(units)
        new: dict = {}
        for p, u in zip(best.tolist(), index.tolist(), strict=True):
            for prefix, (blank, label, lm) in beam:
                last = prefix[-1] if prefix else None
                total = log_add(blank, label)
                if u == 0:
                    b, n, _ = new.get(prefix, (none, none, lm))
                    new[prefix] = (log_add(b, total + p), n, lm)
                    continue
                if u == last:
                    b, n, _ = new.get(prefix, (none, none, lm))
                    new[prefix] = (b, log_add(n, label + p), lm)
                    total = blank
                grown = (*prefix, u)
                found = new.get(grown)
                if found is None:
                    found = (none, none, lm)
                    if table is not None:
                        found = (none, none, lm + LM_WEIGHT * table[(-1, *prefix)[-1]][u])
                b, n, grown_lm = found
                new[grown] = (b, log_add(n, total + p), grown_lm)
        beam = sorted(new.items(), key=lambda x: log_add(x[1][0], x[1][1]) + x[1][2], reverse=True)
        beam = beam[:BEAM]
    if table is not None:

        def ended(item: tuple) -> float:
            prefix, (blank, label, lm) = item
            return log_add(blank, label) + lm + LM_WEIGHT * table[(-1, *prefix)[-1]][-1]

        beam.sort(key=ended, reverse=True)
    return list(beam[0][0])


def pyctcdecode(v: int) -> Callable[[Tensor], object] | None:
    """Return their search of one utterance, units as characters; None if not installed."""
    try:
        from pyctcdecode import build_ctcdecoder
    except ImportError:
        return None
    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    # CJK characters: no spaces and no word list. The last, <sos/eos>, is never probable.
    decoder = build_ctcdecoder(["", *(chr(0x4E00 + u) for u in range(1, v))])
    return lambda x: decoder.decode_beams(x.numpy(), beam_width=BEAM)


def timed(title: str, runs: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Return medians, and print the spread."""
    times = in_turn(runs, rounds)
    for name, values in times.items():
        print(f"{title}, {name}, s: {spread(values)}", flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def vocabulary_rows(v: int, frames: int, rounds: int) -> list[dict]:
    """Measure the search against its peers at V units."""
    log_probs = posteriors(BATCH, frames, v)
    lengths = torch.linspace(frames, frames / 2, BATCH).long()
    utterances = [x[:t] for x, t in zip(log_probs, lengths.tolist(), strict=True)]
    title = f"CTC prefix beam, batch of {BATCH}, {frames} frames, V {v}, beam {BEAM}"

    def ours(units: int = 20, skip: float = 1.0) -> list[list[int]]:
        found = ctc_beam_search(
            log_probs, lengths, beam_size=BEAM, nbest=1, frame_units=units, blank_skip=skip
        )
        return [nbest[0].tokens for nbest in found]

    def loop(units: int, search: Callable = loop_search) -> list[list[int]]:
        return [search(x, units) for x in utterances]

    skipping = f"blanks above {BLANK_SKIP} skipped"
    runs: dict[str, Callable] = {
        "ours, 20 units": ours,
        "ours, 10 units": lambda: ours(BEAM),
        f"ours, 20 units, {skipping}": lambda: ours(20, BLANK_SKIP),
        # Blank takes a place among theirs.
        "loop, 20 units": lambda: loop(21),
        "loop, 10 units": lambda: loop(BEAM),
        "lean loop, 20 units": lambda: loop(21, lean_search),
    }
    theirs = pyctcdecode(v)
    if theirs is not None:
        runs["pyctcdecode"] = lambda: [theirs(x) for x in utterances]
    median = timed(title, runs, rounds)
    base, fewer = median["ours, 20 units"], median["ours, 10 units"]
    lean, skipped = median["lean loop, 20 units"], median[f"ours, 20 units, {skipping}"]
    rows = [
        against_peer(f"{title}, 20 units, loop", base, median["loop, 20 units"], TARGET, "s"),
        against_peer(f"{title}, 10 units, loop", fewer, median["loop, 10 units"], TARGET, "s"),
        against_peer(
            f"{title}, 20 units, {skipping}, pyctcdecode",
            skipped,
            median.get("pyctcdecode"),
            TARGET,
            "s",
        ),
        row(f"{title}, 20 units, lean loop", base, lean, lean / base, None, "s", None),
        row(f"{title}, {skipping}, or none", skipped, base, base / skipped, None, "s", None),
    ]
    wanted = loop(21)
    for name in ("ours, 20 units", f"ours, 20 units, {skipping}"):
        same = sum(a == b for a, b in zip(runs[name](), wanted, strict=True))
        what = f"{title}, {name}: same best text"
        rows.append(row(what, same, BATCH, same / BATCH, None, "", None))
    return rows


def fused_rows(v: int, frames: int, rounds: int) -> list[dict]:
    """Measure the search with a bigram."""
    log_probs = posteriors(BATCH, frames, v)
    lengths = torch.linspace(frames, frames / 2, BATCH).long()
    utterances = [x[:t] for x, t in zip(log_probs, lengths.tolist(), strict=True)]
    generator = torch.Generator().manual_seed(SEED)
    table = (2.0 * torch.randn(v, v, generator=generator)).log_softmax(-1)
    listed = table.tolist()

    def ours() -> list[list[int]]:
        scorers = {"lm": (Bigram(table, BATCH), LM_WEIGHT)}
        found = ctc_beam_search(log_probs, lengths, beam_size=BEAM, scorers=scorers)
        return [nbest[0].tokens for nbest in found]

    def loop() -> list[list[int]]:
        return [lean_search(x, 21, listed) for x in utterances]

    title = f"CTC prefix beam with a bigram, batch of {BATCH}, {frames} frames, V {v}, beam {BEAM}"
    median = timed(title, {"ours": ours, "lean loop": loop}, rounds)
    value, lean = median["ours"], median["lean loop"]
    same = sum(a == b for a, b in zip(ours(), loop(), strict=True))
    return [
        row(f"{title}, lean loop", value, lean, lean / value, None, "s", None),
        row(f"{title}: same best text", same, BATCH, same / BATCH, None, "", None),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 frames, fewer rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    frames, rounds = (50, 3) if options.quick else (FRAMES, 7)
    rows = []
    for v in (150, 5000):
        rows += vocabulary_rows(v, frames, rounds)
    rows += fused_rows(150, frames, rounds)
    for r in rows:
        ratio = "-" if r["ratio"] is None else f"{r['ratio']:.3g}"
        print(f"{r['name']}: ratio {ratio}, target {r['target']}")
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
