"""Recogniser: from batches to transcripts, the one path of files, streams and test sets."""

import logging
from collections.abc import Sequence

import torch

from speechattn.data.batches.batch import Batch
from speechattn.data.crops.roi import MouthCropper, RoiOptions
from speechattn.data.reader import MediaReader
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import (
    NO_FUSION,
    AlignmentError,
    Fusion,
    Hypothesis,
    JointSearch,
    Search,
    TokenTime,
    hypothesis_times,
)
from speechattn.deploy.exported import OnnxModel
from speechattn.errors import ConfigError
from speechattn.model import Ensemble, ModelOutput, SpeechModel
from speechattn.transcribe.spans import mean_confidence, token_spans, word_spans
from speechattn.transcribe.timing import PartTimes
from speechattn.transcribe.transcript import Alternative, Transcript

logger = logging.getLogger(__name__)


class Recogniser:
    """A model, its units and a search: batches in, transcripts out.

    Args:
        model: one, an ensemble, or exported graphs.
        tokenizer: the model's units.
        search: how hypotheses are found; `JointSearch` with its defaults if none is given.
        fusion: language models, hot words and a graph; the search has their weights.
        roi: how mouths are cut out; what the model was trained with.
        device: where the model runs.

    Raises:
        ConfigError: the parts do not go together.

    Attributes:
        reader: reads what the model takes.
        times: where the time went so far.
    """

    def __init__(
        self,
        model: SpeechModel | Ensemble | OnnxModel,
        tokenizer: Tokenizer,
        search: Search | None = None,
        fusion: Fusion = NO_FUSION,
        *,
        roi: RoiOptions | None = None,
        device: str | torch.device = "cpu",
    ):
        roi = roi or RoiOptions()
        if "video" in model.modalities and roi.fps != model.video_fps:
            raise ConfigError(
                f"roi.fps is {roi.fps:g}, but the model takes {model.video_fps:g} pictures a second"
            )
        self.search = search or JointSearch()
        self.search.check(model, fusion)
        self.device = torch.device(device)
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.fusion = fusion.to(device)
        self.reader = MediaReader(
            model.modalities,
            sample_rate=model.sample_rate,
            video_fps=model.video_fps,
            crop_size=model.crop_size,
            cropper=MouthCropper(roi),
        )
        self.times = PartTimes(self.model)

    def __repr__(self) -> str:
        model, units = self.model, self.tokenizer.vocab_size
        return (
            f"{type(self).__name__}({' and '.join(model.modalities)}, "
            f"{model.num_parameters() / 1e6:.1f} M parameters, {units} units, "
            f"{type(self.search).__name__}, {self.device})"
        )

    @torch.inference_mode()
    def recognise(self, batch: Batch) -> list[Transcript]:
        """Recognise a batch.

        Returns:
            A transcript for each item, in order.
        """
        batch = batch.to(self.device)
        with self.times.of("encoder"):
            outputs = self.model.outputs(
                batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
            )
        with self.times.of("search"):
            found = self.search.search(outputs, self.fusion)
        with self.times.of("alignment"):
            transcripts = [
                self.transcript(name, nbest, outputs, i, self.duration(batch, i))
                for i, (name, nbest) in enumerate(zip(batch.ids, found, strict=True))
            ]
        self.times.input_seconds += sum(t.duration for t in transcripts)
        return transcripts

    def duration(self, batch: Batch, i: int) -> float:
        """Return the seconds of the i-th item's input."""
        if batch.video_lengths is not None:
            return int(batch.video_lengths[i]) / self.model.video_fps
        assert batch.audio_lengths is not None
        return int(batch.audio_lengths[i]) / self.model.sample_rate

    def transcript(
        self,
        name: str,
        nbest: Sequence[Hypothesis],
        outputs: Sequence[ModelOutput],
        row: int,
        duration: float,
    ) -> Transcript:
        """Return the best hypothesis in time, by aligning it to its row of posteriors."""
        readings = [Alternative(self.tokenizer.decode(h.tokens), h.score, h.scores) for h in nbest]
        text = readings[0].text
        try:
            times = hypothesis_times(outputs, row, nbest[0])
        except AlignmentError as error:
            # Only a search that ignores CTC can say more than there are frames for.
            logger.warning("%s: no times, %s", name, error)
            return Transcript(name, text, duration=duration, nbest=readings)
        return self.timed_transcript(name, text, times, duration, readings)

    def timed_transcript(
        self,
        name: str,
        text: str,
        times: Sequence[TokenTime],
        duration: float,
        nbest: Sequence[Alternative] = (),
    ) -> Transcript:
        """Return the transcript of tokens in time."""
        tokens = token_spans(times, self.tokenizer.tokens)
        return Transcript(
            name,
            text,
            tokens,
            word_spans(times, self.tokenizer.tokens),
            mean_confidence(tokens),
            duration,
            nbest=list(nbest),
        )
