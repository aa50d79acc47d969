"""A transducer as arrays, which any library can take and which is saved without pickle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechattn.errors import ConfigError
from speechattn.files import replacing


@dataclass(frozen=True)
class Arcs:
    """A weighted transducer whose scores are log-probabilities: more is better.

    Arcs are sorted by their source. State 0 is the start.

    Attributes:
        source, target: (A,) int32, states.
        label, output: (A,) int32, input and output labels; 0 is epsilon of the output.
        score: (A,) float32.
        final: (S,) float32, final scores; -inf for states that are not final.
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray
    output: np.ndarray
    score: np.ndarray
    final: np.ndarray

    @property
    def states(self) -> int:
        """Return S."""
        return len(self.final)

    def __len__(self) -> int:
        """Return A."""
        return len(self.source)

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """Return source, target, label, output and score."""
        return (self.source, self.target, self.label, self.output, self.score)

    def first(self) -> np.ndarray:
        """Return (S + 1,) int64: the arcs of state s are first[s] to first[s + 1] - 1."""
        return np.searchsorted(self.source, np.arange(self.states + 1))

    @classmethod
    def of(cls, columns: Sequence[np.ndarray], final: np.ndarray) -> "Arcs":
        """Make a transducer of the `columns` of arcs in any order."""
        order = np.argsort(columns[0], kind="stable")
        *numbers, score = (np.asarray(column)[order] for column in columns)
        numbers = [column.astype(np.int32) for column in numbers]
        return cls(*numbers, score.astype(np.float32), np.asarray(final, dtype=np.float32))

    def save(self, path: str | Path) -> None:
        """Write one `.npz` file."""
        with replacing(path) as part:
            np.savez(part, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: str | Path) -> "Arcs":
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is not one that `save` wrote.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: not the arcs of a saved graph ({error})") from error
