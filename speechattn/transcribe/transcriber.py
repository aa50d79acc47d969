"""Transcriber: a trained model directory and files in, transcripts out."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from speechattn.config import build
from speechattn.data.augment import CenterCrop
from speechattn.data.batches.batch import Batch, Item, collate
from speechattn.data.crops.ready import READY_CROP, fit, read_crop_array
from speechattn.data.crops.roi import MouthCropper, RoiOptions
from speechattn.data.media.container import iter_video, probe, read_audio
from speechattn.data.media.sound import fit_audio
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import (
    DecodeOptions,
    Hypothesis,
    check_options,
    decode,
    hypothesis_times,
    word_times,
)
from speechattn.decoding.ctc import AlignmentError
from speechattn.decoding.shallow_fusion import NOTHING, ShallowFusion, read_fusion
from speechattn.deploy.exported import check_exported, is_exported, load_exported
from speechattn.deploy.packing import pack
from speechattn.deploy.quantisation import Scheme
from speechattn.deploy.quantisation import quantise as quantise_layers
from speechattn.errors import ConfigError, MediaError
from speechattn.frontends.inference import Precision, optimise
from speechattn.model.directory import load_model, read_config, read_options
from speechattn.model.ensemble import Ensemble
from speechattn.model.output import ModelOutput
from speechattn.model.speech_model import SpeechModel
from speechattn.transcribe.long_files import LongFormOptions, is_long, transcribe_long
from speechattn.transcribe.streaming.input import Piece
from speechattn.transcribe.streaming.session import StreamOptions, StreamUpdate, stream
from speechattn.transcribe.timing import PartTimes
from speechattn.transcribe.transcript import Alternative, Span, Transcript
from speechattn.units import UNK_MARK, UNK_TOKEN

logger = logging.getLogger(__name__)


class Transcriber:
    """Turns files into transcripts with one trained model.

    Args:
        model: one, or an ensemble.
        tokenizer: the model's units.
        decode_options: the search; what the model was tested with by default.
        roi_options: how mouths are cut out; what the model was trained with.
        device: where the model runs.
        fusion: language models and hot words; their weights are among the decode options.
        long_form: how long files are cut into windows.

    Attributes:
        times: where the time went so far.
    """

    def __init__(
        self,
        model: SpeechModel | Ensemble,
        tokenizer: Tokenizer,
        decode_options: DecodeOptions | None = None,
        roi_options: RoiOptions | None = None,
        device: str | torch.device = "cpu",
        fusion: ShallowFusion = NOTHING,
        long_form: LongFormOptions | None = None,
    ):
        roi_options = roi_options or RoiOptions()
        if "video" in model.modalities and roi_options.fps != model.video_fps:
            raise ConfigError(
                f"roi.fps is {roi_options.fps:g}, but the model sees {model.video_fps:g} frames a "
                "second"
            )
        self.decode_options = decode_options or DecodeOptions()
        check_options(model.decoders, self.decode_options, model.transducers)
        fusion.check(self.decode_options, model.vocab_size)
        self.fusion = fusion.to(device)
        self.model = model.to(device).eval()
        self.times = PartTimes(self.model)
        self.tokenizer = tokenizer
        self.cropper = MouthCropper(roi_options)
        self.long_form = long_form or LongFormOptions()
        self.device = torch.device(device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        decode_options: DecodeOptions | None = None,
        device: str | torch.device = "cpu",
        allow: Iterable[str] = (),
        precision: Precision = "fp32",
        ngram: str | Path | None = None,
        hot_words: str | Path | None = None,
        quantise: Scheme | None = None,
        lm: str | Path | None = None,
        graph: str | Path | None = None,
        graph_ngram: str | Path | None = None,
    ) -> "Transcriber":
        """Read a model directory, or what `speechattn export` made of one.

        Args:
            folder: with config.yaml, model.safetensors or ONNX graphs, and the tokenizer's files.
            decode_options: instead of those in config.yaml.
            device: where the model runs.
            allow: packages beside this one whose classes config.yaml may name.
            precision: of the visual frontend on a CPU: 'fp32', or the faster 'mixed' and 'bf16',
                which round more, so that a text may come out differently.
            ngram: an n-gram model of the model's units, an ARPA file; decode option ngram_weight.
            hot_words: a file of phrases, one a line; decode option hot_words_weight.
            quantise: of the large linear layers on a CPU: 'int8' or 'bf16', which are faster and
                round more; None for float32.
            lm: the directory of a Transformer language model of the model's units, as `train-lm`
                makes it; decode option lm_weight or lm_rescore_weight.
            graph: the folder of a decoding graph, as `speechattn graph` makes it; decode option
                method ctc_graph.
            graph_ngram: a larger n-gram model of the graph's words, an ARPA file; decode option
                graph_ngram_weight.

        Raises:
            ConfigError: the directory is not whole, or names what it may not.
        """
        config = read_config(folder)
        options = decode_options or read_options(folder)
        roi = build(RoiOptions, config.get("roi", {}), "roi")
        if exported := is_exported(folder):
            check_exported(options, device, quantise)
            model = load_exported(folder, allow)
        else:
            model = load_model(folder, allow)
        if torch.device(device).type == "cpu":
            for one in model.models.values() if isinstance(model, Ensemble) else [model]:
                if "video" in one.modalities:
                    owner, name = (one, "look") if exported else (one.streams["video"], "frontend")
                    setattr(owner, name, optimise(getattr(owner, name), precision))
        tokenizer = Tokenizer.load(folder)
        fusion = read_fusion(tokenizer, ngram, hot_words, lm, graph, graph_ngram)
        long_form = build(LongFormOptions, config.get("long_form", {}), "long_form")
        transcriber = cls(model, tokenizer, options, roi, device, fusion, long_form)
        if quantise is not None:
            quantise_layers(transcriber.model, quantise)
        if transcriber.device.type == "cpu":
            pack(transcriber.model)
        return transcriber

    def transcribe(
        self, paths: str | Path | Sequence[str | Path], batch_size: int = 8
    ) -> Transcript | list[Transcript]:
        """Transcribe one file, or several. Long ones are recognised in windows.

        Args:
            paths: face videos, mouth crops (square videos no larger than 1.5 times the model's
                crop, or .npy arrays (T, H, W) uint8 at the model's frame rate) or sound files, as
                the model needs; a video's own sound is taken where the model hears.
            batch_size: files that are decoded together.

        Returns:
            A transcript for a single path. For several, one for each in their order; a file that
            cannot be used has its reason in `error`.

        Raises:
            MediaError: a single path cannot be used.
        """
        if isinstance(paths, (str, Path)):
            if is_long(self, paths, self.long_form):
                return transcribe_long(self, paths, self.long_form)
            return self.recognise(collate([self.load(paths)]))[0]
        results: list[Transcript] = []
        for start in range(0, len(paths), batch_size):
            results += self._transcribe_some(paths[start : start + batch_size])
        return results

    def stream(
        self, pieces: Iterable[Piece], options: StreamOptions | None = None
    ) -> Iterator[StreamUpdate]:
        """Recognise sound or lips while they arrive.

        The model's encoders must go by chunks (`chunk_size`), its frontends must not normalise by
        the utterance, and the decode option `method` must be `ctc_greedy`, `ctc_beam` or
        `ctc_graph`. The words are those of the whole input with the same chunks.

        Args:
            pieces: as a microphone or a camera gives them, of any sizes: sound, float (n,) in
                [-1, 1] or int16, at the model's sample rate; mouth crops, uint8 (n, H, H) or
                (H, H), at its frame rate; for a model of both a tuple (sound, crops), of which one
                may be None.
            options: chunks, and when a word or an utterance is over.

        Yields:
            An update for each chunk of the encoder, and one at the end.

        Raises:
            ConfigError: the model or the search needs whole utterances; it says what to change.
            MediaError: a piece cannot be used.
        """
        return stream(self, pieces, options)

    def _transcribe_some(self, paths: Sequence[str | Path]) -> list[Transcript]:
        items, results = [], {}
        for i, path in enumerate(paths):
            try:
                if is_long(self, path, self.long_form):
                    results[i] = transcribe_long(self, path, self.long_form)
                else:
                    items.append((i, self.load(path)))
            except MediaError as error:
                results[i] = Transcript(str(path), error=str(error))
        if items:
            found = self.recognise(collate([item for _, item in items]))
            results.update({i: t for (i, _), t in zip(items, found, strict=True)})
        return [results[i] for i in range(len(paths))]

    def load(self, path: str | Path) -> Item:
        """Read what the model needs of a file.

        Raises:
            MediaError: it has none of it.
        """
        audio = video = None
        if "video" in self.model.modalities:
            video = self.read_mouth(path)
        if "audio" in self.model.modalities:
            audio = read_audio(path, self.model.sample_rate)
            if video is not None:
                samples = round(len(video) / self.model.video_fps * self.model.sample_rate)
                audio = fit_audio(audio, samples)
        if video is not None:
            video = CenterCrop(self.model.crop_size)(video)
        return Item(str(path), "", [], audio, video)

    def read_mouth(self, path: str | Path) -> np.ndarray:
        """The mouth crops of a file, (T, H, H) uint8, as the ROI stage makes them."""
        options = self.cropper.options
        if Path(path).suffix == ".npy":
            return read_crop_array(path, options)
        info = probe(path)
        if not info.has_video:
            raise MediaError(path, "no video stream, and this model reads lips")
        if info.width == info.height and info.width <= READY_CROP * options.size:
            frames = [f.grey() for f in iter_video(path, options.fps)]
            return fit(np.stack(frames), options, path)
        return self.cropper.crop(path).frames

    @torch.inference_mode()
    def recognise(self, batch: Batch) -> list[Transcript]:
        """Decode a batch: the one path of recipe and application.

        Returns:
            A transcript for each item, in order.
        """
        batch = batch.to(self.device)
        with self.times.of("encoder"):
            evidence = self.model.evidence(
                batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
            )
        with self.times.of("search"):
            found = decode(evidence, self.decode_options, self.fusion)
        with self.times.of("alignment"):
            transcripts = [
                self.to_transcript(name, nbest, evidence, i, self.duration(batch, i))
                for i, (name, nbest) in enumerate(zip(batch.ids, found, strict=True))
            ]
        self.times.input_seconds += sum(t.duration for t in transcripts)
        return transcripts

    def duration(self, batch: Batch, i: int) -> float:
        """Seconds of the i-th item's input."""
        if batch.video_lengths is not None:
            return int(batch.video_lengths[i]) / self.model.video_fps
        return int(batch.audio_lengths[i]) / self.model.sample_rate

    def to_transcript(
        self,
        name: str,
        found: list[Hypothesis],
        evidence: list[ModelOutput],
        row: int,
        duration: float,
    ) -> Transcript:
        """What was found, best first, the best in time by aligning it to its row of posteriors."""
        pieces = self.tokenizer.tokens
        nbest = [Alternative(self.tokenizer.decode(h.tokens), h.score, h.scores) for h in found]
        best, text = found[0], nbest[0].text
        try:
            times = hypothesis_times(evidence, row, best)
        except AlignmentError as error:
            # Only a search that ignores CTC can say more than there are frames for.
            logger.warning("%s: no times, %s", name, error)
            return Transcript(name, text, duration=duration, nbest=nbest)
        tokens = [Span(pieces[t.token], t.start, t.end, t.confidence) for t in times]
        words = [
            # Written as in the text.
            Span(w.word.replace(UNK_TOKEN, UNK_MARK), w.start, w.end, w.confidence)
            for w in word_times(times, pieces)
        ]
        confidence = float(np.mean([t.confidence for t in tokens])) if tokens else 0.0
        return Transcript(name, text, tokens, words, confidence, duration, nbest=nbest)
