"""k2 itself."""

from typing import Any

from speechattn.errors import ConfigError


def library() -> Any:
    """The module k2.

    Raises:
        ConfigError: it is not there.
    """
    try:
        import k2
    except ImportError as error:
        raise ConfigError(
            f"this needs k2 ({error}): take the wheel for your torch from k2's own wheel index "
            "(k2-fsa.github.io/k2), for the one of the package index goes with Python 3.10 and "
            "torch 1.13 only; or do without, as is the default"
        ) from error
    return k2
