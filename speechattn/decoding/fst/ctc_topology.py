"""CTC's topology over a transducer of units: H o LG, without H and its V^2 arcs.

Each state of the transducer becomes one state for "the last frame was blank", and one for each unit
by which it is entered, for "the last frame was that unit".
"""

from typing import Literal

import numpy as np

from speechattn.decoding.fst.arcs import Arcs

# `standard`: between two equal units there must be a blank. `modified` (k2's name): there need not
# be one, which saves arcs, but one long unit and the same unit twice look alike.
Topology = Literal["standard", "modified"]


def with_ctc(arcs: Arcs, topology: Topology = "standard") -> Arcs:
    """Return a transducer that reads frames of CTC instead of units.

    Args:
        arcs: each reads a unit, 1 to V - 1.
        topology: see `Topology`.

    Returns:
        A transducer whose labels are units and blank; what an arc of `arcs` writes and scores
        stands at the first frame of its unit.
    """
    if topology not in ("standard", "modified"):
        raise ValueError(f"topology is standard or modified, not {topology!r}")
    states = arcs.states
    unit = int(arcs.label.max(initial=0)) + 1
    key = arcs.target.astype(np.int64) * unit + arcs.label
    entries, entry = np.unique(key, return_inverse=True)
    entered, entering = entries // unit, entries % unit  # state and unit of each entry
    inside = states + np.arange(len(entries))  # the states whose last frame was a unit
    after = states + entry  # (A,), where an arc leads that reads the first frame of its unit
    every = np.arange(states)

    def silent(source: np.ndarray, target: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
        none = np.zeros(len(source))
        return [source, target, label, none, none]

    columns = [
        silent(every, every, np.zeros(states)),
        [arcs.source, after, arcs.label, arcs.output, arcs.score],
        silent(inside, inside, entering),
    ]
    if topology == "standard":
        columns.append(silent(inside, entered, np.zeros(len(entries))))
        # Every entry of a state also has the state's own arcs, but for its unit.
        first = arcs.first()
        count = first[entered + 1] - first[entered]
        owner = np.repeat(np.arange(len(entries)), count)
        index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        index += np.repeat(first[entered], count)
        other = arcs.label[index] != entering[owner]
        owner, index = owner[other], index[other]
        label, output, score = (c[index] for c in arcs.columns[2:])
        columns.append([inside[owner], after[index], label, output, score])
        final = np.concatenate([arcs.final, arcs.final[entered]])
    else:
        columns.append(list(arcs.columns))
        columns.append(silent(inside, entered, entering))
        final = np.concatenate([arcs.final, np.full(len(entries), -np.inf)])
    return Arcs.of([np.concatenate(c) for c in zip(*columns, strict=True)], final)
