"""Utterances into validated Lhotse manifests: the part that every `prepare_<corpus>` shares.

A corpus module lists `Utterance`s and `Failure`s; `write_manifests` reads each file once, in
worker threads, and writes into `output_dir`

    recordings.jsonl.gz  supervisions.jsonl.gz  cuts_<split>.jsonl.gz   Lhotse, lazily readable
    audio/<id>.flac      16 kHz mono, of every file that is not a plain one-channel audio file
    failures.tsv         file, line, reason of everything that was left out (only a header: none)
    summary.json         utterances, hours, speakers and silent clips of each split
    .facts.jsonl         what was learnt of each file: a re-run skips the files listed in it

Rules. Cut id = recording id = supervision id. A one-channel file that libsndfile reads (WAV, FLAC,
MP3, ...) is pointed at where it lies, whatever its rate; anything else (video, several channels,
AAC) is extracted once. Cuts of a video carry `video` (absolute path), `video_fps` and
`video_frames` as the file states them, before any resampling. A video without sound gets a
recording of digital silence of its length, so that every Lhotse operation works on its cut; it is
marked by `has_audio: False`, which is True on all other cuts.
"""

import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lhotse import CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse import validate as lhotse_validate
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from speechattn.data.corpora.media import MediaFacts, is_current, read_media
from speechattn.errors import SpeechattnError

log = logging.getLogger(__name__)

SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FACTS = ".facts.jsonl"


@dataclass(frozen=True)
class Utterance:
    """One clip of a corpus, before its file was opened.

    Attributes:
        id: unique in the corpus; names the cut, the recording and the stored crop.
        path: the audio or video file.
        speaker: who speaks.
        split: names the CutSet it goes to.
        text: what is said.
        language: code of the language, if known.
        landmarks: precomputed face landmarks (.npz, .npy) of a video.
        words: (word, start, duration) in seconds, if the corpus is aligned.
        custom: further fields of the cut.
        line: line of the corpus table that it comes from.
    """

    id: str
    path: Path
    speaker: str
    split: str
    text: str
    language: str | None = None
    landmarks: Path | None = None
    words: tuple[tuple[str, float, float], ...] = ()
    custom: dict[str, str] = field(default_factory=dict)
    line: int | None = None


@dataclass(frozen=True)
class Failure:
    """Something of a corpus that was left out: a file as the corpus names it, a line, a reason."""

    file: str
    line: int | None
    reason: str


def utterance_id(speaker: str, name: str) -> str:
    """`s1` and `bbas2p` make `s1_bbas2p`; fit for a file name, and speaker first as in Kaldi."""
    name = name if name.startswith(f"{speaker}_") else f"{speaker}_{name}"
    return re.sub(r"[^\w.-]", "_", name)


def write_manifests(
    utterances: Sequence[Utterance],
    output_dir: str | Path,
    failures: Iterable[Failure] = (),
    workers: int = 2,
    verify: bool = True,
) -> dict[str, Path]:
    """Reads every file, extracts sound where needed, and writes the manifests.

    Interrupted or repeated, it goes on with the files not yet done; files that failed are tried
    again, and files that changed (size or time) are read again.

    Args:
        utterances: with unique ids, in the order wanted.
        output_dir: created if missing.
        failures: what the corpus module itself left out, for the list.
        workers: threads; decoding runs outside the interpreter's lock.
        verify: decode audio files to the end, so that a damaged one fails here and not in training.

    Returns:
        Split name to the path of its CutSet.

    Raises:
        SpeechattnError: nothing could be used, or ids are not unique.
    """
    output_dir = Path(os.path.abspath(output_dir))
    (output_dir / "audio").mkdir(parents=True, exist_ok=True)
    failures = list(failures)
    if repeated := [i for i, n in Counter(u.id for u in utterances).items() if n > 1]:
        raise SpeechattnError(f"utterance ids are not unique: {', '.join(repeated[:5])}")
    facts, unread = _read_all(utterances, output_dir, workers, verify)
    failures += unread
    _write_failures(failures, output_dir / "failures.tsv")
    if not facts:
        first = f"; the first: {failures[0].file}: {failures[0].reason}" if failures else ""
        raise SpeechattnError(
            f"nothing could be prepared ({len(failures)} failures, listed in "
            f"{output_dir / 'failures.tsv'}){first}"
        )
    usable = [u for u in utterances if u.id in facts]
    paths = _write_lhotse(usable, facts, output_dir)
    _write_summary(usable, facts, failures, output_dir)
    return paths


