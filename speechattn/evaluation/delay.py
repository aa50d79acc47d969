"""Emission delay: the time from a spoken word to its recognition.

Only correctly recognised words count: those that the alignment with the fewest errors matches. A
token is emitted at the end of the frame in which it first appears or, if the encoder works on
chunks, at the end of that frame's chunk.

    end delay      from the word's end in the reference to the emission of its last token: what a
                   listener waits for (the mean end delay of Yu et al., 2010.11395, is to the
                   token's end instead)
    start delay    from the word's start in the reference to the emission of its first token

Both can be negative: a word can be known before it ends, and reference times are not exact. Those
of `speechattn align` are one frame per word, the one with the highest posterior, so with them only
differences between recognisers mean something.

Token times are those of `transcripts.jsonl`: first frames on the best path. For greedy CTC search
that path is what was emitted; for beam and graph search it is the path that won in the end.
Searches with a decoder emit nothing before the utterance ends and are refused. Look-ahead of a
frame (subsampling, spectral window) is not counted.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kaldialign import align
from rich.console import Console
from rich.table import Table

from speechattn.config import read_yaml
from speechattn.decoding.config import build_search
from speechattn.decoding.search import Search
from speechattn.errors import SpeechattnError
from speechattn.evaluation.bootstrap import BootstrapOptions, error_rate_interval
from speechattn.evaluation.score_files import write_json
from speechattn.evaluation.text import normalize

_SLACK = 1e-6  # rounding of times that were written as decimals


@dataclass(frozen=True)
class Word:
    """A word in time.

    Attributes:
        text: normalised.
        start, end: seconds; for a recognised word, the emission of its first and last token.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Delay:
    """Statistics of a delay, in milliseconds.

    Attributes:
        words: number of words.
        mean, p90: mean and 90th percentile over the words.
        ci_low, ci_high: bootstrap interval of the mean, over utterances.
    """

    words: int
    mean: float | None
    p90: float | None
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True)
class DelayReport:
    """Delays of a test set.

    Attributes:
        end, start: end and start delay of all recognised words.
        first, last: end delay of the utterances' first and last words.
        reference_words: number of words in the reference.
    """

    end: Delay
    start: Delay
    first: Delay
    last: Delay
    reference_words: int

    def to_dict(self) -> dict[str, Any]:
        """Return the entry `delay` of score.json."""
        return asdict(self)

    def render(self, console: Console) -> None:
        """Print a table."""
        table = Table(title=f"emission delay of {self.end.words} of {self.reference_words} words")
        for column in ("ms", "words", "mean", "CI", "90 %"):
            table.add_column(column, justify="left" if column == "ms" else "right")
        for text, delay in {
            "end delay": self.end,
            "end delay, first words": self.first,
            "end delay, last words": self.last,
            "start delay": self.start,
        }.items():
            numbers = (delay.mean, delay.ci_low, delay.ci_high, delay.p90)
            mean, low, high, p90 = ("-" if x is None else f"{x:.0f}" for x in numbers)
            table.add_row(text, str(delay.words), mean, f"{low} to {high}", p90)
        console.print(table)


def emission_delay(
    references: Mapping[str, Sequence[Word]],
    recognised: Mapping[str, Sequence[Word]],
    bootstrap: BootstrapOptions | None = None,
) -> DelayReport:
    """Measure the delays of the words that were recognised.

    Args:
        references: words in order, by utterance.
        recognised: likewise; a missing utterance has none.
        bootstrap: of the intervals; `blocks` is ignored, utterances are drawn.

    Raises:
        SpeechattnError: a recognised utterance has no reference.
    """
    if extra := sorted(recognised.keys() - references.keys()):
        count = len(extra)
        raise SpeechattnError(f"{count} utterances have no reference times, such as {extra[0]}")
    end, start, first, last = ([[] for _ in references] for _ in range(4))  # by utterance
    for row, (utterance, words) in enumerate(references.items()):
        for i, j in matches(words, recognised.get(utterance, ())):
            spoken, emitted = words[i], recognised[utterance][j]
            delay = emitted.end - spoken.end
            end[row].append(delay)
            start[row].append(emitted.start - spoken.start)
            if i == 0:
                first[row].append(delay)
            if i == len(words) - 1:
                last[row].append(delay)
    total = sum(len(words) for words in references.values())
    return DelayReport(*(_delay(x, bootstrap) for x in (end, start, first, last)), total)


