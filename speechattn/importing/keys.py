"""Sections of another toolkit's configuration, key by key: passed on, insisted on, or ignored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """What becomes of one key.

    Attributes:
        default: the other toolkit's own value where the key is not given.
        to: the argument of ours that takes the value.
        only: the values that give our numbers; empty for any.
        values: for each value that can be taken over, ours.
    """

    default: Any = None
    to: str | None = None
    only: tuple[Any, ...] = ()
    values: Mapping[Any, Any] | None = None


def passed(to: str, default: Any = None) -> Key:
    """A key whose value ours takes as it is."""
    return Key(default, to)


def fixed(*values: Any) -> Key:
    """A key that has to be one of these; the first is the toolkit's default."""
    return Key(values[0], only=values)


def chosen(to: str, default: Any, values: Mapping[Any, Any]) -> Key:
    """A key whose values bear other names here."""
    return Key(default, to, values=values)


# Of training only, or of how fast it goes: its value doesn't change what a trained model says.
IGNORED = Key()

Keys = Mapping[str, Key]


def translate(
    section: Mapping[str, Any] | None, keys: Keys, name: str, problems: list[str]
) -> dict[str, Any]:
    """Arguments of ours for a section of theirs.

    Args:
        section: theirs.
        keys: what becomes of each key there may be.
        name: of the section, for messages.
        problems: what stands in the way is added, one line a key.
    """
    if section is not None and not isinstance(section, Mapping):
        problems.append(f"{name.removesuffix('.')}: {section!r}: is no section of keys and values")
        section = None
    given = dict(section or {})
    for key in sorted(given.keys() - keys.keys(), key=str):
        problems.append(f"{name}{key}: {given[key]!r}: this key is not known")
    arguments = {}
    for key, rule in keys.items():
        value = given.get(key, rule.default)
        if rule.only and not any(_same(value, wanted) for wanted in rule.only):
            absent = "" if key in given else ", the default there"
            problems.append(
                f"{name}{key}: {value!r}{absent}: only {_either(rule.only)} can be imported"
            )
        elif rule.values is not None:
            if not isinstance(value, (str, type(None))) or value not in rule.values:
                problems.append(
                    f"{name}{key}: {value!r}: only {_either(tuple(rule.values))} can be imported"
                )
            else:
                arguments[rule.to] = rule.values[value]
        elif rule.to is not None:
            arguments[rule.to] = value
    return arguments


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, values))
