"""Recognition of files, streams and whole manifests."""

from speechattn.transcribe.transcriber import Transcriber

__all__ = ["Transcriber"]
