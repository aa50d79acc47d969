"""Word times for a corpus that has none, from a small model that is trained on the corpus itself.

CTC decides in what order tokens are said, and a model that hears a whole clip is free to say them
anywhere in it. This one hears 0.3 s to either side of a frame, and can say a word only about
where it is. Its scores are divided by the priors of the tokens, low as CTC emits blank nearly
always, as label priors do (Huang et al., 2406.02560). What it writes is what `loss.time_slack` and
`data.trim_chance` need; as a recogniser it is of no use.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from torch import Tensor, nn
from torch.utils.data import DataLoader

from speechattn.data.batches.batch import collate
from speechattn.data.batches.dataset import SpeechDataset, read_cuts
from speechattn.data.batches.sampler import PaddedFrameBatches
from speechattn.data.batches.timed import word_alignment
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import token_times, word_times
from speechattn.decoding.ctc import AlignmentError
from speechattn.errors import ConfigError
from speechattn.frontends import LogMelFbank
from speechattn.losses.joint import ctc_loss
from speechattn.masks import padding_mask
from speechattn.training.schedule import warmup_cosine

logger = logging.getLogger(__name__)

FRAME_SHIFT = 0.04
# Below this a prior is not believed.
_RARE = 1e-5


@dataclass(frozen=True)
class AlignerOptions:
    """How the model is trained.

    Attributes:
        epochs: of all cuts that are trained on.
        width: of its layers.
        lr: highest learning rate.
        prior: power of the priors that scores are divided by, 0..1.
        batch_seconds: cap on a batch's padded size, in seconds.
        seed: of weights, dropout and batches.
        num_workers: loading processes.
    """

    epochs: int = 25
    width: int = 128
    lr: float = 2e-3
    prior: float = 0.4
    batch_seconds: float = 45.0
    seed: int = 0
    num_workers: int = 1


class _Layer(nn.Module):
    """A residual convolution over five frames of 40 ms."""

    def __init__(self, width: int):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 5, padding=2)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.convolution(x)).relu()


class LocalCtc(nn.Module):
    """Sound to scores of tokens in frames of 40 ms, each from 0.6 s around it.

    Args:
        vocab_size: V.
        width: of its layers.
        prior: see `AlignerOptions`.
        sample_rate: of the sound, Hz.
    """

    def __init__(self, vocab_size: int, width: int, prior: float, sample_rate: int = 16000):
        super().__init__()
        self.frontend = LogMelFbank(sample_rate=sample_rate)
        sizes = (self.frontend.output_size, width, width)
        halvings = [
            nn.Sequential(nn.Conv1d(a, b, 3, 2, 1), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        self.layers = nn.ModuleList([*halvings, *(_Layer(width) for _ in range(3))])
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv1d(width, vocab_size, 1)
        self.power = prior
        self.register_buffer("priors", torch.full((vocab_size,), 1.0))

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) sound and (B,) samples to log probabilities (B, T, V) and (B,) frames."""
        x, lengths = self.frontend(audio, lengths)
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
            if not isinstance(layer, _Layer):
                lengths = (lengths + 1) // 2
            # Beyond its end an item is as if it were alone.
            x = x * padding_mask(lengths, x.shape[2])[:, None]
        x = self.head(self.dropout(x)).transpose(1, 2)
        return x.log_softmax(-1), lengths

    def scores(self, log_probs: Tensor) -> Tensor:
        """Divided by the priors."""
        return log_probs - self.power * self.priors.clamp(min=_RARE).log()


