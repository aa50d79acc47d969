"""Log mel energies as ESPnet's default frontend computes them, so that its checkpoints decode."""

import math

import torch
from torch import Tensor

from speechattn.frontends.base import Frontend, Reach
from speechattn.frontends.cmvn import Cmvn, CmvnName
from speechattn.masks import padding_mask

FLOOR = 1e-10


def hertz_to_mel(hertz: Tensor, htk: bool) -> Tensor:
    """Convert Hz to mel on HTK's scale, or Slaney's: linear up to 1 kHz, logarithmic above."""
    if htk:
        return 2595.0 * torch.log10(1.0 + hertz / 700.0)
    above = 15.0 + 27.0 * torch.log(hertz.clamp(min=1000.0) / 1000.0) / math.log(6.4)
    return torch.where(hertz < 1000.0, 0.015 * hertz, above)


def mel_to_hertz(mel: Tensor, htk: bool) -> Tensor:
    """Invert `hertz_to_mel`."""
    if htk:
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = 1000.0 * torch.exp((mel - 15.0) * math.log(6.4) / 27.0)
    return torch.where(mel < 15.0, mel / 0.015, above)


def slaney_filters(
    num_bins: int, fft_size: int, sample_rate: int, *, low: float, high: float, htk: bool
) -> Tensor:
    """Make triangles in Hz between centres spaced on the mel scale, each of area 1.

    Returns:
        (fft_size // 2 + 1, num_bins) float32.
    """
    low, high = hertz_to_mel(torch.tensor([low, high], dtype=torch.float64), htk).tolist()
    corners = torch.linspace(low, high, num_bins + 2, dtype=torch.float64)
    corners = mel_to_hertz(corners, htk)  # (F + 2,)
    bins = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, dtype=torch.float64)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    up = (bins[:, None] - left) / (centre - left)
    down = (right - bins[:, None]) / (right - centre)
    filters = torch.minimum(up, down).clamp(min=0.0)
    return (filters * 2.0 / (right - left)).float()


class EspnetLogMel(Frontend):
    """Waveform to log mel energies by a centred STFT (`espnet2.asr.frontend.default`).

    ESPnet reflects the sound at the end of a batch, so that a shorter item's last frames depend
    on the longest; here every item is reflected at its own end, as it is alone.

    Args:
        num_bins: mel bands (ESPnet's `n_mels`).
        sample_rate: of the waveform, in Hz (`fs`).
        fft_size: samples of a transform (`n_fft`).
        window_size: samples of a window (`win_length`); `fft_size` by default.
        hop: samples from frame to frame (`hop_length`).
        low: lowest frequency in Hz (`fmin`).
        high: highest frequency in Hz (`fmax`); half the sample rate by default.
        htk: HTK's mel scale, not Slaney's.
        normalise: see `Cmvn`; ESPnet's `global_mvn` is 'global', its `utterance_mvn` is
            'utterance_mean' unless `norm_vars` is set.
        statistics: file for 'global', such as ESPnet's `feats_stats.npz`.
    """

    def __init__(
        self,
        num_bins: int = 80,
        sample_rate: int = 16000,
        fft_size: int = 512,
        window_size: int | None = None,
        *,
        hop: int = 128,
        low: float = 0.0,
        high: float | None = None,
        htk: bool = False,
        normalise: CmvnName = "global",
        statistics: str | None = None,
    ):
        super().__init__()
        self.output_size = num_bins
        self.sample_rate, self.fft_size = sample_rate, fft_size
        self.window_size = window_size or fft_size
        self.hop = hop
        self.frame_shift = hop / sample_rate
        high = sample_rate / 2 if high is None else high
        filters = slaney_filters(num_bins, fft_size, sample_rate, low=low, high=high, htk=htk)
        self.register_buffer("window", torch.hann_window(self.window_size), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.cmvn = Cmvn(normalise, num_bins, statistics)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map waveforms (B, N) in [-1, 1], and lengths (B,) in samples, to features.

        Returns:
            (B, T, num_bins) and (B,) frames, N // hop + 1 of N samples; an empty item has none.
        """
        frames = torch.where(lengths > 0, lengths // self.hop + 1, 0)
        with torch.autocast(x.device.type, enabled=False):
            y = self.energies(reflect(x.float(), lengths, self.fft_size // 2))  # (B, T, F)
        return self.cmvn(y, frames), frames

    def reach(self) -> Reach:
        self.cmvn.check_streaming()
        edge = math.ceil(self.fft_size / 2 / self.hop)
        # At its end a stream is mirrored, for which there has to be more than is read before it.
        return Reach(self.hop, edge + 1, edge, 0)

    def energies(self, x: Tensor) -> Tensor:
        """Map x (B, N + fft_size) to log energies (B, N // hop + 1, num_bins)."""
        sizes = self.fft_size, self.hop, self.window_size
        spectrum = torch.stft(x, *sizes, self.window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
        return (power @ self.filters).clamp(min=FLOOR).log()


def reflect(x: Tensor, lengths: Tensor, edge: int) -> Tensor:
    """Mirror each item of x (B, N) at its own two ends, by `edge` samples on either side.

    Returns:
        (B, N + 2 * edge); zero beyond `edge` samples after an item's end.
    """
    if x.shape[1] == 0:
        return x.new_zeros(len(x), 2 * edge)
    place = torch.arange(-edge, x.shape[1] + edge, device=x.device)[None]  # (1, N + 2 edge)
    last = (lengths - 1).clamp(min=0)[:, None]
    # A mirror at either end has period 2 * last; items shorter than an edge bounce more than once.
    place = place.remainder((2 * last).clamp(min=1))
    place = torch.minimum(place, 2 * last - place).clamp(min=0)
    return x.gather(1, place) * padding_mask(lengths + 2 * edge, x.shape[1] + 2 * edge)
