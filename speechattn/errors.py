"""The errors that a user can act on; each says what was wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class SpeechattnError(Exception):
    """Base of every error that is the input's fault rather than the program's."""


class MediaError(SpeechattnError):
    """A media file that cannot be used.

    Args:
        path: the file.
        reason: what is wrong with it, as a phrase.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Crosses process borders in the ROI workers; the default would replay one argument.
        return type(self), (self.path, self.reason)


class NoFaceError(MediaError):
    """A video in which no face was found."""


class ConfigError(SpeechattnError):
    """A configuration that does not fit together; names the key."""


def missing_extra(extra: str, package: str) -> ConfigError:
    """Return the error for an optional package that is not installed, with both ways to get it.

    Args:
        extra: of this package, such as "onnx".
        package: what could not be imported.
    """
    return ConfigError(
        f"{package} is not installed: pip install 'speechattn[{extra}]', or in a clone of the "
        f"repository pip install '.[{extra}]'"
    )


def no_such(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that there is no `name` of a kind, which one is nearest, and what there is."""
    valid = list(valid)
    nearest = get_close_matches(name, valid, n=1, cutoff=0.65)
    hint = f"; did you mean {nearest[0]}?" if nearest else "."
    return f"no such {kind}{hint}" + (f" Valid: {', '.join(valid)}" if valid else "")


def require(good: bool, key: str, value: object, wanted: str) -> None:
    """Raise `ConfigError` unless an option has a value that it may have.

    Args:
        good: whether it has.
        key: the option's name.
        value: what it was set to.
        wanted: what it has to be, as "at least 1".
    """
    if not good:
        raise ConfigError(f"{key} has to be {wanted}, got {value!r}")