def align(
    cuts: str | Path,
    others: Iterable[str | Path],
    tokenizer: Tokenizer,
    output: str | Path,
    options: AlignerOptions | None = None,
) -> list[Path]:
    """Train on a manifest and writes it, and others, with the times of their words.

    Args:
        cuts: Lhotse cuts with sound and text, to learn from.
        others: more of them, to align only.
        tokenizer: makes the targets.
        output: folder for manifests of the same names; cuts that are aligned already stay as they
            are, and those for which no alignment is found keep none and are reported.
        options: see there.

    Returns:
        The manifests.

    Raises:
        ConfigError: a manifest cannot be used, or is in `output`.
    """
    options = options or AlignerOptions()
    paths, output = [Path(cuts), *map(Path, others)], Path(output)
    if any(path.parent.resolve() == output.resolve() for path in paths):
        raise ConfigError(f"--output {output}: holds the manifests that are read; choose another")
    if len({path.name for path in paths}) < len(paths):
        raise ConfigError("two manifests of the same name: their alignments would be one file")
    read = {path: read_cuts(path, ["audio"]) for path in paths}
    rate = 16000
    model = fit_aligner(read[paths[0]], tokenizer, options, rate)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for path, some in read.items():
        missed = [cut.id for cut in some if not align_cut(model, cut, tokenizer, rate)]
        if missed:
            logger.warning(
                "%s: no word times for %d of %d cuts: %s%s",
                path, len(missed), len(some), " ".join(missed[:5]), " ..." * (len(missed) > 5),
            )  # fmt: skip
        part = output / f"part.{path.name}"
        CutSet.from_cuts(some).to_file(part)
        part.replace(output / path.name)
        written.append(output / path.name)
    return written


def fit_aligner(
    cuts: Sequence[Cut], tokenizer: Tokenizer, options: AlignerOptions, sample_rate: int = 16000
) -> LocalCtc:
    """Train the model on cuts with sound and text; ready for use."""
    torch.manual_seed(options.seed)
    model = LocalCtc(tokenizer.vocab_size, options.width, options.prior, sample_rate)
    data = SpeechDataset(cuts, tokenizer, ["audio"], sample_rate=sample_rate)
    sampler = PaddedFrameBatches(data.durations, options.batch_seconds, seed=options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    total, step = options.epochs * len(sampler), 0
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        loader = DataLoader(
            data, batch_sampler=sampler, collate_fn=collate, num_workers=options.num_workers
        )
        seen, frames, losses = torch.zeros(tokenizer.vocab_size), 0, []
        for batch in loader:
            factor = warmup_cosine(step, min(30, total // 10 + 1), total)
            for group in optimizer.param_groups:
                group["lr"] = options.lr * factor
            log_probs, lengths = model(batch.audio, batch.audio_lengths)
            real = padding_mask(lengths, log_probs.shape[1])
            seen += log_probs.detach()[real].exp().sum(0)
            frames += int(real.sum())
            # The first epochs have no priors to speak of.
            scores = model.scores(log_probs) if epoch > 2 else log_probs
            loss = ctc_loss(scores, lengths, batch.tokens, batch.token_lengths)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            losses.append(float(loss.detach()))
        model.priors.copy_(seen / max(1, frames))
        logger.info("epoch %d of %d: loss %.2f", epoch + 1, options.epochs, np.mean(losses))
    return model.eval()


@torch.inference_mode()
def align_cut(model: LocalCtc, cut: Cut, tokenizer: Tokenizer, sample_rate: int = 16000) -> bool:
    """Write the word times into a cut of one supervision; False if there are none."""
    if word_alignment(cut) is not None:
        return True
    if len(cut.supervisions) != 1:
        return False
    item = SpeechDataset([cut], tokenizer, ["audio"], sample_rate=sample_rate)[0]
    batch = collate([item])
    log_probs, lengths = model(batch.audio, batch.audio_lengths)
    try:
        times = token_times(
            model.scores(log_probs)[0, : int(lengths)], list(item.tokens), FRAME_SHIFT
        )
    except AlignmentError:
        return False
    words = word_times(times, tokenizer.tokens)
    said = item.text.split()
    names = said if len(said) == len(words) else [word.word for word in words]
    cut.supervisions[0].alignment = {
        "word": [
            AlignmentItem(name, round(word.start, 3), round(word.end - word.start, 3))
            for name, word in zip(names, words, strict=True)
        ]
    }
    return True
