"""What tests of losses share."""

from torch import nn

from speechattn.data.batches.batch import Batch
from speechattn.losses import JointLoss, LossParts


def loss_of(loss: JointLoss, model: nn.Module, batch: Batch) -> LossParts:
    """Encode a batch and compute its loss."""
    encoded = model.encode_streams(
        batch.audio, batch.audio_lengths, batch.video, batch.video_lengths
    )
    return loss(model, encoded, batch)
