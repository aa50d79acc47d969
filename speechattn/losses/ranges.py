"""Ranges of options."""

import math

from speechattn.errors import ConfigError


def check_range(
    name: str, value: float, low: float = 0.0, high: float = math.inf, *, below: bool = False
) -> None:
    """Check that an option is a finite number in [low, high], or in [low, high) if `below`.

    Raises:
        ConfigError: it isn't.
    """
    if low <= value <= high and value != math.inf and not (below and value == high):
        return
    if high == math.inf:
        raise ConfigError(f"{name} has to be {low:g} or more, got {value!r}")
    bounds = f"[{low:g}, {high:g})" if below else f"{low:g}..{high:g}"
    raise ConfigError(f"{name} has to be in {bounds}, got {value!r}")
