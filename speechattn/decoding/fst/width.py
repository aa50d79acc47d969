"""How much a search over a graph keeps."""

from dataclasses import dataclass

from speechattn.errors import require


@dataclass(frozen=True)
class SearchWidth:
    """How much a search over a graph keeps.

    Attributes:
        beam: paths that are this much worse than the best of their frame are dropped.
        lattice_beam: paths that are this much worse than the best are no part of the lattice.
        max_active: states of a frame that are kept at most.
        min_active: states of a frame that are kept whatever their scores; None for the engine's
            own choice (20 for Kaldi, 30 for k2).
    """

    beam: float = 16.0
    lattice_beam: float = 8.0
    max_active: int = 7000
    min_active: int | None = None

    def __post_init__(self) -> None:
        for name in ("beam", "lattice_beam", "max_active"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")

    def least_active(self, usual: int) -> int:
        """Return `min_active`, or the engine's usual one, at most `max_active`."""
        return min(usual if self.min_active is None else self.min_active, self.max_active)
