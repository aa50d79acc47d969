"""A search as a section of a configuration.

search: {class_path: CtcBeamSearch, init_args: {beam_size: 20}}
search: CtcGreedySearch
"""

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from inspect import isabstract
from pathlib import Path
from typing import Any

from speechattn.config import build, override, read_yaml
from speechattn.decoding import search as searches
from speechattn.decoding.search import JointSearch, Search
from speechattn.errors import ConfigError

logger = logging.getLogger(__name__)

# Searches by their names in model directories of before, as `decode: {method: ...}`.
METHODS = {
    "joint": "JointSearch",
    "attention": "JointSearch",
    "ctc_greedy": "CtcGreedySearch",
    "ctc_beam": "CtcBeamSearch",
    "ctc_rescore": "CtcRescoringSearch",
    "ctc_graph": "GraphSearch",
    "ctc_graph_rescore": "GraphRescoringSearch",
    "transducer_greedy": "TransducerGreedySearch",
    "transducer_beam": "TransducerBeamSearch",
}


SEARCHES = [name for name in searches.__all__ if not isabstract(getattr(searches, name))]


class _Holder:
    def __init__(self, search: Search):
        self.search = search


def build_search(section: Any = None, allow: Iterable[str] = ()) -> Search:
    """Build the search of a section `search`.

    Args:
        section: a class's name, or a mapping of `class_path` and `init_args`; None for the
            default, `JointSearch`. Classes of this package need no module's name.
        allow: packages beside this one whose classes may be named.

    Raises:
        ConfigError: there is no such class, or an option is unknown or has an unusable value.
    """
    if section is None:
        return JointSearch()
    if isinstance(section, str):
        section = {"class_path": section}
    if not isinstance(section, Mapping) or "class_path" not in section:
        raise ConfigError(
            "search: a class and its options are needed, as in {class_path: JointSearch, "
            f"init_args: {{beam_size: 20}}}}, not {section!r}"
        )
    name = str(section["class_path"])
    if "." not in name:
        if name not in SEARCHES:
            near = difflib.get_close_matches(name, SEARCHES, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"search: there is no {name}; {hint}There are {', '.join(SEARCHES)}, and those of "
                "plug-ins by their full path"
            )
        section = {**section, "class_path": f"speechattn.decoding.{name}"}
    try:
        return build(_Holder, {"search": section}, "config", allow).search
    except ConfigError as error:
        message = str(error).replace("config.search.init_args", "search")
        raise ConfigError(message.replace("config.search", "search")) from error


def search_of(config: Mapping[str, Any], allow: Iterable[str] = (), where: object = "") -> Search:
    """Build the search of a whole configuration, as of a model directory.

    A section `decode`, which directories of before have in the place of `search`, is converted and
    said so.

    Args:
        config: with a section `search`; without one, `JointSearch` has its defaults.
        allow: packages beside this one whose classes may be named.
        where: what the configuration is of, for messages.
    """
    if "decode" in config and "search" not in config:
        search = build_search(converted(config["decode"] or {}), allow)
        name = type(search).__name__
        logger.warning("%s: its old section `decode` is read as search: %s", where, name)
        return search
    return build_search(config.get("search"), allow)


def chosen_search(
    config: Mapping[str, Any],
    *,
    search: str | None = None,
    overrides: Iterable[str] = (),
    allow: Iterable[str] = (),
    where: object = "",
) -> Search:
    """Build the search that a command names.

    Args:
        config: of the model.
        search: a class, or a YAML file with a section `search`, instead of the model's own.
        overrides: `KEY=VALUE`, KEY an option of the search, with or without `search.` before it.
        allow: packages beside this one whose classes may be named.
        where: what the configuration is of, for messages.
    """
    if search is not None and Path(search).suffix in (".yaml", ".yml"):
        config, where = read_yaml(search), search
    elif search is not None:
        config = {"search": search}
    section = search_section(search_of(config, allow, where))
    values: dict[str, Any] = {}
    override(values, overrides)
    inner = values.pop("search", {})
    if not isinstance(inner, dict):
        raise ConfigError("search=CLASS: the class of a search is chosen by --search CLASS")
    section["init_args"] |= values | inner
    return build_search(section, allow)


def search_section(search: Search) -> dict[str, Any]:
    """Return the section `search` from which `build_search` makes the same search."""
    kind = type(search)
    own = kind.__module__.startswith("speechattn.")
    path = f"speechattn.decoding.{kind.__name__}" if own else f"{kind.__module__}.{kind.__name__}"
    return {"class_path": path, "init_args": asdict(search)}


def converted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `search` of what once was the section `decode`.

    Options that the search of that method never read are left out.

    Raises:
        ConfigError: the method is unknown.
    """
    options = dict(options)
    method = options.pop("method", "joint")
    if method not in METHODS:
        raise ConfigError(f"decode.method: there was no method {method!r}")
    name = METHODS[method]
    if method == "attention":
        options["ctc_weight"] = 0.0
    if name.startswith("Graph"):
        options.pop("ngram_weight", None)
        options = {key.removeprefix("graph_"): value for key, value in options.items()}
        if "states" in options:
            options["max_states"] = options.pop("states")
        if options.get("library") == "k2py":
            del options["library"]
    known = getattr(searches, name).__dataclass_fields__
    kept = {key: value for key, value in options.items() if key in known}
    return {"class_path": f"speechattn.decoding.{name}", "init_args": kept}
