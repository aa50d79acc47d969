"""Emission delay: how long after a word was said a recogniser says it.

A word counts where it was recognised: where the alignment of the fewest errors matches it. It is
emitted when the frame in which its last token first appears has been heard to its end, and where
the encoder hears by chunks, when the last frame of the chunk has. From that moment

    end delay      to the end of the word in the reference: what a listener waits for (the mean end
                   delay of Yu et al., 2010.11395, who take the end of the token instead)
    start delay    from the start of the word to the moment its first token is emitted

Both may be below 0: a word can be known before it is over, and reference times are no truth. Those
that `speechattn align` finds are one frame a word, where its model is surest, so that `end` is then
counted from there: differences between two recognisers mean something, the figures alone do not.

Times of tokens are those of `transcripts.jsonl`, the first frame of a token on the best path. Of
`ctc_greedy` that path is what was emitted; of `ctc_beam` and `ctc_graph` it is the best path of
what won in the end. Searches with a decoder emit nothing before the utterance is over, and are
refused.
What a frame hears beyond its own end (subsampling, the window of the spectrum) is not counted.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kaldialign import align
from rich.console import Console
from rich.table import Table

from speechattn.errors import SpeechattnError
from speechattn.evaluation.bootstrap import BootstrapOptions, error_rate_interval
from speechattn.evaluation.score_files import write_json
from speechattn.evaluation.text import normalize

# Rounding of times that were written as decimals.
_SLACK = 1e-6
# Their words are there when the utterance is over.
_WHOLE = ("joint", "attention", "ctc_rescore")


@dataclass(frozen=True)
class Word:
    """A word in time.

    Attributes:
        text: normalised.
        start: seconds; of a recognised word, when its first token was emitted.
        end: seconds; of a recognised word, when its last token was emitted.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Delay:
    """Of some words, in milliseconds.

    Attributes:
        words: how many.
        mean: over them.
        p90: nine of ten words have less.
        ci_low, ci_high: interval of the mean, by the bootstrap over utterances.
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
        end: of all recognised words, to their ends.
        start: of the same, from their starts.
        first: end delay of the first word of each utterance, where it was recognised.
        last: of the last.
        reference_words: how many there were to be recognised.
    """

    end: Delay
    start: Delay
    first: Delay
    last: Delay
    reference_words: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        """Print a table."""
        table = Table(title=f"emission delay of {self.end.words} of {self.reference_words} words")
        for column in ("ms", "words", "mean", "CI", "90 %"):
            table.add_column(column, justify="left" if column == "ms" else "right")
        for name, text in (
            ("end", "after the reference's end of the word"),
            ("first", "of an utterance's first word"),
            ("last", "of its last"),
            ("start", "after its start of the word"),
        ):
            delay = getattr(self, name)
            mean, low, high, p90 = (
                "-" if x is None else f"{x:.0f}"
                for x in (delay.mean, delay.ci_low, delay.ci_high, delay.p90)
            )
            table.add_row(text, str(delay.words), mean, f"{low} to {high}", p90)
        console.print(table)


def emission_delay(
    references: Mapping[str, Sequence[Word]],
    recognised: Mapping[str, Sequence[Word]],
    bootstrap: BootstrapOptions | None = None,
) -> DelayReport:
    """Delays of the words that were recognised.

    Args:
        references: by utterance, its words in their order.
        recognised: likewise; an utterance that is missing has none.
        bootstrap: of the intervals; its `blocks` is not used, utterances are drawn.

    Raises:
        SpeechattnError: utterances were recognised that have no reference.
    """
    if extra := sorted(recognised.keys() - references.keys()):
        raise SpeechattnError(f"no reference times of {len(extra)} utterances, as of {extra[0]}")
    end, start, first, last = ([[] for _ in references] for _ in range(4))  # by utterance
    for row, (utterance, words) in enumerate(references.items()):
        for i, j in matches(words, recognised.get(utterance, ())):
            said, emitted = words[i], recognised[utterance][j]
            delay = emitted.end - said.end
            end[row].append(delay)
            start[row].append(emitted.start - said.start)
            if i == 0:
                first[row].append(delay)
            if i == len(words) - 1:
                last[row].append(delay)
    total = sum(len(words) for words in references.values())
    return DelayReport(*(_delay(x, bootstrap) for x in (end, start, first, last)), total)


