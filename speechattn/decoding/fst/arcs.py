"""A transducer as arrays, which every library can be given, and which is saved without pickle.

Legend: S states, A arcs, V units.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechattn.errors import ConfigError


@dataclass(frozen=True)
class Arcs:
    """A weighted transducer over the reals; scores are log-probabilities: more is better.

    Arcs are sorted by the state that they leave. State 0 is the first.

    Attributes:
        source: (A,) int32.
        target: (A,) int32.
        label: (A,) int32, what an arc reads.
        output: (A,) int32, what it writes; 0 for nothing.
        score: (A,) float32.
        final: (S,) float32, the score of ending in a state; -inf where none ends.
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray
    output: np.ndarray
    score: np.ndarray
    final: np.ndarray

    @property
    def states(self) -> int:
        """S."""
        return len(self.final)

    def __len__(self) -> int:
        """A."""
        return len(self.source)

    def first(self) -> np.ndarray:
        """(S + 1,) int64: the arcs of state s are first[s] up to first[s + 1]."""
        return np.searchsorted(self.source, np.arange(self.states + 1))

    @classmethod
    def of(
        cls,
        source: np.ndarray,
        target: np.ndarray,
        label: np.ndarray,
        output: np.ndarray,
        score: np.ndarray,
        final: np.ndarray,
    ) -> "Arcs":
        """Arcs in any order."""
        order = np.argsort(source, kind="stable")
        columns = [np.asarray(c)[order].astype(np.int32) for c in (source, target, label, output)]
        score = np.asarray(score)[order].astype(np.float32)
        return cls(*columns, score, np.asarray(final, dtype=np.float32))

    def save(self, path: str | Path) -> None:
        """One `.npz` file."""
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: str | Path) -> "Arcs":
        """What `save` wrote.

        Raises:
            ConfigError: it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} is no graph that was saved: {error}") from error
