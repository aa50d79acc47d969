"""Configuration is constructors: YAML mirrors their arguments, jsonargparse checks it.

A configuration may come from a stranger (a model directory), so what it names is checked before
anything is imported: only classes of this package, or of packages that the caller allowed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from speechattn.errors import ConfigError

PACKAGE = "speechattn"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} must hold a mapping at its top")
    return config


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets `a.b.c` in nested mappings, making those that are missing."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
        if not isinstance(config, dict):
            raise ConfigError(f"{key}: {parent} is not a section")
    config[last] = value


def override(config: dict[str, Any], assignments: Iterable[str]) -> None:
    """Applies `a.b.c=value` strings; values are read as YAML."""
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r}: an override is written key=value")
        set_key(config, key.strip(), yaml.safe_load(value))


def check_class_paths(config: Any, allow: Iterable[str] = (), key: str = "") -> None:
    """Refuses any `class_path` outside this package and the packages in `allow`.

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


def build(kind: type, config: Mapping[str, Any], section: str, allow: Iterable[str] = ()) -> Any:
    """Makes an object of class `kind` whose constructor arguments are `config`.

    Args:
        kind: the class; its arguments' types are checked, nested components are built.
        config: its arguments.
        section: what the configuration calls it, for messages.
        allow: packages beside this one whose classes may be named.

    Raises:
        ConfigError: a key that is unknown, missing, of the wrong type or not allowed.
    """
    check_class_paths(config, allow, section)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, section, fail_untyped=True)
    try:
        parsed = parser.parse_object({section: dict(config)})
        return parser.instantiate(parsed)[section]
    except ArgumentError as error:
        raise ConfigError(str(error)) from error
