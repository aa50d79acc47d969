"""The processes that crop: one video in, one outcome out, even if the video kills its process."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import cv2

from speechattn.data.crops.roi.cropper import MouthCrop, MouthCropper, StaleDetections
from speechattn.data.crops.roi.detector import FaceDetector
from speechattn.data.crops.roi.faces import (
    CachedFaces,
    decode_faces,
    detector_number,
    encode_faces,
    file_state,
)
from speechattn.data.crops.roi.mtcnn import MtcnnDetector
from speechattn.data.crops.roi.options import RoiOptions
from speechattn.data.crops.store import EncodedCrop, encode
from speechattn.errors import MediaError, NoFaceError, SpeechattnError

_log = logging.getLogger(__name__)

DetectorFactory = Callable[[], FaceDetector]
# Seconds after which a video is taken to hang its decoder: at least so many, and so many times its
# length; if that is not known, the last.
_PATIENCE, _PATIENCE_TIMES, _PATIENCE_UNKNOWN = 600.0, 20.0, 10800.0


@dataclass(frozen=True)
class RoiItem:
    """One video to crop."""

    key: str  # name in the store, the cut's id
    path: str  # the video
    landmarks: str | None = None  # file to use instead of the detector (see `landmarks`)
    seconds: float | None = None  # length, if known, for the estimate of time and disk


@dataclass(frozen=True)
class Task:
    """A video for a worker, and its faces if an earlier run kept them."""

    item: RoiItem
    cached: CachedFaces | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of one video."""

    crop: EncodedCrop | None = None  # its crops, or None
    reason: str = ""  # why there are none
    faces: CachedFaces | None = None  # the detections, of this run or an earlier one
    seconds: float = 0.0  # time that it took


def crop_all(
    tasks: Iterable[Task], options: RoiOptions, detector: DetectorFactory | None, workers: int
) -> Generator[tuple[RoiItem, Outcome], None, None]:
    """Yield outcomes as they come, in no certain order; a video that kills its worker has one too.

    `detector` is called in each worker, None for MTCNN; without `workers` this process works.
    """
    tasks = iter(tasks)
    if workers <= 0:
        worker = _Worker(options, detector)
        yield from ((task.item, worker(task)) for task in tasks)
        return
    ended = False
    while not ended:
        # A worker that dies (a fault inside a codec) takes the pool with it and does not say on
        # which file: those it may have been are then tried one at a time. If all hang, alike.
        suspects: list[Task] = []
        yield from _pool(tasks, options, detector, workers, suspects=suspects)
        ended = not suspects
        for task in suspects:
            died: list[Task] = []
            yield from _pool(iter([task]), options, detector, 1, suspects=died)
            if died:
                reason = "its worker process died or hung (a fault in the video decoder?)"
                yield task.item, Outcome(reason=reason)


class _Worker:
    """Crops one video after the other."""

    def __init__(self, options: RoiOptions, detector: DetectorFactory | None):
        make = detector or MtcnnDetector
        name = getattr(make, "__qualname__", None) or repr(make)
        self._number = detector_number(name, options)
        self._cropper = MouthCropper(options, make())

    def __call__(self, task: Task) -> Outcome:
        begun, item, cached = time.perf_counter(), task.item, task.cached
        state = (*file_state(item.path), self._number)
        if cached and (cached.size, cached.modified, cached.detector) != state:
            cached = None
        crop, reason = None, ""
        try:
            if item.landmarks is None and cached and not cached.pictures:
                raise NoFaceError(item.path, cached.data.decode())
            crop = self._crop(item, cached)
        except NoFaceError as error:
            reason = error.reason
            if item.landmarks is None:
                cached = CachedFaces(0, *state, reason.encode())
        except MediaError as error:
            # The path has a column of its own, unless it is the landmark file's.
            reason = error.reason if error.path == str(item.path) else str(error)
        except Exception as error:  # a bug met on one clip must not cost the others hours of work
            _log.exception("%s: unexpected error", item.path)
            reason = f"unexpected error: {error!r}"
        if crop is None:
            return Outcome(reason=reason, faces=cached, seconds=time.perf_counter() - begun)
        if crop.detections:
            cached = CachedFaces(len(crop.detections), *state, encode_faces(crop.detections))
        packed = encode(crop.frames, crop.fps, crop.detected, crop.note)
        return Outcome(packed, "", cached, time.perf_counter() - begun)

    def _crop(self, item: RoiItem, cached: CachedFaces | None) -> MouthCrop:
        if item.landmarks is None and cached:
            try:
                detections = decode_faces(cached.data, cached.pictures)
                return self._cropper.crop(item.path, detections=detections)
            except StaleDetections as error:
                _log.debug("detecting again: %s", error)
        return self._cropper.crop(item.path, item.landmarks)


# ---------------------------------------------------------------------------------- processes

_setup: tuple[RoiOptions, DetectorFactory | None]
_worker: _Worker | None = None


def _start_worker(options: RoiOptions, detector: DetectorFactory | None) -> None:
    global _setup
    # Ctrl-C reaches the whole group; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _setup = options, detector


def _end_with_parent() -> None:
    # A parent that is killed outright leaves its workers waiting on a pipe for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ready() -> None:
    # Not in _start_worker: what is raised there is printed and lost, what a job raises arrives.
    global _worker
    if _worker is None:
        _worker = _Worker(*_setup)


def _work(task: Task) -> Outcome:
    _ready()
    assert _worker is not None
    return _worker(task)


def _pool(
    tasks: Iterator[Task],
    options: RoiOptions,
    detector: DetectorFactory | None,
    workers: int,
    *,
    suspects: list[Task],
) -> Generator[tuple[RoiItem, Outcome], None, None]:
    """Yield outcomes until all are there or a worker dies or hangs.

    `suspects` then gets the tasks that were under way.
    """
    task = next(tasks, None)
    if task is None:
        return
    # spawn: a fork of a process with torch's or OpenCV's threads running can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (options, detector))
    pending: dict[Future[Outcome], Task] = {}
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
                while task is not None and len(pending) < 2 * workers:
                    pending[pool.submit(_work, task)] = task
                    task = next(tasks, None)
                if not pending:
                    return
                patience = max(map(_patience, pending.values()))
                ended = wait(pending, patience, return_when=FIRST_COMPLETED).done
                if not ended:
                    raise BrokenProcessPool
                for future in ended:
                    outcome = future.result()
                    yield pending.pop(future).item, outcome
    except BrokenProcessPool:
        suspects.extend(pending.values())
        if task is not None:  # taken from `tasks`, not handed over yet
            suspects.append(task)
    finally:
        # Also when the caller stops early (Ctrl-C): do not wait for clips nobody will take.
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        if pending:
            for process in processes:
                process.terminate()


def _patience(task: Task) -> float:
    seconds = task.item.seconds
    return _PATIENCE_UNKNOWN if seconds is None else _PATIENCE + _PATIENCE_TIMES * seconds


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Set the environment so that a spawned worker's libraries start one thread each."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
