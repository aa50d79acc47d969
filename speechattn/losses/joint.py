"""The joint CTC/attention loss (Watanabe et al. 2017, Hybrid CTC/Attention) and its additions.

Right-to-left attention is U2++'s (2106.05642), CTC at intermediate layers is Lee and Watanabe's
(2102.03216); the sums are those of WeNet and ESPnet.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.decoders import BidirectionalDecoder, Decoder, reverse_tokens
from speechattn.errors import ConfigError
from speechattn.losses.blank_regularised_ctc import BlankRegularisedCTC
from speechattn.losses.delay_penalised_ctc import DelayPenalisedCTC
from speechattn.losses.lattice_free_mmi import LatticeFreeMmi
from speechattn.losses.mwer import MwerLoss
from speechattn.losses.timed_ctc import timed_ctc_loss
from speechattn.losses.transducer import FullTransducerLoss, PrunedTransducerLoss
from speechattn.masks import padding_mask

logger = logging.getLogger(__name__)


@dataclass
class LossParts:
    """A loss and what it is made of, each a scalar, before weighting; None where not computed.

    Attributes:
        total: what is minimised.
        ctc: of the model's output.
        attention: of the decoder, left to right.
        reverse: of the decoder, right to left.
        intermediate: CTC of intermediate layers, their mean.
        streams: CTC of the streams before fusion, their mean.
        risk: expected errors above their mean, in training.
        transducer: of the transducer.
        kept: no loss: which share of the frames the transducer has read, 0..1.
    """

    total: Tensor
    ctc: Tensor
    attention: Tensor | None = None
    reverse: Tensor | None = None
    intermediate: Tensor | None = None
    streams: Tensor | None = None
    risk: Tensor | None = None
    transducer: Tensor | None = None
    kept: Tensor | None = None


def label_smoothing_loss(
    logits: Tensor, targets: Tensor, lengths: Tensor, smoothing: float, per_token: bool
) -> Tensor:
    """Divergence of the model from targets that keep `1 - smoothing` on the true token.

    The rest is spread over the other V - 1 units; the targets' own entropy is taken off, so that a
    perfect model scores 0 (Szegedy et al. 1512.00567, in ESPnet's form).

    Args:
        logits: (B, U, V).
        targets: (B, U) token ids.
        lengths: (B,) tokens of each item.
        smoothing: in [0, 1).
        per_token: average over tokens rather than sum over each utterance's.

    Returns:
        A scalar, averaged over the batch or over its tokens.
    """
    units = logits.shape[-1]
    real = padding_mask(lengths, logits.shape[1])
    log_probs = logits.float().log_softmax(-1)[real]  # (N, V)
    true = log_probs.gather(1, targets[real][:, None]).squeeze(1)
    spread = smoothing / (units - 1)
    loss = -(1.0 - smoothing - spread) * true - spread * log_probs.sum(-1)
    if smoothing > 0.0:
        entropy = -(1.0 - smoothing) * math.log(1.0 - smoothing) - smoothing * math.log(spread)
        loss = loss - entropy
    return loss.sum() / (real.sum() if per_token else logits.shape[0])


def ctc_loss(log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """CTC summed over frames, averaged over the batch; items too short for their text count 0.

    Args:
        log_probs: (B, T, V), blank at 0.
        lengths: (B,).
        tokens: (B, U).
        token_lengths: (B,).
    """
    loss = nn.functional.ctc_loss(
        log_probs.float().transpose(0, 1),
        tokens,
        lengths,
        token_lengths,
        reduction="sum",
        zero_infinity=True,
    )
    return loss / log_probs.shape[0]


class JointLoss(nn.Module):
    """`ctc_weight * CTC + (1 - ctc_weight) * attention`, plus CTC on each stream before fusion.

    CTC is `(1 - intermediate_weight) * output + intermediate_weight * intermediate layers`,
    attention is `(1 - reverse_weight) * left to right + reverse_weight * right to left`.

    Args:
        ctc_weight: share of the CTC loss, 0..1; 1 trains without the decoder.
        label_smoothing: probability taken from the true token, in [0, 1).
        per_token: average the attention losses over tokens (ESPnet's `length_normalized_loss`)
            rather than sum over each utterance's.
        stream_ctc_weight: weight of the CTC losses of the audio and the video stream of an
            audio-visual model, which keep the harder stream learning when the other suffices.
        reverse_weight: share of the right-to-left decoder in the attention loss, 0..1. Needs a
            BidirectionalDecoder.
        intermediate_weight: share of the intermediate layers in the CTC loss, in [0, 1). Needs an
            encoder with `intermediate` layers.
        time_slack: seconds before and after a word in which CTC may emit its tokens, where the
            cuts say when words were said; None for anywhere. See `timed_ctc`.
        ctc: what computes all the CTC losses: a DelayPenalisedCTC, a BlankRegularisedCTC, or a
            LatticeFreeMmi; None for torch's.
        mwer: expected errors, beside all of the above, for the fine-tuning of a trained model; in
            training only.
        transducer: what the model's transducer learns from, a FullTransducerLoss or a
            PrunedTransducerLoss.
        transducer_weight: its share in the loss, 0..1; all of the above gets the rest.
    """

    def __init__(
        self,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        per_token: bool = False,
        stream_ctc_weight: float = 0.0,
        reverse_weight: float = 0.0,
        intermediate_weight: float = 0.0,
        time_slack: float | None = None,
        ctc: DelayPenalisedCTC | BlankRegularisedCTC | LatticeFreeMmi | None = None,
        mwer: MwerLoss | None = None,
        transducer: FullTransducerLoss | PrunedTransducerLoss | None = None,
        transducer_weight: float = 0.7,
    ):
        super().__init__()
        for name, value in (
            ("ctc_weight", ctc_weight),
            ("reverse_weight", reverse_weight),
            ("transducer_weight", transducer_weight),
        ):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"loss.{name} has to be in 0..1, got {value!r}")
        for name, value in (
            ("label_smoothing", label_smoothing),
            ("intermediate_weight", intermediate_weight),
        ):
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"loss.{name} has to be in [0, 1), got {value!r}")
        if not stream_ctc_weight >= 0.0:
            raise ConfigError(
                f"loss.stream_ctc_weight has to be 0 or more, got {stream_ctc_weight!r}"
            )
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.per_token = per_token
        self.stream_ctc_weight = stream_ctc_weight
        self.reverse_weight = reverse_weight
        self.intermediate_weight = intermediate_weight
        if time_slack is not None and not time_slack >= 0.0:
            raise ConfigError(f"loss.time_slack has to be 0 or more, got {time_slack!r}")
        if time_slack is not None and ctc is not None:
            raise ConfigError(
                "loss.time_slack keeps tokens near their times and loss.ctc decides otherwise: "
                "leave one of them out"
            )
        self.time_slack = time_slack
        self.ctc_of = ctc or ctc_loss
        self.mwer = mwer
        self.transducer = transducer
        self.transducer_weight = transducer_weight if transducer is not None else 0.0
        self._warned = False

    def check(self, model: nn.Module) -> None:
        """Whether a `SpeechModel` has the parts that the weights ask for.

        Raises:
            ConfigError: it names the weight and what the model lacks for it.
        """
        bidirectional = isinstance(model.decoder, BidirectionalDecoder)
        if self.reverse_weight > 0.0:
            given = f"loss.reverse_weight is {self.reverse_weight:g}"
            if not bidirectional:
                found = type(model.decoder).__name__ if model.decoder is not None else "none"
                raise ConfigError(
                    f"{given}, which needs model.decoder to be a BidirectionalDecoder; it is "
                    f"{found}"
                )
            if self.ctc_weight == 1.0:
                raise ConfigError(f"{given}, but loss.ctc_weight 1 trains without the decoder")
        elif bidirectional and self.ctc_weight < 1.0:
            logger.warning(
                "loss.reverse_weight is 0: the right-to-left half of the decoder does not learn"
            )
        if self.mwer is not None and model.decoder is None and self.mwer.ctc_weight < 1.0:
            raise ConfigError(
                f"loss.mwer.ctc_weight is {self.mwer.ctc_weight:g}, which needs model.decoder; "
                "there is none: take 1"
            )
        head = model.transducer
        if self.transducer is not None and head is None:
            raise ConfigError("loss.transducer needs model.transducer; there is none")
        if isinstance(self.transducer, PrunedTransducerLoss) and head.simple_am is None:
            raise ConfigError(
                "loss.transducer is a PrunedTransducerLoss, which needs model.transducer.simple"
            )
        silent = self.ctc_weight == 0.0 and model.decoder is not None
        if model.frame_reducer is not None and (silent or self.transducer_weight == 1.0):
            raise ConfigError(
                "model.frame_reducer goes by CTC, which does not learn: give loss.ctc_weight above "
                "0 and loss.transducer_weight below 1"
            )
        if self.transducer is None and head is not None:
            logger.warning("loss.transducer is left out: the transducer does not learn")
        if self.intermediate_weight > 0.0:
            given = f"loss.intermediate_weight is {self.intermediate_weight:g}"
            encoders = [stream.encoder for stream in model.streams.values()]
            if not any(getattr(encoder, "intermediate", ()) for encoder in encoders):
                raise ConfigError(
                    f"{given}, which needs an encoder with `intermediate` layers; there is none"
                )
            if self.ctc_weight == 0.0:
                raise ConfigError(f"{given}, but loss.ctc_weight 0 trains without CTC")

    def forward(self, model: nn.Module, batch, encoded=None) -> LossParts:
        """The loss of a `SpeechModel` on a `speechattn.data.Batch`.

        Args:
            model: its parts learn.
            batch: the inputs and the tokens.
            encoded: what `model.encode_streams` made of the batch, if it is there already.
        """
        if encoded is None:
            encoded = model.encode_streams(
                batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
            )
        hidden, lengths = encoded.hidden, encoded.lengths
        log_probs = model.ctc_log_probs(hidden)
        output = self.ctc(model, log_probs, lengths, batch)
        ctc, parts = output, LossParts(output, output.detach())
        if self.intermediate_weight > 0.0:
            parts.intermediate = self.intermediate_ctc(model, encoded, batch)
            ctc = (1.0 - self.intermediate_weight) * ctc
            ctc = ctc + self.intermediate_weight * parts.intermediate
        parts.total = ctc
        if model.decoder is not None and self.ctc_weight < 1.0:
            attention = 0.0
            if self.reverse_weight < 1.0:
                parts.attention = self.attention(model.decoder, hidden, lengths, batch)
                attention = (1.0 - self.reverse_weight) * parts.attention
            if self.reverse_weight > 0.0:
                parts.reverse = self.reverse_attention(model.decoder, hidden, lengths, batch)
                attention = attention + self.reverse_weight * parts.reverse
            parts.total = self.ctc_weight * ctc + (1.0 - self.ctc_weight) * attention
        if self.stream_ctc_weight > 0.0 and len(encoded.streams) > 1:
            parts.streams = torch.stack(
                [
                    self.stream_ctc(model, name, h, n, batch)
                    for name, (h, n) in encoded.streams.items()
                ]
            ).mean()
            parts.total = parts.total + self.stream_ctc_weight * parts.streams
        if self.transducer is not None:
            parts.transducer, parts.kept = self.of_transducer(
                model, hidden, lengths, log_probs, batch
            )
            share = self.transducer_weight
            parts.total = share * parts.transducer + (1.0 - share) * parts.total
        if self.mwer is not None and model.training:
            parts.risk = self.mwer(
                hidden,
                lengths,
                model.ctc_log_probs(hidden),
                model.decoder,
                batch.tokens,
                batch.token_lengths,
            )
            share = self.mwer.weight
            parts.total = share * parts.risk + (1.0 - share) * parts.total
        return parts

    def stream_ctc(
        self, model: nn.Module, name: str, hidden: Tensor, lengths: Tensor, batch
    ) -> Tensor:
        """CTC of the hidden frames of one stream."""
        return self.ctc(model, model.stream_log_probs(name, hidden), lengths, batch)

    def ctc(self, model: nn.Module, log_probs: Tensor, lengths: Tensor, batch) -> Tensor:
        """CTC, near the times of the words where these are known and count."""
        if self.time_slack is not None and batch.token_times is not None:
            times, slack = (
                batch.token_times / model.frame_shift,
                self.time_slack / model.frame_shift,
            )
            return timed_ctc_loss(
                log_probs, lengths, batch.tokens, batch.token_lengths, times, slack
            )
        if self.time_slack is not None and model.training and not self._warned:
            self._warned = True
            logger.warning(
                "loss.time_slack is %g, but there are cuts that do not say when their words were "
                "said: `speechattn align` adds it",
                self.time_slack,
            )
        return self.ctc_of(log_probs, lengths, batch.tokens, batch.token_lengths)

    def of_transducer(
        self, model: nn.Module, hidden: Tensor, lengths: Tensor, log_probs: Tensor, batch
    ) -> tuple[Tensor, Tensor | None]:
        """The transducer's loss, and the share of frames that its reducer, if any, has kept."""
        kept = None
        if model.frame_reducer is not None:
            frames = lengths.sum()
            hidden, lengths, _ = model.frame_reducer(
                hidden, lengths, log_probs, batch.token_lengths
            )
            kept = lengths.sum() / frames
        loss = self.transducer(model.transducer, hidden, lengths, batch.tokens, batch.token_lengths)
        return loss, kept

    def intermediate_ctc(self, model: nn.Module, encoded, batch) -> Tensor:
        """Mean of the CTC losses of all intermediate layers of all streams."""
        losses = [
            self.stream_ctc(model, name, hidden, encoded.streams[name][1], batch)
            for name, layers in encoded.intermediate.items()
            for hidden in layers.values()
        ]
        return torch.stack(losses).mean()

    def attention(self, decoder: Decoder, hidden: Tensor, lengths: Tensor, batch) -> Tensor:
        """Of the decoder left to right."""
        inputs, targets = shifted(batch.tokens, batch.token_lengths, decoder.vocab_size - 1)
        logits = decoder(inputs, batch.token_lengths + 1, hidden, lengths)
        return self.smoothed(logits, targets, batch)

    def reverse_attention(
        self, decoder: BidirectionalDecoder, hidden: Tensor, lengths: Tensor, batch
    ) -> Tensor:
        """Of the decoder right to left."""
        sos = decoder.vocab_size - 1
        inputs, _ = shifted(batch.tokens, batch.token_lengths, sos)
        turned = reverse_tokens(batch.tokens, batch.token_lengths)
        _, targets = shifted(turned, batch.token_lengths, sos)
        logits = decoder.reverse(inputs, batch.token_lengths + 1, hidden, lengths)
        return self.smoothed(logits, targets, batch)

    def smoothed(self, logits: Tensor, targets: Tensor, batch) -> Tensor:
        return label_smoothing_loss(
            logits, targets, batch.token_lengths + 1, self.label_smoothing, self.per_token
        )


def shifted(tokens: Tensor, lengths: Tensor, sos: int) -> tuple[Tensor, Tensor]:
    """What a decoder is fed and what it has to say: <sos> before the tokens, <eos> after them.

    Args:
        tokens: (B, U).
        lengths: (B,).
        sos: id of <sos/eos>.

    Returns:
        Both (B, U + 1).
    """
    inputs = torch.cat([tokens.new_full((len(tokens), 1), sos), tokens], 1)
    targets = torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], 1)
    return inputs, targets.scatter(1, lengths[:, None], sos)
