"""Configuration is constructors: YAML mirrors their arguments, jsonargparse checks it.

A configuration may come from a stranger (a model directory), so what it names is checked before
anything is imported: only classes of this package, or of packages that the caller allowed.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from speechattn.errors import ConfigError

PACKAGE = "speechattn"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold a mapping at its top")
    return config


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings, making those that are missing."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
        if not isinstance(config, dict):
            raise ConfigError(f"{key}: {parent} is not a section")
    config[last] = value


def override(config: dict[str, Any], assignments: Iterable[str]) -> None:
    """Apply `a.b.c=value` strings; values are read as YAML."""
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r}: an override is written key=value")
        try:
            set_key(config, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"{assignment!r}: the value is not YAML: {error}") from error


def check_sections(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse a section of another name: one misspelt would be left out in silence.

    Raises:
        ConfigError: it names the section.
    """
    for name in config:
        if name not in known:
            raise ConfigError(f"{name}: no such section; there are {', '.join(known)}")


def check_class_paths(config: Any, allow: Iterable[str] = (), key: str = "") -> None:
    """Refuse any `class_path` outside this package and the packages in `allow`.

    Raises:
        ConfigError: it names the key.
    """
    packages = (PACKAGE, *allow)
    if isinstance(config, Mapping):
        for name, value in config.items():
            here = f"{key}.{name}" if key else str(name)
            if name == "class_path" and str(value).split(".")[0] not in packages:
                raise ConfigError(
                    f"{here}: {value!r} is not part of {PACKAGE}; write its full path, and allow "
                    "its package explicitly if it is a plug-in that you trust"
                )
            check_class_paths(value, allow, here)
    elif isinstance(config, list):
        for i, value in enumerate(config):
            check_class_paths(value, allow, f"{key}[{i}]")
    elif isinstance(config, str):
        # jsonargparse reads a component out of a string too: a class path, or YAML with one in it.
        top, dot, _ = config.partition(".")
        if dot and top not in packages and _importable(top):
            raise ConfigError(
                f"{key}: {config!r} could be read as a class of {top!r}, which is not part of "
                f"{PACKAGE}; a file's name is safe with its folder before it, as in ./{config}"
            )
        inside = _yaml(config)
        if inside != config:
            check_class_paths(inside, allow, key)


def _importable(module: str) -> bool:
    """Whether there is a top-level module of this name; nothing of it is run."""
    try:
        return find_spec(module) is not None
    except ValueError:  # no name, or a module without a spec, such as __main__
        return bool(module)


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def build(kind: type, config: Mapping[str, Any], section: str, allow: Iterable[str] = ()) -> Any:
    """Make an object of class `kind` whose constructor arguments are `config`.

    Args:
        kind: the class; its arguments' types are checked, nested components are built.
        config: its arguments.
        section: what the configuration calls it, for messages.
        allow: packages beside this one whose classes may be named.

    Raises:
        ConfigError: a key that is unknown, missing, of the wrong type or not allowed.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{section}: a section of keys and values is needed, not {config!r}")
    check_class_paths(config, allow, section)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, section, fail_untyped=True)
    try:
        parsed = parser.parse_object({section: dict(config)})
        return parser.instantiate(parsed)[section]
    except (ArgumentError, ValueError, TypeError) as error:
        # Also what constructors say of their arguments. What follows repeats the configuration.
        reason = re.sub(r"\n\s*(Given value|- Expected a <class 'NoneType'>).*", "", str(error))
        raise ConfigError(f"{section}: {reason}") from error
