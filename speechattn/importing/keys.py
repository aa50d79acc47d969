"""Another toolkit's configuration, key by key: passed on, required to have a value, or ignored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speechattn.errors import ConfigError


@dataclass(frozen=True)
class Key:
    """A rule for one key.

    Attributes:
        default: the other toolkit's value of a missing key.
        to: our argument that takes the value.
        only: the values with which the numbers are equal; empty for any.
        values: our value for each that can be taken over.
    """

    default: Any = None
    to: str | None = None
    only: tuple[Any, ...] = ()
    values: Mapping[Any, Any] | None = None


def passed(to: str, default: Any = None) -> Key:
    """Pass a key's value on as it is."""
    return Key(default, to)


def fixed(*values: Any) -> Key:
    """Require one of these values; the first is the toolkit's default."""
    return Key(values[0], only=values)


def chosen(to: str, default: Any, values: Mapping[Any, Any]) -> Key:
    """Pass a key's value on by our name of it."""
    return Key(default, to, values=values)


# A key of training or of speed alone: it does not change a trained model's output.
IGNORED = Key()


def ignored(names: str) -> dict[str, Key]:
    """Ignore these keys, separated by spaces."""
    return dict.fromkeys(names.split(), IGNORED)


Keys = Mapping[str, Key]


def translate(
    section: Mapping[str, Any] | None, keys: Keys, name: str, problems: list[str]
) -> dict[str, Any]:
    """Translate a section of theirs into our arguments, by a rule for each known key.

    Each key that cannot be imported adds a line to `problems`, which begins with `name`, that of
    the section with a dot behind it.
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
        values = rule.values
        if rule.only and not any(_same(value, wanted) for wanted in rule.only):
            absent = "" if key in given else ", the default there"
            only = " or ".join(map(repr, rule.only))
            problems.append(f"{name}{key}: {value!r}{absent}: only {only} can be imported")
        elif values is None and rule.to is not None:
            arguments[rule.to] = value
        elif values is not None and isinstance(value, str | None) and value in values:
            arguments[rule.to] = values[value]
        elif values is not None:
            only = " or ".join(map(repr, values))
            problems.append(f"{name}{key}: {value!r}: only {only} can be imported")
    return arguments


def refuse(problems: Sequence[str], what: str) -> None:
    """Raise a ConfigError that lists the problems, if there are any."""
    if problems:
        raise ConfigError(f"{what}:" + "".join(f"\n  {problem}" for problem in problems))


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)
