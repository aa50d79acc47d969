"""A command's parser, made of its function: parameters are arguments, annotated with their help.

    Annotated[type, help]    or, for an option that takes one item of its list at a time,
    Annotated[type, help, option, metavar]

Parameters before the `*` are positional, those behind it are options; one without a default is
required. A list is given by several words, or by repeating its option. A parameter whose type is a
dataclass stands for the fields of it: a group of options that several commands share.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from speechattn.cli.common import summary
from speechattn.config import expected
from speechattn.errors import SpeechattnError, no_such

_METAVARS = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


class UsageError(SpeechattnError):
    """A command line that cannot be understood."""


def make_parser(name: str, function: Callable[..., Any]) -> ArgumentParser:
    """Return the parser of a command."""
    parser = ArgumentParser(
        prog=f"speechattn {name}",
        description=summary(function, whole=True),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    positional = parser.add_argument_group("arguments")
    required = parser.add_argument_group("required options")
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this text")
    needed: list[str] = []
    files: list[str] = []

    def add(function: Callable[..., Any], group: Any) -> None:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            hint = hints[parameter.name]
            if is_dataclass(hint):
                add(hint, parser.add_argument_group(summary(hint).lower()))
                continue
            name, settings = _argument(parameter, *get_args(hint))
            metavar = settings.get("metavar")
            if not name.startswith("-"):
                positional.add_argument(name, **settings)
                word = f"{metavar} ..." if settings.get("nargs") == "+" else metavar
                files.append(f"[{word}]" if settings.get("nargs") == "?" else word)
            elif settings.get("required"):
                required.add_argument(name, **settings)
                needed.append(f"{name} {metavar}")
            else:
                group.add_argument(name, **settings)

    add(function, options)
    parser.usage = " ".join([parser.prog, *needed, "[options]", *files])
    return parser


def make_tree(commands: dict[str, Callable[..., Any]]) -> ArgumentParser:
    """Return one parser of all commands, for shell completion."""
    plain = {"formatter_class": argparse.HelpFormatter}  # shtab expands help by it
    root = ArgumentParser(prog="speechattn", **plain)
    tops = root.add_subcommands()
    inner: dict[str, Any] = {}
    for name, function in commands.items():
        parser = make_parser(name, function)
        for action in parser._actions:
            if action.metavar == "PATH" or not action.option_strings:
                action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files"}
        first, _, second = name.partition(" ")
        if not second:
            tops.add_subcommand(first, parser, help=summary(function))
            continue
        if first not in inner:
            between = ArgumentParser(prog=f"speechattn {first}", **plain)
            tops.add_subcommand(first, between, help=f"{first} ...")
            inner[first] = between.add_subcommands()
        inner[first].add_subcommand(second, parser, help=summary(function))
    return root


def _argument(
    parameter: inspect.Parameter, hint: Any, text: str, *single: str
) -> tuple[str, dict[str, Any]]:
    """Return the name of a parameter's argument and what `add_argument` is told of it."""
    text = text.replace("%", "%%")
    positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    name = parameter.name if positional else f"--{parameter.name.replace('_', '-')}"
    metavar, settings = parameter.name.upper() if positional else None, {}
    if single:
        name, metavar = single
        settings = {"action": "extend", "nargs": 1}
    kind, item = get_origin(hint) or hint, (*get_args(hint), None)[0]
    if kind is tuple and get_args(hint)[-1] is ...:
        kind = list  # of any length
    if kind is bool:
        return name, {"action": "store_true", "help": text, "dest": parameter.name}
    if kind is list and get_origin(item) is tuple:
        settings, hint = {"action": "append", "nargs": "+"}, get_args(item)[0]
    elif kind is list:
        settings = settings or {"nargs": "+", **({} if positional else {"action": "extend"})}
        settings["type"] = hint = item
    elif kind is tuple:
        settings, hint = {"nargs": len(get_args(hint)), "type": item}, item
    else:
        settings = {"type": hint, **({"nargs": "?"} if positional and not required else {})}
    settings["metavar"] = metavar or _metavar(hint)
    if not positional:
        settings.update(dest=parameter.name, required=required)
    if not required:
        settings["default"] = list(default) if kind in (list, tuple) else default
        shown = " ".join(map(str, default)) if kind in (list, tuple) else default
        if "(default:" not in text:
            text += f" (default: {'none' if shown in (None, '') else shown})"
    return name, {**settings, "help": text}


def _metavar(hint: Any) -> str:
    """Return how help calls a value of a type."""
    if hint in _METAVARS:
        return _METAVARS[hint]
    kinds = get_args(hint)  # choices, or the X of `X | None`
    return f"{{{','.join(map(str, kinds))}}}" if get_origin(hint) is Literal else _metavar(kinds[0])


def parse_arguments(parser: ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """Parse the words behind a command's name.

    Raises:
        UsageError: it names the option, and where there is no such option the nearest.
    """
    try:
        return vars(parser.parse_args(list(words)))
    except ArgumentError as error:
        raise UsageError(_explain(parser, str(error))) from error


def call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Call a command with the values that its parser gives."""
    hints = get_type_hints(function)
    names = inspect.signature(function).parameters
    groups = {n: call(hints[n], values) for n in names if is_dataclass(hints[n])}
    return function(**{name: groups[name] if name in groups else values[name] for name in names})


def _explain(parser: ArgumentParser, text: str) -> str:
    """Put what jsonargparse says of a command line into plain words."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    names = {action.dest: (action.option_strings or [action.metavar])[-1] for action in shown}
    if match := re.search(r"unrecognized arguments: ([^\s=]+)", text):
        valid = [name for name in names.values() if name.startswith("-")]
        known = match[1] in valid or not match[1].startswith("-")
        return f"{match[1]}: {'one too many' if known else no_such('option', match[1], valid)}"
    if match := re.search(r"arguments are required: (.+)", text):
        return "missing: " + ", ".join(names[name] for name in match[1].split(", "))
    if match := re.search(r"argument (\S+): expected (?:(\d+)|.*one) argument", text):
        return f"{match[1]}: {f'{match[2]} values are' if match[2] else 'a value is'} needed"
    if match := re.search(r"argument (\S+): ignored explicit argument (.+)", text):
        return f"{match[1]} takes no value, not {match[2]}"
    if match := re.search(r"argument (\S+): invalid (\w+) value: '(.+)'", text):
        return f"{match[1]}: " + expected(f"Expected a <class '{match[2]}'>", match[3])
    if match := re.search(r'key "(\w+)".*?(Expected .+?)(?:\. Got value|\n|$)', text, re.DOTALL):
        value = re.search(r"(?:Got|Given) value: (.*)", text)
        return f"{names[match[1]]}: {expected(match[2], value[1] if value else '')}"
    return " ".join(text.split())
