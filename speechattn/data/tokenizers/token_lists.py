"""Lists of tokens: a file of one unit a line."""

from collections.abc import Sequence
from pathlib import Path

from speechattn.errors import ConfigError
from speechattn.units import BLANK_TOKEN, SOS_EOS_TOKEN, UNK_TOKEN


def read_units(path: Path) -> list[str]:
    """Read tokens in the order of their ids from a file of one token a line.

    A line may end in the token's id, as auto_avsr's `*_units.txt` do, in which case they have to be
    in order, from 1.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of tokens: {error}") from error
    rows = [line.rstrip("\r").split(" ") for line in lines]
    if all(len(row) == 2 for row in rows):
        if wrong := [row[0] for i, row in enumerate(rows, 1) if row[1] != str(i)]:
            raise ConfigError(f"{path}: the id of {wrong[0]!r} is not the number of its line")
    elif any(len(row) != 1 for row in rows):
        raise ConfigError(f"{path}: a line is a token, or on every line a token and its id")
    return [row[0] for row in rows]


def with_ends(units: Sequence[str]) -> list[str]:
    """Put blank before and sos/eos after units from `<unk>` on, as auto_avsr lists them."""
    if not units or units[0] != UNK_TOKEN:
        raise ConfigError(f"tokens: the first has to be {UNK_TOKEN}, not {list(units[:1])}")
    return [BLANK_TOKEN, *units, SOS_EOS_TOKEN]


def read_token_list(path: Path) -> list[str]:
    """Read all tokens, at their ids, from a list of units that begins with `<blank>` or `<unk>`."""
    units = read_units(path)
    if units[0] not in (BLANK_TOKEN, UNK_TOKEN):
        neither = f"neither {BLANK_TOKEN} nor {UNK_TOKEN}"
        raise ConfigError(f"{path}: its first unit is {units[0]!r}, {neither}")
    return units if units[0] == BLANK_TOKEN else with_ends(units)
