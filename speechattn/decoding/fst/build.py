"""Building of decoding graphs.

    TLG = CTC o lexicon o grammar

Miao et al., "EESEN" (1507.08240); k2 calls it HLG. OpenFst does the composition.
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
    """Build and save the graph of a lexicon and of an n-gram model of its words.

    Args:
        lexicon: the words.
        tokenizer: of the model.
        folder: where the graph is written.
        arpa: ARPA file of words; without one all words score the same.
        topology: of CTC.

    Raises:
        ConfigError: the ARPA file cannot be read or has no n-gram of the lexicon's words, or a
            library is not installed.
    """
    vocab = tokenizer.vocab_size
    grammar = None if arpa is None else grammar_fst(arpa, lexicon)
    units = to_arcs(lexicon_and_grammar(lexicon, grammar, vocab))
    silent = (units.label == 0) | (units.label > vocab)
    if silent.all():
        raise ConfigError(f"{arpa}: no n-gram of the lexicon's words")
    phrases = Phrases(len(lexicon.words))
    units = without_epsilons(units, silent, phrases)
    units.label[:] -= 1  # from OpenFst's numbers to the model's units
    pairs, number = np.unique(np.stack([units.label, units.output]), axis=1, return_inverse=True)
    units.output[:] = number.reshape(-1) + 1
    events = tuple(Event(unit, phrases.words_of(output)) for unit, output in pairs.T.tolist())
    arcs = with_ctc(units, topology)
    graph = Graph(arcs, events, lexicon.words, vocab, topology)
    graph.save(folder)
    counts = (len(lexicon.words), arcs.states, len(arcs))
    logger.info("%s: %d words, %d states, %d arcs", folder, *counts)
    return graph
