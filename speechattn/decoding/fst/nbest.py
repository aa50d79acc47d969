"""The best sentences of a lattice."""

import numpy as np

from speechattn.decoding.fst.lattice import Lattice, spoken
from speechattn.decoding.fst.openfst import compiled, libraries
from speechattn.decoding.fst.path import Path


def nbest(lattice: Lattice, count: int) -> list[Path]:
    """The best paths of a lattice, no two of the same events, best first.

    Paths that say the same in other frames are one: the best of them. OpenFst rounds to 1/1024
    while it tells the best from the others.

    Args:
        lattice: some path of it ends.
        count: how many at most.

    Returns:
        At least one.
    """
    kaldifst, _ = libraries()
    columns = (lattice.source, lattice.target, lattice.output, -lattice.scores)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    lines = [f"{s} {t} {event} {event} {cost:.9g}" for s, t, event, cost in rows]
    ends = np.flatnonzero(np.isfinite(lattice.final))
    lines += [f"{s} {-lattice.final[s]:.9g}" for s in ends.tolist()]
    fst = compiled(lines)
    kaldifst.rmepsilon(fst)
    fst = kaldifst.shortest_path(kaldifst.determinize(fst), n=count)
    found = []
    for path in kaldifst.convert_nbest_to_vector(fst):
        _, events, _, _ = kaldifst.get_linear_symbol_sequence(path)
        found.append(spoken(lattice, events))  # its score is exact, and it knows the frames
    return sorted(found, key=lambda path: -path.score)
