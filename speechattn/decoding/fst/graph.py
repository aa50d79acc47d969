"""Decoding graphs: which sentences a recogniser may find, and how likely each is.

A graph is built once (`build`), saved as arrays, and given to whichever library searches.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speechattn import __version__
from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.ctc_topology import Topology
from speechattn.errors import ConfigError
from speechattn.files import write_text

ARCS, WORDS, META = "graph.npz", "words.txt", "graph.json"


@dataclass(frozen=True)
class Event:
    """What an arc writes that reads the first frame of a unit.

    Attributes:
        unit: id of the unit.
        words: numbers, from 1, of the words that the path has determined with this unit.
    """

    unit: int
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A transducer from frames of CTC to units and words.

    Attributes:
        arcs: labels are units; an output is the number of an event, from 1, or 0 where no unit
            begins.
        events, words: (E,) and (W,); the number of events[i] or words[i] is i + 1.
        vocab_size: V of the model that the graph was built for.
        topology: of CTC.
    """

    arcs: Arcs
    events: tuple[Event, ...]
    words: tuple[str, ...]
    vocab_size: int
    topology: Topology = "standard"

    def units(self, events: Iterable[int]) -> list[int]:
        """Return the units that events begin."""
        return [self.events[number - 1].unit for number in events]

    def text(self, events: Iterable[int]) -> list[str]:
        """Return the words that events write."""
        return [self.words[word - 1] for n in events for word in self.events[n - 1].words]

    def save(self, folder: str | Path) -> None:
        """Write `graph.npz`, `words.txt` and, last, `graph.json`."""
        folder = Path(folder)
        (folder / META).unlink(missing_ok=True)
        self.arcs.save(folder / ARCS)
        write_text(folder / WORDS, "\n".join(self.words) + "\n")
        meta = {
            "speechattn": __version__,
            "vocab_size": self.vocab_size,
            "topology": self.topology,
            "events": [[event.unit, *event.words] for event in self.events],
        }
        write_text(folder / META, json.dumps(meta) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Graph":
        """Read what `save` wrote.

        Raises:
            ConfigError: the folder holds no complete graph.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            words = (folder / WORDS).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            text = f"{folder}: no graph here; `speechattn graph` makes one ({error})"
            raise ConfigError(text) from error
        events = tuple(Event(unit, tuple(words)) for unit, *words in meta["events"])
        arcs = Arcs.load(folder / ARCS)
        return cls(arcs, events, tuple(words), meta["vocab_size"], meta["topology"])
