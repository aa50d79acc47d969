"""Recognition of files, streams and whole manifests."""

from speechattn.transcribe.recogniser import Recogniser
from speechattn.transcribe.transcriber import Transcriber

__all__ = ["Recogniser", "Transcriber"]
