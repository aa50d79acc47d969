"""Utterances into validated Lhotse manifests, shared by every `prepare_<corpus>`.

A corpus module lists `Utterance`s and `Failure`s; `write_manifests` reads each file once, in
worker threads, and writes into `output_dir`

    recordings.jsonl.gz  supervisions.jsonl.gz  cuts_<split>.jsonl.gz   Lhotse, lazily readable
    audio/<id>.flac      16 kHz mono, of every file that is not a plain one-channel audio file
    failures.tsv         file, line, reason of everything that was left out (only a header: none),
                         and of what was kept with a fault: then the reason starts with "kept:"
    summary.json         utterances, hours, speakers and silent clips of each split
    .facts.jsonl         length, rate and so on of each file: a re-run skips these files

Rules. Cut id = recording id = supervision id. A one-channel file that libsndfile reads (WAV, FLAC,
MP3, ...) is pointed at where it lies, whatever its rate; anything else (video, several channels,
AAC) is extracted once. Cuts of a video carry `video` (absolute path), `video_fps` and
`video_frames` as the file states them, before any resampling. A video without sound gets a
recording of digital silence of its length, so that every Lhotse operation works on its cut; it is
marked by `has_audio: False`, which is True on all other cuts. A corpus that keeps the sound of a
video in a file of its own names both.
"""

import json
import logging
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from speechattn.data.corpora.media import MediaFacts, is_current, read_media
from speechattn.data.corpora.report import Failure, read_summary, write_failures, write_summary
from speechattn.errors import SpeechattnError
from speechattn.files import replacing

if TYPE_CHECKING:
    from lhotse import MonoCut

log = logging.getLogger(__name__)

SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FACTS = ".facts.jsonl"


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip of a corpus, before its file was opened."""

    id: str  # unique in the corpus; names the cut, the recording and the stored crop
    path: Path  # the audio or video file
    speaker: str  # who speaks
    split: str  # names the CutSet it goes to
    text: str  # what is said
    language: str | None = None  # code of the language, if known
    landmarks: Path | None = None  # precomputed face landmarks (.npz, .npy) of a video
    words: tuple[tuple[str, float, float], ...] = ()  # (word, start, duration) in seconds, if known
    custom: dict[str, str] = field(default_factory=dict)  # further fields of the cut
    line: int | None = None  # line of the corpus table that it comes from
    sound: Path | None = None  # the sound of a video, where it is not (only) in the video
    remarks: tuple[str, ...] = ()  # faults that are known and do not keep it from being used


def utterance_id(speaker: str, name: str) -> str:
    """Make `s1_bbas2p` of `s1` and `bbas2p`; fit for a file name, and speaker first as in Kaldi."""
    name = name if name.startswith(f"{speaker}_") else f"{speaker}_{name}"
    return re.sub(r"[^\w.-]", "_", name)


def drop_repeated(utterances: Sequence[Utterance]) -> tuple[list[Utterance], list[Failure]]:
    """Keep the first utterance of each id; the others become failures."""
    first: dict[str, Utterance] = {}
    failures = []
    for utterance in utterances:
        if (kept := first.setdefault(utterance.id, utterance)) is not utterance:
            reason = f"id {utterance.id} is that of {kept.path} too"
            failures.append(Failure(str(utterance.path), utterance.line, reason))
    return list(first.values()), failures


def write_manifests(
    utterances: Sequence[Utterance],
    output_dir: str | Path,
    failures: Iterable[Failure] = (),
    *,
    workers: int = 2,
    verify: bool = True,
    unions: Mapping[str, Sequence[str]] | None = None,
    fps: float | None = None,
) -> dict[str, Path]:
    """Read every file, extract sound where needed, and write the manifests.

    Interrupted or repeated, it goes on with the files not yet done; files that failed are tried
    again, and files that changed (size or time) are read again.

    Args:
        utterances: with unique ids, in the order wanted.
        output_dir: created if missing.
        failures: what the corpus module itself left out, for the list.
        workers: threads; decoding runs outside the interpreter's lock.
        verify: decode audio files to the end, so that a damaged one fails here and not in training.
        unions: further splits, each made of all cuts of some others.
        fps: rate that the corpus' videos should have. Another one gets a remark; one that is under
            a fifth of it or over five times as high cannot be true, and the clip is left out.

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
    failures += unread + _check(utterances, facts, fps)
    write_failures(failures, output_dir / "failures.tsv")
    if not facts:
        lost = [failure for failure in failures if not failure.kept]
        first = f"; the first: {lost[0].file}: {lost[0].reason}" if lost else ""
        listed = f"{len(lost)} failures, listed in {output_dir / 'failures.tsv'}"
        raise SpeechattnError(f"nothing could be prepared ({listed}){first}")
    usable = [u for u in utterances if u.id in facts]
    paths = _write_lhotse(usable, facts, output_dir)
    splits = {name: [name] for name in paths}
    for name, parts in (unions or {}).items():
        if present := [paths[part] for part in parts if part in splits]:
            paths[name] = _join(present, output_dir / f"cuts_{name}.jsonl.gz")
            splits[name] = list(parts)
    _remove_old(paths, output_dir)
    write_summary(_rows(usable, facts, splits), failures, output_dir)
    return paths