def read_summary(output_dir: str | Path) -> dict:
    """The counts of a prepared corpus.

    Returns:
        `{"splits": {name: {"utterances", "hours", "speakers", "silent"}}, "failures": int}`.
    """
    return json.loads((Path(output_dir) / "summary.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------- reading files


def _read_all(
    utterances: Sequence[Utterance], output_dir: Path, workers: int, verify: bool
) -> tuple[dict[str, MediaFacts], list[Failure]]:
    """Facts by utterance id, and the files that could not be read, in the order of the corpus."""
    known = _load_facts(output_dir / _FACTS)
    facts = {u.id: known[u.id] for u in utterances if is_current(known.get(u.id), u.path)}
    todo = [u for u in utterances if u.id not in facts]
    if facts:
        log.info("%d of %d files were read before", len(facts), len(utterances))
    if not todo:
        return facts, []
    reasons: dict[str, str] = {}
    columns = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn()]
    with (
        open(output_dir / _FACTS, "a", encoding="utf-8") as journal,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        journal.write("\n")  # ends the line that a killed run may have left half-written
        bar = progress.add_task("reading media", total=len(todo))
        flac = {u.id: output_dir / "audio" / f"{u.id}.flac" for u in todo}
        futures = {pool.submit(read_media, u.path, flac[u.id], verify): u for u in todo}
        try:
            for future in as_completed(futures):
                utterance, result = futures[future], future.result()
                if isinstance(result, MediaFacts):
                    facts[utterance.id] = result
                    entry = {"id": utterance.id, **asdict(result)}
                    journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
                    journal.flush()
                else:
                    reasons[utterance.id] = result
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = [Failure(str(u.path), u.line, reasons[u.id]) for u in todo if u.id in reasons]
    return facts, failed


def _load_facts(path: Path) -> dict[str, MediaFacts]:
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
                name = entry.pop("id")
                known[name] = MediaFacts(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # an empty or torn line: that file is read again
    return known


# ------------------------------------------------------------------------------- Lhotse objects


def _to_cut(utterance: Utterance, facts: MediaFacts) -> MonoCut:
    """The validated cut, with its recording and its supervision inside."""
    recording = Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=[0], source=facts.audio)],
        sampling_rate=facts.sample_rate,
        num_samples=facts.num_samples,
        duration=facts.num_samples / facts.sample_rate,
        channel_ids=[0],
    )
    words = [
        AlignmentItem(word, start, round(min(length, recording.duration - start), 6))
        for word, start, length in utterance.words
        if start < recording.duration
    ]
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        alignment={"word": words} if words else None,
    )
    custom: dict = {**utterance.custom, "has_audio": facts.has_audio}
    if facts.video_frames is not None:
        custom |= {
            "video": facts.path,
            "video_fps": facts.video_fps,
            "video_frames": facts.video_frames,
        }
    if utterance.landmarks is not None:
        custom["landmarks"] = str(utterance.landmarks)
    cut = MonoCut(
        id=utterance.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        supervisions=[supervision],
        recording=recording,
        custom=custom,
    )
    lhotse_validate(cut)
    return cut


def _write_lhotse(
    utterances: Sequence[Utterance], facts: dict[str, MediaFacts], output_dir: Path
) -> dict[str, Path]:
    """One pass over the utterances; files get their names when all of them are complete."""
    kinds = {"recordings": RecordingSet, "supervisions": SupervisionSet}
    splits = list(dict.fromkeys(u.split for u in utterances))
    kinds |= {f"cuts_{split}": CutSet for split in splits}
    written = {name: output_dir / f".{name}.part.jsonl.gz" for name in kinds}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(kind.open_writer(written[name]))
            for name, kind in kinds.items()
        }
        for utterance in utterances:
            cut = _to_cut(utterance, facts[utterance.id])
            writers["recordings"].write(cut.recording)
            writers["supervisions"].write(cut.supervisions[0])
            writers[f"cuts_{utterance.split}"].write(cut)
    for name, path in written.items():
        os.replace(path, output_dir / f"{name}.jsonl.gz")
    return {split: output_dir / f"cuts_{split}.jsonl.gz" for split in splits}


# ------------------------------------------------------------------------------- accounts


def _write_failures(failures: Sequence[Failure], path: Path) -> None:
    """The list is written even when empty: an old one would tell of faults long mended."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("file\tline\treason\n")
        for failure in failures:
            row = (failure.file, failure.line or "", " ".join(failure.reason.split()))
            file.write("\t".join(map(str, row)) + "\n")
    for failure in failures[:10]:
        where = f" (line {failure.line})" if failure.line else ""
        log.warning("left out %s%s: %s", failure.file, where, failure.reason)
    if failures:
        log.warning("%d left out; all of them are listed in %s", len(failures), path)


def _write_summary(
    utterances: Sequence[Utterance],
    facts: dict[str, MediaFacts],
    failures: Sequence[Failure],
    output_dir: Path,
) -> None:
    by_split: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_split[utterance.split].append(utterance)
    splits = dict(_split_counts(by_split, facts))
    summary = {"splits": splits, "failures": len(failures)}
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    (output_dir / "summary.json").write_text(text + "\n", encoding="utf-8")
    for name, counts in splits.items():
        log.info("%s: %s", name, ", ".join(f"{value} {key}" for key, value in counts.items()))


def _split_counts(
    by_split: dict[str, list[Utterance]], facts: dict[str, MediaFacts]
) -> Iterator[tuple[str, dict]]:
    for name, utterances in by_split.items():
        rows = [facts[u.id] for u in utterances]
        yield (
            name,
            {
                "utterances": len(utterances),
                "hours": round(sum(r.num_samples / r.sample_rate for r in rows) / 3600, 4),
                "speakers": len({u.speaker for u in utterances}),
                "silent": sum(not r.has_audio for r in rows),
            },
        )
