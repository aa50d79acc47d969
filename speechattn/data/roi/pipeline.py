"""Mouth crops of a whole corpus: workers, a progress bar, a list of failures, a picture to look at.

The parent process alone writes the store; workers crop and compress. A run that was interrupted is
continued by running it again: what is in the store is skipped, what failed is tried again.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speechattn.data.roi.cropper import MouthCropper
from speechattn.data.roi.detector import FaceDetector
from speechattn.data.roi.mtcnn import MtcnnDetector
from speechattn.data.roi.options import RoiOptions
from speechattn.data.roi.sheet import write_contact_sheet
from speechattn.data.store import CropStore, CropWriter, EncodedCrop, encode
from speechattn.errors import ConfigError, MediaError, SpeechattnError

_log = logging.getLogger(__name__)

DetectorFactory = Callable[[], FaceDetector]
_Result = EncodedCrop | str  # a string is the reason of a failure


@dataclass(frozen=True)
class RoiItem:
    """One video to crop.

    Attributes:
        key: name in the store, the cut's id.
        path: the video.
        landmarks: landmark file to use instead of the detector (see `landmarks`), or None.
    """

    key: str
    path: str
    landmarks: str | None = None


@dataclass(frozen=True)
class RoiSummary:
    """What a run did.

    Attributes:
        done: clips cropped in this run.
        skipped: clips that were in the store before.
        failed: clips without a crop; listed in `failures.tsv`.
        frames: crops written in this run.
        seconds: wall time of this run.
    """

    done: int
    skipped: int
    failed: int
    frames: int
    seconds: float


def extract(
    items: Sequence[RoiItem],
    folder: str | Path,
    options: RoiOptions | None = None,
    workers: int = 2,
    detector: DetectorFactory | None = None,
    progress: bool = True,
) -> RoiSummary:
    """Crops the mouths of many videos into a crop store.

    Writes into `folder`: the store (see `data.store`), `roi.json` (the options), `failures.tsv`
    (key, path, reason; of this run) and `contact_sheet.png`. A video that cannot be used never
    stops the run, not even one that kills its worker.

    Args:
        items: the videos; keys are unique.
        folder: of the store, made if missing.
        options: see `RoiOptions`; must be those that the store was begun with.
        workers: processes; 0 works in this one. With more, a script that calls this must guard its
            main code by `if __name__ == "__main__"`.
        detector: a class or function that makes a face detector, called in each worker; MTCNN
            by default.
        progress: show a progress bar.

    Returns:
        Counts of the run.

    Raises:
        ConfigError: `folder` was begun with other options.
        ValueError: a key occurs twice.
    """
    options = options or RoiOptions()
    folder = Path(folder)
    keys = [item.key for item in items]
    if len(set(keys)) != len(keys):
        raise ValueError(f"{len(keys) - len(set(keys))} keys occur twice among the videos")
    begun = time.monotonic()
    done = failed = frames = 0
    with CropWriter(folder) as writer, open(folder / "failures.tsv", "w") as failures:
        _check_options(folder, options, empty=len(writer) == 0)
        todo = [item for item in items if item.key not in writer]
        # Before the first crop: a folder may be looked at while it fills.
        failures.write("key\tpath\treason\n")
        try:
            with (
                _bar(progress) as bar,
                closing(_results(todo, options, detector, workers)) as results,
            ):
                skipped = len(items) - len(todo)
                task = bar.add_task("mouth crops", total=len(items), completed=skipped, failed=0)
                for item, result in results:
                    if isinstance(result, str):
                        failed += 1
                        reason = " ".join(result.split())
                        failures.write(f"{item.key}\t{item.path}\t{reason}\n")
                        failures.flush()
                    else:
                        writer.add_encoded(item.key, result)
                        done += 1
                        frames += result.info.frames
                    bar.update(task, advance=1, failed=failed)
        finally:
            writer.close()
            store = CropStore(folder)
            shown = [key for key in keys if key in store]
            if shown:
                write_contact_sheet(store, shown, folder / "contact_sheet.png")
    if failed:
        _log.warning("%d videos gave no crops, see %s", failed, folder / "failures.tsv")
    seconds = time.monotonic() - begun
    return RoiSummary(done, len(items) - len(todo), failed, frames, seconds)


def _check_options(folder: Path, options: RoiOptions, empty: bool) -> None:
    # Crops of two geometries in one store would train a model on both, unnoticed.
    file = folder / "roi.json"
    if file.exists() and not empty:
        before = json.loads(file.read_text())
        changed = {k: (before.get(k), v) for k, v in asdict(options).items() if before.get(k) != v}
        if changed:
            told = ", ".join(f"{k} was {old}, is {new}" for k, (old, new) in changed.items())
            raise ConfigError(f"{folder}: holds crops made with other options ({told})")
    file.write_text(json.dumps(asdict(options), indent=1) + "\n")


def _bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
        disable=not show,
    )


# ---------------------------------------------------------------------------------- workers

_options: RoiOptions | None = None
_detector: DetectorFactory | None = None
_cropper: MouthCropper | None = None


def _start_worker(options: RoiOptions, detector: DetectorFactory | None) -> None:
    global _options, _detector
    # Ctrl-C reaches the whole group; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _options, _detector = options, detector


def _end_with_parent() -> None:
    # A parent that is killed outright leaves its workers waiting on a pipe for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ready() -> None:
    # Not in _start_worker: what is raised there is printed and lost, what a job raises arrives.
    global _cropper
    if _cropper is None:
        _cropper = MouthCropper(_options, _detector() if _detector else MtcnnDetector())


def _work(item: RoiItem) -> _Result:
    _ready()
    assert _cropper is not None
    return _crop(_cropper, item)


def _crop(cropper: MouthCropper, item: RoiItem) -> _Result:
    try:
        crop = cropper.crop(item.path, item.landmarks)
    except MediaError as error:
        # The path has a column of its own, unless it is the landmark file's.
        return error.reason if error.path == str(item.path) else str(error)
    except Exception as error:  # a bug met on one clip must not cost the others hours of work
        _log.exception("%s: unexpected error", item.path)
        return f"unexpected error: {error!r}"
    return encode(crop.frames, crop.fps, crop.detected)


def _results(
    items: list[RoiItem], options: RoiOptions, detector: DetectorFactory | None, workers: int
) -> Generator[tuple[RoiItem, _Result], None, None]:
    if workers <= 0:
        cropper = MouthCropper(options, detector() if detector else None)
        yield from ((item, _crop(cropper, item)) for item in items)
        return
    rest = list(items)
    suspects: list[RoiItem] = []
    while rest:
        # A worker that dies (a fault inside a codec) takes the pool with it and does not say on
        # which file: those it may have been are then tried one at a time.
        done: set[str] = set()
        for item, result in _pool(rest, options, detector, min(workers, len(rest)), suspects):
            done.add(item.key)
            yield item, result
        if not done and not suspects:
            raise SpeechattnError("the worker processes of the ROI stage die without work")
        held = {item.key for item in suspects}
        rest = [item for item in rest if item.key not in done and item.key not in held]
        for item in suspects:
            died: list[RoiItem] = []
            yield from _pool([item], options, detector, 1, died)
            if died:
                yield item, "its worker process died (a fault in the video decoder?)"
        suspects = []


def _pool(
    items: list[RoiItem],
    options: RoiOptions,
    detector: DetectorFactory | None,
    workers: int,
    suspects: list[RoiItem],
) -> Generator[tuple[RoiItem, _Result], None, None]:
    """Results as they come, until all are there or a worker dies; `suspects` then gets the items
    that were under way."""
    # spawn: a fork of a process with torch's or OpenCV's threads running can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (options, detector))
    queue = iter(items)
    pending: dict[Future[_Result], RoiItem] = {}
    try:
        with _single_threaded():
            try:
                pool.submit(_ready).result()
            except BrokenProcessPool as error:
                raise SpeechattnError(
                    "the worker processes of the ROI stage do not start: guard the script's main "
                    'code by `if __name__ == "__main__"`, let the detector be a class or function '
                    "of a module, or take workers=0"
                ) from error
            while True:
                # A short queue keeps the results in memory few.
                while len(pending) < 2 * workers and (item := next(queue, None)) is not None:
                    pending[pool.submit(_work, item)] = item
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield pending.pop(future), result
    except BrokenProcessPool:
        suspects.extend(pending.values())
    finally:
        # Also when the caller stops early (Ctrl-C): do not wait for clips nobody will take.
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        if pending:
            for process in processes:
                process.terminate()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Environment in which a spawned worker's libraries start one thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
