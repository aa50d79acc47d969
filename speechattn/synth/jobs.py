"""Making the files of a synthetic corpus by several processes, resumed after an interruption."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
from rich.progress import Progress

from speechattn.errors import ConfigError
from speechattn.files import remove_partial, write_text

Job = TypeVar("Job")
MARK = "synthetic.json"


@dataclass(frozen=True)
class SynthSummary:
    """Counts of a synthetic corpus."""

    folder: Path  # the corpus
    clips: int  # files in it
    written: int  # those written by this call; the others were there
    seconds: float  # duration of the clips together
    speakers: tuple[str, ...]  # their names


def claim(folder: Path, facts: dict[str, Any], readme: str) -> None:
    """Write what the corpus is (`synthetic.json`, `README.md`); refuse to mix two in one folder.

    Raises:
        ConfigError: the folder holds another corpus.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MARK
    marker = {"synthetic": True, **facts}
    if path.exists():
        before = None
        with suppress(ValueError):
            before = json.loads(path.read_text(encoding="utf-8"))
        if before != marker:
            raise ConfigError(f"{folder} holds another synthetic corpus: take a new folder")
    remove_partial(folder)
    write_text(folder / "README.md", readme)
    write_text(path, json.dumps(marker, indent=2, ensure_ascii=False) + "\n")


def run_jobs(
    write: Callable[[Job], None], jobs: Sequence[Job], total: int, *, workers: int, progress: bool
) -> None:
    """Call `write`, a module's function, for every job that is missing of `total`.

    Jobs are pickled to the worker processes; 0 or 1 stays in this one.
    """
    with Progress(disable=not progress) as bar:
        task = bar.add_task("synthetic corpus", total=total, completed=total - len(jobs))
        if workers <= 1 or len(jobs) <= 1:
            for job in jobs:
                write(job)
                bar.advance(task)
            return
        # eSpeak has one state a process; "spawn", as a fork would cut the caller's threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_be_single) as pool:
            for _ in pool.map(write, jobs, chunksize=2):
                bar.advance(task)


def _be_single() -> None:
    cv2.setNumThreads(1)  # the processes share the cores already
