"""The command line: one subcommand for each step from a folder of media to text.

Imports are inside of the commands, so that `speechattn score` need not load torch.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from speechattn import __version__
from speechattn.cli.data import add_data_commands
from speechattn.cli.recognition import add_decoding_commands
from speechattn.cli.training import add_training_commands
from speechattn.errors import SpeechattnError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    args = make_parser().parse_args(arguments)
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(levelname).1s %(name)s: %(message)s")
    try:
        return args.run(args) or 0
    except SpeechattnError as error:
        print(f"speechattn {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"speechattn {args.command}: interrupted; run it again to go on", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, what it does."""
    parser = argparse.ArgumentParser(
        prog="speechattn", description="Speech recognition and lip reading."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log every detail")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = subcommands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    add_data_commands(command)
    add_training_commands(command)
    add_decoding_commands(command)
    return parser
