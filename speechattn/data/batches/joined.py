"""Training on several utterances one after the other, as one recording.

A model trained on clips of one sentence alone may emit its words at any frame. Trained on longer
recordings too, it has to emit them near where they are said, and copes with windows of a long file
that begin or end within a sentence. Lhotse's `CutConcatenate` and icefall's `--concatenate-cuts`
join cuts within a batch; here this is done before, so that lengths still meet in batches.
"""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from speechattn.data.batches.batch import Item
from speechattn.data.tokenizers import Tokenizer
from speechattn.errors import ConfigError
from speechattn.units import SPACE_TOKEN, WORD_START, is_ideograph

# Sets these draws apart from those of the sampler, which has the same seed.
_KEY = 0x10


def join_groups(
    durations: np.ndarray, seconds: float, chance: float, *, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Group utterances into recordings; a function of its arguments alone.

    All utterances are put in a random order. From the front of it a recording takes one and, with
    a chance, the next ones too, up to a length that is uniform between that of the first and the
    longest there may be. `seed` and `epoch`, from 0, decide the draws.

    Args:
        durations: (M,) seconds of each utterance.
        seconds: that joined recordings have at most; longer utterances stay single.
        chance: that a recording may have more than one utterance, 0..1.

    Returns:
        (M,) the utterances in order, and (R + 1,) where in it each of the R recordings starts,
        with M at the end.
    """
    count = len(durations)
    rng = np.random.default_rng((seed, epoch, _KEY))
    order = rng.permutation(count)
    # One of each for every utterance: what is drawn for one does not depend on the others.
    joins, place = rng.random(count) < chance, rng.random(count)
    lengths = np.asarray(durations, dtype=np.float64)[order]
    ends = np.cumsum(lengths)
    longest = np.where(joins, lengths + np.maximum(0.0, seconds - lengths) * place, lengths)
    # A recording that began with an utterance may go on to here.
    stops = np.searchsorted(ends, ends - lengths + longest + 1e-6, side="right").tolist()
    bounds = [0]
    while bounds[-1] < count:
        bounds.append(max(stops[bounds[-1]], bounds[-1] + 1))
    return order, np.asarray(bounds)


def join_texts(texts: Sequence[str], tokenizer: Tokenizer) -> str:
    """Join texts, with a space between two where they need one and there is a token of it.

    Chinese and Japanese need none; a language without spaces has no token.
    """
    spaced = texts[1:] and any(t == SPACE_TOKEN or WORD_START in t for t in tokenizer.tokens)
    joined = ""
    for text in filter(None, texts):
        alone = joined and (is_ideograph(joined[-1]) or is_ideograph(text[0]))
        joined += " " * bool(joined and spaced and not alone) + text
    return joined


class JoinedDataset(Dataset):
    """The utterances of a dataset, joined anew each epoch.

    Each utterance comes once an epoch. Random draws for a recording are a function of (seed, epoch,
    its utterances). Set `epoch` before the length and the items are asked for.

    Args:
        dataset: has `durations` (M,) in seconds, `epoch`, `seed` and `join(indices, ends)`, an
            item of several of its utterances (see `SpeechDataset`).
        seconds: see `join_groups`.
        chance: see `join_groups`.
        trim: chance that a recording of several begins anywhere in the first of them and ends
            anywhere in the last, 0..1.
    """

    def __init__(self, dataset: Dataset, seconds: float, chance: float = 1.0, trim: float = 0.0):
        if not seconds > 0.0:
            raise ConfigError(f"data.join_seconds has to be above 0, got {seconds!r}")
        for name, value in (("join", chance), ("trim", trim)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"data.{name}_chance has to be in 0..1, got {value!r}")
        self.dataset, self.seconds, self.chance, self.trim = dataset, seconds, chance, trim
        self.epoch = 0

    @property
    def epoch(self) -> int:
        """Return the epoch, from 0, which decides who is joined with whom."""
        return self.dataset.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.dataset.epoch = epoch
        self._order, self._bounds = join_groups(
            self.dataset.durations, self.seconds, self.chance, seed=self.dataset.seed, epoch=epoch
        )

    @property
    def durations(self) -> np.ndarray:
        """Return (R,) seconds of each recording."""
        return np.add.reduceat(self.dataset.durations[self._order], self._bounds[:-1])

    @property
    def speeds(self) -> np.ndarray:
        """Return (R,) the speed of each recording, which is that of its first utterance."""
        return self.dataset.speeds[self._order[self._bounds[:-1]]]

    def utterances(self, index: int) -> Sequence[int]:
        """Return the utterances of a recording, in order."""
        return self._order[self._bounds[index] : self._bounds[index + 1]].tolist()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> Item:
        utterances = self.utterances(index)
        rng = np.random.default_rng((self.dataset.seed, self.epoch, _KEY, utterances[0]))
        draw, *ends = rng.random(3).tolist()
        if len(utterances) == 1 or draw >= self.trim:
            return self.dataset.join(utterances)
        return self.dataset.join(utterances, tuple(ends))
