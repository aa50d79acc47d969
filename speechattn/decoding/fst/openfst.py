"""Composition, determinisation, minimisation by OpenFst (`kaldifst`, prebuilt for every platform).

OpenFst reads 0 as "nothing": a unit is its id + 1 here, and costs are negated scores.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.errors import ConfigError
from speechattn.units import is_ideograph

INSTALL = "graphs need kaldifst and kaldilm: pip install 'speechattn[fst]'"
# To which scores are rounded: OpenFst's 1/1024 adds up to more than 0.001 in a sentence.
DELTA = 1e-6
BACKOFF = "#0"  # the symbol that reads a back-off of the language model


def libraries() -> tuple[Any, Any]:
    """kaldifst and kaldilm.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        import kaldifst
        import kaldilm
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    return kaldifst, kaldilm


def compiled(lines: Iterable[str]) -> Any:
    """An OpenFst transducer from `source target input output cost` and `final cost` lines."""
    kaldifst, _ = libraries()
    return kaldifst.compile("\n".join(lines) + "\n", acceptor=False)


def lexicon_fst(lexicon: Lexicon, vocab_size: int) -> Any:
    """L: units to words, any number of words one after another.

    Where a unit writes spaces, it has to stand between words, but not beside an ideograph.

    Units beyond V + 1 are symbols that make the lexicon deterministic: they end words that are
    spelled alike.

    Args:
        lexicon: the words.
        vocab_size: V.
    """
    kaldifst, _ = libraries()
    # Where a word may begin that is written beside others, and one that wants a space between; and
    # where one of these has ended. Nothing has to be said: 0 is final.
    beside = apart = ended = 0
    lines, state = ["0 0"], 1
    if lexicon.separator is not None:
        beside, apart, ended, state = 1, 2, 3, 4
        lines = ["0 1 0 0 0", "0 2 0 0 0", "0 0", "3 1 0 0 0", "3 0"]
        lines.append(f"3 2 {lexicon.separator + 1} 0 0")
    for word, units, symbol in lexicon.disambiguated():
        text = lexicon.words[word - 1]
        labels = [unit + 1 for unit in units]
        if symbol:
            labels.append(vocab_size + 1 + symbol)
        at = beside if is_ideograph(text[0]) else apart
        rest = 0 if is_ideograph(text[-1]) else ended
        for i, label in enumerate(labels):
            target = rest if i == len(labels) - 1 else state
            lines.append(f"{at} {target} {label} {word if i == 0 else 0} 0")
            at, state = target, state + (target == state)
    lines.sort(key=lambda line: int(line.split()[0]))  # OpenFst starts where the first line does
    fst = compiled(lines)
    kaldifst.connect(fst)
    return fst


def grammar_fst(arpa: str | Path, lexicon: Lexicon, folder: Path) -> Any:
    """G: the n-gram model of an ARPA file; n-grams of words that the lexicon lacks are left out.

    Args:
        arpa: of words.
        lexicon: the words.
        folder: where the table of symbols is written.

    Raises:
        ConfigError: the file cannot be read.
    """
    kaldifst, kaldilm = libraries()
    if not Path(arpa).is_file():
        raise ConfigError(f"{arpa}: there is no such ARPA file")
    table = folder / "symbols.txt"
    symbols = ["<eps>", *lexicon.words, BACKOFF, "<s>", "</s>"]
    rows = [f"{word} {i}" for i, word in enumerate(symbols)]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    try:
        text = kaldilm.arpa2fst(
            input_arpa=str(arpa),
            read_symbol_table=str(table),
            disambig_symbol=BACKOFF,
            max_arpa_warnings=0,
        )
    except RuntimeError as error:
        raise ConfigError(f"{arpa} is no ARPA file of words: {error}") from error
    fst = kaldifst.compile(text, acceptor=False)
    kaldifst.arcsort(fst, "ilabel")
    return fst


def lexicon_and_grammar(lexicon: Lexicon, grammar: Any | None, vocab_size: int) -> Any:
    """LG: composed, deterministic, minimal; of the lexicon alone without a grammar.

    Labels from V + 1 on are symbols, and stand for nothing; V + 1 is the grammar's back-off.
    """
    kaldifst, _ = libraries()
    fst = lexicon_fst(lexicon, vocab_size)
    if grammar is not None:
        kaldifst.add_self_loops(fst, [vocab_size + 1], [len(lexicon.words) + 1])
        kaldifst.arcsort(fst, "olabel")
        fst = kaldifst.StdVectorFst(kaldifst.compose(fst, grammar))
    kaldifst.determinize_star(fst, delta=DELTA, use_log=True)
    kaldifst.minimize_encoded(fst, delta=DELTA)
    return fst


def to_arcs(fst: Any) -> Arcs:
    """An OpenFst transducer as arrays: labels as they are in it, costs become scores."""
    states, start = fst.num_states, fst.start
    final = np.full(states, -np.inf, dtype=np.float32)
    rows = []
    for line in fst.to_str(show_weight_one=True).splitlines():
        part = line.split()
        if len(part) >= 4:
            rows.append(part)
        else:
            final[int(part[0])] = -float(part[1]) if len(part) == 2 else 0.0
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    source, target, label, output = table[:, :4].astype(np.int64).T
    if start:  # state 0 has to be the first
        names = np.arange(states)
        names[[0, start]] = start, 0
        source, target, final = names[source], names[target], final[names]
    return Arcs.of(source, target, label, output, -table[:, 4], final)