def _rows(
    utterances: Sequence[Utterance], facts: dict[str, MediaFacts], splits: dict[str, list[str]]
) -> dict[str, list[tuple[str, MediaFacts]]]:
    """Collect speaker and facts of the cuts of each split."""
    rows: dict[str, list[tuple[str, MediaFacts]]] = defaultdict(list)
    for utterance in utterances:
        rows[utterance.split].append((utterance.speaker, facts[utterance.id]))
    return {name: [row for part in parts for row in rows[part]] for name, parts in splits.items()}


# ------------------------------------------------------------------------------- reading files


def _read_all(
    utterances: Sequence[Utterance], output_dir: Path, workers: int, verify: bool
) -> tuple[dict[str, MediaFacts], list[Failure]]:
    """Read all files: facts by utterance id, and failures in the order of the corpus."""
    known = _load_facts(output_dir / _FACTS)
    facts = {u.id: known[u.id] for u in utterances if is_current(known.get(u.id), u.path, u.sound)}
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
        rest, running = iter(todo), {}
        try:
            while True:
                # A bounded number of jobs: half a million of them would take memory for nothing.
                for u in islice(rest, 16 * workers - len(running)):
                    flac = output_dir / "audio" / f"{u.id}.flac"
                    running[pool.submit(read_media, u.path, flac, verify, u.sound)] = u
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    utterance, result = running.pop(future), future.result()
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
    return facts, [Failure(str(u.path), u.line, reasons[u.id]) for u in todo if u.id in reasons]


def _check(
    utterances: Sequence[Utterance], facts: dict[str, MediaFacts], fps: float | None
) -> list[Failure]:
    """List faults of files that could be read; what cannot be used is taken out of `facts`."""
    failures = []
    for utterance in utterances:
        if (known := facts.get(utterance.id)) is None:
            continue
        name, line = str(utterance.path), utterance.line
        remarks = [*utterance.remarks, *filter(None, [known.remark])]
        rate = known.video_fps
        if fps is not None and rate is not None and abs(rate - fps) > 0.005 * fps:
            if not fps / 5 <= rate <= fps * 5:
                failures.append(Failure(name, line, f"wrong frame rate: {rate:g} a second"))
                del facts[utterance.id]
                continue
            remarks.append(f"{rate:g} frames a second, not {fps:g}: read by their time stamps")
        if remarks:
            failures.append(Failure(name, line, "kept: " + "; ".join(remarks), kept=True))
    return failures


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


def _to_cut(utterance: Utterance, facts: MediaFacts) -> "MonoCut":
    """Make the validated cut, with its recording and its supervision inside."""
    from lhotse import MonoCut, Recording, SupervisionSegment, validate
    from lhotse.audio import AudioSource
    from lhotse.supervision import AlignmentItem

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
    common = {"id": utterance.id, "start": 0.0, "duration": recording.duration, "channel": 0}
    supervision = SupervisionSegment(
        **common,
        recording_id=utterance.id,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        alignment={"word": words} if words else None,
    )
    custom: dict = {**utterance.custom, "has_audio": facts.has_audio}
    if facts.video_frames is not None:
        custom |= {"video": facts.path, "video_fps": facts.video_fps}
        custom["video_frames"] = facts.video_frames
    if utterance.landmarks is not None:
        custom["landmarks"] = str(utterance.landmarks)
    cut = MonoCut(**common, supervisions=[supervision], recording=recording, custom=custom)
    validate(cut)
    return cut


def _write_lhotse(
    utterances: Sequence[Utterance], facts: dict[str, MediaFacts], output_dir: Path
) -> dict[str, Path]:
    """Write all manifests in one pass; files get their names when all of them are complete."""
    from lhotse import CutSet, RecordingSet, SupervisionSet

    kinds = {"recordings": RecordingSet, "supervisions": SupervisionSet}
    splits = list(dict.fromkeys(u.split for u in utterances))
    kinds |= {f"cuts_{split}": CutSet for split in splits}
    with ExitStack() as stack:
        parts = {n: stack.enter_context(replacing(output_dir / f"{n}.jsonl.gz")) for n in kinds}
        writers = {n: stack.enter_context(k.open_writer(parts[n])) for n, k in kinds.items()}
        for utterance in utterances:
            cut = _to_cut(utterance, facts[utterance.id])
            writers["recordings"].write(cut.recording)
            writers["supervisions"].write(cut.supervisions[0])
            writers[f"cuts_{utterance.split}"].write(cut)
    return {split: output_dir / f"cuts_{split}.jsonl.gz" for split in splits}


def _join(parts: Sequence[Path], path: Path) -> Path:
    """Join CutSets into one: gzip members may follow each other."""
    with replacing(path) as whole, open(whole, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out)
    return path


def _remove_old(paths: dict[str, Path], output_dir: Path) -> None:
    """Remove splits of an earlier run that this one lacks: they would be taken for its own."""
    try:
        old = read_summary(output_dir)["splits"]
    except (OSError, ValueError, KeyError):
        return
    for name in set(old) - set(paths):
        (output_dir / f"cuts_{name}.jsonl.gz").unlink(missing_ok=True)
