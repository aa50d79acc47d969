"""The errors that a user can act on; each says what was wrong, where, and what to do."""

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
