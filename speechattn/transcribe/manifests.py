"""Decoding of a test set: hypotheses, references, and a close look at a few utterances."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml
from lhotse.cut import Cut
from rich.progress import track

from speechattn.data.augment import AddNoise, CenterCrop
from speechattn.data.batches.batch import Batch
from speechattn.data.batches.dataset import SpeechDataset, cut_text, read_cuts
from speechattn.data.batches.loader import TolerantDataset, collate_readable
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.crops.store import CropStore
from speechattn.data.tables import write_table
from speechattn.decoding import AlignmentError, surest_times
from speechattn.decoding.config import search_section
from speechattn.errors import SpeechattnError
from speechattn.files import write_text
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.timing import PartTimes

logger = logging.getLogger(__name__)

PARTIAL, SEARCH = "transcripts.jsonl", "search.yaml"


def decode_cuts(
    recogniser: Recogniser,
    cuts_path: str | Path,
    output: str | Path,
    *,
    crops: str | Path | None = None,
    noise: AddNoise | None = None,
    batch_seconds: float = 60.0,
    details: int = 6,
) -> Path:
    """Decode the cuts of a manifest into `output`.

    Writes `hyp.tsv`, `ref.tsv` (with speakers, if all are known), `transcripts.jsonl` (tokens and
    words in time, n-best with scores), `timing.json` (real-time factor by part, of what this run
    decoded) and `details/<id>.npz` (posteriors, cross-attention, crops) for a few utterances
    spread over the set. A run that was interrupted goes on with the utterances that are missing.
    Utterances that cannot be read have an empty text, and a line in `failures.tsv` that says why;
    the next run tries them again.

    Args:
        recogniser: the model and its search.
        cuts_path: Lhotse cuts.
        output: a folder.
        crops: folder of mouth crops, for a model of lips.
        noise: mixed into every utterance, the same way each time.
        batch_seconds: cap on a batch's padded size, in seconds.
        details: how many utterances are looked at closely.

    Returns:
        The path of `hyp.tsv`.

    Raises:
        SpeechattnError: none of them can be read.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    model = recogniser.model
    store = CropStore(crops) if crops is not None else None
    cuts = read_cuts(cuts_path, model.modalities, store)
    start_anew_if_changed(output, recogniser)
    done = read_partial(output / PARTIAL)
    left = [cut for cut in cuts if cut.id not in done]
    failed: list[str] = []
    if len(left) < len(cuts):
        logger.info("%s: %d of %d decoded before", output, len(cuts) - len(left), len(cuts))
    details = min(details, len(cuts))
    chosen = {cuts[i * len(cuts) // details].id for i in range(details)}
    if left:
        (output / "details").mkdir(exist_ok=True)
        with (output / PARTIAL).open("a", encoding="utf-8") as file:
            batches = CutBatches(recogniser, left, store, noise, batch_seconds)
            batches = iter(track(batches, description=f"decode {output.name}"))
            while (batch := timed_next(batches, recogniser.times)) is not None:
                for reason in batch.failed:
                    logger.warning("cannot be read, its text is empty: %s", reason)
                failed += batch.failed
                if not len(batch):
                    continue
                found = recogniser.recognise(batch)
                # Before the transcripts: what has one is not decoded again.
                for i, transcript in enumerate(found):
                    if transcript.id in chosen:
                        write_details(output / "details", recogniser, batch, i, transcript.text)
                for transcript in found:
                    done[transcript.id] = transcript.text
                    file.write(json.dumps(asdict(transcript), ensure_ascii=False) + "\n")
                file.flush()
        write_timing(output / "timing.json", recogniser.times)
        reducer = getattr(model, "frame_reducer", None)
        if reducer is not None and recogniser.search.needs_transducer:
            logger.info("the transducer read %.1f %% of the frames", 100 * reducer.share())
    if cuts and not done:
        raise SpeechattnError(f"{cuts_path}: no utterance can be read; the first: {failed[0]}")
    write_failures(output / "failures.tsv", failed)
    speakers = {cut.id: cut.supervisions[0].speaker for cut in cuts if cut.supervisions}
    known = len(speakers) == len(cuts) and all(speakers.values())
    texts = {cut.id: cut_text(cut) for cut in cuts}
    write_table(output / "ref.tsv", texts, speakers if known else None)
    write_table(output / "hyp.tsv", {cut.id: done.get(cut.id, "") for cut in cuts})
    return output / "hyp.tsv"


def start_anew_if_changed(output: Path, recogniser: Recogniser) -> None:
    """Write the search and its sources; drop what an earlier run decoded otherwise."""
    search = yaml.safe_dump(search_section(recogniser.search), sort_keys=False)
    sources = json.dumps(recogniser.fusion.sources, indent=2)
    for path, content, what in (
        (output / SEARCH, search, "another search"),
        (output / "fusion.json", sources, "other language models or hot words"),
    ):
        if path.exists() and path.read_text(encoding="utf-8") != content:
            logger.warning("%s was decoded with %s: starting anew", output, what)
            (output / PARTIAL).unlink(missing_ok=True)
        write_text(path, content)


def write_failures(path: Path, failed: Sequence[str]) -> None:
    """Write what cannot be read, `id: reason`, as a table; no file where there is none."""
    path.unlink(missing_ok=True)
    if failed:
        lines = ["utterance\treason\n"]
        lines += ["\t".join(" ".join(text.split()).split(": ", 1)) + "\n" for text in failed]
        path.write_text("".join(lines), encoding="utf-8")


def timed_next(batches: Iterator[Batch], times: PartTimes) -> Batch | None:
    """Return the next batch, the time to load it counted; None behind the last."""
    with times.of("load"):
        return next(batches, None)


def write_timing(path: Path, times: PartTimes) -> None:
    """Write and log where the time went."""
    logger.info("%s", times)
    content = {
        "input_seconds": times.input_seconds,
        "seconds": times.seconds,
        "real_time_factor": times.factors(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class CutBatches:
    """Batches of cuts as a model is tested with them, each loaded when it is asked for.

    What cannot be read is left out of its batch, which says so (`Batch.failed`) and may be empty.

    Args:
        recogniser: the model that will read them.
        cuts: the utterances, those of about the same length together.
        store: mouth crops, for a model of lips.
        noise: mixed into every utterance, the same way each time.
        batch_seconds: cap on a batch's padded size, in seconds.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        cuts: Sequence[Cut],
        store: CropStore | None = None,
        noise: AddNoise | None = None,
        batch_seconds: float = 60.0,
    ):
        model = recogniser.model
        self.dataset = TolerantDataset(
            SpeechDataset(
                cuts,
                recogniser.tokenizer,
                model.modalities,
                store,
                audio_transforms=[noise] if noise is not None else (),
                video_transforms=[CenterCrop(model.crop_size)],
                sample_rate=model.sample_rate,
            )
        )
        durations = np.array([cut.duration for cut in cuts])
        self.indices = list(PaddedFrameBatches(durations, batch_seconds, shuffle=False))

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.indices:
            yield collate_readable([self.dataset[i] for i in indices])


def read_partial(path: Path) -> dict[str, str]:
    """Read the texts that an earlier run decoded, by id; drop a line that was cut short."""
    texts: dict[str, str] = {}
    if not path.exists():
        return texts
    # As bytes: the end may be half a character, and a text may hold U+2028 and its like.
    *lines, _ = path.read_bytes().split(b"\n")
    for line in lines:
        transcript = json.loads(line)
        texts[transcript["id"]] = transcript["text"]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return texts


@torch.inference_mode()
def write_details(folder: Path, recogniser: Recogniser, batch: Batch, i: int, text: str) -> None:
    """Save what the model saw in one utterance, for the report; of several, the surest one."""
    tokenizer = recogniser.tokenizer
    one = single(batch, i).to(recogniser.device)
    with recogniser.times.paused():
        outputs = recogniser.model.outputs(
            one.audio, one.audio_lengths, one.video, one.video_lengths
        )
    tokens = tokenizer.encode(text)
    try:
        shown, _ = surest_times(outputs, 0, tokens)
    except AlignmentError:
        shown = outputs[0]
    content = {
        "ctc": shown.log_probs[0].exp().half().cpu().numpy(),
        "tokens": np.array([tokenizer.tokens[t] for t in tokens]),
        "frame_shift": shown.frame_shift,
        "text": text,
        "reference": batch.texts[i],
    }
    # The decoder of exported graphs tells no attention weights.
    if shown.decoder is not None and getattr(shown.decoder, "scores_sequences", True):
        inputs = torch.tensor([[tokenizer.sos_eos_id, *tokens]], device=recogniser.device)
        count = torch.tensor([inputs.shape[1]], device=recogniser.device)
        attention = shown.decoder.cross_attention(inputs, count, shown.hidden, shown.lengths)
        content["cross_attention"] = attention[:, 0].half().cpu().numpy()
    if one.video is not None:
        content["crops"] = one.video[0, :, 0].cpu().numpy()
    np.savez_compressed(folder / f"{batch.ids[i]}.npz", **content)


def single(batch: Batch, i: int) -> Batch:
    """Return the i-th item as a batch of its own, without padding."""
    n = int(batch.token_lengths[i])
    one = Batch(
        [batch.ids[i]],
        [batch.texts[i]],
        batch.tokens[i : i + 1, :n],
        batch.token_lengths[i : i + 1],
    )
    if batch.audio is not None:
        one.audio_lengths = batch.audio_lengths[i : i + 1]
        one.audio = batch.audio[i : i + 1, : int(one.audio_lengths)]
    if batch.video is not None:
        one.video_lengths = batch.video_lengths[i : i + 1]
        one.video = batch.video[i : i + 1, : int(one.video_lengths)]
    return one
