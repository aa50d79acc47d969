"""What was said in a file, when and how surely; as text, JSON, subtitles or a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Format = Literal["txt", "json", "srt", "vtt", "tsv"]
FORMATS: tuple[Format, ...] = ("txt", "json", "srt", "vtt", "tsv")

# A subtitle is read in one glance: two short lines, a few seconds (the usual broadcast rules).
CUE_SECONDS = 6.0
CUE_CHARACTERS = 80
CUE_PAUSE = 1.0


@dataclass(frozen=True)
class Span:
    """A token or a word in time.

    Attributes:
        text: as written.
        start: seconds from the start of the file.
        end: seconds.
        confidence: 0 to 1, the mean CTC posterior, or of a search that keeps a lattice the share
            of its paths.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Alternative:
    """One reading that the search found.

    Attributes:
        text: what it says.
        score: what the search ranked by.
        scores: by scorer, before weighting, as in `speechattn.decoding.Hypothesis`.
    """

    text: str
    score: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Transcript:
    """One file's transcript.

    Attributes:
        id: the file's path, or the cut's id.
        text: what was said.
        tokens: the model's units in time.
        words: words in time; each Chinese character is one.
        confidence: mean of the tokens' confidences; 0 where there are none.
        duration: seconds of input.
        error: why there is no transcript, if there is none.
        nbest: the readings found, best first; as many as `search.nbest` asks for.
    """

    id: str
    text: str = ""
    tokens: list[Span] = field(default_factory=list)
    words: list[Span] = field(default_factory=list)
    confidence: float = 0.0
    duration: float = 0.0
    error: str | None = None
    nbest: list[Alternative] = field(default_factory=list)

    def __repr__(self) -> str:
        found = f"error={self.error!r}" if self.error is not None else repr(self.text)
        return (
            f"Transcript({self.id!r}, {found}, {self.duration:.2f} s, "
            f"confidence {self.confidence:.2f})"
        )


def format_transcripts(transcripts: Sequence[Transcript], kind: Format) -> str:
    """Render the transcripts of one or more files, without those that failed.

    `txt` is a line a file, with the path before it where there are several; `tsv` has a row a word;
    `json` is one object a line, with everything; subtitles of several files follow each other
    under a comment (`vtt`) or just follow each other (`srt`).
    """
    done = [t for t in transcripts if t.error is None]
    if kind == "json":
        return "".join(json.dumps(_rounded(asdict(t)), ensure_ascii=False) + "\n" for t in done)
    if kind == "txt":
        return "".join(
            f"{t.id}\t{t.text}\n" if len(transcripts) > 1 else f"{t.text}\n" for t in done
        )
    if kind == "tsv":
        rows = ["file\tstart\tend\tword\tconfidence"]
        rows += [
            f"{t.id}\t{w.start:.3f}\t{w.end:.3f}\t{w.text}\t{w.confidence:.3f}"
            for t in done
            for w in t.words
        ]
        return "\n".join(rows) + "\n"
    return _subtitles(done, kind, named=len(transcripts) > 1)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value


def cues(transcript: Transcript) -> list[Span]:
    """Group a transcript's words into subtitles."""
    text = transcript.text
    groups: list[list[Span]] = []
    for word in transcript.words:
        group = groups[-1] if groups else []
        characters = sum(len(w.text) + 1 for w in group) + len(word.text)
        if (
            not group
            or word.start - group[-1].end > CUE_PAUSE
            or word.end - group[0].start > CUE_SECONDS
            or characters > CUE_CHARACTERS
        ):
            groups.append([])
        groups[-1].append(word)
    spans = []
    position = 0
    for group in groups:
        # The transcript's own text between the words keeps its spacing, whatever the language.
        start = position = max(text.find(group[0].text, position), position)
        for word in group:
            position = max(text.find(word.text, position), position) + len(word.text)
        confidence = sum(w.confidence for w in group) / len(group)
        spans.append(Span(text[start:position], group[0].start, group[-1].end, confidence))
    return spans


def _subtitles(transcripts: Sequence[Transcript], kind: Format, named: bool) -> str:
    mark = "," if kind == "srt" else "."
    blocks = ["WEBVTT"] if kind == "vtt" else []
    number = 0
    for transcript in transcripts:
        if named and kind == "vtt":
            blocks.append(f"NOTE {transcript.id}")
        for cue in cues(transcript):
            number += 1
            head = f"{number}\n" if kind == "srt" else ""
            times = f"{_clock(cue.start, mark)} --> {_clock(cue.end, mark)}"
            blocks.append(f"{head}{times}\n{cue.text}")
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    seconds, milliseconds = divmod(rest, 1000)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{milliseconds:03}"
