"""Speech recognition and lip reading: sound, lips or both into text."""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["SpeechModel", "Transcriber", "__version__"]

_LAZY = {"SpeechModel": "speechattn.model", "Transcriber": "speechattn.transcribe"}


def __getattr__(name: str):
    # torch takes seconds to import; `speechattn score` should not wait for it.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
