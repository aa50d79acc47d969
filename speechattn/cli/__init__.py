"""The command line: one command for each step from a folder of media to text.

A command is a function: `parser` makes its options and their help of the signature, and the text
above them of the docstring.
Only the parser of the command that is run is made, and libraries are imported in the functions, so
that help comes at once and `speechattn score` need not load torch.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Literal

from speechattn import __version__
from speechattn.cli import data, evaluation, language, models, recognition, tools, training
from speechattn.cli.common import summary
from speechattn.errors import SpeechattnError, missing_extra, no_such


def completion(shell: Annotated[Literal["bash", "zsh"], "bash or zsh"]) -> None:
    """Print a script that completes commands and options in a shell.

    It needs the extra `completion`. For bash, write it to
    ~/.local/share/bash-completion/completions/speechattn.
    """
    if find_spec("shtab") is None:
        raise missing_extra("completion", "shtab")
    from speechattn.cli.parser import make_tree

    print(make_tree(COMMANDS).get_completion_script(f"shtab-{shell}"))


# In the order in which a user comes to need them.
GROUPS = {
    "Data": {
        "synth-corpus grid": data.synth_grid,
        "synth-corpus cnvsrc": data.synth_cnvsrc,
        "prepare tsv": data.prepare_tsv,
        "prepare grid": data.prepare_grid,
        "prepare cnvsrc": data.prepare_cnvsrc,
        "roi": data.roi,
        "tokens": data.tokens,
        "import-tokens": data.import_tokens,
        "align": data.align,
        "augment-sheet": data.augment_sheet,
    },
    "Training": {"train": training.train, "average": training.average},
    "Models": {
        "import-checkpoint": models.import_checkpoint,
        "combine": models.combine,
        "export": models.export,
    },
    "Recognition": {
        "transcribe": recognition.transcribe,
        "stream": recognition.stream,
        "decode": recognition.decode,
    },
    "Evaluation": {
        "score": evaluation.score,
        "delay": evaluation.delay,
        "fuse": evaluation.fuse,
        "report": evaluation.report,
    },
    "Language models and graphs": {
        "ngram": language.ngram,
        "train-lm": language.train_lm,
        "graph": language.graph,
        "draw": language.draw,
    },
    "Tools": {"doctor": tools.doctor, "completion": completion},
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(words: list[str]) -> int:
    level = logging.INFO
    if words[:1] == ["--verbose"]:
        level = logging.DEBUG
        del words[0]
    if words == ["--version"]:
        print(__version__)
        return 0
    name = " ".join(words[:2])
    if name not in COMMANDS:
        name = words[0] if words else ""
    if name not in COMMANDS:
        return _without_command(words)
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s")
    from speechattn.cli.parser import UsageError, call, make_parser, parse_arguments

    try:
        values = parse_arguments(make_parser(name, COMMANDS[name]), words[name.count(" ") + 1 :])
        return call(COMMANDS[name], values) or 0
    except UsageError as error:
        print(f"speechattn {name}: {error}", file=sys.stderr)
        print(f"See `speechattn {name} --help`.", file=sys.stderr)
        return 2
    except SpeechattnError as error:
        print(f"speechattn {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"speechattn {name}: interrupted; run it again to go on", file=sys.stderr)
        return 130


def _without_command(words: list[str]) -> int:
    """Show the commands, or those that begin with a word; else say what is wrong."""
    begun = next((w for w in words[:1] for name in COMMANDS if name.startswith(f"{w} ")), "")
    word = (words[1:] if begun else words)[:1]
    if not word or word[0] in ("-h", "--help"):
        print(overview(begun), file=sys.stdout if word else sys.stderr)
        return 0 if word else 2
    prog = f"speechattn {begun}".strip()
    valid = {name.removeprefix(begun).split()[0] for name in COMMANDS if name.startswith(begun)}
    print(f"{prog}: {word[0]}: {no_such('command', word[0], sorted(valid))}", file=sys.stderr)
    print(f"See `{prog} --help`.", file=sys.stderr)
    return 2


def overview(begun: str = "") -> str:
    """Return the commands, or those that begin with a word, with a line on each."""
    lines = [f"usage: speechattn [--verbose] {begun} COMMAND ...".replace("  ", " ")]
    if not begun:
        lines += ["", "Speech recognition and lip reading: sound, lips or both into text."]
    for title, group in GROUPS.items():
        chosen = {name: command for name, command in group.items() if name.startswith(begun)}
        if chosen:
            lines += ["", f"{title}:"]
            lines += [f"  {name:<22}{summary(command)}" for name, command in chosen.items()]
    lines += ["", f"`speechattn {begun} COMMAND --help` shows its options.".replace("  ", " ")]
    return "\n".join(lines)
