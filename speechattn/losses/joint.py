"""The joint CTC/attention loss (Watanabe et al. 2017, Hybrid CTC/Attention) and its additions.

Right-to-left attention is U2++'s (2106.05642), CTC at intermediate layers is Lee and Watanabe's
(2102.03216); the sums are those of WeNet and ESPnet.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.data.batches.batch import Batch
from speechattn.decoders import BidirectionalDecoder, Decoder, reverse_tokens
from speechattn.errors import ConfigError
from speechattn.losses.criterion import CtcCriterion
from speechattn.losses.mwer import MwerLoss
from speechattn.losses.ranges import check_range
from speechattn.losses.timed_ctc import timed_ctc_loss
from speechattn.losses.transducer import FullTransducerLoss, PrunedTransducerLoss
from speechattn.masks import padding_mask
from speechattn.model.speech_model import Encoded

logger = logging.getLogger(__name__)


@dataclass
class LossParts:
    """A loss and its parts before weighting: scalars, None where not computed.

    The names of the fields are those of the figures in logs and tables: `train_ctc_loss`.

    Attributes:
        loss: what is minimised.
        ctc_loss: of the model's output.
        att_loss: of the decoder, left to right.
        reverse_loss: of the decoder, right to left.
        intermediate_loss: CTC of intermediate layers, their mean.
        stream_loss: CTC of the streams before fusion, their mean.
        risk: expected errors above their mean; in training only.
        transducer_loss: of the transducer.
        kept_frames: no loss: share of the frames that the transducer has read, 0..1.
    """

    loss: Tensor
    ctc_loss: Tensor
    att_loss: Tensor | None = None
    reverse_loss: Tensor | None = None
    intermediate_loss: Tensor | None = None
    stream_loss: Tensor | None = None
    risk: Tensor | None = None
    transducer_loss: Tensor | None = None
    kept_frames: Tensor | None = None


def label_smoothing_loss(
    logits: Tensor, targets: Tensor, lengths: Tensor, smoothing: float, per_token: bool
) -> Tensor:
    """Compute the divergence of the model from targets that keep `1 - smoothing` on the true token.

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
    """Compute torch's CTC as a `CtcCriterion` does, averaged over the batch."""
    frames = log_probs.float().transpose(0, 1)
    texts = tokens, lengths, token_lengths
    loss = nn.functional.ctc_loss(frames, *texts, reduction="sum", zero_infinity=True)
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

    Raises:
        ConfigError: an option is out of range, or two of them exclude each other.
    """

    def __init__(
        self,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        per_token: bool = False,
        *,
        stream_ctc_weight: float = 0.0,
        reverse_weight: float = 0.0,
        intermediate_weight: float = 0.0,
        time_slack: float | None = None,
        ctc: CtcCriterion | None = None,
        mwer: MwerLoss | None = None,
        transducer: FullTransducerLoss | PrunedTransducerLoss | None = None,
        transducer_weight: float = 0.7,
    ):
        super().__init__()
        check_range("loss.ctc_weight", ctc_weight, 0, 1)
        check_range("loss.reverse_weight", reverse_weight, 0, 1)
        check_range("loss.transducer_weight", transducer_weight, 0, 1)
        check_range("loss.label_smoothing", label_smoothing, 0, 1, below=True)
        check_range("loss.intermediate_weight", intermediate_weight, 0, 1, below=True)
        check_range("loss.stream_ctc_weight", stream_ctc_weight)
        if time_slack is not None:
            check_range("loss.time_slack", time_slack)
            if ctc is not None:
                raise ConfigError("loss.time_slack and loss.ctc exclude each other: drop one")
        self.ctc_weight, self.label_smoothing = ctc_weight, label_smoothing
        self.per_token, self.stream_ctc_weight = per_token, stream_ctc_weight
        self.reverse_weight, self.intermediate_weight = reverse_weight, intermediate_weight
        self.time_slack = time_slack
        self.ctc_criterion = ctc or ctc_loss
        self.mwer, self.transducer = mwer, transducer
        self.transducer_weight = transducer_weight if transducer is not None else 0.0
        self._warned = False

    def check(self, model: nn.Module) -> None:
        """Check that a `SpeechModel` has the parts that the weights ask for.

        Raises:
            ConfigError: it names the weight and what the model lacks for it.
        """
        self._check_decoder(model.decoder)
        self._check_transducer(model)
        if self.intermediate_weight > 0.0:
            option = f"loss.intermediate_weight is {self.intermediate_weight:g}"
            encoders = [stream.encoder for stream in model.streams.values()]
            if not any(getattr(encoder, "intermediate", ()) for encoder in encoders):
                raise ConfigError(
                    f"{option}, which needs an encoder with `intermediate` layers; there is none"
                )
            if self.ctc_weight == 0.0:
                raise ConfigError(f"{option}, but loss.ctc_weight 0 trains without CTC")

    def _check_decoder(self, decoder: Decoder | None) -> None:
        bidirectional = isinstance(decoder, BidirectionalDecoder)
        if self.reverse_weight > 0.0:
            option = f"loss.reverse_weight is {self.reverse_weight:g}"
            if not bidirectional:
                name = type(decoder).__name__ if decoder is not None else "none"
                raise ConfigError(
                    f"{option}, which needs model.decoder to be a BidirectionalDecoder; it is "
                    f"{name}"
                )
            if self.ctc_weight == 1.0:
                raise ConfigError(f"{option}, but loss.ctc_weight 1 trains without the decoder")
        elif bidirectional and self.ctc_weight < 1.0:
            logger.warning(
                "loss.reverse_weight is 0: the right-to-left half of the decoder does not learn"
            )
        if self.mwer is not None and decoder is None and self.mwer.ctc_weight < 1.0:
            raise ConfigError(
                f"loss.mwer.ctc_weight is {self.mwer.ctc_weight:g}, which needs model.decoder; "
                "there is none: take 1"
            )

    def _check_transducer(self, model: nn.Module) -> None:
        head = model.transducer
        if self.transducer is None and head is not None:
            logger.warning("loss.transducer is left out: the transducer does not learn")
        if self.transducer is not None and head is None:
            raise ConfigError("loss.transducer needs model.transducer; there is none")
        if isinstance(self.transducer, PrunedTransducerLoss) and head.simple_am is None:
            raise ConfigError(
                "loss.transducer is a PrunedTransducerLoss, which needs model.transducer.simple"
            )
        no_ctc = self.ctc_weight == 0.0 and model.decoder is not None
        if model.frame_reducer is not None and (no_ctc or self.transducer_weight == 1.0):
            raise ConfigError(
                "model.frame_reducer goes by CTC, which does not learn: set loss.ctc_weight above "
                "0 and loss.transducer_weight below 1"
            )

    def forward(self, model: nn.Module, encoded: Encoded, batch: Batch) -> LossParts:
        """Compute the loss of a `SpeechModel` on a batch.

        Args:
            model: its heads (CTC, decoder, transducer) read `encoded`.
            encoded: what `model.encode_streams` made of the batch.
            batch: the tokens, and their times.
        """
        hidden, lengths = encoded.hidden, encoded.lengths
        log_probs = model.ctc_log_probs(hidden)
        ctc = self.ctc(model, log_probs, lengths, batch)
        parts = LossParts(ctc, ctc.detach())
        if self.intermediate_weight > 0.0:
            parts.intermediate_loss = self.intermediate_ctc(model, encoded, batch)
            ctc = _mix(parts.intermediate_loss, ctc, self.intermediate_weight)
        parts.loss = ctc
        if model.decoder is not None and self.ctc_weight < 1.0:
            attention = self.attention(model.decoder, hidden, lengths, batch, parts)
            parts.loss = self.ctc_weight * ctc + (1.0 - self.ctc_weight) * attention
        if self.stream_ctc_weight > 0.0 and len(encoded.streams) > 1:
            streams = encoded.streams.items()
            losses = [self.stream_ctc(model, name, h, n, batch) for name, (h, n) in streams]
            parts.stream_loss = torch.stack(losses).mean()
            parts.loss = parts.loss + self.stream_ctc_weight * parts.stream_loss
        if self.transducer is not None:
            parts.transducer_loss, parts.kept_frames = self.transduce(
                model, hidden, lengths, log_probs, batch
            )
            parts.loss = _mix(parts.transducer_loss, parts.loss, self.transducer_weight)
        if self.mwer is not None and model.training:
            log_probs, texts = model.ctc_log_probs(hidden), (batch.tokens, batch.token_lengths)
            parts.risk = self.mwer(hidden, lengths, log_probs, model.decoder, *texts)
            parts.loss = _mix(parts.risk, parts.loss, self.mwer.weight)
        return parts

    def stream_ctc(
        self, model: nn.Module, name: str, hidden: Tensor, lengths: Tensor, batch: Batch
    ) -> Tensor:
        """Compute CTC on the hidden frames of one stream."""
        return self.ctc(model, model.stream_log_probs(name, hidden), lengths, batch)

    def ctc(self, model: nn.Module, log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """Compute CTC, near the times of the words where these are known and count."""
        targets = batch.tokens, batch.token_lengths
        if self.time_slack is not None and batch.token_times is not None:
            times = batch.token_times / model.frame_shift
            slack = self.time_slack / model.frame_shift
            return timed_ctc_loss(log_probs, lengths, *targets, times, slack)
        if self.time_slack is not None and model.training and not self._warned:
            self._warned = True
            logger.warning(
                "loss.time_slack is %g, but there are cuts without word times: "
                "`speechattn align` adds them",
                self.time_slack,
            )
        return self.ctc_criterion(log_probs, lengths, *targets)

    def transduce(
        self, model: nn.Module, hidden: Tensor, lengths: Tensor, log_probs: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the transducer's loss, and the share of frames that a frame reducer kept."""
        kept = None
        if model.frame_reducer is not None:
            frames = lengths.sum()
            reduce, counts = model.frame_reducer, batch.token_lengths
            hidden, lengths, _ = reduce(hidden, lengths, log_probs, counts)
            kept = lengths.sum() / frames
        loss = self.transducer(model.transducer, hidden, lengths, batch.tokens, batch.token_lengths)
        return loss, kept

    def intermediate_ctc(self, model: nn.Module, encoded: Encoded, batch: Batch) -> Tensor:
        """Compute the mean of the CTC losses of all intermediate layers of all streams."""
        losses = [
            self.stream_ctc(model, name, hidden, encoded.streams[name][1], batch)
            for name, layers in encoded.intermediate.items()
            for hidden in layers.values()
        ]
        return torch.stack(losses).mean()

    def attention(
        self, decoder: Decoder, hidden: Tensor, lengths: Tensor, batch: Batch, parts: LossParts
    ) -> Tensor:
        """Compute the decoder's loss of both directions, noting each in `parts`."""
        counts, sos = batch.token_lengths + 1, decoder.vocab_size - 1
        inputs, targets = shifted(batch.tokens, batch.token_lengths, sos)
        attention = 0.0
        if self.reverse_weight < 1.0:
            logits = decoder(inputs, counts, hidden, lengths)
            parts.att_loss = self.smoothed(logits, targets, counts)
            attention = (1.0 - self.reverse_weight) * parts.att_loss
        if self.reverse_weight > 0.0:
            reversed_tokens = reverse_tokens(batch.tokens, batch.token_lengths)
            _, targets = shifted(reversed_tokens, batch.token_lengths, sos)
            logits = decoder.reverse(inputs, counts, hidden, lengths)
            parts.reverse_loss = self.smoothed(logits, targets, counts)
            attention = attention + self.reverse_weight * parts.reverse_loss
        return attention

    def smoothed(self, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
        """Compute cross-entropy with the options of this loss."""
        return label_smoothing_loss(logits, targets, counts, self.label_smoothing, self.per_token)


def _mix(new: Tensor, rest: Tensor, share: float) -> Tensor:
    return share * new + (1.0 - share) * rest


def shifted(tokens: Tensor, lengths: Tensor, sos: int) -> tuple[Tensor, Tensor]:
    """Return a decoder's input and targets, (B, U + 1): <sos> before the tokens, <eos> after them.

    From tokens (B, U), lengths (B,) and the id of <sos/eos>.
    """
    inputs = torch.cat([tokens.new_full((len(tokens), 1), sos), tokens], 1)
    targets = torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], 1)
    return inputs, targets.scatter(1, lengths[:, None], sos)
