"""The joint CTC/attention loss (Watanabe et al. 2017, Hybrid CTC/Attention)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechattn.masks import padding_mask


@dataclass
class LossParts:
    """A loss and what it is made of, each a scalar; `attention` and `ctc` are before weighting."""

    total: Tensor
    ctc: Tensor
    attention: Tensor | None = None
    streams: Tensor | None = None


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

    Args:
        ctc_weight: share of the CTC loss; 1 trains without the decoder.
        label_smoothing: probability taken from the true token.
        per_token: average the attention loss over tokens rather than sum over each utterance's.
        stream_ctc_weight: weight of the CTC losses of the audio and the video stream of an
            audio-visual model, which keep the harder stream learning when the other suffices.
    """

    def __init__(
        self,
        ctc_weight: float = 0.3,
        label_smoothing: float = 0.1,
        per_token: bool = False,
        stream_ctc_weight: float = 0.0,
    ):
        super().__init__()
        self.ctc_weight = ctc_weight
        self.label_smoothing = label_smoothing
        self.per_token = per_token
        self.stream_ctc_weight = stream_ctc_weight

    def forward(self, model: nn.Module, batch) -> LossParts:
        """The loss of a `SpeechModel` on a `speechattn.data.Batch`."""
        encoded = model.encode_streams(
            batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
        )
        hidden, lengths = encoded.hidden, encoded.lengths
        ctc = ctc_loss(model.ctc_log_probs(hidden), lengths, batch.tokens, batch.token_lengths)
        total, attention, streams = ctc, None, None
        if model.decoder is not None and self.ctc_weight < 1.0:
            attention = self.attention(model.decoder, hidden, lengths, batch)
            total = self.ctc_weight * ctc + (1.0 - self.ctc_weight) * attention
        if self.stream_ctc_weight > 0.0 and len(encoded.streams) > 1:
            streams = torch.stack(
                [
                    ctc_loss(model.stream_log_probs(name, h), n, batch.tokens, batch.token_lengths)
                    for name, (h, n) in encoded.streams.items()
                ]
            ).mean()
            total = total + self.stream_ctc_weight * streams
        return LossParts(total, ctc.detach(), attention, streams)

    def attention(self, decoder: nn.Module, hidden: Tensor, lengths: Tensor, batch) -> Tensor:
        tokens, token_lengths = batch.tokens, batch.token_lengths  # (B, U)
        sos = decoder.vocab_size - 1
        first = tokens.new_full((tokens.shape[0], 1), sos)
        inputs = torch.cat([first, tokens], dim=1)  # (B, U + 1)
        targets = torch.cat([tokens, tokens.new_zeros(tokens.shape[0], 1)], dim=1)
        targets = targets.scatter(1, token_lengths[:, None], sos)
        logits = decoder(inputs, token_lengths + 1, hidden, lengths)
        return label_smoothing_loss(
            logits, targets, token_lengths + 1, self.label_smoothing, self.per_token
        )
