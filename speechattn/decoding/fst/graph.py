"""Decoding graphs: what a recogniser may say, and how likely it is.

    TLG = CTC o lexicon o grammar

Miao et al., "EESEN" (1507.08240); in k2's words HLG. It is made once, by OpenFst, kept as arrays,
and handed to whichever library decodes.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speechattn import __version__
from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.ctc_topology import Topology
from speechattn.errors import ConfigError

ARCS, WORDS, META = "graph.npz", "words.txt", "graph.json"


@dataclass(frozen=True)
class Event:
    """What an arc writes that reads the first frame of a unit.

    Attributes:
        unit: of the model.
        words: numbers of the words that are certain from here on, from 1.
    """

    unit: int
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A transducer from frames of CTC to units and words.

    Attributes:
        arcs: labels are units of the model, blank is 0; an output is the number of an event from
            1, 0 where no unit begins.
        events: event number i + 1 is events[i].
        words: (W,), word number i + 1 is words[i].
        vocab_size: V of the model that it is for.
        topology: of CTC.
    """

    arcs: Arcs
    events: tuple[Event, ...]
    words: tuple[str, ...]
    vocab_size: int
    topology: Topology = "standard"

    def units(self, events: Iterable[int]) -> list[int]:
        """The units that events begin."""
        return [self.events[number - 1].unit for number in events]

    def text(self, events: Iterable[int]) -> list[str]:
        """The words that events write."""
        return [self.words[word - 1] for n in events for word in self.events[n - 1].words]

    def save(self, folder: str | Path) -> None:
        """Write `graph.npz`, `words.txt` and, last, `graph.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / META).unlink(missing_ok=True)
        self.arcs.save(folder / ARCS)
        (folder / WORDS).write_text("\n".join(self.words) + "\n", encoding="utf-8")
        meta = {
            "speechattn": __version__,
            "vocab_size": self.vocab_size,
            "topology": self.topology,
            "events": [[event.unit, *event.words] for event in self.events],
        }
        (folder / META).write_text(json.dumps(meta) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Graph":
        """What `save` wrote.

        Raises:
            ConfigError: the folder holds no whole graph.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            words = (folder / WORDS).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{folder} holds no graph: `speechattn graph` makes one ({error})"
            ) from error
        events = tuple(Event(unit, tuple(found)) for unit, *found in meta["events"])
        return cls(
            Arcs.load(folder / ARCS), events, tuple(words), meta["vocab_size"], meta["topology"]
        )