def matches(references: Sequence[Word], recognised: Sequence[Word]) -> list[tuple[int, int]]:
    """Places (of the reference, of the recognised) of the words that an alignment matches."""
    pairs = align([w.text for w in references], [w.text for w in recognised], "")
    found, i, j = [], 0, 0
    for ref, hyp in pairs:
        if ref and ref == hyp:
            found.append((i, j))
        i, j = i + bool(ref), j + bool(hyp)
    return found


def _delay(seconds: list[list[float]], bootstrap: BootstrapOptions | None) -> Delay:
    """Of the words of each utterance."""
    every = [x for words in seconds for x in words]
    if not every:
        return Delay(0, None, None)
    ms = 1000.0 * np.asarray(every)
    # A mean is a ratio of sums as an error rate is, and is drawn like one.
    sums = 1000.0 * np.asarray([sum(words) for words in seconds])
    counts = np.asarray([len(words) for words in seconds])
    low, high = error_rate_interval(sums, counts, bootstrap) or (None, None)
    found = (float(ms.mean()), float(np.percentile(ms, 90)), low, high)
    return Delay(len(ms), *(None if x is None else round(x, 2) for x in found))


def emitted_words(
    transcript: Mapping[str, Any], frame_shift: float, chunk: float = 0.0
) -> list[Word]:
    """The words of a transcript (a line of `transcripts.jsonl`), at the moments of emission.

    Args:
        transcript: with `words` and `tokens` in time, as the search of CTC says them: a token is
            there from the frame on in which it first appears.
        frame_shift: seconds from one hidden frame to the next.
        chunk: seconds that the encoder hears at a time; 0 for frame by frame.
    """
    starts = [token["start"] for token in transcript["tokens"]]
    found = []
    for word in transcript["words"]:
        inside = [s for s in starts if word["start"] - _SLACK <= s < word["end"] - _SLACK]
        if not inside:
            continue
        first, last = (heard(s + frame_shift, chunk) for s in (min(inside), max(inside)))
        found.append(Word(normalize(word["text"]), first, last))
    return found


def heard(seconds: float, chunk: float) -> float:
    """When what ends then has been heard by an encoder that waits for whole chunks."""
    return seconds if not chunk else math.ceil(seconds / chunk - _SLACK) * chunk


def reference_words(cuts: Iterable[Any]) -> dict[str, list[Word]]:
    """Words in time of Lhotse cuts with alignments.

    Raises:
        SpeechattnError: a cut has none.
    """
    from speechattn.data.batches.timed import word_alignment

    found = {}
    for cut in cuts:
        words = word_alignment(cut)
        if words is None:
            raise SpeechattnError(
                f"{cut.id} does not say when its words were said: `speechattn align` adds it"
            )
        found[cut.id] = [Word(normalize(text), start, end) for text, start, end in words]
    return found


def score_delay(
    decode_dir: str | Path,
    ref_times: str | Path,
    frame_shift: float,
    chunk: float = 0.0,
    console: Console | None = None,
) -> DelayReport:
    """Delays of a decode folder; writes them into its `score.json`, as `delay`.

    Args:
        decode_dir: with `transcripts.jsonl`, and with `score.json` if it was scored.
        ref_times: Lhotse cuts of the same utterances with word alignments.
        frame_shift: seconds from one hidden frame to the next.
        chunk: seconds that the encoder hears at a time; 0 for frame by frame.
        console: where a table is printed; None prints nothing.

    Raises:
        SpeechattnError: the two do not belong together, or the search was none that emits.
    """
    from lhotse import CutSet

    folder = Path(decode_dir)
    options = folder / "options.yaml"
    method = (yaml.safe_load(options.read_text()) or {}).get("method") if options.exists() else None
    if method in _WHOLE:
        raise SpeechattnError(
            f"{options}: method {method} says nothing before an utterance is over, so that it has "
            "no emission delay; decode with ctc_greedy"
        )
    path = folder / "transcripts.jsonl"
    if not path.is_file():
        raise SpeechattnError(f"{path} is missing: `speechattn decode` writes it")
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
