"""Log mel filterbank energies as Kaldi computes them, batched and differentiable."""

import math

import torch
from torch import Tensor, nn

from speechattn.frontends.base import Frontend, Reach
from speechattn.frontends.cmvn import Cmvn, CmvnName

PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
FLOOR = torch.finfo(torch.float32).eps


def mel(hertz: Tensor | float) -> Tensor:
    """Convert Hz to Kaldi's mel scale."""
    return 1127.0 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700.0)


def mel_filters(num_bins: int, fft_size: int, sample_rate: int) -> Tensor:
    """Make triangles that are evenly spaced, and straight-sided, on the mel scale.

    Returns:
        (fft_size // 2 + 1, num_bins) float32; the Nyquist bin has no weight, as in Kaldi.
    """
    low, high = mel(LOWEST_HZ), mel(sample_rate / 2)
    step = (high - low) / (num_bins + 1)
    left = low + step * torch.arange(num_bins)  # (F,)
    bins = mel(sample_rate / fft_size * torch.arange(fft_size // 2, dtype=torch.float64))
    up = (bins[:, None] - left) / step
    filters = torch.minimum(up, 2.0 - up).clamp(min=0.0)
    return nn.functional.pad(filters, (0, 0, 0, 1)).float()


class LogMelFbank(Frontend):
    """Waveform to log mel energies: 25 ms Povey windows every 10 ms, no dither, whole windows only.

    Equal to `torchaudio.compliance.kaldi.fbank(wave * 2**15, dither=0, num_mel_bins=...)`.

    Args:
        num_bins: mel bands.
        sample_rate: of the waveform, in Hz.
        normalise: see `Cmvn`.
        statistics: file for 'global' (see `read_statistics`).
    """

    def __init__(
        self,
        num_bins: int = 80,
        sample_rate: int = 16000,
        normalise: CmvnName = "utterance",
        statistics: str | None = None,
    ):
        super().__init__()
        self.output_size = num_bins
        self.sample_rate = sample_rate
        self.cmvn = Cmvn(normalise, num_bins, statistics)
        self.window_size = sample_rate * 25 // 1000
        self.hop = sample_rate // 100
        self.frame_shift = 0.01
        self.fft_size = 2 ** math.ceil(math.log2(self.window_size))
        window = torch.hann_window(self.window_size, periodic=False).pow(0.85)
        filters = mel_filters(num_bins, self.fft_size, sample_rate)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map waveforms (B, N) in [-1, 1], and lengths (B,) in samples, to features.

        Returns:
            (B, T, num_bins) and (B,) frames; T is at least 1, an item shorter than a window has 0.
        """
        lengths = ((lengths - self.window_size) // self.hop + 1).clamp(min=0)
        # Energies span many orders of magnitude, more than half precision holds.
        with torch.autocast(x.device.type, enabled=False):
            y = self.energies(x.float() * 2.0**15)  # (B, T, F)
        return self.cmvn(y, lengths), lengths

    def reach(self) -> Reach:
        self.cmvn.check_streaming()
        return Reach(self.hop, window=self.window_size)

    def energies(self, x: Tensor) -> Tensor:
        """Map x (B, N) to log energies (B, T, num_bins)."""
        if x.shape[1] < self.window_size:
            x = nn.functional.pad(x, (0, self.window_size - x.shape[1]))
        frames = x.unfold(1, self.window_size, self.hop)  # (B, T, W)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(frames, n=self.fft_size).abs().square()
        return (power @ self.filters).clamp(min=FLOOR).log()
