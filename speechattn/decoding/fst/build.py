"""How a decoding graph is made.

    TLG = CTC o lexicon o grammar

Miao et al., "EESEN" (1507.08240); in k2's words HLG. OpenFst makes it once.
"""

import logging
from pathlib import Path

import numpy as np

from speechattn.data.tokenizers import Tokenizer
from speechattn.decoding.fst.ctc_topology import Topology, with_ctc
from speechattn.decoding.fst.epsilon import Phrases, without_epsilons
from speechattn.decoding.fst.graph import Event, Graph
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.decoding.fst.openfst import grammar_fst, lexicon_and_grammar, to_arcs
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)


def build_graph(
    lexicon: Lexicon,
    tokenizer: Tokenizer,
    folder: str | Path,
    arpa: str | Path | None = None,
    topology: Topology = "standard",
) -> Graph:
    """Make the graph of a lexicon, and of a language model of its words.

    Args:
        lexicon: the words.
        tokenizer: of the model.
        folder: where the graph is written, and tables on the way.
        arpa: n-gram model of words; without one all words are equally good.
        topology: of CTC.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = tokenizer.vocab_size
    grammar = None if arpa is None else grammar_fst(arpa, lexicon, folder)
    units = to_arcs(lexicon_and_grammar(lexicon, grammar, vocab))
    silent = (units.label == 0) | (units.label > vocab)
    if silent.all():
        raise ConfigError(f"{arpa}: none of its n-grams is of words of the lexicon")
    phrases = Phrases(len(lexicon.words))
    units = without_epsilons(units, silent, phrases)
    units.label[:] -= 1  # from OpenFst's numbers to the model's units
    pairs, number = np.unique(np.stack([units.label, units.output]), axis=1, return_inverse=True)
    units.output[:] = number.reshape(-1) + 1
    events = tuple(Event(unit, phrases.words_of(output)) for unit, output in pairs.T.tolist())
    arcs = with_ctc(units, topology)
    graph = Graph(arcs, events, lexicon.words, vocab, topology)
    graph.save(folder)
    logger.info(
        "%s: %d words, %d states, %d arcs", folder, len(lexicon.words), arcs.states, len(arcs)
    )
    return graph
