"""Word times for a corpus that has none, from a small model trained on the corpus itself.

CTC constrains the order of tokens, and a model that reads a whole clip may emit them anywhere in
it. This one reads 0.3 s to either side of a frame, and can emit a word only about where it is. Its
scores are divided by the priors of the tokens, as CTC nearly always emits blank: label priors
(Huang et al., 2406.02560). It writes what `loss.time_slack` and `data.trim_chance` need; as a
recogniser it is of no use.
"""

import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from torch import Tensor, nn

from speechattn.data.batches import DataOptions
from speechattn.data.batches.batch import Batch, collate
from speechattn.data.batches.datamodule import SpeechData
from speechattn.data.batches.dataset import SpeechDataset, read_cuts
from speechattn.data.batches.timed import word_alignment
from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding import token_times, word_times
from speechattn.decoding.ctc import AlignmentError
from speechattn.errors import ConfigError
from speechattn.files import replacing
from speechattn.frontends import LogMelFbank
from speechattn.losses.joint import ctc_loss
from speechattn.masks import padding_mask
from speechattn.training.base_task import BaseTask
from speechattn.training.options import TrainingOptions
from speechattn.training.trainer import check_resumed, fit, make_trainer, seed

logger = logging.getLogger(__name__)

FRAME_SHIFT = 0.04
RATE = 16000  # Hz
MIN_PRIOR = 1e-5
FIRST_EPOCHS = 3  # trained without priors, which are not known yet


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


class Aligner(nn.Module):
    """A CTC model of frames of 40 ms, each computed from 0.6 s around it.

    Args:
        vocab_size: V.
        width: of its layers.
        prior: see `AlignerOptions`.
    """

    def __init__(self, vocab_size: int, width: int, prior: float):
        super().__init__()
        self.frontend = LogMelFbank(sample_rate=RATE)
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
        """Map (B, N) sound and (B,) samples to log probabilities (B, T, V) and (B,) frames."""
        x, lengths = self.frontend(audio, lengths)
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
            if not isinstance(layer, _Layer):
                lengths = (lengths + 1) // 2
            # Padding must not reach the frames before it.
            x = x * padding_mask(lengths, x.shape[2])[:, None]
        x = self.head(self.dropout(x)).transpose(1, 2)
        return x.log_softmax(-1), lengths

    def scores(self, log_probs: Tensor) -> Tensor:
        """Divide by the priors."""
        return log_probs - self.power * self.priors.clamp(min=MIN_PRIOR).log()


class AlignerTask(BaseTask):
    """Trains an `Aligner`, whose priors are its mean posteriors in the epoch before."""

    columns = tuple("epoch step train_loss lr skipped unreadable seconds".split())

    def __init__(self, model: Aligner, options: TrainingOptions):
        super().__init__(model, options)
        self.posteriors: Tensor | float = 0.0  # their sum over the frames of the epoch
        self.frames = 0

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.begin(f"cuts {' '.join(batch.ids)}", batch.failed)
        if len(batch) == 0:
            return self.skip("nothing of it could be read")
        log_probs, lengths = self.model(batch.audio, batch.audio_lengths)
        real = padding_mask(lengths, log_probs.shape[1])
        self.posteriors = self.posteriors + log_probs.detach()[real].exp().sum(0)
        self.frames += int(real.sum())
        if self.current_epoch >= FIRST_EPOCHS:
            log_probs = self.model.scores(log_probs)
        loss = ctc_loss(log_probs, lengths, batch.tokens, batch.token_lengths)
        return self.count(loss, len(batch), {"loss": loss})

    def on_train_epoch_end(self) -> None:
        if self.frames:
            self.model.priors.copy_(self.posteriors / self.frames)
        self.posteriors, self.frames = 0.0, 0


def align(
    cuts: str | Path,
    others: Iterable[str | Path],
    tokenizer: Tokenizer,
    output: str | Path,
    options: AlignerOptions | None = None,
) -> list[Path]:
    """Train on a manifest, and write it and others with the times of their words.

    Training goes on where an earlier call of the same `output` was stopped.

    Args:
        cuts: Lhotse cuts with sound and text, to train on.
        others: more of them, to align only.
        tokenizer: makes the targets.
        output: folder for manifests of the same names; cuts with word times stay as they are, and
            those without a possible alignment keep none and are reported.
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
    manifests = {path: read_cuts(path, ["audio"]) for path in paths}
    folder = output / "aligner"
    model = fit_aligner(paths[0], tokenizer, folder, options)
    for path, some in manifests.items():
        missed = [cut.id for cut in some if not align_cut(model, cut, tokenizer)]
        if missed:
            logger.warning(
                "%s: no word times for %d of %d cuts: %s%s",
                path, len(missed), len(some), " ".join(missed[:5]), " ..." * (len(missed) > 5),
            )  # fmt: skip
        with replacing(output / path.name) as part:
            CutSet.from_cuts(some).to_file(part)
    shutil.rmtree(folder)
    return [output / path.name for path in paths]


def fit_aligner(cuts: Path, tokenizer: Tokenizer, folder: Path, options: AlignerOptions) -> Aligner:
    """Train the model on a manifest; return it on the CPU, in evaluation mode.

    Training resumes in `folder`.
    """
    batches = {"batch_seconds": options.batch_seconds, "num_workers": options.num_workers}
    of_model = {"modalities": ["audio"], "sample_rate": RATE, "seed": options.seed}
    data_options = DataOptions(max_seconds=float("inf"), **batches)
    data = SpeechData(data_options, cuts, cuts, tokenizer, **of_model)
    steps = options.epochs * len(data.train_dataloader())
    rates = {"lr": options.lr, "warmup_steps": min(30, steps // 10 + 1), "betas": (0.9, 0.999)}
    training = TrainingOptions(max_epochs=options.epochs, seed=options.seed, **rates)
    seed(training)
    task = AlignerTask(Aligner(tokenizer.vocab_size, options.width, options.prior), training)
    config = {"aligner": asdict(options), "cuts": str(cuts), "tokens": tokenizer.tokens}
    folder.mkdir(parents=True, exist_ok=True)
    check_resumed(folder, config, tuple(config))
    fit(make_trainer(training, folder, validate=False), task, data, folder, config)
    return task.model.cpu().eval()


@torch.inference_mode()
def align_cut(model: Aligner, cut: Cut, tokenizer: Tokenizer) -> bool:
    """Write the word times into a cut of one supervision; return False if there are none."""
    if word_alignment(cut) is not None:
        return True
    if len(cut.supervisions) != 1:
        return False
    item = SpeechDataset([cut], tokenizer, ["audio"], sample_rate=RATE)[0]
    batch = collate([item])
    log_probs, lengths = model(batch.audio, batch.audio_lengths)
    scores = model.scores(log_probs)[0, : int(lengths)]
    try:
        times = token_times(scores, list(item.tokens), FRAME_SHIFT)
    except AlignmentError:
        return False
    words = word_times(times, tokenizer.tokens)
    symbols = item.text.split()
    if len(symbols) != len(words):
        symbols = [word.word for word in words]
    alignment = [
        AlignmentItem(symbol, round(word.start, 3), round(word.end - word.start, 3))
        for symbol, word in zip(symbols, words, strict=True)
    ]
    cut.supervisions[0].alignment = {"word": alignment}
    return True