def matches(references: Sequence[Word], recognised: Sequence[Word]) -> list[tuple[int, int]]:
    """Return the pairs of indices (reference, recognised) of words that an alignment matches."""
    matched, i, j = [], 0, 0
    for ref, hyp in align([w.text for w in references], [w.text for w in recognised], ""):
        if ref and ref == hyp:
            matched.append((i, j))
        i, j = i + bool(ref), j + bool(hyp)
    return matched


def _delay(seconds: list[list[float]], bootstrap: BootstrapOptions | None) -> Delay:
    """Return the statistics of the delays of each utterance's words."""
    every = [x for words in seconds for x in words]
    if not every:
        return Delay(0, None, None)
    ms = 1000.0 * np.asarray(every)
    # A mean is a ratio of sums, as an error rate is.
    sums = 1000.0 * np.asarray([sum(words) for words in seconds])
    counts = np.asarray([len(words) for words in seconds])
    low, high = error_rate_interval(sums, counts, bootstrap) or (None, None)
    values = (float(ms.mean()), float(np.percentile(ms, 90)), low, high)
    return Delay(len(ms), *(None if x is None else round(x, 2) for x in values))


def emitted_words(
    transcript: Mapping[str, Any], frame_shift: float, chunk: float = 0.0
) -> list[Word]:
    """Return the words of a transcript (a line of `transcripts.jsonl`) at their emission times.

    Args:
        transcript: with `words` and `tokens` in time, from a CTC search.
        frame_shift: seconds from one encoder frame to the next.
        chunk: seconds of the encoder's chunks; 0 for frame by frame.
    """
    starts = [token["start"] for token in transcript["tokens"]]
    words = []
    for word in transcript["words"]:
        inside = [s for s in starts if word["start"] - _SLACK <= s < word["end"] - _SLACK]
        if not inside:
            continue
        first, last = (chunk_end(s + frame_shift, chunk) for s in (min(inside), max(inside)))
        words.append(Word(normalize(word["text"]), first, last))
    return words


def chunk_end(seconds: float, chunk: float) -> float:
    """Return the end of the chunk in which a frame ends; the frame's end if `chunk` is 0."""
    return seconds if not chunk else math.ceil(seconds / chunk - _SLACK) * chunk


def reference_words(cuts: Iterable[Any]) -> dict[str, list[Word]]:
    """Read the words in time of Lhotse cuts with word alignments.

    Raises:
        SpeechattnError: a cut has no alignment.
    """
    from speechattn.data.batches.timed import word_alignment

    references = {}
    for cut in cuts:
        words = word_alignment(cut)
        if words is None:
            raise SpeechattnError(
                f"{cut.id}: the cut has no word alignment; `speechattn align` adds one"
            )
        references[cut.id] = [Word(normalize(text), start, end) for text, start, end in words]
    return references


def read_search(decode_dir: Path) -> Search | None:
    """Return the search of a decode folder; None without `search.yaml`, or if it is a plug-in's."""
    try:
        return build_search(read_yaml(decode_dir / "search.yaml"))
    except SpeechattnError:
        return None


def score_delay(
    decode_dir: str | Path,
    ref_times: str | Path,
    frame_shift: float,
    chunk: float = 0.0,
    console: Console | None = None,
) -> DelayReport:
    """Measure the delays of a decode folder and write them into its `score.json` as `delay`.

    Args:
        decode_dir: with `transcripts.jsonl`.
        ref_times: Lhotse cuts of the same utterances with word alignments.
        frame_shift, chunk: as of `emitted_words`.
        console: where a table is printed; None prints nothing.

    Raises:
        SpeechattnError: utterances differ, or the search emits nothing before an utterance ends.
    """
    from lhotse import CutSet

    folder = Path(decode_dir)
    search = read_search(folder)
    if search is not None and not (search.streams or search.needs_transducer):
        raise SpeechattnError(
            f"{folder}: {type(search).__name__} emits nothing before an utterance ends, so it has "
            "no emission delay; decode with CtcGreedySearch"
        )
    path = folder / "transcripts.jsonl"
    if not path.is_file():
        raise SpeechattnError(f"{path} is missing; `speechattn decode` writes it")
    with path.open(encoding="utf-8") as file:
        transcripts = [json.loads(line) for line in file]
    recognised = {t["id"]: emitted_words(t, frame_shift, chunk) for t in transcripts}
    report = emission_delay(reference_words(CutSet.from_file(ref_times)), recognised)
    scores = folder / "score.json"
    content = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else {}
    write_json(scores, {**content, "delay": report.to_dict()})
    if console is not None:
        report.render(console)
    return report
