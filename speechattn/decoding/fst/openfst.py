"""Composition, determinisation and minimisation with OpenFst (`kaldifst`).

Label 0 is OpenFst's epsilon: a unit's label is its id + 1 here, and costs are negated scores.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from speechattn.decoding.fst.arcs import Arcs
from speechattn.decoding.fst.lexicon import Lexicon
from speechattn.errors import ConfigError, missing_extra
from speechattn.files import write_text
from speechattn.units import is_ideograph

# Rounding of scores: with OpenFst's 1/1024 the errors of a sentence exceed 0.001.
DELTA = 1e-6
BACKOFF = "#0"  # the symbol of the language model's back-off arcs
# Runs in a process of its own: kaldilm logs to stderr, and aborts if the file is malformed.
ARPA_TO_FST = "import json, sys, kaldilm; print(kaldilm.arpa2fst(**json.loads(sys.argv[1])))"


def openfst_library() -> Any:
    """Return the module kaldifst.

    Raises:
        ConfigError: kaldifst or kaldilm is not installed.
    """
    try:
        import kaldifst
        import kaldilm  # noqa: F401
    except ImportError as error:
        raise missing_extra("fst", error.name or "kaldifst") from error
    return kaldifst


def compiled(lines: Iterable[str]) -> Any:
    """Make an OpenFst transducer of `source target input output cost` and `final cost` lines."""
    return openfst_library().compile("\n".join(lines) + "\n", acceptor=False)


def lexicon_fst(lexicon: Lexicon, vocab_size: int) -> Any:
    """Return L, which reads units and writes any number of words.

    If the lexicon has a separator, it stands between words, but not beside an ideograph. Labels
    above V + 1, V being `vocab_size`, are disambiguation symbols.
    """
    kaldifst = openfst_library()
    # States where a word may begin that needs no space, where one may begin that needs a space
    # before it, and where such a word has ended. State 0 is final: no words are a sentence too.
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
    lines.sort(key=lambda line: int(line.split()[0]))  # the first line's state is the start
    fst = compiled(lines)
    kaldifst.connect(fst)
    return fst


def grammar_fst(arpa: str | Path, lexicon: Lexicon) -> Any:
    """Return G, the n-gram model of an ARPA file without n-grams of words outside the lexicon.

    Raises:
        ConfigError: the file cannot be read.
    """
    kaldifst = openfst_library()
    if not Path(arpa).is_file():
        raise ConfigError(f"{arpa}: no such ARPA file")
    symbols = ["<eps>", *lexicon.words, BACKOFF, "<s>", "</s>"]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "symbols.txt"
        write_text(table, "".join(f"{word} {i}\n" for i, word in enumerate(symbols)))
        files = {"input_arpa": str(arpa), "read_symbol_table": str(table)}
        options = {**files, "disambig_symbol": BACKOFF, "max_arpa_warnings": 0}
        command = [sys.executable, "-c", ARPA_TO_FST, json.dumps(options)]
        done = subprocess.run(command, capture_output=True)
    if done.returncode:
        log = done.stderr.decode(errors="replace").replace(" []:", ":")
        reasons = re.findall(r"^(?:\[[EF]\]|\w*Error:) (.+)$", log, re.MULTILINE) or [log.strip()]
        raise ConfigError(f"{arpa}: not an ARPA file of words ({reasons[-1]})")
    fst = kaldifst.compile(done.stdout.decode(), acceptor=False)
    kaldifst.arcsort(fst, "ilabel")
    return fst


def lexicon_and_grammar(lexicon: Lexicon, grammar: Any | None, vocab_size: int) -> Any:
    """Return LG, composed, determinized and minimal; L alone without a grammar.

    Labels from V + 1 on are symbols that read no unit; V + 1 is the grammar's back-off.
    """
    kaldifst = openfst_library()
    fst = lexicon_fst(lexicon, vocab_size)
    if grammar is not None:
        kaldifst.add_self_loops(fst, [vocab_size + 1], [len(lexicon.words) + 1])
        kaldifst.arcsort(fst, "olabel")
        fst = kaldifst.StdVectorFst(kaldifst.compose(fst, grammar))
    kaldifst.determinize_star(fst, delta=DELTA, use_log=True)
    kaldifst.minimize_encoded(fst, delta=DELTA)
    return fst


def to_arcs(fst: Any) -> Arcs:
    """Convert an OpenFst transducer to arrays; labels stay, costs become scores."""
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
    if start:  # state 0 must be the start
        names = np.arange(states)
        names[[0, start]] = start, 0
        source, target, final = names[source], names[target], final[names]
    return Arcs.of((source, target, label, output, -table[:, 4]), final)
