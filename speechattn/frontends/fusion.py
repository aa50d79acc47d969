"""Two encoded streams into one (Ma et al., 2102.06657)."""

import torch
from torch import Tensor, nn

from speechattn.masks import padding_mask


class MLPFusion(nn.Module):
    """Concatenates audio and video frame by frame and mixes them with a two-layer perceptron.

    Args:
        audio_size: width of the audio stream.
        video_size: width of the video stream.
        hidden_size: width of the hidden layer.
        output_size: width of the result.
        stream_dropout: chance, in training, that an utterance loses one stream entirely (each is as
            likely), which keeps the model from leaning on the easier one.
    """

    def __init__(
        self,
        audio_size: int,
        video_size: int,
        hidden_size: int,
        output_size: int,
        *,
        stream_dropout: float = 0.0,
    ):
        super().__init__()
        self.output_size, self.stream_dropout = output_size, stream_dropout
        self.up = nn.Linear(audio_size + video_size, hidden_size)
        self.norm = nn.BatchNorm1d(hidden_size)
        self.down = nn.Linear(hidden_size, output_size)

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fuse streams of the same frame rate; an item ends where its shorter stream does.

        Args:
            audio: (B, Ta, audio_size), audio_lengths (B,).
            video: (B, Tv, video_size), video_lengths (B,).

        Returns:
            (B, T, output_size) and (B,).
        """
        lengths = torch.minimum(audio_lengths, video_lengths)
        frames = min(audio.shape[1], video.shape[1])
        audio, video = audio[:, :frames], video[:, :frames]
        if self.training and self.stream_dropout > 0.0:
            draw = torch.rand(audio.shape[0], 1, 1, device=audio.device)
            audio = audio * (draw >= self.stream_dropout / 2)
            video = video * (draw < 1.0 - self.stream_dropout / 2)
        real = padding_mask(lengths, frames)
        x = self.up(torch.cat([audio, video], dim=-1)[real])  # (real frames, hidden)
        x = self.down(torch.relu(self.norm(x)))
        y = x.new_zeros(*real.shape, self.output_size)
        y[real] = x
        return y, lengths
