"""The commands that turn recordings into text."""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from speechattn.cli.common import AllowInModel, Crops, Noise, check_device
from speechattn.errors import ConfigError, SpeechattnError


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Model and search."""

    model: Annotated[Path, "model directory"]
    search: Annotated[
        str | None,
        "class of the search, such as CtcBeamSearch, or a YAML file with a section `search` "
        "(default: the model's)",
    ] = None
    overrides: Annotated[
        tuple[str, ...],
        "change an option of the search, e.g. --set beam_size=20; may be repeated",
        "--set",
        "KEY=VALUE",
    ] = ()
    ngram: Annotated[Path | None, "ARPA file of the model's units; set ngram_weight"] = None
    lm: Annotated[
        Path | None, "directory of a Transformer language model; set lm_weight or lm_rescore_weight"
    ] = None
    hot_words: Annotated[
        Path | None, "text file with a phrase a line, a score behind a tab; set hot_words_weight"
    ] = None
    graph: Annotated[
        Path | None, "folder that `speechattn graph` made; for --search GraphSearch"
    ] = None
    graph_ngram: Annotated[
        Path | None, "larger ARPA file of the graph's words; set ngram_weight"
    ] = None
    allow: AllowInModel = ()
    device: Annotated[str, "cpu, cuda (or gpu), cuda:1 or mps"] = "cpu"
    precision: Annotated[
        Literal["fp32", "mixed", "bf16"],
        "arithmetic of the visual frontend on a CPU; mixed and bf16 are faster and may change "
        "a text",
    ] = "fp32"
    quantize: Annotated[
        Literal["int8", "bf16"] | None,
        "arithmetic of the large linear layers on a CPU; faster, may change a text (default: "
        "float32)",
    ] = None
    threads: Annotated[int | None, "CPU threads (default: one a core)"] = None

    def load(self):
        """Return the transcriber that these options describe."""
        device = check_device(self.device)
        import torch

        from speechattn.decoding.config import chosen_search
        from speechattn.model.directory import read_config
        from speechattn.transcribe.transcriber import Transcriber

        if self.threads is not None:
            if self.threads < 1:
                raise ConfigError(f"--threads {self.threads}: at least 1")
            torch.set_num_threads(self.threads)
        search = chosen_search(
            read_config(self.model),
            search=self.search,
            overrides=self.overrides,
            allow=self.allow,
            where=self.model,
        )
        names = "allow precision quantize lm ngram hot_words graph graph_ngram".split()
        options = {name: getattr(self, name) for name in names}
        return Transcriber.from_pretrained(self.model, search=search, device=device, **options)


def transcribe(
    recognition: Recognition,
    files: Annotated[tuple[str, ...], "face videos, mouth crops or sound"],
    *,
    format: Annotated[
        Literal["txt", "json", "srt", "vtt", "tsv"], "format of the transcripts"
    ] = "txt",
    output_dir: Annotated[
        Path | None, "folder for one transcript a file (default: all to standard output)"
    ] = None,
    batch_size: Annotated[int, "files recognised together"] = 8,
) -> int:
    """Transcribe media files."""
    from rich.console import Console
    from rich.progress import Progress

    from speechattn.transcribe.transcript import format_transcripts

    if output_dir is not None:
        names = Counter(Path(file).name for file in files)
        if twice := [name for name, n in names.items() if n > 1]:
            raise SpeechattnError(
                f"--output-dir: several files are called {twice[0]}, and one transcript would "
                "overwrite the other"
            )
    transcriber = recognition.load()
    transcripts = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("transcribe", total=len(files))
        for start in range(0, len(files), batch_size):
            some = files[start : start + batch_size]
            transcripts += transcriber.transcribe(list(some), batch_size=batch_size)
            progress.advance(task, len(some))
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        for transcript in transcripts:
            if transcript.error is None:
                path = output_dir / f"{Path(transcript.id).name}.{format}"
                path.write_text(format_transcripts([transcript], format), encoding="utf-8")
    else:
        sys.stdout.write(format_transcripts(transcripts, format))
    failed = [t for t in transcripts if t.error is not None]
    for transcript in failed:
        print(f"speechattn transcribe: {transcript.error}", file=sys.stderr)
    return 1 if failed else 0


def stream(
    recognition: Recognition,
    file: Annotated[
        str,
        "media file, or - for raw sound on standard input: 16 bits, little-endian, mono, at "
        "the model's rate",
    ] = "-",
    *,
    format: Annotated[
        Literal["txt", "json"], "words with their times, or a JSON object an update"
    ] = "txt",
    live: Annotated[bool, "read a file no faster than it plays"] = False,
    chunk_size: Annotated[int | None, "hidden frames of a chunk (default: the model's)"] = None,
    left_context: Annotated[
        int | None, "hidden frames before a chunk, -1 for all (default: the model's)"
    ] = None,
    endpoint: Annotated[float, "seconds of silence that end an utterance, 0 for never"] = 0.0,
) -> None:
    """Recognise a file, or sound from a pipe, while it arrives."""
    from speechattn.data.reader import in_real_time, pieces_of_pipe
    from speechattn.transcribe.streaming.session import StreamOptions

    transcriber = recognition.load()
    reader = transcriber.recogniser.reader
    if file != "-":
        pieces = in_real_time(reader.pieces(file)) if live else reader.pieces(file)
    elif reader.uses_video:
        raise ConfigError("a pipe carries sound alone, and this model reads lips: give a file")
    else:
        pieces = pieces_of_pipe(sys.stdin.buffer, reader.sample_rate)
    options = StreamOptions(chunk_size, left_context, endpoint_seconds=endpoint)
    for update in transcriber.stream(pieces, options):
        if format == "json":
            print(json.dumps(asdict(update), ensure_ascii=False), flush=True)
            continue
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        for word in update.final:
            print(f"{word.start:.2f}\t{word.end:.2f}\t{word.text}", flush=True)
        if sys.stderr.isatty():
            said = " ".join(word.text for word in update.partial)
            print(said, end="", file=sys.stderr, flush=True)


def decode(
    recognition: Recognition,
    *,
    cuts: Annotated[Path, "Lhotse cuts"],
    output: Annotated[Path, "decode folder to make"],
    noise: Noise,
    crops: Crops = None,
    batch_seconds: Annotated[float, "seconds of a padded batch at most"] = 60.0,
    details: Annotated[
        int, "number of utterances whose posteriors and attention are kept for the report"
    ] = 6,
    profile: Annotated[bool, "print which operators took the time"] = False,
) -> None:
    """Recognise the utterances of a manifest."""
    from speechattn.transcribe.manifests import decode_cuts
    from speechattn.transcribe.timing import profiled

    with profiled(profile):
        decode_cuts(
            recognition.load().recogniser,
            cuts,
            output,
            crops=crops,
            noise=noise.load(),
            batch_seconds=batch_seconds,
            details=details,
        )
