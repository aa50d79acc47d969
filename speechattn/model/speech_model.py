"""SpeechModel: streams of sound and lips, their fusion, a CTC head and a decoder."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor, nn

from speechattn.decoders import Decoder, Transducer, TransformerDecoder
from speechattn.encoders import Encoder, FrameReducer
from speechattn.encoders.base import EncoderOutput
from speechattn.errors import ConfigError
from speechattn.frontends import Frontend, MLPFusion
from speechattn.frontends.specaugment import SpecAugment
from speechattn.model.output import ModelOutput

Modality = Literal["audio", "video"]


class Stream(nn.Module):
    """One modality from its raw form to hidden frames.

    Args:
        frontend: raw input to features.
        encoder: features to hidden frames; its input size is the frontend's output size.
        augment: masks features in training only.
    """

    def __init__(self, frontend: Frontend, encoder: Encoder, augment: SpecAugment | None = None):
        super().__init__()
        if encoder.input_size != frontend.output_size:
            raise ConfigError(
                f"encoder.init_args.input_size is {encoder.input_size}, but the frontend gives "
                f"{frontend.output_size}"
            )
        self.frontend = frontend
        self.encoder = encoder
        self.augment = augment

    def forward(
        self, x: Tensor, lengths: Tensor, head: Callable[[Tensor], Tensor] | None = None
    ) -> EncoderOutput:
        """Turn raw input into hidden frames.

        Args:
            x: (B, ...), in the frontend's form.
            lengths: (B,), in the frontend's units.
            head: the CTC head without dropout, (B, T, D) to log probabilities (B, T, V); for an
                encoder that conditions on it.
        """
        x, lengths = self.frontend(x, lengths)
        if self.augment is not None:
            x = self.augment(x, lengths)
        return self.encoder.encode(x, lengths, head)


@dataclass
class Encoded:
    """What a model made of its input.

    Attributes:
        hidden: (B, T, D).
        lengths: (B,).
        streams: each modality's own hidden frames and lengths, before fusion.
        intermediate: by modality and by layer, hidden frames (B, T, D) of the encoder's
            `intermediate` layers; as long as the modality's own.
    """

    hidden: Tensor
    lengths: Tensor
    streams: dict[str, tuple[Tensor, Tensor]]
    intermediate: dict[str, dict[int, Tensor]] = field(default_factory=dict)


class SpeechModel(nn.Module):
    """A recogniser of sound, of lips or of both.

    Args:
        vocab_size: V, the tokenizer's units with blank, unknown and sos/eos.
        audio: the stream of sound, (B, N) waveforms in [-1, 1].
        video: the stream of lips, (B, T, 1, H, W) mouth crops in [0, 255].
        fusion: joins the two; needed when both are there.
        decoder: attention decoder, a TransformerDecoder where a configuration names no class;
            without one and without `transducer` the model is CTC only.
        ctc_dropout: dropout before the CTC head.
        crop_size: side of the square that the model takes of each mouth crop, in pixels.
        sample_rate: of the sound, in Hz.
        video_fps: frames a second of the video.
        frame_shift: seconds from one hidden frame to the next.
        transducer: reads hidden frames beside or instead of the decoder.
        frame_reducer: drops frames that CTC says are blank before `transducer` reads them.
    """

    def __init__(
        self,
        vocab_size: int,
        audio: Stream | None = None,
        video: Stream | None = None,
        fusion: MLPFusion | None = None,
        decoder: TransformerDecoder | Decoder | None = None,
        ctc_dropout: float = 0.1,
        crop_size: int = 88,
        sample_rate: int = 16000,
        video_fps: float = 25.0,
        frame_shift: float = 0.04,
        transducer: Transducer | None = None,
        frame_reducer: FrameReducer | None = None,
    ):
        super().__init__()
        if audio is None and video is None:
            raise ConfigError("a model needs `audio`, `video` or both")
        if audio is not None and video is not None and fusion is None:
            raise ConfigError("a model of audio and video needs `fusion`")
        self.vocab_size = vocab_size
        self.crop_size = crop_size
        self.sample_rate = sample_rate
        self.video_fps = video_fps
        self.frame_shift = frame_shift
        self.streams = nn.ModuleDict()
        if audio is not None:
            self.streams["audio"] = audio
        if video is not None:
            self.streams["video"] = video
        self.fusion = fusion if len(self.streams) == 2 else None
        sizes = {name: stream.encoder.output_size for name, stream in self.streams.items()}
        self.output_size = self.fusion.output_size if self.fusion else next(iter(sizes.values()))
        self.decoder = decoder
        self.transducer = transducer
        self.frame_reducer = frame_reducer
        self.dropout = nn.Dropout(ctc_dropout)
        self.ctc = nn.Linear(self.output_size, vocab_size)
        # Heads on each stream before fusion: for the loss, and for encoders that condition on
        # them.
        self.stream_ctc = nn.ModuleDict()
        if self.fusion is not None:
            self.stream_ctc.update({n: nn.Linear(size, vocab_size) for n, size in sizes.items()})
        self._check_streams()
        self._check_sizes(sizes)

    def _check_streams(self) -> None:
        for name, stream in self.streams.items():
            step = stream.frontend.frame_shift or 1.0 / self.video_fps
            shift = step * stream.encoder.subsampling_factor
            if not math.isclose(shift, self.frame_shift, rel_tol=1e-3):
                raise ConfigError(
                    f"frame_shift is {self.frame_shift:g} s, but a hidden frame of {name} takes "
                    f"{shift:g} s (frontend {step:g} s, encoder subsampling "
                    f"{stream.encoder.subsampling_factor})"
                )
            expected = stream.frontend.sample_rate or self.sample_rate
            if name == "audio" and expected != self.sample_rate:
                raise ConfigError(
                    f"sample_rate is {self.sample_rate} Hz, but the audio frontend expects "
                    f"{expected} Hz"
                )
            units = stream.encoder.self_conditioning
            if units not in (0, self.vocab_size):
                raise ConfigError(
                    f"{name}.encoder.init_args.self_conditioning is {units}, but there are "
                    f"{self.vocab_size} units"
                )

    def _check_sizes(self, sizes: dict[str, int]) -> None:
        if self.fusion is not None and self.fusion.up.in_features != sum(sizes.values()):
            raise ConfigError(
                f"fusion.audio_size and fusion.video_size are {self.fusion.up.in_features} "
                f"together, but the encoders give {sizes['audio']} and {sizes['video']}"
            )
        heads = {"decoder.init_args": self.decoder, "transducer": self.transducer}
        for key, head in heads.items():
            if head is not None and head.memory_size not in (None, self.output_size):
                raise ConfigError(
                    f"{key}.memory_size is {head.memory_size}, but the hidden frames are "
                    f"{self.output_size} wide"
                )
        if self.frame_reducer is not None and self.transducer is None:
            raise ConfigError("frame_reducer drops frames for a `transducer`; there is none")

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Return what the model takes: ('audio',), ('video',) or both."""
        return tuple(self.streams)

    @property
    def decoders(self) -> list[Decoder | None]:
        """Return the decoder, as an `Ensemble` lists its models'."""
        return [self.decoder]

    @property
    def transducers(self) -> list[Transducer | None]:
        """Return the transducer, likewise."""
        return [self.transducer]

    def encode_streams(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> Encoded:
        """Encode, and keep each stream's own output; arguments as of `encode`."""
        given = {"audio": (audio, audio_lengths), "video": (video, video_lengths)}
        streams, intermediate = {}, {}
        for name, stream in self.streams.items():
            x, lengths = given[name]
            if x is None or lengths is None:
                raise ValueError(f"this model needs {name}")
            head = partial(_log_probs, self._stream_head(name))
            hidden, lengths, intermediate[name] = stream(x, lengths, head)
            streams[name] = (hidden, lengths)
        if self.fusion is None:
            hidden, lengths = next(iter(streams.values()))
        else:
            hidden, lengths = self.fusion(*streams["audio"], *streams["video"])
        return Encoded(hidden, lengths, streams, intermediate)

    def encode(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turn raw input into hidden frames.

        Args:
            audio: (B, N) waveforms in [-1, 1], for a model of sound.
            audio_lengths: (B,) samples.
            video: (B, T, 1, H, W) mouth crops in [0, 255], for a model of lips.
            video_lengths: (B,) frames.

        Returns:
            (B, T, D) and (B,).
        """
        encoded = self.encode_streams(audio, audio_lengths, video, video_lengths)
        return encoded.hidden, encoded.lengths

    def outputs(
        self,
        audio: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        video: Tensor | None = None,
        video_lengths: Tensor | None = None,
    ) -> list[ModelOutput]:
        """Return what a search reads of a batch; arguments as of `encode`."""
        hidden, lengths = self.encode(audio, audio_lengths, video, video_lengths)
        return [self.output_of(hidden, lengths, self.ctc_log_probs(hidden))]

    def output_of(self, hidden: Tensor, lengths: Tensor, log_probs: Tensor) -> ModelOutput:
        """Return what a search reads of hidden frames (B, T, D) and CTC scores (B, T, V)."""
        return ModelOutput(
            hidden,
            lengths,
            log_probs,
            self.decoder,
            self.frame_shift,
            transducer=self.transducer,
            frame_reducer=self.frame_reducer,
        )

    def ctc_log_probs(self, hidden: Tensor) -> Tensor:
        """Return log probabilities with blank at 0, (B, T, D) -> (B, T, V)."""
        return _log_probs(self.ctc, self.dropout(hidden))

    def stream_log_probs(self, name: Modality, hidden: Tensor) -> Tensor:
        """Return CTC log probabilities of one stream before fusion, (B, T, D) -> (B, T, V).

        Without fusion there is one head, for the output and for intermediate layers.
        """
        return _log_probs(self._stream_head(name), self.dropout(hidden))

    def _stream_head(self, name: Modality) -> nn.Linear:
        return self.ctc if self.fusion is None else self.stream_ctc[name]

    def num_parameters(self) -> int:
        """Return how many numbers the model learns."""
        return sum(p.numel() for p in self.parameters())


def _log_probs(head: nn.Linear, hidden: Tensor) -> Tensor:
    return head(hidden).float().log_softmax(-1)
