"""Options that several commands share, and what is read for them."""

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any

from speechattn.errors import ConfigError


def add_overrides(sub: argparse.ArgumentParser) -> None:
    add_set(sub)
    add_allow(sub, "the config")


def add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change the config, e.g. --set training.max_epochs=5",
    )


def add_allow(sub: argparse.ArgumentParser, who: str) -> None:
    sub.add_argument(
        "--allow", action="append", default=[], help=f"a plug-in package that {who} may name"
    )


def add_noise(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("--noise", type=Path, help=what)
    sub.add_argument("--snr", type=float, default=0.0, help="signal to noise, dB")
    sub.add_argument(
        "--noise-part",
        nargs=2,
        type=float,
        default=(0.0, 1.0),
        metavar=("FROM", "TO"),
        help="stretch of the noise that is used, as shares of its length",
    )


def read_config(args: Namespace) -> dict[str, Any]:
    """The config of a training command with its overrides."""
    from speechattn.config import override, read_yaml

    config = read_yaml(args.config)
    override(config, args.overrides)
    return config


def named(assignments: list[str], option: str) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary."""
    values: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {assignment}: written NAME=VALUE")
        if name in values:
            raise ConfigError(f"{option} {assignment}: there is another {name}")
        values[name] = value
    return values


def read_noise(args: Namespace):
    """The noise that --noise, --snr and --noise-part describe, or None."""
    from speechattn.data.augment import AddNoise

    if args.noise is None:
        return None
    if not args.noise.is_file():
        raise ConfigError(f"{args.noise}: no such noise file")
    return AddNoise(args.noise, (args.snr, args.snr), p=1.0, part=tuple(args.noise_part))
