"""Speech recognition and lip reading: sound, lips or both into text."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["SpeechModel", "Transcriber", "__version__"]

# What type checkers read of these is in __init__.pyi.
_LAZY = {"SpeechModel": "speechattn.model", "Transcriber": "speechattn.transcribe"}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `speechattn score` should not wait for it.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
