"""Writing files whole: under another name first, so that a reader finds all of a file or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; what is there in the end takes the place of `path`.

    The file in the making keeps the suffix, which some writers go by. It is removed when the block
    raises, and left behind only by a kill.

    Args:
        path: the file to write; its folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{os.getpid()}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 file as a whole."""
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8", newline="\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file as a whole."""
    with replacing(path) as part:
        part.write_bytes(content)
