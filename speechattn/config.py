"""Configuration is constructors: YAML mirrors their arguments, jsonargparse checks it.

A configuration may come from a stranger (a model directory), so what it names is checked before
anything is imported: only classes of this package, or of packages that the caller allowed.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from speechattn.errors import ConfigError, no_such

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
    """Set `a.b.c` in nested mappings, making those that are missing.

    Where a component is written `{class_path: ..., init_args: ...}`, or as the name of its class,
    a key below it means one of its arguments.
    """
    *parents, last = key.split(".")
    for parent in parents:
        if parent not in ("class_path", "init_args"):
            config = _arguments(config)
        section = config.setdefault(parent, {})
        if isinstance(section, str):
            section = config[parent] = {"class_path": section}
        if not isinstance(section, dict):
            raise ConfigError(f"{key}: {parent} is not a section")
        config = section
    if last not in ("class_path", "init_args"):
        config = _arguments(config)
    config[last] = value


def _arguments(section: dict[str, Any]) -> dict[str, Any]:
    """Return where the arguments of a component or section are written."""
    return section.setdefault("init_args", {}) if "class_path" in section else section


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
    """Raise ConfigError for a section of another name, which would be left out in silence."""
    for name in config:
        if name not in known:
            raise ConfigError(f"{name}: {no_such('section', str(name), known)}")


def check_class_paths(config: Any, allow: Iterable[str] = (), key: str = "") -> None:
    """Raise ConfigError, with the key, for a `class_path` outside this package and `allow`."""
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
        with suppress(yaml.YAMLError):
            if (inside := yaml.safe_load(config)) != config:
                check_class_paths(inside, allow, key)


def _importable(module: str) -> bool:
    """Return whether there is a top-level module of this name; nothing of it is run."""
    try:
        return find_spec(module) is not None
    except ValueError:  # no name, or a module without a spec, such as __main__
        return bool(module)


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
    from jsonargparse import ArgumentError, ArgumentParser  # not for `import speechattn`

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, section, fail_untyped=True)
    try:
        parsed = parser.parse_object({section: dict(config)})
        return parser.instantiate(parsed)[section]
    except (ArgumentError, ValueError, TypeError) as error:  # the last two from constructors
        raise ConfigError(_explain(str(error), kind, config, section)) from error


# ------------------------------------------------------------------------ jsonargparse's messages

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list"}


def expected(reason: str, value: Any) -> str:
    """Put what jsonargparse says of a value of the wrong type into plain words."""
    if match := re.match(r"Expected a typing\.Literal\[(.+?)\]", reason):
        choices = [choice.strip("' ") for choice in match[1].split(",")]
        return no_such("choice", str(value), choices).replace("no such choice", f"not {value!r}")
    if match := re.match(r"Expected a (?:<class '(\w+)'>|(.+?))(?:\. Got|$)", reason):
        return f"{_TYPES.get(match[1], f'a {match[1] or match[2]}')} is needed, not {value!r}"
    return " ".join(reason.split())


def _explain(text: str, kind: type, config: Mapping[str, Any], section: str) -> str:
    """Turn jsonargparse's nested report into one line: the key, what is wrong, what is valid."""
    reports = list(_reports(text, kind))
    # Of a union's types the one that the value came nearest to; that it is not null says nothing.
    keys, owner, reason = max(
        [r for r in reports if "NoneType" not in r[2]] or reports, key=lambda r: len(r[0])
    )
    shown, value = _written([k for key in keys for k in key.split(".")], {section: config})
    where = ".".join(shown) or section
    if isinstance(value, Mapping) and "class_path" in value:
        for key in value.keys() - {"class_path", "init_args"}:
            return f"{where}.{key}: {no_such('key', key, ('class_path', 'init_args'))}"
    if option := re.search(r"[Oo]ption '([^']+)'(?: is not accepted|$)", reason):
        if isinstance(value, Mapping) and "class_path" in value:
            owner = _imported(str(value["class_path"])) or owner
        name, *more = option[1].split(".")
        while more and name in inspect.signature(owner).parameters:
            shown, owner, name = [*shown, name], _class_of(owner, name), more.pop(0)
        shown, _ = _written([*(shown or [section]), name], {section: config})
        of = "" if owner is kind else f" of {owner.__name__}"
        valid: Iterable[str] = inspect.signature(owner).parameters
        return f"{'.'.join(shown)}: {no_such('option' + of, name, valid)}"
    if match := re.search(r"module '(.+)' has no attribute '(\w+)'", reason):
        valid = getattr(sys.modules[match[1]], "__all__", ())
        return f"{where}: {match[2]}: {no_such(f'class in {match[1]}', match[2], valid)}"
    if match := re.search(r"import path string: (\w+)", reason):
        modules = (module for name, module in sys.modules.items() if name.startswith(PACKAGE))
        valid = {name for module in modules for name in getattr(module, "__all__", ())}
        return f"{where}: {match[1]}: {no_such('class', match[1], valid).split(' Valid')[0]}"
    if match := re.search(r"arguments are required: (.+)", reason):
        return f"{where}: missing: {match[1]}"
    return f"{where}: {expected(reason, value)}"


def _reports(text: str, kind: type) -> Iterator[tuple[list[str], type, str]]:
    """Yield key, class and reason of each complaint in jsonargparse's indented report."""
    context: list[tuple[int, list[str], type]] = [(-1, [], kind)]
    for line in text.splitlines():
        bare = line.lstrip(" -")
        indent = len(line) - len(bare)
        while len(context) > 1 and context[-1][0] >= indent:
            context.pop()
        _, keys, owner = context[-1]
        if match := re.match(r'Parser key "(.+)":$', bare):
            context.append((indent, [*keys, match[1]], owner))
        elif match := re.match(r"Problem with given class_path '(.+)':$", bare):
            context.append((indent, keys, _imported(match[1]) or owner))
        elif not re.match(r"Does not validate|Subtypes:|Errors:|Given value", bare):
            yield keys, owner, bare


def _imported(path: str) -> type | None:
    """Return the class of a path if its module was imported."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _class_of(owner: type, name: str) -> type:
    """Return the class of a constructor's argument, of `X | None` the X."""
    hint: type = get_type_hints(owner.__init__)[name]  # type: ignore[misc]
    return next((kind for kind in get_args(hint) if kind is not type(None)), hint)


def _written(keys: list[str], config: Any) -> tuple[list[str], Any]:
    """Return a key as the user wrote it, with `init_args`, and what stands there."""
    shown = []
    for key in keys:
        if isinstance(config, Mapping) and key not in config and "init_args" in config:
            shown.append("init_args")
            config = config["init_args"]
        shown.append(key)
        config = config.get(key) if isinstance(config, Mapping) else None
    return shown, config
