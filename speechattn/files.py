"""Writing files whole: under another name first, so that a reader finds all of a file or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART = ".part"  # starts the name of a file that is being written


@contextmanager
def replacing(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """Yield a path to write to; when the block ends, the file there replaces `path`.

    It lies in the same folder and keeps all suffixes, which some writers go by. It is removed when
    the block raises; only a killed process leaves it behind.

    Args:
        path: the file to write; its folder is made if it is not there.
        sync: force the content to disk first, so that not even a power cut leaves half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_PART}{os.getpid()}.{path.name}")
    try:
        yield part
        if sync:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, content: str, errors: str = "strict") -> None:
    """Write a UTF-8 file as a whole; `errors` is that of `str.encode`."""
    write_bytes(path, content.encode("utf-8", errors))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file as a whole."""
    with replacing(path) as part:
        part.write_bytes(content)


def remove_partial(folder: str | Path) -> None:
    """Remove what killed processes left half-written in a folder and the folders below it."""
    for part in Path(folder).rglob(f"{_PART}[0-9]*.*"):
        part.unlink(missing_ok=True)
