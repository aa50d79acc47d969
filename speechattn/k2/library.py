"""Import of k2."""

from typing import Any

from speechattn.errors import ConfigError


def library() -> Any:
    """Return the module k2.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import k2
    except ImportError as error:
        raise ConfigError(
            f"k2 is not installed ({error}): take the wheel for your torch from k2's index "
            "(k2-fsa.github.io/k2); the one on PyPI needs Python 3.10 and torch 1.13. k2 is needed "
            "only where a setting names it"
        ) from error
    return k2
