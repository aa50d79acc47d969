"""Transcriber: a trained model directory and files in, transcripts out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch

from speechattn.config import build
from speechattn.data.batches.batch import Item, collate
from speechattn.data.crops.roi import RoiOptions
from speechattn.data.long_form import LongFormOptions
from speechattn.data.reader import MediaSource, Piece, Source, is_media_content
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import Search
from speechattn.decoding.config import search_of
from speechattn.decoding.fusion import read_fusion
from speechattn.deploy.exported import is_exported, load_exported
from speechattn.deploy.inference import Precision, Scheme, prepare
from speechattn.errors import MediaError
from speechattn.model.directory import load_model, read_config
from speechattn.transcribe.long_files import transcribe_long
from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.streaming.session import StreamingSession, StreamOptions, StreamUpdate
from speechattn.transcribe.transcript import Transcript


class Transcriber:
    """Turns files, arrays and live sources into transcripts with one trained model.

    Args:
        recogniser: the model, its units and the search.
        long_form: how long files are cut into windows.
    """

    def __init__(self, recogniser: Recogniser, long_form: LongFormOptions | None = None):
        self.recogniser = recogniser
        self.long_form = long_form or LongFormOptions()

    def __repr__(self) -> str:
        return f"Transcriber({self.recogniser!r})"

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        search: Search | None = None,
        device: str | torch.device = "cpu",
        allow: Iterable[str] = (),
        precision: Precision = "fp32",
        quantize: Scheme | None = None,
        lm: str | Path | None = None,
        ngram: str | Path | None = None,
        hot_words: str | Path | None = None,
        graph: str | Path | None = None,
        graph_ngram: str | Path | None = None,
    ) -> "Transcriber":
        """Read a model directory, or what `speechattn export` made of one.

        Args:
            folder: with config.yaml, model.safetensors or ONNX graphs, and the tokenizer's files.
            search: instead of the one in config.yaml.
            device: where the model runs.
            allow: packages beside this one whose classes config.yaml may name.
            precision: of the visual frontend on a CPU: 'fp32', or the faster 'mixed' and 'bf16',
                which round more, so that a text may come out differently.
            quantize: of the large linear layers on a CPU: 'int8' or 'bf16', which are faster and
                round more; None for float32.
            lm: directory of a Transformer language model of the model's units (`lm_weight`,
                `lm_rescore_weight`).
            ngram: ARPA file of an n-gram model of the model's units (`ngram_weight`).
            hot_words: file of phrases, one a line (`hot_words_weight`).
            graph: folder of a decoding graph (`GraphSearch`).
            graph_ngram: ARPA file of a larger n-gram model of the graph's words.

        Raises:
            ConfigError: the directory is not whole, or names what it may not.
        """
        config = read_config(folder)
        tokenizer = Tokenizer.load(folder)
        fusion = read_fusion(
            tokenizer,
            lm=lm,
            ngram=ngram,
            hot_words=hot_words,
            graph=graph,
            graph_ngram=graph_ngram,
        )
        model = (load_exported if is_exported(folder) else load_model)(folder, allow)
        recogniser = Recogniser(
            prepare(model, precision=precision, quantize=quantize, device=device),
            tokenizer,
            search or search_of(config, allow, where=folder),
            fusion,
            roi=build(RoiOptions, config.get("roi", {}), "roi"),
            device=device,
        )
        return cls(recogniser, build(LongFormOptions, config.get("long_form", {}), "long_form"))

    def transcribe(
        self,
        sources: Source | Sequence[Source],
        *,
        sample_rate: int | None = None,
        batch_size: int = 8,
    ) -> Transcript | list[Transcript]:
        """Transcribe one source, or a list of them. Long files are recognised in windows.

        Args:
            sources: face videos, mouth crops (square videos no larger than 1.5 times the model's
                crop, or .npy arrays (T, H, H) uint8 at the model's frame rate) or sound files, as
                the model needs: paths, bytes or open files. A video's own sound is taken where the
                model uses sound. Also arrays and tensors: sound, float in [-1, 1] or int16, (N,)
                or (channels, N); mouth crops, uint8 (T, H, H); a pair (sound, crops).
            sample_rate: of sound in arrays, in Hz; None for the model's.
            batch_size: sources that are decoded together.

        Returns:
            A transcript for a single source. For a list, one for each in order; a source that
            cannot be used has its reason in `error`.

        Raises:
            MediaError: a single source cannot be used.
        """
        several = _as_list(sources)
        if several is None:
            return self._transcribe_one(cast(Source, sources), sample_rate)
        results: list[Transcript] = []
        for start in range(0, len(several), batch_size):
            some = several[start : start + batch_size]
            results += self._transcribe_some(some, sample_rate, start)
        return results

    def stream(
        self, pieces: Iterable[Piece], options: StreamOptions | None = None
    ) -> Iterator[StreamUpdate]:
        """Recognise sound or lips while they arrive.

        The model's encoders must go by chunks (`chunk_size`), its frontends must not normalise by
        the utterance, and the search must be able to stream (`CtcGreedySearch`, `CtcBeamSearch`,
        `GraphSearch`). The words are those of the whole input with the same chunks.

        Args:
            pieces: as a microphone or a camera gives them, of any sizes: sound, float (n,) in
                [-1, 1] or int16, at the model's sample rate; mouth crops, uint8 (n, H, H) or
                (H, H), at its frame rate; for a model of both a pair (sound, crops), of which one
                may be None.
            options: chunks, and when a word or an utterance is over.

        Yields:
            An update for each chunk of the encoder, and one at the end.

        Raises:
            ConfigError: the model or the search needs whole utterances; it says what to change.
            MediaError: a piece cannot be used.
        """
        session = StreamingSession(self.recogniser, options)
        for piece in pieces:
            yield from session.accept(piece)
        yield session.finish()

    def _transcribe_one(self, source: Source, sample_rate: int | None) -> Transcript:
        with self.recogniser.reader.open(source, sample_rate=sample_rate) as media:
            found = self._read_or_transcribe(media)
        if isinstance(found, Transcript):
            return found
        return self.recogniser.recognise(collate([found]))[0]

    def _transcribe_some(
        self, sources: Sequence[Source], sample_rate: int | None, first: int
    ) -> list[Transcript]:
        found: list[Transcript | Item] = []
        for i, source in enumerate(sources, first):
            name = str(source) if isinstance(source, str | Path) else f"input {i}"
            try:
                opened = self.recogniser.reader.open(source, sample_rate=sample_rate, name=name)
                with opened as media:
                    found.append(self._read_or_transcribe(media))
            except MediaError as error:
                found.append(Transcript(name, error=str(error)))
        items = [one for one in found if isinstance(one, Item)]
        recognised = iter(self.recogniser.recognise(collate(items)) if items else ())
        return [next(recognised) if isinstance(one, Item) else one for one in found]

    def _read_or_transcribe(self, media: MediaSource) -> Transcript | Item:
        """Return a long source's transcript, and what is read of a short one."""
        if media.duration() > self.long_form.max_seconds:
            return transcribe_long(self.recogniser, media, self.long_form)
        return self.recogniser.reader.read(media)


def _as_list(sources: Source | Sequence[Source]) -> list[Source] | None:
    """Return several sources; None for one, which may be a pair of arrays."""
    if isinstance(sources, tuple):
        several = cast(Sequence[Source], sources)
        named = any(isinstance(one, str | Path) or is_media_content(one) for one in several)
        return list(several) if named else None
    return sources if isinstance(sources, list) else None
